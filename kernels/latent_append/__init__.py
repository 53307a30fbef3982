"""The norm of a latent, RoPE of its rotary parts, and the write into the cache, in one."""
