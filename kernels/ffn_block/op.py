"""y[B, H] = a(x[B, H] W_gate[F, H]^T, x W_up[F, H]^T) W_down[H, F]^T: the gated FFN block of a decoder layer.

The activation a(g, u) is silu(g) u, or another one of `kernels/common/gated.py`.
It reads 3 F H weights, two thirds to three quarters of a dense layer's bytes, with about 2 B FLOP for each at batch B.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.common import gated
from kernels.common.compare import rounded_ffn
from kernels.common.fields import Dtype
from kernels.common.outliers import (
    CLAMPED,
    beyond_limits,
    hidden_rows,
    mark_beyond,
    mark_columns,
    mark_hidden,
    outliers,
)
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.common.smaller import fewer
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class FfnCase(Case):
    """x and y `[B, hidden]`, W_gate and W_up `[ffn, hidden]`, W_down `[hidden, ffn]`, all in `dtype`."""

    B: int
    hidden: int
    ffn: int
    dtype: Dtype = "bf16"
    activation: gated.Activation = "swiglu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation in gated.UNGATED:
            raise ValueError(f"activation {self.activation}: it has no gate; its FFN is two products of ffn_gemv")

    @property
    def id(self) -> str:
        return f"B{self.B}-H{self.hidden}-F{self.ffn}-{self.dtype}" + gated.suffix(self.activation)


def of_model(model: str, B: int, activation: str = "swiglu") -> FfnCase:
    return FfnCase(model=model, B=B, hidden=MODELS[model].hidden, ffn=MODELS[model].ffn, activation=activation)


def smoke() -> Iterable[FfnCase]:
    """For a CPU: 16 to 50 MB of weights, since the caches of servers hold tens of MB."""
    yield FfnCase(B=1, hidden=1024, ffn=2816, dtype="fp32")
    yield FfnCase(B=4, hidden=1024, ffn=4096, dtype="fp32")
    yield FfnCase(B=1, hidden=1024, ffn=2816, dtype="bf16")


def quick() -> Iterable[FfnCase]:
    for B in (1, 128):
        yield of_model("llama-3.1-70b", B)
    yield of_model("llama-3.1-8b", 1)


def full() -> Iterable[FfnCase]:
    for B in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        yield of_model("llama-3.1-70b", B)
    for model in ("llama-3.1-8b", "llama-2-7b", "qwen2.5-7b", "qwen3-32b"):
        for B in (1, 16):
            yield of_model(model, B)
    for B in (1, 16):
        yield of_model("gemma-3-27b", B, activation="geglu")


def test() -> Iterable[FfnCase]:
    """Small and edgy: odd sizes, several batch tiles, every dtype that the interpreter multiplies correctly."""
    for B, hidden, ffn in ((1, 64, 192), (3, 70, 130), (17, 128, 65), (2, 33, 7), (130, 64, 64)):
        yield FfnCase(B=B, hidden=hidden, ffn=ffn, dtype="fp16")
    yield FfnCase(B=1, hidden=40, ffn=72, dtype="fp32")
    yield FfnCase(B=3, hidden=96, ffn=80, dtype="fp16", activation="geglu")
    yield FfnCase(B=18, hidden=96, ffn=80, dtype="fp16", activation="swiglu_clamped")


def cases(suite: str) -> list[FfnCase]:
    return list({"smoke": smoke, "quick": quick, "full": full, "test": test}[suite]())


def inputs(case: FfnCase, device: str, seed: int) -> Inputs:
    """x ~ N(0, 1) and weights ~ N(0, 1 / columns), both with marks: see `kernels/common/outliers.py`. With these marks
    silu(g) u has an rms of about 1.4, so y is of order 1."""
    draw = RandomInputs(device, seed)
    up = (case.ffn, case.hidden)
    made: Inputs = {
        "x": draw.normal((case.B, case.hidden), case.dtype),
        "w_gate": draw.normal(up, case.dtype, scale=case.hidden**-0.5),
        "w_up": draw.normal(up, case.dtype, scale=case.hidden**-0.5),
        "w_down": draw.normal((case.hidden, case.ffn), case.dtype, scale=case.ffn**-0.5),
    }
    columns, rows = outliers(draw, case.hidden), hidden_rows(draw, case.ffn)
    size, level = CLAMPED if case.activation == "swiglu_clamped" else (0.25, 1.0)
    mark_columns(made["x"], columns, size, draw)
    for name in ("w_gate", "w_up"):
        mark_hidden(draw, made[name], rows, columns, H=case.hidden, F=case.ffn, size=level)
    for matrix, f, share in beyond_limits(draw, case.activation, case.ffn, rows):
        mark_beyond(made[("w_gate", "w_up")[matrix]], [f], columns, share, H=case.hidden)
    return made


def reference(case: FfnCase, inputs: Inputs) -> torch.Tensor:
    """Computed in fp32, hidden values included, in slices of ffn, so that no large matrix is held twice."""
    import torch

    x = inputs["x"].float()
    y = torch.zeros_like(x)
    for first in range(0, case.ffn, rows := max(1, (1 << 26) // case.hidden)):
        part = slice(first, first + rows)
        gate, up = (x @ inputs[name][part].float().T for name in ("w_gate", "w_up"))
        y += gated.hidden(case.activation, gate, up) @ inputs["w_down"][:, part].float().T
    return y


def work(case: FfnCase) -> Work:
    """Three matrices, x and y once; 2 FLOP per weight and sequence. The hidden values need not leave the chip."""
    size = BYTES[case.dtype]
    weights = 3 * case.ffn * case.hidden
    return Work(
        flops={"fma_fp32" if case.dtype == "fp32" else "mma_bf16": 2 * case.B * weights},
        bytes_read=size * (weights + case.B * case.hidden),
        bytes_written=size * case.B * case.hidden,
    )


def tolerance(case: FfnCase) -> Tolerance:
    why = "roundings of gate and up, of their product and of y to their type"
    return rounded_ffn(case.dtype, rows=case.B, hidden_values=case.B * case.ffn, why=why)


OP = Op(
    name="ffn_block",
    title="FFN block",
    role="decode",
    about="gated FFN block: gate, up, activation, down",
    formula="y[B,H] = a(x Wg[F,H]^T, x Wu[F,H]^T) Wd[H,F]^T, a(g,u) = silu(g) u",
    case_type=FfnCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
    smaller=lambda case, n: fewer(case, n, ffn=64, hidden=256),
)
