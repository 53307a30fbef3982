"""out[b] = the positions of the k largest of the first lengths[b] scores of row b: what sparse attention reads next.

scores [B, N] in fp32 or bf16, lengths [B] int32 -> out [B, k] int32, or [B, 2, k] with `values`: positions, then the
bits of their scores as fp32. Of equal scores the one at the lower position is larger; -0 equals +0, and -inf is a score
like any other. NaN has no place in this order: no score may be NaN. A row of fewer than k scores ends in -1, with the
value -inf.

`order` is that of a row of the output: `position` ascending, as a gather wants it, or `value` descending, as routers
and samplers want it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common import paging
from kernels.common.fields import Count, OneOf
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

SCORES = ("normal", "equal", "ascending", "descending", "two", "small", "infinite")


@dataclass(frozen=True, kw_only=True)
class TopkCase(Case):
    """`lengths` and `seed` draw how many scores a row has; N is the most. `scores` is what they are:

    - `normal`: quantiles of the normal distribution in random order. In fp32 all differ
    - `equal`, `ascending`, `descending`; `two`: one of two values
    - `small`: -0, +0 and the smallest denormal numbers of both signs
    - `infinite`: nine of ten are -inf, and some are +inf
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"lengths": "uniform", "scores": "normal"}

    B: int
    N: int
    k: int
    order: Annotated[str, OneOf("position", "value")] = "position"
    values: bool = False
    lengths: paging.Lengths = "uniform"
    seed: Count = 0
    scores: Annotated[str, OneOf(*SCORES)] = "normal"
    dtype: Annotated[str, OneOf("fp32", "bf16")] = "fp32"

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"N{self.N}", f"k{self.k}"]
        if self.lengths != "uniform":
            parts.append(self.lengths + (str(self.seed) if self.seed else ""))
        parts += [self.scores] if self.scores != "normal" else []
        parts += ["by-value"] if self.order == "value" else []
        parts += ["values"] if self.values else []
        return "-".join([*parts, self.dtype])


@cache
def lengths(case: TopkCase) -> tuple[int, ...]:
    """Scores per row."""
    return paging.random_lengths(case.lengths, case.B, case.N, case.seed)


DEEPSEEK_K = 2048
"""`index_topk` of DeepSeek-V3.2 and GLM-5: huggingface.co/deepseek-ai/DeepSeek-V3.2, config.json."""


def sparse(B: int, N: int, **more: Any) -> TopkCase:
    """The tokens that sparse attention reads."""
    return TopkCase(B=B, N=N, k=DEEPSEEK_K, model="deepseek-v3.2", **more)


def router(B: int, N: int, k: int, model: str) -> TopkCase:
    """The experts of each token."""
    return TopkCase(B=B, N=N, k=k, order="value", values=True, model=model)


def vocabulary(B: int, N: int, k: int, model: str) -> TopkCase:
    """The tokens that a sampler draws from, and their logits."""
    return TopkCase(B=B, N=N, k=k, order="value", values=True, dtype="bf16", model=model)


def cases(suite: str) -> list[TopkCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [sparse(8, 1 << 20)]
    if suite == "full":
        return [
            *(sparse(1, N) for N in (4096, 16384, 65536, 131072, 1 << 20)),
            *(sparse(B, 131072) for B in (8, 32, 128)),
            *(sparse(B, 1 << 20) for B in (8, 64)),
            sparse(64, 131072, lengths="ragged"),
            *(sparse(8, 131072, scores=scores) for scores in ("equal", "ascending", "two")),
            router(1, 128, 8, "qwen3-30b-a3b"),
            *(router(B, 256, 8, "deepseek-v3") for B in (1, 64, 128)),
            *(vocabulary(B, 128256, 64, "llama-3.1-8b") for B in (1, 64, 128)),
            vocabulary(64, 151936, 20, "qwen3-8b"),
        ]
    wide = ("normal", "equal", "ascending", "infinite")
    listed = [TopkCase(B=2, N=17000, k=6, lengths="ragged", scores=scores) for scores in wide]
    return [
        TopkCase(B=3, N=300, k=17, lengths="holes"),
        *(TopkCase(B=2, N=100, k=40, scores=scores, values=True) for scores in SCORES),
        TopkCase(B=2, N=64, k=8, order="value", values=True, dtype="bf16"),
        TopkCase(B=2, N=70, k=70, order="value", lengths="ragged"),
        *listed,
        TopkCase(B=1, N=17000, k=300, dtype="bf16"),
        TopkCase(B=2, N=20000, k=20, order="value", values=True, dtype="bf16", lengths="holes"),
    ]


def drawn(case: TopkCase, draw: RandomInputs) -> torch.Tensor:
    """`[B, N]` before rows are cut to their lengths."""
    import torch

    B, N, device = case.B, case.N, draw.device
    stored = torch_dtype(case.dtype)
    if device == "meta":
        return torch.empty(B, N, dtype=stored, device=device)
    unit = 1.0 + draw.seed % 7
    if case.scores == "equal":
        return torch.full((B, N), unit, dtype=stored, device=device)
    quantiles = torch.special.ndtri((torch.arange(N, dtype=torch.float64, device=device) + 0.5) / N).to(stored)
    if case.scores in ("ascending", "descending"):
        row = quantiles if case.scores == "ascending" else quantiles.flip(0)
        return row.mul(unit).repeat(B, 1)
    if case.scores in ("two", "small"):
        least = torch.finfo(stored).smallest_normal / 128  # bf16 has 7 bits of mantissa: its least number
        several = [unit, -unit] if case.scores == "two" else [-0.0, 0.0, least, -least]
        table = torch.tensor(several, dtype=stored, device=device)
        return table[draw.integers(0, len(several), (B, N)).long()]
    found = torch.stack([quantiles[draw.permutation(N)] for _ in range(B)])
    if case.scores == "infinite":
        kind = draw.integers(0, 1000, (B, N))
        found = found.masked_fill(kind < 900, float("-inf")).masked_fill(kind == 999, float("inf"))
    return found


def inputs(case: TopkCase, device: str, seed: int) -> Inputs:
    """What lies behind the scores of a row is NaN."""
    import torch

    draw = RandomInputs(device, seed)
    scores = drawn(case, draw)
    count = draw.table(lengths(case))
    if device != "meta" and case.lengths != "uniform":
        scores.masked_fill_(torch.arange(case.N, device=device) >= count[:, None], float("nan"))
    return {"scores": scores, "lengths": count}


def reference(case: TopkCase, inputs: Inputs) -> torch.Tensor:
    """By a stable sort of each row in fp64."""
    import torch

    out = torch.full((case.B, 2, case.k), -1, dtype=torch.int32, device=inputs["scores"].device)
    out[:, 1] = torch.tensor(float("-inf")).view(torch.int32)
    for b, length in enumerate(lengths(case)):
        row = inputs["scores"][b, :length]
        best = torch.sort(row.double() + 0.0, descending=True, stable=True).indices[: case.k]
        if case.order == "position":
            best = best.sort().values
        out[b, 0, : len(best)] = best.int()
        out[b, 1, : len(best)] = row[best].float().view(torch.int32)
    return (out if case.values else out[:, 0]).double()


def work(case: TopkCase) -> Work:
    """Each score once, with a comparison; the output once."""
    scores = sum(lengths(case))
    return Work(
        flops={"fma_fp32": scores},
        bytes_read=BYTES[case.dtype] * scores + 4 * case.B,
        bytes_written=4 * case.B * case.k * (2 if case.values else 1),
    )


def tolerance(case: TopkCase) -> Tolerance:
    return Tolerance(max_rel=0.0, rms_rel=0.0, why="the order is total, so there is one answer")


OP = Op(
    name="topk",
    title="top-k",
    role="decode",
    about="the k largest of many scores: tokens for sparse attention, experts, candidates of a sampler",
    formula="out[b] = positions of the k largest scores[b, :lengths[b]], ties by position",
    case_type=TopkCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("scores",),
)
