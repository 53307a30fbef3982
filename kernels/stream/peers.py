"""The same traffic by torch."""

from __future__ import annotations

from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version
from kernels.stream.op import ALPHA, CHUNK, StreamCase, work


def stages(case: StreamCase, target: Target) -> tuple[Stage, ...]:
    """One elementwise or reducing kernel that moves the compulsory bytes."""
    return (Stage(name=case.kind, work=work(case)),)


def supports(case: StreamCase, target: Target) -> str | None:
    if case.kind == "l2_read":
        return "needs a kernel that reads one array several times in one launch; torch has none"
    if case.kind == "fma_read":
        return "needs a kernel that computes on what it reads before it sums; torch has none"
    if case.kind == "chase":
        return "needs a kernel whose loads wait for each other in one launch; torch has none"
    if case.kind == "read" and case.n % CHUNK:
        return f"needs whole chunks of {CHUNK} elements to sum with one torch call, {case.n} is no multiple"
    return None


def prepare(case: StreamCase, inputs: Inputs, target: Target) -> Launch:
    """`sum`, `copy_` or `add`, which write to an output that is made here."""
    import torch

    x = inputs["x"]
    if case.kind == "read":
        rows, sums = x.view(case.chunks, CHUNK), torch.empty(case.chunks, device=x.device)
        return lambda: torch.sum(rows, dim=1, out=sums)
    out = torch.empty_like(x)
    if case.kind == "triad":
        y = inputs["y"]
        return lambda: torch.add(x, y, alpha=ALPHA, out=out)
    return lambda: out.copy_(x)


def mv_supports(case: StreamCase, target: Target) -> str | None:
    if case.kind != "read":
        return f"another way to read; a {case.kind} has one implementation"
    return supports(case, target)


def mv(case: StreamCase, inputs: Inputs, target: Target) -> Launch:
    """The read as a matrix times a vector of ones, which stays in the L1. On a CPU the BLAS reads faster than `sum`."""
    import torch

    rows = inputs["x"].view(case.chunks, CHUNK)
    ones, sums = torch.ones(CHUNK, device=rows.device), torch.empty(case.chunks, device=rows.device)
    return lambda: torch.mv(rows, ones, out=sums)


IMPLS = (
    Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),
    Impl(name="torch-mv", stages=stages, prepare=mv, supports=mv_supports, version=torch_version),
)
