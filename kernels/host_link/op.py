"""Bytes between pinned host memory and device memory: what offloading a KV cache costs.

| kind | computes | from, to |
|---|---|---|
| `h2d` | y = x | host, device |
| `d2h` | y = x | device, host |
| `swap_out` | y[i] = x[table[i]] | pages scattered over a device pool, host |
| `swap_in` | y[table[i]] = x[i] | host, pages scattered over a device pool |
| `chase` | y[0] = a after `loads` times a = x[a], from a = 0 | host, a register of the device |

A chase tells how long one load over the link takes: each waits for the load before it, as in the `chase` of `stream`,
with one chain. Nothing predicts it but the bytes that cross; the time itself is what is wanted.

The plain copies give the link's measured rate, from which the swaps are predicted. This op is no ceiling: nothing in
decode waits for these copies, and no other run has to measure them first.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kernels.common.fields import Count
from kernels.common.integers import KiB, MiB, size_text
from kernels.common.random_inputs import RandomInputs
from kernels.op import Case, Inputs, Op, Tolerance, Work, poison_with_nan
from kernels.stream.op import StreamCase, chained, ends

if TYPE_CHECKING:
    import torch

SPREAD = 2
"""A pool has this many times the pages that are swapped. The other pages must be neither read nor written."""

BLOCK_BYTES = 2 * 16 * 8 * 128 * 2
"""K and V of one layer of Llama-3.1-8B: 16 tokens a page, 8 heads, 128 wide, in 16 bits: 64 KiB."""

BLOCK_BYTES_ALL_LAYERS = 32 * BLOCK_BYTES
"""The same tokens of all 32 layers together, as caches that are made for offloading keep them: 2 MiB."""


@dataclass(frozen=True, kw_only=True)
class LinkCase(Case):
    """`pages` pages of `page_bytes` bytes each cross the link. All values are fp32. A plain copy is one page.

    A chase of so many `loads` goes through one page of int32.
    """

    kind: Literal["h2d", "d2h", "swap_out", "swap_in", "chase"]
    page_bytes: int
    pages: int = 1
    loads: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.page_bytes % 4:
            raise ValueError(f"page_bytes {self.page_bytes}: a page is whole fp32 values, at least one")
        if self.pages > 1 and not self.swaps:
            raise ValueError(f"pages {self.pages}: a {self.kind} is one page")
        if (self.kind == "chase") != (self.loads > 0):
            raise ValueError(f"loads {self.loads}: a chase has some, a {self.kind} has none")
        if self.kind == "chase":
            try:
                self.chain  # noqa: B018 (raises where the page is no chain)
            except ValueError as error:
                raise ValueError(f"page_bytes {self.page_bytes}, loads {self.loads}: {error}") from None

    @property
    def chain(self) -> StreamCase:
        """The same chase in the device's memory."""
        return StreamCase(kind="chase", size=self.page_bytes, chains=1, loads=self.loads)

    @property
    def swaps(self) -> bool:
        return self.kind in ("swap_out", "swap_in")

    @property
    def to_host(self) -> bool:
        return self.kind in ("d2h", "swap_out")

    @property
    def size(self) -> int:
        """Bytes that cross the link."""
        return self.pages * self.page_bytes

    @property
    def id(self) -> str:
        page = size_text(self.page_bytes)
        if self.kind == "chase":
            return f"chase-{page}-x{self.loads}"
        return f"{self.kind}-{self.pages}x{page}" if self.swaps else f"{self.kind}-{page}"

    @property
    def packed(self) -> tuple[int, int]:
        """Shape of the pages in host memory, and of both sides of a plain copy."""
        return self.pages, self.page_bytes // 4

    @property
    def pool(self) -> tuple[int, int]:
        """Shape of a device pool of pages."""
        return SPREAD * self.pages, self.page_bytes // 4


def cases(suite: str) -> list[LinkCase]:
    """Plain copies are the largest cases of each suite, since the largest case is measured first.

    `smoke` needs a GPU too: a CPU has no such link and refuses.
    """

    def plain(*sizes: int) -> list[LinkCase]:
        return [LinkCase(kind=kind, page_bytes=size) for size in sizes for kind in ("h2d", "d2h")]

    def swaps(page_bytes: int, *counts: int) -> list[LinkCase]:
        return [
            LinkCase(kind=kind, page_bytes=page_bytes, pages=count, model="llama-3.1-8b")
            for count in counts
            for kind in ("swap_out", "swap_in")
        ]

    if suite == "smoke":
        return plain(MiB)
    if suite == "quick":
        return [*plain(64 * MiB, 64 * KiB), *swaps(BLOCK_BYTES, 128), *swaps(BLOCK_BYTES_ALL_LAYERS, 4)]
    if suite == "full":
        return [
            *plain(128 * MiB, 16 * MiB, MiB, 64 * KiB),
            *swaps(BLOCK_BYTES, 16, 128),
            *swaps(BLOCK_BYTES_ALL_LAYERS, 4, 32),
            LinkCase(kind="chase", page_bytes=64 * MiB, loads=4096),
        ]
    return [*plain(4, 404), *swaps(12, 1, 5), *swaps(256, 3), LinkCase(kind="chase", page_bytes=21 * 128, loads=17)]


def listed(case: LinkCase) -> list[int]:
    """The pages of the pool that are swapped: distinct, unordered, the same for every seed of the values."""
    return random.Random(case.pages).sample(range(case.pool[0]), case.pages) if case.swaps else []


def inputs(case: LinkCase, device: str, seed: int) -> Inputs:
    """The places of a chase, int32 in host memory, or x ~ N(0, 1) fp32, on the device or in host memory as the kind
    says, pinned if there is a device to copy to.

    `table` `[pages]` int64 is `listed`, empty for a plain copy. It stays on the host, like the list that a scheduler
    hands over, and a launch may rely on it. Pages of x that it does not name are NaN.
    """
    import torch

    draw = RandomInputs(device, seed)
    if case.kind == "chase":
        places = chained(case.chain, draw)
        return {"x": places if device == "meta" else to_host(places), "table": torch.empty(0, dtype=torch.int64)}
    table = torch.tensor(listed(case), dtype=torch.int64, device="meta" if device == "meta" else "cpu")
    x = draw.normal(case.pool if case.kind == "swap_out" else case.packed, "fp32")
    if device == "meta":
        return {"x": x, "table": table}
    if case.kind == "swap_out":
        x[sorted(set(range(case.pool[0])) - set(listed(case)))] = float("nan")
    return {"x": x if case.to_host else to_host(x), "table": table}


def to_host(values: torch.Tensor) -> torch.Tensor:
    """Values of a device, copied to pinned memory; values of a host as they are."""
    return values.cpu().pin_memory() if values.is_cuda else values


def reference(case: LinkCase, inputs: Inputs) -> torch.Tensor:
    """The values in their new place. Pages of the pool that the table does not name are NaN, for "left alone"."""
    import torch

    x, table = inputs["x"], inputs["table"]
    if case.kind == "chase":
        return ends(case.chain, x)
    if case.kind == "swap_out":
        return x[table.to(x.device)]
    if case.kind == "swap_in":
        y = torch.full(case.pool, float("nan"), device=x.device)
        y[table] = x
        return y
    return x.clone()


def work(case: LinkCase) -> Work:
    """The device's memory reads each byte once on its way out, or writes it once on its way in. Of a chase it gets the
    result."""
    if case.kind == "chase":
        return Work(bytes_written=4)
    return Work(bytes_read=case.size) if case.to_host else Work(bytes_written=case.size)


def tolerance(case: LinkCase) -> Tolerance:
    return Tolerance(max_rel=0.0, rms_rel=0.0, why="a copy is exact")


def poison(case: LinkCase, inputs: Inputs, output: Any) -> None:
    """NaN everywhere. The host must not write to its memory while an earlier copy is still arriving there."""
    import torch

    if inputs["x"].is_cuda:
        torch.cuda.synchronize()
    poison_with_nan(case, inputs, output)


OP = Op(
    name="host_link",
    title="host link",
    role="contrast",
    about="copies between pinned host memory and the device, KV pages swapped out and in, dependent loads",
    formula="y = x; y[i] = x[table[i]]; y[table[i]] = x[i]; y = x[x[...x[0]]]",
    case_type=LinkCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
    poison=poison,
)
