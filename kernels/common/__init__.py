"""What do the kernels of several operations share?"""
