"""y[B, N] = x[B, K] W[N, K]^T by the kernel that fits the types: one launch that reads W from DRAM once.

| weights                       | activations | kernel                                         |
|-------------------------------|-------------|------------------------------------------------|
| same type as the activations  | any         | `triton_gemv_dense.py`: multiplied as they are |
| any of `quantization.FORMATS` | bf16, fp16  | `triton_gemv_quant.py`: unpacked in registers  |
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from kernels.common.integers import next_power_of_2
from kernels.common.stream_k import Plan
from kernels.ffn_gemv import triton_gemv_dense, triton_gemv_quant
from kernels.ffn_gemv.op import GemvCase
from kernels.launch import Built, triton_impl
from kernels.op import Inputs, Stage, Target, Tuning

LARGE, MEDIUM = 1 << 26, 1 << 24
"""Sizes that separate classes of matrices, in weights. In bf16 they are 134 and 34 MB, 40 and 10 us at 3.35 TB/s."""


def shape_class(case: GemvCase) -> str:
    """Cases of one class are alike in types, in padded batch, in the block that divides K, and in the time that the
    weights take."""
    batch = case.B if case.B <= 2 else max(16, next_power_of_2(case.B))
    activations = f" x{case.activations}" if case.activations != case.dtype else ""
    divides = f" K%{case.K & -case.K}" if case.K % 1024 else ""
    size = "large" if case.N * case.K >= LARGE else "medium" if case.N * case.K >= MEDIUM else "small"
    return f"B{batch} {case.dtype} w{case.weights}{activations}{divides} {size}"


def kernel_of(case: GemvCase) -> ModuleType:
    """The module whose `plan`, `build`, `stages` and `supports` serve the case."""
    return triton_gemv_quant if case.quantized and case.activations == case.dtype else triton_gemv_dense


def plan(case: GemvCase, target: Target) -> Plan:
    return kernel_of(case).plan(case, target)


def build(case: GemvCase, inputs: Inputs, target: Target) -> Built:
    return kernel_of(case).build(case, inputs, target)


def stages(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    return kernel_of(case).stages(case, target)


def supports(case: GemvCase, target: Target) -> str | None:
    return kernel_of(case).supports(case, target)


def candidates(case: GemvCase, target: Target) -> Iterator[dict[str, int]]:
    return kernel_of(case).candidates(case, target)


TUNING = Tuning(op="ffn_gemv", shape_class=shape_class, candidates=candidates)
IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports, tuning=TUNING),)
