"""What does it mean? Claims, interventions, goals, and one run beside another."""
