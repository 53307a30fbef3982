"""Cases of several ranks: who may run them, where their inputs lie, and their work together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.common.fields import Dtype
from kernels.common.random_inputs import RandomInputs, torch_dtype
from kernels.common.ranks.segment import Segment
from kernels.op import Case, Inputs, Target, Work

if TYPE_CHECKING:
    import torch

MOST_RANKS = 8
"""The GPUs of one server."""

NAMES = tuple(f"x{r}" for r in range(MOST_RANKS))
"""The inputs of all ranks by name. Those beyond the ranks of a case are empty."""

RANK_SEEDS = 1 << 24
"""The seeds of two ranks differ by this, so that no seed of a copy is also that of another rank. The seeds of all ranks
stay below 32 bits, since a generator of a host looks at no more: ranks that hold the same hide who read whom."""


@dataclass(frozen=True, kw_only=True)
class RankedCase(Case):
    """What 2 to 8 ranks do together. Raises ValueError for another number."""

    ranks: int
    dtype: Dtype = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.ranks <= MOST_RANKS:
            raise ValueError(f"ranks {self.ranks}: 2 to {MOST_RANKS}")


def home(device: str, rank: int) -> str:
    """Where a rank's tensors are: on `cuda`, on the GPU of its number, or on the last one where there are fewer."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{min(rank, torch.cuda.device_count() - 1)}"


def of_ranks(case: RankedCase, shape: tuple[int, int], device: str, seed: int) -> Inputs:
    """x_r ~ N(0, 1) of this shape, each from a seed of its own: `x0` to `x7`, empty beyond the ranks.

    On a host they lie one after the other in `segment`, which other processes can map.
    """
    import torch

    dtype = torch_dtype(case.dtype)
    segment = Segment((case.ranks, *shape), dtype) if device == "cpu" else None
    made: Inputs = {"segment": segment} if segment else {}
    for r, name in enumerate(NAMES):
        where = home(device, r)
        if r >= case.ranks:
            made[name] = torch.empty(0, *shape[1:], dtype=dtype, device=where)
            continue
        made[name] = RandomInputs(where, seed + r * RANK_SEEDS).normal(shape, case.dtype)
        if segment:
            made[name] = segment.tensor[r].copy_(made[name])
    return made


def xs_of(case: RankedCase, inputs: Inputs) -> list[torch.Tensor]:
    """x_r of all ranks of the case."""
    return [inputs[name] for name in NAMES[: case.ranks]]


def together(work: Work, ranks: int) -> Work:
    """The work of all ranks, for ranks that share one memory."""
    return Work(
        flops={pipe: ranks * flops for pipe, flops in work.flops.items()},
        bytes_read=ranks * work.bytes_read,
        bytes_written=ranks * work.bytes_written,
    )


def too_few(case: RankedCase, target: Target) -> str | None:
    """A refusal of a machine that is no Linux, or that has fewer cores or GPUs than the case has ranks.

    A process that sees no GPU asks for a part that is not here, to compile for it: it is not refused.
    """
    if target.kind == "cpu":
        if not hasattr(os, "memfd_create"):
            return "needs Linux: ranks share memory that belongs to no file"
        cores = target.sm_count
        return f"needs a core for each of {case.ranks} ranks, {cores} are usable" if cores < case.ranks else None
    import torch

    found = torch.cuda.device_count() if target.kind == "cuda" else 0
    return f"needs a GPU for each of {case.ranks} ranks, {found} are here" if 0 < found < case.ranks else None
