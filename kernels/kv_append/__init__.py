"""Cache writes: what does it cost to write one token per sequence into the KV cache?"""
