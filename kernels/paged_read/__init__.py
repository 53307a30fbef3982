"""The page reads of attention alone: what does the indirection cost?"""
