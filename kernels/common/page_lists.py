"""Block tables as compressed page lists, the form that FlashInfer takes: indptr, indices, last page length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.common.integers import cdiv

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PageList:
    """Sequence b owns the pages `indices[indptr[b]:indptr[b + 1]]`; its last page holds `last_page_len[b]` tokens.

    All tensors are int32, on one device. Lengths are settled beforehand, but pages change from step to step: `refresh`
    reads them again.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    last_page_len: torch.Tensor
    page: int
    source: tuple[torch.Tensor, torch.Tensor] | None = None
    """The flat table, and the positions (int64) of its live entries; None for a contiguous cache."""

    def refresh(self) -> None:
        """Copy the live entries of the table as it is now, in one small kernel."""
        import torch

        if self.source:
            torch.index_select(self.source[0], 0, self.source[1], out=self.indices)


def paged(lengths: Sequence[int], page: int, table: torch.Tensor) -> PageList:
    """The page list of a `table [B, columns]` int32. Raises `ValueError` for a sequence without tokens."""
    import torch

    counts = [cdiv(n, page) for n in lengths]
    columns = table.shape[1]
    positions = torch.tensor([b * columns + i for b, count in enumerate(counts) for i in range(count)])
    positions = positions.to(table.device)
    return of_counts(lengths, counts, page, table.view(-1)[positions], (table.view(-1), positions))


def contiguous(lengths: Sequence[int], T: int, device: torch.device) -> PageList:
    """The page list of a contiguous cache `[B, T, ...]`, seen as pages of `contiguous_page(T)` tokens."""
    import torch

    page = contiguous_page(T)
    counts = [cdiv(n, page) for n in lengths]
    pages = [b * (T // page) + i for b, count in enumerate(counts) for i in range(count)]
    return of_counts(lengths, counts, page, torch.tensor(pages, dtype=torch.int32, device=device))


def contiguous_page(T: int) -> int:
    """Tokens a page when a contiguous cache is seen as pages: 16, the usual size, or its largest divisor that fits."""
    return math.gcd(T, 16)


def of_counts(
    lengths: Sequence[int],
    counts: Sequence[int],
    page: int,
    indices: torch.Tensor,
    source: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> PageList:
    """The page list of sequences with `counts` pages each; `indices` are their physical pages in order."""
    import torch

    if not all(lengths):
        raise ValueError("a page list has no form for a sequence without tokens")
    ends = [sum(counts[:b]) for b in range(len(counts) + 1)]
    last = [n - page * (count - 1) for n, count in zip(lengths, counts, strict=True)]
    return PageList(
        indptr=torch.tensor(ends, dtype=torch.int32, device=indices.device),
        indices=indices,
        last_page_len=torch.tensor(last, dtype=torch.int32, device=indices.device),
        page=page,
        source=source,
    )
