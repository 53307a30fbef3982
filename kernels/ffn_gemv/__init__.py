"""The matrix-vector products of a decode step: how near do they come to the rate of the memory?"""
