"""Which GPU of a machine, or of many machines, is slow? The same run on each of them, one process a GPU.

`node` runs on every machine, `engines` reach the machines, `head` collects what they send into one directory.
"""
