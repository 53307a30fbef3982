"""What did it take? The order of cases, the worker process, the gate and the clocks."""
