"""Arithmetic ceilings: the tensor cores' through the best library, the ordinary pipe's through a chain of FMAs."""
