"""What torch offers for pages: gather them into a contiguous copy, then sum the copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.paged_read.op import CHUNK, PagedReadCase, kv_bytes, table_bytes, work

if TYPE_CHECKING:
    import torch


def stages(case: PagedReadCase, target: Target) -> tuple[Stage, ...]:
    """For K and V in turn: pages are read, a copy is written, and the copy is read, from the L2 if it fits there."""
    total = work(case)
    if not case.page:
        return (Stage(name="sum", work=total),)
    copy = kv_bytes(case)
    again = 0 if copy <= target.l2_bytes else copy
    half = Work(flops={"fma_fp32": total.flops["fma_fp32"] // 2}, bytes_read=again)
    result = Stage(name="add", work=Work(bytes_written=total.bytes_written), l2_bytes=4 * total.bytes_written)
    gather = Work(bytes_read=copy + table_bytes(case), bytes_written=copy)
    return (
        *(Stage(name=f"gather {name}", work=gather) for name in "kv"),
        *(Stage(name=f"sum {name}", work=half, l2_bytes=copy - again) for name in "kv"),
        result,
    )


def supports(case: PagedReadCase, target: Target) -> str | None:
    if case.lengths != "uniform" or case.T % CHUNK or (case.page and case.T % case.page):
        return f"needs sequences of equal length in whole pages and chunks of {CHUNK}: torch gathers dead tokens too"
    if case.page and case.page % CHUNK and CHUNK % case.page:
        return f"needs pages that make up chunks of {CHUNK} tokens, or the reverse"
    if case.dtype == "fp8":
        return "needs 16- or 32-bit elements: torch does not sum fp8"
    return None


def in_chunks(case: PagedReadCase, tokens: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...], torch.Size]:
    """All tokens in order, in either layout -> a view of their chunks, the dimensions to sum, and the shape that
    remains.

    The sums have the elements of `[B, chunks, H_kv]` in that order.
    """
    import torch

    dims: tuple[int, ...] = (2, 4)
    if case.layout == "NHD":
        view = tokens.view(case.B, case.chunks, CHUNK, case.H_kv, case.D)
    elif case.page <= CHUNK:
        view, dims = tokens.view(case.B, case.chunks, -1, case.H_kv, case.page, case.D), (2, 4, 5)
    else:
        pages = tokens.view(case.B, -1, case.H_kv, case.page // CHUNK, CHUNK, case.D)
        view, dims = pages.transpose(2, 3), (4, 5)
    return view, dims, torch.Size(n for i, n in enumerate(view.shape) if i not in dims)


def prepare(case: PagedReadCase, inputs: Inputs, target: Target) -> Launch:
    """`sum` to fp32. A paged cache is first gathered by `index_select` into one copy, for K and V in turn."""
    import torch

    caches = [inputs["k"], inputs["v"]]
    y = torch.empty(case.B, case.chunks, case.H_kv, device=caches[0].device)
    sums = [torch.empty_like(y) for _ in caches]

    def add_up(tokens: torch.Tensor, result: torch.Tensor) -> None:
        view, dims, shape = in_chunks(case, tokens)
        torch.sum(view, dim=dims, dtype=torch.float32, out=result.view(shape))

    def contiguous() -> torch.Tensor:
        for cache, result in zip(caches, sums, strict=True):
            add_up(cache, result)
        return torch.add(*sums, out=y)

    if not case.page:
        return contiguous
    table = inputs["block_table"][:, : case.T // case.page]
    index = torch.empty(table.shape, dtype=table.dtype, device=table.device)
    copy = torch.empty(table.numel(), *caches[0].shape[1:], dtype=caches[0].dtype, device=table.device)

    def paged() -> torch.Tensor:
        index.copy_(table)
        for cache, result in zip(caches, sums, strict=True):
            torch.index_select(cache, 0, index.view(-1), out=copy)
            add_up(copy, result)
        return torch.add(*sums, out=y)

    return paged


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
