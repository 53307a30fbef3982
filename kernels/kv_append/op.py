"""kv[0, page, slot, h] = k[b, h] and kv[1, page, slot, h] = v[b, h]: the write of a decode step, one token a sequence.

k, v are [B, H_kv, D]. kv is [2, pages, page, H_kv, D] (NHD) or [2, pages, H_kv, page, D] (HND); it is changed in place
and returned whole. Sequence b has lengths[b] tokens already. Its new token goes to slot lengths[b] % page of physical
page block_table[b, lengths[b] // page]. A length of -1 marks an idle entry of a padded batch, which writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common import paging
from kernels.common.fields import Count, OneOf
from kernels.common.integers import cdiv
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

BACKGROUND = 13
"""Before the write, the values 0 to 12 repeat through the cache; they are exact in every type."""


@dataclass(frozen=True, kw_only=True)
class AppendCase(Case):
    """`T`: tokens of the longest sequence after the write. `page` 0 is a contiguous cache; `idle` of the B entries
    write nothing.

    Every seed of the inputs draws its own lengths, of the kind `lengths`: no shape and no work depends on them.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"idle": 0}

    B: int
    H_kv: int
    D: int
    T: int
    page: Count = 16
    layout: paging.Layout = "NHD"
    lengths: paging.Lengths = "ragged"
    idle: Count = 0
    dtype: Annotated[str, OneOf("bf16", "fp16", "fp32", "fp8")] = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.idle >= self.B:
            raise ValueError(f"idle {self.idle}: fewer than the batch, B = {self.B}")
        if self.layout == "HND" and not self.page:
            raise ValueError("layout HND needs pages: a contiguous cache is kept as NHD")

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"Hkv{self.H_kv}", f"D{self.D}", f"T{self.T}", self.lengths]
        if self.idle:
            parts.append(f"idle{self.idle}")
        parts += [f"page{self.page}", self.layout] if self.page else ["contiguous"]
        return "-".join([*parts, self.dtype])

    @property
    def tokens_per_page(self) -> int:
        """Tokens a page; a contiguous cache is one page of T tokens per sequence."""
        return self.page or self.T


def cases(suite: str) -> list[AppendCase]:
    """Caches are no larger than a comparison needs, since the bytes written depend on B alone."""

    def llama(B: int, page: int = 16, layout: str = "NHD", idle: int = 0) -> AppendCase:
        return AppendCase(B=B, H_kv=8, D=128, T=64, page=page, layout=layout, idle=idle, model="llama-3.1-8b")

    if suite == "smoke":
        return [llama(32)]
    if suite == "quick":
        return [llama(1), llama(256), llama(256, layout="HND")]
    if suite == "full":
        return [
            *(llama(B) for B in (1, 16, 64, 256, 512)),
            *(llama(256, page=page) for page in (0, 1, 64)),
            llama(256, layout="HND"),
            llama(256, idle=32),
            AppendCase(B=128, H_kv=32, D=80, T=64, model="phi-2"),
        ]
    return [
        AppendCase(B=5, H_kv=2, D=32, T=40),
        AppendCase(B=5, H_kv=2, D=32, T=40, page=1, layout="HND"),
        AppendCase(B=5, H_kv=2, D=32, T=48, page=16, lengths="uniform"),
        AppendCase(B=5, H_kv=2, D=32, T=33, page=16, lengths="uniform", layout="HND"),
        AppendCase(B=5, H_kv=2, D=32, T=40, page=64, lengths="holes", idle=2),
        AppendCase(B=5, H_kv=2, D=32, T=40, page=0, lengths="holes"),
        AppendCase(B=5, H_kv=3, D=48, T=20, page=7, layout="HND", dtype="fp32"),
        AppendCase(B=5, H_kv=2, D=32, T=20, page=4, dtype="fp8"),
        AppendCase(B=5, H_kv=2, D=80, T=20, page=4, idle=1),
        AppendCase(B=3, H_kv=2, D=512, T=20, page=4),
    ]


def background(shape: tuple[int, ...], dtype: str, device: str | torch.device) -> torch.Tensor:
    """What the cache holds before the write. It is the same for every seed, so the reference need not see the cache."""
    import torch

    if device == "meta":
        return torch.empty(shape, dtype=torch_dtype(dtype), device=device)
    count = torch.Size(shape).numel()
    values = torch.arange(BACKGROUND, device=device).to(torch_dtype(dtype))
    return values.repeat(cdiv(count, BACKGROUND))[:count].view(shape)


def tokens_before(case: AppendCase, seed: int) -> list[int]:
    """Tokens per sequence before the write, -1 for idle entries, in pure Python."""
    drawn = paging.random_lengths(case.lengths, case.B, case.T, seed)
    return [-1 if b >= case.B - case.idle else max(0, n - 1) for b, n in enumerate(drawn)]


def cache_shape(case: AppendCase) -> tuple[int, ...]:
    """Room for B sequences of T tokens, and a sixteenth more pages (at least one); the same for every seed."""
    live = case.B * cdiv(case.T, case.tokens_per_page)
    pages = live + max(1, live // 16) if case.page else case.B
    inner = (case.H_kv, case.page) if case.layout == "HND" else (case.tokens_per_page, case.H_kv)
    return (2, pages, *inner, case.D)


def inputs(case: AppendCase, device: str, seed: int) -> Inputs:
    """k, v ~ N(0, 1). `block_table` is `[B, 0]` without pages; entries that lead to no live token are garbage."""
    import torch

    draw = RandomInputs(device, seed)
    before = torch.tensor(tokens_before(case, seed))
    shape = cache_shape(case)
    table = torch.empty(case.B, 0, dtype=torch.int32)
    if case.page:
        columns = cdiv(case.T, case.page)
        order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
        table = torch.full((case.B, columns + 1), paging.GARBAGE[0], dtype=torch.int32)
        table[:, :columns] = order[: case.B * columns].view(case.B, columns)
        last = before.div(case.page, rounding_mode="floor")
        table[torch.arange(columns + 1) > last[:, None]] = paging.GARBAGE[0]
    return {
        "k": draw.normal((case.B, case.H_kv, case.D), case.dtype),
        "v": draw.normal((case.B, case.H_kv, case.D), case.dtype),
        "kv": background(shape, case.dtype, device),
        "block_table": table.to(device),
        "lengths": before.int().to(device),
    }


def slots(case: AppendCase, inputs: Inputs) -> torch.Tensor:
    """[n, 3] int64: sequence, physical page and slot of every token to be written."""
    import torch

    lengths = inputs["lengths"].long()
    (b,) = torch.nonzero(lengths >= 0, as_tuple=True)
    length = lengths[b]
    physical = inputs["block_table"].long()[b, length // case.page] if case.page else b
    return torch.stack([b, physical, length % case.tokens_per_page], dim=1)


def rows_of(case: AppendCase, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of D elements that are to be written, among those of the cache in its layout, and the other rows."""
    import torch

    shape, old = cache_shape(case)[:-1], torch.ones(cache_shape(case)[:-1], dtype=torch.bool)
    index = torch.arange(old.numel()).view(shape)
    _, physical, slot = slots(case, inputs).T.cpu()
    new = torch.stack([paging.nhd(half[..., None], case.layout)[physical, slot] for half in index]).flatten()
    old.view(-1)[new] = False
    device = inputs["lengths"].device
    return new.to(device), old.flatten().nonzero()[:, 0].to(device)


def reference(case: AppendCase, inputs: Inputs) -> torch.Tensor:
    """The cache as it was, with each new token put in its place."""
    kv = background(cache_shape(case), case.dtype, inputs["k"].device)
    b, physical, slot = slots(case, inputs).T
    for half, name in enumerate(("k", "v")):
        stored, _ = paging.poisonable(paging.nhd(kv[half], case.layout))  # fp8 as bytes, which torch indexes
        stored[physical, slot] = paging.poisonable(inputs[name])[0][b]
    return kv


def poison_slots(case: AppendCase, inputs: Inputs, output: torch.Tensor) -> None:
    """NaN in the slots that must be written, and nowhere else: a write to a wrong place must stay, so that it shows."""
    _, physical, slot = slots(case, inputs).T
    for half in range(2):
        stored, poison = paging.poisonable(paging.nhd(output[half], case.layout))
        stored[physical, slot] = poison


def work(case: AppendCase) -> Work:
    """The new tokens are read and written; the lengths of all entries and the table entries of the active are read."""
    active = case.B - case.idle
    tokens = 2 * active * case.H_kv * case.D * BYTES[case.dtype]
    return Work(
        bytes_read=tokens + 4 * case.B + (4 * active if case.page else 0),
        bytes_written=tokens,
    )


def tolerance(case: AppendCase) -> Tolerance:
    return Tolerance(max_rel=0.0, rms_rel=0.0, why="a copy is exact")


OP = Op(
    name="kv_append",
    title="cache writes",
    role="decode",
    about="writing one token per sequence into a contiguous or paged KV cache",
    formula="kv[:, block_table[b, lengths[b] // page], lengths[b] % page] = (k[b], v[b])",
    case_type=AppendCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("k", "v", "kv", "block_table", "lengths"),
    poison=poison_slots,
)
