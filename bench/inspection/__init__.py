"""What will run? Compiled code, compiled code executed without a GPU, and hardware counters."""
