"""Which GPU of many deviates from the others? Each run becomes a summary; summaries are compared."""
