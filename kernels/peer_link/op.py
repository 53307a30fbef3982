"""y_r = x_q with q = r + 1 mod n: each of n ranks copies what the next rank holds, all at the same time.

This is a ceiling: nobody gets S bytes of another rank in less time. A small message tells the latency, a large one the
rate of the link in one direction. `all_reduce` and `all_to_all` are predicted from it. On GPUs, each copies over its
link to the next. On a host there is no link: two cores read what the other has in the memory that they share, and the
latency is that of their meeting.

Processes and GPUs are those of `all_reduce`. On a host the output of every rank is checked, on GPUs that of rank 0.
`Work` is one rank's: it reads and writes S bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.common.integers import KiB, MiB, size_text
from kernels.common.random_inputs import BYTES
from kernels.common.ranks.cases import NAMES, RankedCase, of_ranks, xs_of
from kernels.op import Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PeerCase(RankedCase):
    """Each rank has `size` bytes, whole elements."""

    size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % BYTES[self.dtype]:
            raise ValueError(f"size {self.size}: whole elements of {self.dtype}")

    @property
    def id(self) -> str:
        return f"n{self.ranks}-{size_text(self.size)}-{self.dtype}"

    @property
    def elements(self) -> int:
        return self.size // BYTES[self.dtype]


LARGE, SMALL = 16 * MiB, 8 * KiB
"""All that `collectives.py` is fitted on lies between them."""


def cases(suite: str) -> list[PeerCase]:
    """A message that is all bandwidth and one that is all latency. A host takes those of `smoke`, like all ceilings."""
    if suite == "test":
        return [PeerCase(ranks=3, size=4 * 43, dtype="fp32"), PeerCase(ranks=2, size=2 * 2500, dtype="fp16")]
    return [PeerCase(ranks=2, size=size) for size in (LARGE, SMALL)]


def inputs(case: PeerCase, device: str, seed: int) -> Inputs:
    """`of_ranks`, [1, elements] each."""
    return of_ranks(case, (1, case.elements), device, seed)


def reference(case: PeerCase, inputs: Inputs) -> torch.Tensor:
    """[ranks that are checked, elements] in fp64."""
    import torch

    xs = xs_of(case, inputs)
    checked = 1 if xs[0].is_cuda else case.ranks
    return torch.cat([xs[(r + 1) % case.ranks].to(xs[0].device).double() for r in range(checked)])


def decoded(case: PeerCase, output: torch.Tensor) -> torch.Tensor:
    return output.view(-1, case.elements)


def work(case: PeerCase) -> Work:
    return Work(bytes_read=case.size, bytes_written=case.size)


def tolerance(case: PeerCase) -> Tolerance:
    return Tolerance(max_rel=0.0, rms_rel=0.0, why="a copy is exact")


OP = Op(
    name="peer_link",
    title="peer link",
    role="ceiling",
    about="what each of several ranks gets from the next one: latency and rate of the link between them",
    formula="y_r = x_{r+1}",
    case_type=PeerCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=NAMES,
    decoded=decoded,
    link_bytes=lambda case: case.size,
)
