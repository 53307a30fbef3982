"""Offline tuning: `prune.py` drops candidates on the host; `search.py` times the others on a GPU through `track.py`."""
