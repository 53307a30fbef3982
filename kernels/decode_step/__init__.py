"""A whole decode step: all operations of a model's layers, one after the other."""
