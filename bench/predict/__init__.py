"""What should it take? The roofline of one launch, and the model of a whole decode step."""
