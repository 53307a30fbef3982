"""Offline tuning: `sift.py` drops candidates on the host, `race.py` times the others, `track.py` is its clock."""
