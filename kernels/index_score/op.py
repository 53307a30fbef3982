"""y[b, t] = s[t] sum over h of w[b, h] ReLU(q[b, h] . k[t]): how DeepSeek-V3.2's indexer scores the tokens of a cache.

q [B, H, D] is fp8 (e4m3), with its scale in the weights w [B, H] fp32. All heads share the key of a token: keys
[pages, page, D] fp8 with a scale in fp32, key_scale [pages, page]; 132 bytes for D = 128. Without pages both are
[B, T, ..]. y is fp32 [B, T]; the columns behind lengths[b] are left alone. Attention then reads the `index_topk` tokens
with the largest y (`kernels/topk`). Source: inference/model.py and kernel.py of huggingface.co/deepseek-ai/
DeepSeek-V3.2-Exp; DeepGEMM's fp8_paged_mqa_logits computes the same.

A token has 2 H D FLOP for 132 bytes: 124 FLOP/B with 64 heads, a third of the ridge of fp8 on an H200.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from kernels.common import paging
from kernels.common.fields import Count
from kernels.common.integers import cdiv
from kernels.common.random_inputs import RandomInputs
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

HEADS, DIM, PAGE = 64, 128, 64
"""`index_n_heads` and `index_head_dim` of DeepSeek-V3.2's config.json; vLLM and SGLang keep 64 tokens a page."""


@dataclass(frozen=True, kw_only=True)
class IndexCase(Case):
    """`T` is the longest sequence; `lengths` and `seed` draw the others. `page` 0 is a contiguous cache."""

    PLAIN: ClassVar[Mapping[str, Any]] = {"lengths": "uniform"}

    B: int
    T: int
    H: int = HEADS
    D: int = DIM
    page: Count = PAGE
    lengths: paging.Lengths = "uniform"
    seed: Count = 0
    dtype: str = "fp8"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype != "fp8":
            raise ValueError(f"dtype {self.dtype}: queries and keys are fp8")
        if self.D % 16:
            raise ValueError(f"D = {self.D}: expected a multiple of 16")

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"H{self.H}", f"D{self.D}", f"T{self.T}"]
        if self.lengths != "uniform":
            parts.append(self.lengths + (str(self.seed) if self.seed else ""))
        parts += [f"page{self.page}"] if self.page else []
        return "-".join([*parts, self.dtype])

    @property
    def tokens_per_page(self) -> int:
        return self.page or self.T

    @property
    def token_bytes(self) -> int:
        return self.D + 4


@cache
def lengths(case: IndexCase) -> tuple[int, ...]:
    """Tokens per sequence."""
    return paging.random_lengths(case.lengths, case.B, case.T, case.seed)


def table_bytes(case: IndexCase) -> int:
    return 4 * sum(cdiv(length, case.page) for length in lengths(case)) if case.page else 0


def deepseek(B: int, T: int, **more: Any) -> IndexCase:
    return IndexCase(B=B, T=T, model="deepseek-v3.2", **more)


def cases(suite: str) -> list[IndexCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [deepseek(32, 32768)]
    if suite == "full":
        return [
            *(deepseek(1, T) for T in (4096, 16384, 65536, 131072)),
            *(deepseek(B, 131072) for B in (8, 32)),
            *(deepseek(B, 8192) for B in (32, 128)),
            deepseek(64, 65536, lengths="ragged"),
            deepseek(8, 131072, page=0),
        ]
    return [
        IndexCase(B=2, T=100, H=16, D=32, page=16, lengths="ragged"),
        IndexCase(B=3, T=300, H=32, D=64, lengths="holes"),
        IndexCase(B=2, T=150, H=64, D=128),
        IndexCase(B=1, T=1, H=16, D=32, page=0),
        IndexCase(B=2, T=130, H=16, D=32, page=0, lengths="ragged"),
        IndexCase(B=1, T=140, H=40, D=64, page=1),
    ]


def inputs(case: IndexCase, device: str, seed: int) -> Inputs:
    """q and k ~ N(0, 1) times 16 codes, weights ~ N(0, 1 / H). What is not live is NaN, in keys or scales.

    Half of the products are negative, so that a missing ReLU shows; scales of neighbours differ by a tenth at least.
    """
    import torch

    draw = RandomInputs(device, seed)
    page = case.tokens_per_page
    ranges = [((0, length),) for length in lengths(case)]
    columns = cdiv(case.T, page) + (1 if case.page else 0)
    scattered = bool(case.page)
    paged = paging.block_table(ranges, page=page, columns=columns, shuffled=scattered, spare=scattered, seed=seed)
    made: Inputs = {
        "q": draw.normal((case.B, case.H, case.D), "fp8", scale=16),
        "w": draw.normal((case.B, case.H), "fp32", scale=(256 * case.D * case.H) ** -0.5),
        "keys": draw.normal((paged.pages, page, case.D), "fp8", scale=16),
        "key_scale": draw.scales((paged.pages, page), 1 / 16, step=1.25),
    }
    if device != "meta":
        for name in ("keys", "key_scale"):
            paging.poison_dead(made[name], ranges, page=page, paged=paged)
    made["block_table"] = (paged.table if case.page else torch.empty(case.B, 0, dtype=torch.int32)).to(device)
    made["lengths"] = draw.table(lengths(case))
    return made


def reference(case: IndexCase, inputs: Inputs) -> torch.Tensor:
    """In fp64, one sequence at a time; NaN where nothing is written."""
    import torch

    y = torch.full((case.B, case.T), float("nan"), dtype=torch.float64, device=inputs["q"].device)
    for b, length in enumerate(lengths(case)):
        row = inputs["block_table"][b] if case.page else torch.tensor([b], device=y.device)
        k, s = (
            paging.gather(inputs[name], row, 0, length, case.tokens_per_page).double() for name in ("keys", "key_scale")
        )
        y[b, :length] = (torch.relu(k @ inputs["q"][b].double().T) @ inputs["w"][b].double()) * s
    return y


def work(case: IndexCase) -> Work:
    """Each live key with its scale and its table entry once; queries and weights once; a score for each token."""
    tokens = sum(lengths(case))
    return Work(
        flops={"mma_fp8": 2 * case.H * case.D * tokens, "fma_fp32": 2 * case.H * tokens},
        bytes_read=tokens * case.token_bytes + table_bytes(case) + case.B * (case.H * (case.D + 4) + 4),
        bytes_written=4 * tokens,
    )


def tolerance(case: IndexCase) -> Tolerance:
    """A sum of D products of fp8 keeps 14 bits on Hopper (DeepSeek-V3's report, arXiv 2412.19437, section 3.3.2) and
    loses what is below, always to one side. Weights in 16 bits would err by 1e-3 (rms), which is twice as much."""
    return Tolerance(max_rel=2**-8, rms_rel=2**-11, slope=2**-11, why="fp8 tensor cores keep 14 bits of a sum")


OP = Op(
    name="index_score",
    title="index scores",
    role="decode",
    about="scoring every token for sparse attention (DeepSeek's indexer): fp8 keys with a scale each, in pages",
    formula="y[b,t] = s[t] sum_h w[b,h] ReLU(q[b,h] . k[t])",
    case_type=IndexCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("q", "w", "keys", "key_scale", "block_table"),
)
