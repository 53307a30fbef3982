"""A rented hour in one command: `steps.py` goes through them; what loads torch is a process of its own, `child.py`."""
