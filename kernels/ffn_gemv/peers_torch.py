"""torch by name: cuBLASLt instead of the library that torch would pick, and torch.compile for one row of x.

gpt-fast runs the second, and torchao's weight-only int8 amounts to it. torchao's int4 (tinygemm) and `_scaled_mm` are
in `peers.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kernels.ffn_gemv.op import GemvCase
from kernels.ffn_gemv.peers import one_pass
from kernels.op import Impl, Inputs, Launch, Target, torch_version

RECOMPILES = 64
"""Shapes that one compiled function may see; each case of a run is one shape."""


def lt_supports(case: GemvCase, target: Target) -> str | None:
    if target.kind != "cuda":
        return "needs an NVIDIA GPU (cuBLASLt)"
    return f"multiplies {case.dtype} with itself, not with {case.weights}" if case.quantized else None


def lt(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.mm`; cuBLASLt is the preferred library during this call only."""
    import torch

    prefer = torch.backends.cuda.preferred_blas_library
    x, w_t = inputs["x"], inputs["w"].T
    y = torch.empty(case.B, case.N, dtype=x.dtype, device=x.device)

    def launch() -> torch.Tensor:
        before = prefer()
        prefer("cublaslt")
        try:
            return torch.mm(x, w_t, out=y)
        finally:
            prefer(before)

    return launch


def compiled_supports(case: GemvCase, target: Target) -> str | None:
    if target.kind != "cuda" or target.sm < 80:
        return "is compiled for NVIDIA GPUs of sm_80 or later"
    if case.B > 1:
        return "is one kernel only for one row of x; for more rows torch writes the weights out in 16 bits"
    if case.weights not in (case.dtype, "int8", "fp8") or case.activations != case.dtype:
        return "is measured with 16-bit, int8 and fp8 weights and 16-bit activations"
    if case.weights == "fp8" and target.sm < 89:
        return "Triton converts fp8 on sm_89 or later"
    return None


def scaled_linear(x: Any, w: Any, w_scale: Any) -> Any:
    """y = (x W^T) * scale; W is converted on the way. The scales are fp32 or None, y has the type of x."""
    y = x @ w.to(x.dtype).T
    return y if w_scale is None else (y * w_scale).to(x.dtype)


@cache
def compiled_linear() -> Any:
    """One compiled function for all cases. It is one kernel only if tuned as torch asks for matrix-vector products.

    With `fullgraph`, code that it cannot compile is an error, not a slow fallback.
    """
    import torch

    tuned: dict[str, Any] = {"coordinate_descent_tuning": True}
    return torch.compile(scaled_linear, dynamic=False, fullgraph=True, options=tuned)


def compiled(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """The function is compiled and tuned here; it allocates y."""
    import torch

    x, w, w_scale, linear = inputs["x"], inputs["w"], inputs.get("w_scale"), compiled_linear()
    with torch._dynamo.config.patch(recompile_limit=RECOMPILES):
        linear(x, w, w_scale)
    return lambda: linear(x, w, w_scale)


IMPLS = (
    Impl(name="torch-lt", stages=one_pass, prepare=lt, supports=lt_supports, version=torch_version),
    Impl(
        name="torch-compiled",
        stages=one_pass,
        prepare=compiled,
        by_torch_compile=True,
        supports=compiled_supports,
        version=torch_version,
    ),
)
