"""h[b, f] = a(x[b, f], x[b, F + f]): the gated activation of what one product gave as gate and up beside each other.

The activation a(g, u) is silu(g) u, or another one of `kernels/common/gated.py`. x is [B, 2F] and h is [B, F], of one
type. `ffn_block` and `moe_ffn` do this in the product itself; it is a kernel of its own where weights are quantized.

With `apart`, x [B, F] is the gate alone, maybe some columns of a wider product, and `up` [B, F] is a tensor of its own:
what attention gave, in models that gate it; or, with `wide` in fp32, what a state gave. An activation without a gate
takes x [B, F] alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.common import gated
from kernels.common.compare import rounded
from kernels.common.fields import Dtype
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch


CLAMPED_GAIN = 4.0
"""With inputs of this size, a power of two, an eighth of the gates and of ups is beyond the limit of a clamp."""


@dataclass(frozen=True, kw_only=True)
class GateCase(Case):
    """`F` is the width of the FFN, or of all heads."""

    B: int
    F: int
    dtype: Dtype = "bf16"
    activation: gated.Activation = "swiglu"
    apart: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.apart and self.alone:
            raise ValueError(f"apart: {self.activation} has no gate that stands apart from up")
        if self.wide and (not self.apart or self.dtype == "fp32"):
            raise ValueError("wide: only an up of its own (apart) is in fp32 beside 16-bit gates")

    @property
    def alone(self) -> bool:
        """Whether x is all that is read."""
        return self.activation in gated.UNGATED

    @property
    def id(self) -> str:
        apart = ("-apart" if self.apart else "") + ("-wide" if self.wide else "")
        return f"B{self.B}-F{self.F}-{self.dtype}{apart}" + gated.suffix(self.activation)


def of_model(model: str, B: int, activation: str = "swiglu") -> GateCase:
    return GateCase(model=model, B=B, F=MODELS[model].ffn, activation=activation)


def cases(suite: str) -> list[GateCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [of_model("llama-3.1-70b", 64)]
    if suite == "full":
        return [
            *(of_model("llama-3.1-8b", B) for B in (1, 16, 64, 256)),
            *(of_model("llama-3.1-70b", B) for B in (1, 64, 256)),
            of_model("gemma-3-27b", 64, "geglu"),
            of_model("gpt-oss-20b", 64, "swiglu_clamped"),
        ]
    return [
        GateCase(B=3, F=72, dtype="fp32"),
        GateCase(B=1, F=1, dtype="fp16"),
        GateCase(B=2, F=1030, dtype="fp16", activation="geglu"),
        GateCase(B=5, F=130, dtype="fp16", activation="swiglu_clamped"),
        GateCase(B=3, F=72, dtype="fp16", activation="glu", apart=True),
        GateCase(B=3, F=72, dtype="fp16", apart=True, wide=True),
        GateCase(B=3, F=1030, dtype="fp16", activation="relu2"),
    ]


def inputs(case: GateCase, device: str, seed: int) -> Inputs:
    """x ~ N(0, 1), `CLAMPED_GAIN` times as large for a clamped activation."""
    draw, scale = RandomInputs(device, seed), CLAMPED_GAIN if case.activation == "swiglu_clamped" else 1.0
    if not case.apart:
        return {"x": draw.normal((case.B, gated.matrices(case.activation) * case.F), case.dtype, scale=scale)}
    types = {"x": case.dtype, "up": "fp32" if case.wide else case.dtype}
    return {name: draw.normal((case.B, case.F), stored, scale=scale) for name, stored in types.items()}


def halves(case: GateCase, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up, each [B, F]; rows of the gate may be further apart."""
    return (inputs["x"], inputs["up"]) if case.apart else gated.halves(case.activation, inputs["x"])


def reference(case: GateCase, inputs: Inputs) -> torch.Tensor:
    """fp64."""
    gate, up = halves(case, inputs)
    return gated.hidden(case.activation, gate.double(), up.double())


def work(case: GateCase) -> Work:
    """Gate and up once, h once; an exponential, a sum, a quotient and a product for each value. Without a gate: a
    comparison and a product."""
    values, size = case.B * case.F, BYTES[case.dtype]
    read = size if case.alone else size + (4 if case.wide else size)
    return Work(
        flops={"fma_fp32": (2 if case.alone else 4) * values}, bytes_read=read * values, bytes_written=size * values
    )


def tolerance(case: GateCase) -> Tolerance:
    why = "one rounding of h to its type, which peers also make of a(g)"
    return rounded(case.dtype, terms="single", max_units=5, rms_units=2, why=why)


OP = Op(
    name="silu_mul",
    title="gated activation",
    role="decode",
    about="the gated activation between the two products of an FFN",
    formula="h = a(gate, up), a(g,u) = silu(g) u",
    case_type=GateCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
)
