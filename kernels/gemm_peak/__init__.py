"""Arithmetic ceilings: what do the tensor cores deliver, and the ordinary pipe?"""
