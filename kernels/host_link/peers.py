"""The copy engines through torch: its `copy_` from or to pinned memory is one `cudaMemcpyAsync`.

Pages can cross one by one, as in a server that hands its list to the driver. Or they are gathered on the device first,
and one large copy crosses. The first way costs the fixed time of a copy for each page, the second a pass over the
device's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.host_link.op import LinkCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version

if TYPE_CHECKING:
    import torch


def needs_link(case: LinkCase, target: Target) -> str | None:
    if target.kind != "cuda":
        return "needs an NVIDIA GPU: a host has no link to a device's memory"
    return "copies; no copy waits for a value that came over the link" if case.kind == "chase" else None


def staged_supports(case: LinkCase, target: Target) -> str | None:
    return needs_link(case, target) or (None if case.swaps else "needs pages to gather; a plain copy has none")


def output(case: LinkCase, target: Target) -> torch.Tensor:
    """Where the values go: pinned host memory or a pool of the device. It is NaN where nothing is written."""
    import torch

    nan = float("nan")
    if case.to_host:
        return torch.full(case.packed, nan, pin_memory=target.kind == "cuda")
    return torch.full(case.pool if case.swaps else case.packed, nan, device=target.device)


def page_stages(case: LinkCase, target: Target) -> tuple[Stage, ...]:
    """One copy for each page."""
    part = LinkCase(kind=case.kind, page_bytes=case.page_bytes)
    return (Stage(name="copy", work=work(part), link_bytes=part.size),) * case.pages


def by_page(case: LinkCase, inputs: Inputs, target: Target) -> Launch:
    """One copy for each page; a plain copy is one page."""
    x, y = inputs["x"], output(case, target)
    table = inputs["table"].tolist() or [0]
    froms, tos = (table, range(case.pages)) if case.to_host else (range(case.pages), table)
    pairs = [(y[to], x[come]) for come, to in zip(froms, tos, strict=True)]

    def launch() -> torch.Tensor:
        for there, here in pairs:
            there.copy_(here, non_blocking=True)
        return y

    return launch


def staged_stages(case: LinkCase, target: Target) -> tuple[Stage, ...]:
    """All pages pass through a buffer on the device. It is written and read once more, in the L2 if it fits there."""
    buffered = Work(bytes_read=case.size, bytes_written=case.size)
    fits = case.size <= target.l2_bytes
    gather = Work(bytes_read=case.size) if case.to_host else Work(bytes_written=case.size)
    name = "gather" if case.to_host else "scatter"
    move = Stage(name=name, work=gather if fits else buffered, l2_bytes=case.size if fits else 0)
    cross = Stage(name="copy", work=Work() if fits else work(case), link_bytes=case.size)
    return (move, cross) if case.to_host else (cross, move)


def staged(case: LinkCase, inputs: Inputs, target: Target) -> Launch:
    """`index_select` into the buffer and one copy out, or one copy in and `index_copy_` out of the buffer."""
    import torch

    x, y = inputs["x"], output(case, target)
    buffer = torch.empty(case.packed, device=target.device)
    table = inputs["table"].to(target.device)

    def out() -> torch.Tensor:
        torch.index_select(x, 0, table, out=buffer)
        return y.copy_(buffer, non_blocking=True)

    def back() -> torch.Tensor:
        buffer.copy_(x, non_blocking=True)
        return y.index_copy_(0, table, buffer)

    return out if case.to_host else back


IMPLS = (
    Impl(name="torch", stages=page_stages, prepare=by_page, supports=needs_link, version=torch_version),
    Impl(name="torch-staged", stages=staged_stages, prepare=staged, supports=staged_supports, version=torch_version),
)
