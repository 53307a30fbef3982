"""Decode attention: a few query tokens per sequence against a long KV cache."""
