"""A rented hour in one command: `steps.py` goes through the steps, and what loads torch runs in other processes."""
