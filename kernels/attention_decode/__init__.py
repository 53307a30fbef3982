"""Decode attention: what do a few query tokens per sequence cost against a long KV cache?"""
