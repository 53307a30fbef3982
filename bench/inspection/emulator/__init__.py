"""Does a compiled kernel compute the right result? Its PTX is executed without a GPU, on the tensors of its launch.

This shows what the interpreter cannot show: bf16 products, inline PTX, the layouts that the compiler chose, copies
that nobody waits for, accesses out of bounds or misaligned. It does not show how long anything takes. All threads see
stores in one order, so a missing barrier shows, and a missing fence does not.
"""

TENSOR_CORES = ("mma", "wgmma")
"""The tensor-core instructions that are executed. Tensor memory (tcgen05) is not emulated."""
