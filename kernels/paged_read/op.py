"""y[b, c, h] = sum of k and v over the live tokens of chunk c and over D: attention's reads without its arithmetic.

k, v are [B, T, H_kv, D] contiguous, [pages, page, H_kv, D] (NHD) or [pages, H_kv, page, D] (HND). A chunk is 64 tokens
of a sequence. y is fp32, and 0 for a chunk without live tokens. Compared with the contiguous cache, the same tokens in
ordered pages show the cost of the look-up, and in shuffled pages also the cost of scattered rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from kernels.common import paging
from kernels.common.fields import Count, OneOf
from kernels.common.integers import cdiv
from kernels.common.random_inputs import BYTES, RandomInputs, encoded, writable
from kernels.common.smaller import fewer
from kernels.models import attention_heads
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

CHUNK = 64
"""Tokens that are summed into one output: 64 x 128 bf16 elements of K and of V are 32 KiB for 4 bytes of result."""


@dataclass(frozen=True, kw_only=True)
class PagedReadCase(Case):
    """`T` tokens in the longest sequence; `page` tokens a page, 0 for a contiguous cache; `seed` draws `lengths`."""

    B: int
    H_kv: int
    D: int
    T: int
    page: Count = 0
    layout: paging.Layout = "NHD"
    order: paging.Order = "shuffled"
    lengths: paging.Lengths = "uniform"
    seed: Count = 0
    dtype: Annotated[str, OneOf("bf16", "fp16", "fp32", "fp8")] = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout == "HND" and not self.page:
            raise ValueError("layout HND needs pages: a contiguous cache is kept as NHD")

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"Hkv{self.H_kv}", f"D{self.D}", f"T{self.T}"]
        if self.lengths != "uniform":
            parts.append(self.lengths + (str(self.seed) if self.seed else ""))
        parts += [f"page{self.page}", self.layout, self.order] if self.page else ["contiguous"]
        return "-".join([*parts, self.dtype])

    @property
    def chunks(self) -> int:
        """Outputs per sequence and head."""
        return cdiv(self.T, CHUNK)

    @property
    def tokens_per_page(self) -> int:
        """Tokens a page; a contiguous cache is one page of T tokens per sequence."""
        return self.page or self.T


@cache
def lengths(case: PagedReadCase) -> tuple[int, ...]:
    return paging.random_lengths(case.lengths, case.B, case.T, case.seed)


def kv_bytes(case: PagedReadCase) -> int:
    """Bytes of K's live tokens; V has as many."""
    return BYTES[case.dtype] * case.H_kv * case.D * sum(lengths(case))


def table_bytes(case: PagedReadCase) -> int:
    """Bytes of the int32 table entries that lead to live tokens."""
    return 4 * sum(cdiv(length, case.page) for length in lengths(case)) if case.page else 0


def cases(suite: str) -> list[PagedReadCase]:
    """The KV heads of Llama-3.1-8B, and of models with heads of 80, 192 and 512 dims. The 131072 tokens of `full` are
    537 MB in bf16, 0.16 ms at 3.35 TB/s.

    `smoke` is fp32, since on a host torch would first make a wider copy of a bf16 cache.
    """

    def pages(sizes: tuple[int, ...], B: int = 16, T: int = 8192, **more: Any) -> Iterator[PagedReadCase]:
        for page in sizes:
            yield PagedReadCase(B=B, H_kv=8, D=128, T=T, page=page, model="llama-3.1-8b", **more)

    def of_model(model: str, T: int) -> PagedReadCase:
        _, H_kv, D = attention_heads(model)
        return PagedReadCase(B=16, H_kv=H_kv, D=D, T=T, page=16, model=model)

    if suite == "smoke":
        return [*pages((0, 1, 16), B=4, T=512, dtype="fp32")]
    if suite == "quick":
        return [*pages((0, 1, 16, 64)), *pages((16,), order="ordered"), *pages((16,), layout="HND")]
    if suite == "full":
        return [
            *pages((0, 1, 2, 4, 8, 16, 32, 64, 128, 256)),
            *pages((1, 16, 256), order="ordered"),
            *pages((1, 16, 256), layout="HND"),
            *pages((0, 16), B=1, T=131072),
            *pages((0, 16), lengths="ragged"),
            *pages((0, 16), dtype="fp8"),
            *(of_model(model, T=T) for model, T in (("phi-2", 2048), ("nemotron-4-340b", 4096), ("gemma-4-31b", 4096))),
        ]
    small: dict[str, Any] = {"B": 3, "H_kv": 2, "D": 32, "T": 150}
    return [
        PagedReadCase(**small, lengths="holes"),
        PagedReadCase(**small, lengths="holes", page=16),
        PagedReadCase(**small, lengths="holes", page=16, layout="HND", dtype="fp16"),
        PagedReadCase(**small, lengths="ragged", page=1),
        PagedReadCase(**small, lengths="ragged", page=256, dtype="fp32"),
        PagedReadCase(**small, lengths="ragged", page=24, order="ordered"),
        PagedReadCase(**small | {"T": 128}, page=64),
        PagedReadCase(**small | {"T": 128}, page=16, layout="HND"),
        PagedReadCase(**small | {"T": 128}, page=128, layout="HND"),
        PagedReadCase(**small | {"T": 128}),
        PagedReadCase(**small | {"T": 65, "D": 64}, page=16, dtype="fp8"),
        PagedReadCase(**small | {"T": 65, "D": 80}, page=16),
        PagedReadCase(**small | {"T": 65, "D": 192}, dtype="fp8", lengths="ragged"),
    ]


def inputs(case: PagedReadCase, device: str, seed: int) -> Inputs:
    """k, v ~ N(0, 1), but the first element of k is +-6 sqrt(2 D); everything that is not live is poisoned.

    So the loss of any token shows. Without its first element the sum of a token has a standard deviation of
    s = sqrt(2 D), so with it it is s or more in magnitude, up to 5 deviations. Sums of chunks have an rms of
    8 x 6.1 s = 49 s. A lost or doubled token changes a sum by s / (5 x 49 s + 49 s) = 0.0034 at least: that is 34 times
    the tolerance.

    `block_table` is one column wider than needed, and `[B, 0]` without pages; `lengths` is `[B]` int32.
    """
    import torch

    draw = RandomInputs(device, seed)
    page = case.tokens_per_page
    ranges = [((0, length),) for length in lengths(case)]
    paged = paging.block_table(
        ranges,
        page=page,
        columns=cdiv(case.T, page) + (1 if case.page else 0),
        shuffled=bool(case.page) and case.order == "shuffled",
        spare=bool(case.page),
        seed=seed,
    )
    slots = (case.H_kv, page) if case.layout == "HND" else (page, case.H_kv)
    made: Inputs = {}
    for name in ("k", "v"):
        made[name] = draw.normal((paged.pages, *slots, case.D), case.dtype)
        if name == "k" and device != "meta":
            sign = 2.0 * draw.integers(0, 2, made["k"].shape[:-1]) - 1.0
            writable(made["k"])[..., 0] = encoded(6 * (2 * case.D) ** 0.5 * sign, made["k"].dtype)
        if device != "meta":
            paging.poison_dead(paging.nhd(made[name], case.layout), ranges, page=page, paged=paged)
    made["block_table"] = (paged.table if case.page else torch.empty(case.B, 0, dtype=torch.int32)).to(device)
    made["lengths"] = draw.table(lengths(case))
    return made


def reference(case: PagedReadCase, inputs: Inputs) -> torch.Tensor:
    """Sums in fp64, one sequence at a time."""
    import torch

    y = torch.zeros(case.B, case.chunks, case.H_kv, dtype=torch.float64, device=inputs["k"].device)
    for b, length in enumerate(lengths(case)):
        row = inputs["block_table"][b] if case.page else torch.tensor([b], device=y.device)
        for name in ("k", "v"):
            stored = paging.nhd(inputs[name], case.layout)
            tokens = paging.gather(stored, row, 0, length, case.tokens_per_page)
            sums = tokens.to(torch.float32).sum(dim=-1, dtype=torch.float64)
            whole = torch.nn.functional.pad(sums, (0, 0, 0, -length % CHUNK))
            y[b, : cdiv(length, CHUNK)] += whole.view(-1, CHUNK, case.H_kv).sum(dim=1)
    return y


def work(case: PagedReadCase) -> Work:
    """The live tokens of K and V, their table entries and the lengths once; one addition per element."""
    return Work(
        flops={"fma_fp32": 2 * case.H_kv * case.D * sum(lengths(case))},
        bytes_read=2 * kv_bytes(case) + table_bytes(case) + 4 * case.B,
        bytes_written=4 * case.B * case.chunks * case.H_kv,
    )


def tolerance(case: PagedReadCase) -> Tolerance:
    return Tolerance(
        max_rel=1e-4,
        rms_rel=1e-5,
        why="fp32 sums of 16384 terms in another order; one token left out is 9% of a sum's standard deviation",
    )


OP = Op(
    name="paged_read",
    title="page reads",
    role="decode",
    about="attention's reads of a contiguous or paged KV cache, without its arithmetic",
    formula="y[b,c,h] = sum over t in chunk c, d of k[b,t,h,d] + v[b,t,h,d]",
    case_type=PagedReadCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("k", "v", "block_table"),
    smaller=lambda case, n: fewer(case, n, B=1, T=64),
)
