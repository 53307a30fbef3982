"""Cache writes: one token per sequence into the KV cache."""
