"""Compiled kernels executed without a GPU: the PTX of a launch, instruction by instruction, on its own tensors.

What the interpreter cannot show shows here: bf16 products, inline PTX, the layouts that the compiler chose, copies
that are not waited for, accesses out of bounds or misaligned. Nothing here says how long anything takes, and memory
has one order for all: a missing fence, unlike a missing barrier, is not seen.
"""

TENSOR_CORES = ("mma", "wgmma")
"""The tensor-core instructions that are executed. Tensor memory (tcgen05) is not emulated."""
