"""Sampling: what does it cost to draw the next token from the logits?"""
