"""y[B, N] = x[B, K] W[N, K]^T, B = 1 to 1024: each projection of a decode step. It reads every weight once.

At batch B the intensity is about 2 B FLOP per weight: 1 FLOP/B in bf16 at B = 1, whatever N and K are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from kernels.common.compare import rounded
from kernels.common.fields import TYPES, Dtype, OneOf
from kernels.common.outliers import clear, mark_columns, mark_rows, outliers, signed_groups
from kernels.common.quantization import (
    BESIDE,
    FORMATS,
    Weights,
    check_weights,
    dequantize,
    random_weights,
    weight_bytes,
)
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.common.smaller import fewer
from kernels.models import MODELS, projections
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch


FP8 = ("fp8", "fp8_block")


@dataclass(frozen=True, kw_only=True)
class GemvCase(Case):
    """x `[B, K]` and y `[B, N]` in `dtype`, W `[N, K]` in `weights`; sums in fp32.

    `weights` is `dtype` or a format of `quantization.py`. `activations` is `dtype`, or fp8 (one scale per row) if the
    weights are fp8 too. Empty stands for `dtype`. `layer` names the projection of `model`; like `model`, it is not part
    of the id.
    """

    B: int
    N: int
    K: int
    dtype: Dtype = "bf16"
    weights: Weights = ""
    activations: Annotated[str, OneOf("", *TYPES, "fp8")] = ""
    layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", self.weights or self.dtype)
        object.__setattr__(self, "activations", self.activations or self.dtype)
        check_weights(self.weights, self.dtype, K=self.K)
        if self.activations != self.dtype and not (self.activations == "fp8" and self.weights in FP8):
            raise ValueError(
                f"activations {self.activations}: they are {self.dtype} like dtype, or fp8 with fp8 weights; weights "
                f"are {self.weights}"
            )

    @property
    def quantized(self) -> bool:
        return self.weights != self.dtype

    @property
    def id(self) -> str:
        return (
            f"B{self.B}-N{self.N}-K{self.K}-{self.dtype}"
            + (f"-w{self.weights}" if self.quantized else "")
            + (f"-x{self.activations}" if self.activations != self.dtype else "")
        )


def of_model(model: str, layers: str, B: int = 1, **more: str) -> list[GemvCase]:
    """One case for each of the layers, which are given as words of one string."""
    sizes = projections(MODELS[model])
    return [
        GemvCase(model=model, layer=layer, B=B, N=sizes[layer][0], K=sizes[layer][1], **more)
        for layer in layers.split()
    ]


def smoke() -> Iterable[GemvCase]:
    """For a CPU: 16 to 134 MB of weights, since the caches of servers hold tens of MB.

    The batch up to the knee, twice the weights, then weights in 16, 8 and 4 bits.
    """
    for B in (1, 2, 4, 8, 16):
        yield from of_model("llama-3.1-8b", "o", B, dtype="fp32")
    for B in (1, 2):
        yield GemvCase(B=B, N=4096, K=8192, dtype="fp32")
    for weights in ("", "int8"):
        yield from of_model("llama-3.1-8b", "o", dtype="bf16", weights=weights)
    yield GemvCase(B=1, N=8192, K=4096, dtype="bf16", weights="int4")


def quick() -> Iterable[GemvCase]:
    """Layers of real models at batch 1, and a few batches of the largest."""
    for B in (1, 4, 16, 64, 256):
        yield from of_model("llama-3.1-70b", "gate", B)
    yield from of_model("llama-3.1-70b", "down")
    yield from of_model("llama-3.1-8b", "k lm_head")
    for weights in ("fp8", "int4", "mxfp4"):
        yield from of_model("llama-3.1-70b", "gate", weights=weights)
    yield from of_model("llama-3.1-70b", "gate", 16, weights="int4")


def full() -> Iterable[GemvCase]:
    """Layer sizes of several models, one layer at every batch (to find the knee), and squares of several sizes."""
    for B in (1, 2, 3, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024):
        yield from of_model("llama-3.1-70b", "gate", B)
    for model in ("llama-3.1-8b", "llama-3.1-70b"):
        yield from of_model(model, "q k v o gate up down lm_head")
    yield from of_model("llama-3.1-405b", "gate")
    yield from of_model("qwen2.5-7b", "down")
    yield from of_model("qwen3-32b", "down")
    yield from of_model("gpt-oss-20b", "q")
    yield from of_model("gemma-3-27b", "lm_head")
    for size in (1024, 4096, 8192, 16384):
        yield GemvCase(B=1, N=size, K=size)
    for B in (1, 16):
        yield from of_model("llama-3.1-8b", "down", B, dtype="fp16")
        yield from of_model("llama-3.1-8b", "down", B)
    for weights in FORMATS:
        for B in (1, 16):
            yield from of_model("llama-3.1-70b", "gate", B, weights=weights)
    for B in (4, 64, 256):
        yield from of_model("llama-3.1-70b", "gate", B, weights="int4")
    yield from of_model("llama-3.1-8b", "down", weights="int4")
    for B in (1, 16, 128):
        yield from of_model("llama-3.1-70b", "gate", B, weights="fp8", activations="fp8")
    yield from of_model("llama-3.1-70b", "gate", weights="fp8_block", activations="fp8")


def test() -> Iterable[GemvCase]:
    """Small and edgy: odd N, K and B, one row, one column block, several batch tiles, every type and format."""
    yield GemvCase(B=1, N=40, K=1024, dtype="bf16")
    yield GemvCase(B=2, N=33, K=520, dtype="bf16")
    yield GemvCase(B=1, N=1, K=64, dtype="fp16")
    yield GemvCase(B=1, N=37, K=129, dtype="fp32")
    yield GemvCase(B=2, N=64, K=512, dtype="fp16")
    for B, N, K in ((3, 70, 384), (5, 65, 200), (17, 130, 136), (33, 129, 67), (257, 64, 64)):
        yield GemvCase(B=B, N=N, K=K, dtype="fp16")
    yield GemvCase(B=8, N=64, K=96, dtype="fp32")
    for weights in FORMATS:
        yield GemvCase(B=1, N=65, K=512, dtype="bf16", weights=weights)
        yield GemvCase(B=18, N=130, K=390, dtype="fp16", weights=weights)
    for weights in FP8:
        yield GemvCase(B=1, N=65, K=512, dtype="bf16", weights=weights, activations="fp8")
        yield GemvCase(B=18, N=130, K=208, dtype="fp16", weights=weights, activations="fp8")


def cases(suite: str) -> list[GemvCase]:
    """In order, each id once."""
    unique: dict[str, GemvCase] = {}
    for case in {"smoke": smoke, "quick": quick, "full": full, "test": test}[suite]():
        unique.setdefault(case.id, case)
    return list(unique.values())


def inputs(case: GemvCase, device: str, seed: int) -> Inputs:
    """x ~ N(0, 1) and W of order K^-1/2, so that y is of order 1; both with marks, see `kernels/common/outliers.py`.

    fp8 activations have outliers of sqrt(K) / 10 instead of sqrt(K) / 4: Hopper's fp8 tensor cores drop the low bits of
    what they add to a large product. One is still 0.093 of y's rms, which is 15 tolerances. `x_scale` is `[B]` for fp8
    activations, else empty. `kernels/common/quantization.py` tells how a quantized W is drawn.
    """
    draw = RandomInputs(device, seed)
    x = draw.normal((case.B, case.K), case.activations)
    columns = outliers(draw, case.K)
    mark_columns(x, columns, size=0.1 if case.activations == "fp8" else 0.25)
    rows = case.B if case.activations != case.dtype else 0
    drawn: Inputs = {"x": x, "x_scale": draw.scales((rows,), 1.0)}
    if case.quantized:
        drawn |= random_weights(draw, case.weights, case.N, case.K, case.dtype)
    else:
        drawn["w"] = draw.normal((case.N, case.K), case.dtype, scale=case.K**-0.5)
    packed = {name: drawn[name] for name in (f"w_{part}" for part in BESIDE) if name in drawn}
    format, marked = case.weights if case.quantized else "", [0, case.N - 1]
    if len(marked) < case.N:
        clear(drawn["w"], marked, case.K, format=format, **packed)
    for level, mine in signed_groups(columns, FORMATS[format].group_k if format else 0).items():
        mark_rows(drawn["w"], marked, mine, level, format, **packed)
    return drawn


def reference(case: GemvCase, inputs: Inputs) -> torch.Tensor:
    """Computed in fp32, in slices of N, so that a large W is never held twice."""
    import torch

    x = inputs["x"].float()
    if case.activations != case.dtype:
        x = x * inputs["x_scale"][:, None]
    parts = []
    for first in range(0, case.N, rows := max(1, (1 << 26) // case.K)):
        end = min(first + rows, case.N)
        w = dequantize(case.weights, inputs, first, end) if case.quantized else inputs["w"][first:end].float()
        parts.append(x @ w.T)
    return torch.cat(parts, dim=1)


def work(case: GemvCase) -> Work:
    """Weights (codes, scales, zero points), activations and outputs once; 2 B N K FLOP.

    For 16-bit types the pipe is the tensor cores. An implementation that uses another pipe says so in its stages.
    """
    size = BYTES[case.dtype]
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_fp8" if case.activations == "fp8" else "mma_bf16"
    weights = weight_bytes(case.weights, case.N, case.K, size) if case.quantized else size * case.N * case.K
    return Work(
        flops={pipe: 2 * case.B * case.N * case.K},
        bytes_read=weights + activation_bytes(case),
        bytes_written=size * case.B * case.N,
    )


def activation_bytes(case: GemvCase) -> int:
    """Bytes of x, and of a fp32 scale for each row of an fp8 x."""
    return case.B * (case.K * BYTES[case.activations] + (4 if case.activations != case.dtype else 0))


def tolerance(case: GemvCase) -> Tolerance:
    """fp8 tensor cores cut off the low bits of sums, always to the same side. So the slope may be off by 0.1% there,
    and the noise of the sums is not known."""
    why = "one rounding of y to its type; Triton's interpreter truncates instead, which has an rms of 2 unit / sqrt(3)"
    fp8 = case.activations == "fp8"
    return rounded(
        case.dtype,
        terms="K terms",
        max_units=4,
        rms_units=1.5,
        slope_units=0.25 if fp8 else 0.0625,
        roundings=None if fp8 else 1,
        why=why,
    )


OP = Op(
    name="ffn_gemv",
    title="GEMV",
    role="decode",
    about="batched matrix-vector product of the decode projections",
    formula="y[B,N] = x[B,K] W[N,K]^T",
    case_type=GemvCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x", "x_scale"),
    smaller=lambda case, n: fewer(case, n, N=16),
)
