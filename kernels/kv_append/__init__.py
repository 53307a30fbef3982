"""Writing one token per sequence into its KV cache."""
