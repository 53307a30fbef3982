"""token[b] = the first i with sum over kept j <= i of w[j] > u[b] sum over all kept j of w[j]: draws the next token.

w = exp(logits[b] / temperature). Which tokens are kept, one filter after the other: with `k`, those whose logit is at
least the k-th largest; with `p`, those whose logit is at least t, for the largest t at which they have p of the weight
of all that k kept; with `min_p`, those whose weight is at least min_p of the largest. Equal logits stay together.
Temperature 0 is greedy: the largest logit at the lowest i. logits [B, V]; u, p and min_p are fp32 [B]; token int32 [B].

u is given, so that there is one answer. The inputs see to it that rounding leaves no doubt: `inputs` moves the drawn p
and min_p to the middle between two distinct logits, and u to the middle of a token's step. So an implementation may err
by half a step (`SHARE` of the weight, or more) and is wrong if it gives another token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common.fields import Count, OneOf
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

SPREAD = 3.0
"""Standard deviation of logits. At 128K tokens a nucleus of 0.9 then has 5,000 of them."""

SHARE = 2.0**-17
"""Of the weight of all kept tokens, what the drawn one has at least: 32 roundings of an fp32 sum on either side."""


@dataclass(frozen=True, kw_only=True)
class SamplingCase(Case):
    """`k`, `p` and `min_p` are 0 where they filter nothing. fp32 logits hold bf16 values, as products in bf16 give."""

    PLAIN: ClassVar[Mapping[str, Any]] = {}

    B: int
    V: int
    temperature: float = 1.0
    k: Count = 0
    p: float = 0.0
    min_p: float = 0.0
    dtype: Annotated[str, OneOf("bf16", "fp32")] = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.p, self.min_p) >= 1:
            raise ValueError(f"p {self.p:g} and min_p {self.min_p:g}: expected shares below 1")
        if not self.temperature and (self.k or self.p or self.min_p):
            raise ValueError("temperature 0 is greedy: it has no filters")
        if self.k > self.V:
            raise ValueError(f"k = {self.k}: at most the V = {self.V} tokens")

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"V{self.V}"]
        if not self.temperature:
            parts.append("greedy")
        elif self.temperature != 1:
            parts.append(f"temperature{self.temperature:g}")
        parts += [f"k{self.k}"] if self.k else []
        parts += [f"p{self.p:g}"] if self.p else []
        parts += [f"minp{self.min_p:g}"] if self.min_p else []
        return "-".join([*parts, self.dtype])


def vocabulary(model: str, B: int, **more: Any) -> SamplingCase:
    return SamplingCase(B=B, V=MODELS[model].vocab, model=model, **more)


FILTERS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"k": 50},
    {"p": 0.9},
    {"min_p": 0.05},
    {"k": 50, "p": 0.9, "temperature": 0.7},
)


def cases(suite: str) -> list[SamplingCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [vocabulary("llama-3.1-8b", 64, p=0.9)]
    if suite == "full":
        return [
            *(vocabulary("llama-3.1-8b", 64, **each) for each in FILTERS),
            *(vocabulary("llama-3.1-8b", B, p=0.9) for B in (1, 8, 256)),
            *(vocabulary("llama-3.1-8b", B, temperature=0.0) for B in (1, 256)),
            vocabulary("llama-2-7b", 64, p=0.9),
            vocabulary("gemma-3-27b", 64, p=0.9),
            vocabulary("llama-3.1-8b", 64, p=0.9, dtype="fp32"),
        ]
    small = [SamplingCase(B=3, V=200, **each) for each in FILTERS]
    return [
        *small,
        SamplingCase(B=2, V=9000, p=0.8, dtype="fp32"),
        SamplingCase(B=2, V=9000, k=30, p=0.5, min_p=0.01, temperature=0.6),
        SamplingCase(B=1, V=9000, temperature=0.0, dtype="fp32"),
    ]


def kept(case: SamplingCase, logits: torch.Tensor, p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """The weights of all tokens in fp64 `[B, V]`, zero for those that are not kept. `p` and `min_p` are `[B]`."""
    import torch

    weights = before_p(case, logits)
    if case.p:
        x = logits.double()
        weights = torch.where(x >= last_of_nucleus(x, weights, p), weights, 0.0)
    return torch.where(weights >= min_p.double()[:, None], weights, 0.0) if case.min_p else weights


def before_p(case: SamplingCase, logits: torch.Tensor) -> torch.Tensor:
    """The weights, zero for what k filters out."""
    import torch

    x = logits.double()
    weights = torch.exp((x - x.amax(dim=1, keepdim=True)) / case.temperature)
    if case.k:
        weights = torch.where(x >= torch.topk(x, case.k, dim=1).values[:, -1:], weights, 0.0)
    return weights


def last_of_nucleus(x: torch.Tensor, weights: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The logit `[B, 1]` at which tokens have p of the weight. Equal logits need no order: they stay together."""
    ordered, order = x.sort(dim=1, descending=True)
    ends = weights.gather(1, order).cumsum(dim=1)
    place = (ends < p.double()[:, None] * ends[:, -1:]).sum(dim=1, keepdim=True)
    return ordered.gather(1, place.clamp(max=x.shape[1] - 1))


def settled(case: SamplingCase, logits: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """u, p and min_p of all rows, moved to the middles of steps; in fp64."""
    import torch

    x, weights = logits.double(), before_p(case, logits)
    p, min_p = (torch.full_like(u, share) for share in (case.p, case.min_p))
    if case.p:
        last = last_of_nucleus(x, weights, p)
        above, reached = (torch.where(mask, weights, 0.0).sum(dim=1) for mask in (x > last, x >= last))
        p = (above + reached) / (2 * weights.sum(dim=1))
    if case.min_p:
        heights = torch.exp((x - x.amax(dim=1, keepdim=True)) / case.temperature)
        lowest = torch.where(heights >= case.min_p, heights, 1.0).amin(dim=1)
        min_p = (lowest + torch.where(heights < case.min_p, heights, 0.0).amax(dim=1)) / 2
    weights = kept(case, logits, p, min_p)
    ends = weights.cumsum(dim=1) / weights.sum(dim=1, keepdim=True)
    share = weights / weights.sum(dim=1, keepdim=True)
    large = share >= share.amax(dim=1, keepdim=True).clamp(max=SHARE)
    # the first large step that ends behind u, or else the first one of all
    token = ((large & (ends > u[:, None])).int() * 2 + large.int()).argmax(dim=1, keepdim=True)
    return (ends - share / 2).gather(1, token)[:, 0], p, min_p


def inputs(case: SamplingCase, device: str, seed: int) -> Inputs:
    """Normal logits on the grid of bf16, so that many are equal."""

    draw = RandomInputs(device, seed)
    logits = draw.normal((case.B, case.V), "bf16", scale=SPREAD * (case.temperature or 1.0)).to(torch_dtype(case.dtype))
    u = draw.table([draw.python.random() for _ in range(case.B)], "float64")
    p, min_p = (draw.table([share] * case.B, "float64") for share in (case.p, case.min_p))
    if device != "meta" and case.temperature:
        u, p, min_p = settled(case, logits, u)
    return {"logits": logits, "u": u.float(), "p": p.float(), "min_p": min_p.float()}


def reference(case: SamplingCase, inputs: Inputs) -> torch.Tensor:
    """In fp64."""
    logits = inputs["logits"]
    if not case.temperature:
        return (logits == logits.amax(dim=1, keepdim=True)).int().argmax(dim=1).double()
    ends = kept(case, logits, inputs["p"], inputs["min_p"]).cumsum(dim=1)
    return (ends <= inputs["u"].double()[:, None] * ends[:, -1:]).sum(dim=1).double()


def work(case: SamplingCase) -> Work:
    """Each logit once, with a product and an addition, for an exponential that is not counted; a token a row."""
    numbers = (1 if case.temperature else 0) + (1 if case.p else 0) + (1 if case.min_p else 0)
    return Work(
        flops={"fma_fp32": 2 * case.B * case.V},
        bytes_read=case.B * (BYTES[case.dtype] * case.V + 4 * numbers),
        bytes_written=4 * case.B,
    )


def tolerance(case: SamplingCase) -> Tolerance:
    return Tolerance(max_rel=0.0, rms_rel=0.0, why="the inputs leave no doubt which token is meant")


OP = Op(
    name="sampling",
    title="sampling",
    role="decode",
    about="drawing the next token: greedy, or by temperature with top-k, top-p (nucleus) and min-p",
    formula="token = first i with sum_{kept j <= i} w_j > u sum_kept w, w = exp(logit / temperature)",
    case_type=SamplingCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("logits", "u", "p", "min_p"),
)
