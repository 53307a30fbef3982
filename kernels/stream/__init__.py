"""Memory ceilings: what the memory, the L2 and a launch give when nothing else is asked of them."""
