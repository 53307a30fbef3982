"""torch's top-k, and its stable sort, which alone of the two says what becomes of equal scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common.random_inputs import BYTES
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.topk.op import TopkCase, work

if TYPE_CHECKING:
    import torch

SORT_PASSES = 4
"""Passes of a radix sort over scores with their positions, with digits of 8 bits of fp32."""


def topk_stages(case: TopkCase, target: Target) -> tuple[Stage, ...]:
    """Four digits of 8 bits: a score is read again for each, from the L2."""
    again = 3 * case.B * case.N * BYTES[case.dtype]
    positions = Stage(name="order", work=Work(), l2_bytes=16 * case.B * case.k)
    return (Stage(name="topk", work=work(case), l2_bytes=again), positions)


def sort_stages(case: TopkCase, target: Target) -> tuple[Stage, ...]:
    """Scores and 8-byte positions are read and written once for each digit."""
    moved = case.B * case.N * (BYTES[case.dtype] + 8) * (SORT_PASSES if case.dtype == "fp32" else 2)
    passes = Work(bytes_read=moved, bytes_written=moved)
    return (Stage(name="sort", work=work(case) + passes), Stage(name="order", work=Work(), l2_bytes=16 * case.k))


def sort_supports(case: TopkCase, target: Target) -> str | None:
    if case.lengths != "uniform":
        return "needs rows of equal length: torch takes no lengths"
    return f"needs at least k = {case.k} scores" if case.k > case.N else None


def topk_supports(case: TopkCase, target: Target) -> str | None:
    if case.scores != "normal" or case.dtype != "fp32":
        return "needs scores that all differ: it does not say which of equal ones it takes"
    return sort_supports(case, target)


def written(case: TopkCase, scores: torch.Tensor, best: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Positions `[B, k]`, the best first, and their values, as the case wants them."""
    import torch

    if case.order == "position":
        best = best.sort(dim=1).values
    if not case.values:
        out.copy_(best)
    else:
        out[:, 0].copy_(best)
        out[:, 1].copy_(scores.gather(1, best).float().view(torch.int32))
    return out


def new_output(case: TopkCase, scores: torch.Tensor) -> torch.Tensor:
    import torch

    shape = (case.B, 2, case.k) if case.values else (case.B, case.k)
    return torch.empty(shape, dtype=torch.int32, device=scores.device)


def prepare_topk(case: TopkCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    scores = inputs["scores"]
    out, by_value = new_output(case, scores), case.order == "value"
    return lambda: written(case, scores, torch.topk(scores, case.k, dim=1, sorted=by_value).indices, out)


def prepare_sort(case: TopkCase, inputs: Inputs, target: Target) -> Launch:
    """-0 is made +0 before: a sort may tell them apart."""
    import torch

    scores = inputs["scores"]
    out = new_output(case, scores)

    def launch() -> torch.Tensor:
        best = torch.sort(scores + 0.0, dim=1, descending=True, stable=True).indices[:, : case.k]
        return written(case, scores, best, out)

    return launch


IMPLS = (
    Impl(name="torch", stages=topk_stages, prepare=prepare_topk, supports=topk_supports, version=torch_version),
    Impl(name="torch-sort", stages=sort_stages, prepare=prepare_sort, supports=sort_supports, version=torch_version),
)
