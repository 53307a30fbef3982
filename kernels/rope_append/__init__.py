"""QK-norm, RoPE and the write into the cache, in one."""
