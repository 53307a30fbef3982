"""Memory ceilings: what do the memory, the L2 and a launch deliver when nothing else is asked of them?"""
