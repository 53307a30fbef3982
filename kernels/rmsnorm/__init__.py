"""RMSNorm: the norm before and after each block of a layer."""
