"""y[B, H] = W_down (silu(x W_gate^T) * (x W_up^T)): the dense FFN block of a decoder layer."""
