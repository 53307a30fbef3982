"""State updates: what does a decode step of a state-space or linear-attention layer cost?"""
