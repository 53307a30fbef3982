"""Arithmetic ceilings: the tensor cores through the best library, the ordinary pipe through chains of FMAs."""
