"""Index scores: what does it cost to score every token before sparse attention reads the best ones?"""
