"""Ranks of a split model: how they share memory, meet and launch together, on a host or on several GPUs."""
