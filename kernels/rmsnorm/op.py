"""h = x + residual + addend and y[b, d] = h[b, d] / sqrt(mean_d h[b, d]^2 + epsilon) w[d], of B tokens.

x, residual, h and y are [B, D], w is [D]. The addend is the bias [D] of the product that gave x, or what shared experts
gave beside it, [B, D]. Without a residual h is x. h is rounded to the type of x before the norm, as models do it, and
is an output too. With 8-bit activations, y is stored as codes with a fp32 scale for each token:
scale[b] = max_d |y[b, d]| / L and code = round(y / scale), with L = 448 for fp8 (e4m3) and 127 for int8.

What shared experts gave may have a gate, one logit a token: then sigma(share[b]) times the addend is added.

State mixers norm what their states gave, group by group, and gate it: x and y are [B groups, D], and z is
[B, groups D], maybe some columns of a wider product. With `gate` silu or sigmoid, y is also multiplied by silu(z) or
sigma(z); with silu_first it is x that is multiplied, before the norm. Formulas: `Qwen3NextRMSNormGated`,
`KimiLinearRMSNormGated` and `BambaRMSNormGated` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from kernels.common.compare import UNIT_ROUNDOFF, rounded
from kernels.common.fields import TYPES, Dtype, OneOf
from kernels.common.outliers import mark_columns, outliers
from kernels.common.random_inputs import BYTES, LARGEST, RandomInputs, torch_dtype
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Result, Tolerance, Work

if TYPE_CHECKING:
    import torch

EPSILON = 1e-5
"""`rms_norm_eps` of Llama and gpt-oss; Qwen, Gemma and DeepSeek have 1e-6."""

GATES = ("silu", "sigmoid", "silu_first")

LEAST = 1e-12
"""The smallest scale of a token, so that a token of zeros has one."""


@dataclass(frozen=True, kw_only=True)
class NormCase(Case):
    """`activations` is the type of y: `dtype` (also if empty), or fp8 or int8. `addend` is what is added beside the
    residual: a `bias`, `rows`, or `shares` of rows; empty for nothing.

    A token has `groups` rows, each with its own w, or all with one where it is `shared`. With `wide`, x is fp32.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"gate": ""}

    B: int
    D: int
    residual: bool = False
    dtype: Dtype = "bf16"
    activations: Annotated[str, OneOf("", *TYPES, *LARGEST)] = ""
    addend: Annotated[str, OneOf("", "bias", "rows", "shares")] = ""
    epsilon: float = EPSILON
    gate: Annotated[str, OneOf("", *GATES)] = ""
    groups: int = 1
    shared: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "activations", self.activations or self.dtype)
        if self.activations in TYPES and self.activations != self.dtype:
            raise ValueError(f"activations {self.activations}: they are {self.dtype} like dtype, fp8 or int8")
        if self.addend and not self.residual:
            raise ValueError(f"addend {self.addend}: it is added to a residual, and the case has none")
        if self.residual and (self.gate or self.groups > 1 or self.wide):
            raise ValueError("residual: a norm with a gate, groups or a wide x has none")

    @property
    def rows(self) -> int:
        """Rows that are normalized one by one."""
        return self.B * self.groups

    @property
    def quantized(self) -> bool:
        return self.activations != self.dtype

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", *([f"G{self.groups}"] if self.groups > 1 else []), f"D{self.D}"]
        parts += ["shared"] if self.shared else []
        parts += [f"gate-{self.gate}"] if self.gate else []
        parts += ["wide"] if self.wide else []
        parts += ["residual"] if self.residual else []
        parts += [self.addend] if self.addend else []
        parts += [f"eps{self.epsilon:g}"] if self.epsilon != EPSILON else []
        parts.append(self.dtype)
        return "-".join([*parts, *([f"y{self.activations}"] if self.quantized else [])])


def of_model(model: str, B: int, activations: str = "", **more: Any) -> NormCase:
    """The norm before a block of a layer, which also adds what the block before it gave."""
    return NormCase(model=model, B=B, D=MODELS[model].hidden, residual=True, activations=activations, **more)


def cases(suite: str) -> list[NormCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [of_model("llama-3.1-70b", 64, "fp8")]
    if suite == "full":
        return [
            *(of_model("llama-3.1-8b", B) for B in (1, 16, 64, 256)),
            *(of_model("llama-3.1-70b", B, kind) for kind in ("fp8", "int8") for B in (1, 64, 256)),
            *(of_model("gpt-oss-20b", B, addend="bias") for B in (1, 64)),
            of_model("deepseek-v3", 64, addend="rows", epsilon=1e-6),
            NormCase(B=1, D=8192, model="llama-3.1-70b"),
        ]
    return [
        NormCase(B=3, D=72, dtype="fp32"),
        NormCase(B=5, D=130, residual=True, dtype="fp16"),
        NormCase(B=2, D=64, residual=True, dtype="fp16", activations="fp8"),
        NormCase(B=3, D=200, dtype="fp32", activations="int8"),
        NormCase(B=3, D=72, residual=True, addend="bias", dtype="fp16"),
        NormCase(B=2, D=130, residual=True, addend="rows", dtype="fp16", epsilon=1e-3),
        NormCase(B=3, D=72, residual=True, addend="shares", dtype="fp16"),
        NormCase(B=2, D=24, groups=4, shared=True, gate="silu", wide=True, dtype="fp16"),
        NormCase(B=3, D=36, groups=2, gate="silu_first", wide=True, dtype="fp16", epsilon=1e-3),
        NormCase(B=2, D=32, groups=3, shared=True, gate="sigmoid", dtype="fp32"),
    ]


def inputs(case: NormCase, device: str, seed: int) -> Inputs:
    """x, residual ~ N(0, 1) with outlier columns, and w ~ 1 + N(0, 1) / 4.

    The outliers of codes are as small as the largest of the other values, or the codes of these would be 0.
    """
    draw = RandomInputs(device, seed)
    made: Inputs = {"x": draw.normal((case.rows, case.D), "fp32" if case.wide else case.dtype)}
    if case.residual:
        made["residual"] = draw.normal((case.B, case.D), case.dtype)
    if case.addend:
        made["addend"] = draw.normal((case.D,) if case.addend == "bias" else (case.B, case.D), case.dtype)
    if case.addend == "shares":
        made["share"] = draw.normal((case.B,), case.dtype)
    if case.gate:
        made["z"] = draw.normal((case.B, case.groups * case.D), case.dtype)
    mark_columns(made["x"], outliers(draw, case.D), size=0.05 if case.quantized else 0.25)
    made["w"] = draw.normal((case.D * (1 if case.shared else case.groups),), case.dtype, scale=0.25)
    if device != "meta":
        made["w"] += 1
    return made


class Output(NamedTuple):
    """Views of one tensor, which the launch returns; `scale` [B] without codes and `h` without a residual are empty."""

    whole: torch.Tensor
    y: torch.Tensor
    scale: torch.Tensor
    h: torch.Tensor


def output(case: NormCase, device: torch.device) -> Output:
    """y, then h, as rows of one tensor. With codes it is flat bytes: the scales, then h, then the codes."""
    import torch

    B, D, wide = case.rows, case.D, torch_dtype(case.dtype)
    if not case.quantized:
        whole = torch.empty((2 if case.residual else 1) * B, D, dtype=wide, device=device)
        return Output(whole, whole[:B], torch.empty(0, device=device), whole[B:])
    scales, stored = 16 * ((4 * B + 15) // 16), BYTES[case.dtype] * B * D if case.residual else 0
    whole = torch.empty(scales + stored + B * D, dtype=torch.uint8, device=device)
    return views(case, whole, scales, stored)


def views(case: NormCase, whole: torch.Tensor, scales: int, stored: int) -> Output:
    """The parts of flat bytes: `scales` bytes of scales, `stored` bytes of h, then the codes."""
    import torch

    y = whole[scales + stored :].view(torch_dtype(case.activations)).view(case.rows, case.D)
    h = whole[scales : scales + stored].view(torch_dtype(case.dtype)).view(-1, case.D)
    return Output(whole, y, whole[: 4 * case.rows].view(torch.float32), h)


def decoded(case: NormCase, found: torch.Tensor) -> torch.Tensor:
    """Rows of y, then of h; codes times their scales, in fp32."""
    import torch

    if not case.quantized:
        return found
    scales, stored = 16 * ((4 * case.rows + 15) // 16), BYTES[case.dtype] * case.B * case.D if case.residual else 0
    _, y, scale, h = views(case, found, scales, stored)
    return torch.cat([y.float() * scale[:, None], h.float()])


def poison(case: NormCase, inputs: Inputs, found: torch.Tensor) -> None:
    """NaN in every type of float; int8 codes get theirs from their scales."""
    import torch

    found.view(torch.uint8).fill_(0xFF)


def summed(case: NormCase, inputs: Inputs) -> torch.Tensor:
    """h in fp64, rounded to its type."""
    h = inputs["x"].double() + inputs["residual"].double()
    if case.addend:
        share = inputs["share"].double().sigmoid()[:, None] if case.addend == "shares" else 1.0
        h = h + inputs["addend"].double() * share
    return h.to(inputs["x"].dtype).double()


def reference(case: NormCase, inputs: Inputs) -> torch.Tensor:
    """fp64: rows of y, then of h. Codes are those of the exact y."""
    import torch

    wide = summed(case, inputs) if case.residual else inputs["x"].double()
    factor = inputs["w"].double().view(-1, case.D).repeat(case.rows if case.shared else case.B, 1)
    if case.gate:
        z = inputs["z"].double().reshape(case.rows, case.D)
        opened = z.sigmoid() if case.gate == "sigmoid" else z * z.sigmoid()
        wide, factor = (wide * opened, factor) if case.gate == "silu_first" else (wide, factor * opened)
    y = wide * (wide.square().mean(-1, keepdim=True) + case.epsilon).rsqrt() * factor
    if case.quantized:
        scale = (y.abs().amax(-1, keepdim=True) / LARGEST[case.activations]).clamp(min=LEAST)
        codes = y / scale
        y = (codes.round() if case.activations == "int8" else codes.float().to(torch.float8_e4m3fn).double()) * scale
    return torch.cat([y, wide]) if case.residual else y


def work(case: NormCase) -> Work:
    """Each array once. An element takes a square, a sum and two products; one more for the residual and for the addend,
    two for a code, four for a gate."""
    elements, size = case.rows * case.D, BYTES[case.dtype]
    each = 4 + case.residual + bool(case.addend) + 2 * case.quantized + 4 * bool(case.gate)
    added = {"": 0, "bias": case.D, "rows": elements, "shares": elements + case.B}[case.addend]
    added += elements * bool(case.gate) + case.D * (0 if case.shared else case.groups - 1)
    added += elements * 4 // size - elements if case.wide else 0
    arrays = 2 if case.residual else 1
    stored = elements * BYTES[case.activations] + (4 * case.rows if case.quantized else 0)
    return Work(
        flops={"fma_fp32": each * elements},
        bytes_read=size * (arrays * elements + case.D + added),
        bytes_written=size * (arrays - 1) * elements + stored,
    )


def tolerance(case: NormCase) -> Tolerance:
    if case.quantized:
        why = "a value next to a border may get the next code: an eighth of it in fp8, a 127th of the largest in int8"
        return Tolerance(max_rel=0.15, rms_rel=0.02 if case.activations == "fp8" else 0.012, why=why)
    why = "one rounding of y to its type, which peers also make of the normalized h"
    return rounded(case.dtype, terms="D terms", max_units=4, rms_units=1.5, why=why)


def results(case: NormCase, inputs: Inputs) -> list[Result]:
    """y and h. A peer rounds y before it is quantized, and with the largest value of a token its scale: by half a unit
    roundoff at most."""
    of_h = rounded(case.dtype, terms="two or three", max_units=4, rms_units=1.5, why="one rounding of h to its type")
    of_y = tolerance(case)
    if case.quantized:
        of_y = replace(of_y, slope=UNIT_ROUNDOFF.get(case.dtype, 2e-4) / 2)
    rows = [Result("y", lambda y: y[: case.rows], of_y)]
    return [*rows, Result("h", lambda y: y[case.rows :], of_h)] if case.residual else rows


OP = Op(
    name="rmsnorm",
    title="RMSNorm",
    role="decode",
    about="the norm before each block, with the addition before it and the quantization after it",
    formula="h = x + residual + addend; y = h / sqrt(mean(h^2) + epsilon) w",
    case_type=NormCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
    poison=poison,
    decoded=decoded,
    results=results,
)
