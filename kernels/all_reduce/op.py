"""y[b, d] = sum over ranks of x_r[b, d]: the sum of what n ranks hold, which every rank gets.

x_r and y are [B, hidden]. Tensor parallelism calls it twice in each layer, with B tokens of a decode step. The sum is
taken in fp32 and rounded once; a library may round after each addition. Fused with what follows in a layer, the sum is
added to the residual and normalized: h = residual + sum_r x_r, y[b, d] = h[b, d] / sqrt(mean_d h[b, d]^2 + 1e-5) w[d].
Then h is an output too.

One process measures: rank 0. On a host, the other ranks are processes that it starts (`kernels/common/ranks`), all
inputs and outputs are in memory that they share, and the output that is checked holds what every rank got. On GPUs,
this process launches on all of them, one GPU a rank, and the output of rank 0 is checked.

`Work` is that of one rank: it reads its x and writes its y. What ranks read of each other are the `peer_bytes` of the
stages. On a host there is no link between ranks: one memory holds all of it, and its stages count all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kernels.common.compare import rounded
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.common.ranks.cases import MOST_RANKS, NAMES, RANK_SEEDS, RankedCase, of_ranks, too_few
from kernels.common.ranks.segment import Segment
from kernels.models import MODELS
from kernels.op import Inputs, Launch, Op, Result, Target, Tolerance, Work

if TYPE_CHECKING:
    import torch

EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class ReduceCase(RankedCase):
    B: int
    hidden: int
    fused: bool = False
    """With the residual and the norm behind it."""

    PLAIN: ClassVar[Mapping[str, Any]] = {"fused": False}

    @property
    def id(self) -> str:
        return f"n{self.ranks}-B{self.B}-D{self.hidden}-{self.dtype}{'-fused' * self.fused}"

    @property
    def elements(self) -> int:
        return self.B * self.hidden

    @property
    def size(self) -> int:
        """Bytes of the message: what one rank holds."""
        return self.elements * BYTES[self.dtype]


def of_model(model: str, B: int, ranks: int, fused: bool = False) -> ReduceCase:
    return ReduceCase(model=model, B=B, hidden=MODELS[model].hidden, ranks=ranks, fused=fused)


MESSAGES = (("llama-3.1-70b", 1024), ("llama-3.1-70b", 64), ("llama-3.1-70b", 1), ("llama-3.1-8b", 1))
"""A model and its tokens: messages of 16 MiB, 1 MiB, 16 KiB and 8 KiB."""


def cases(suite: str) -> list[ReduceCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [of_model("llama-3.1-70b", 1, n) for n in (2, 8)]
    if suite == "full":
        ways = [(fused, n) for fused in (False, True) for n in (2, 4, 8)]
        return [of_model(model, B, n, fused) for fused, n in ways for model, B in MESSAGES]
    return [
        ReduceCase(B=3, hidden=43, ranks=3, dtype="fp32"),
        ReduceCase(B=1, hidden=1, ranks=4, dtype="fp32"),
        ReduceCase(B=5, hidden=256, ranks=4, dtype="fp16"),
        ReduceCase(B=3, hidden=200, ranks=3, dtype="fp16", fused=True),
        ReduceCase(B=2, hidden=77, ranks=4, dtype="fp32", fused=True),
    ]


def inputs(case: ReduceCase, device: str, seed: int) -> Inputs:
    """`of_ranks`; `residual` ~ N(0, 1) and w ~ 1 + N(0, 1) / 4 are the same for all ranks."""
    shape = (case.B, case.hidden)
    made = of_ranks(case, shape, device, seed)
    if case.fused:
        draw = RandomInputs(device, seed + MOST_RANKS * RANK_SEEDS)
        made["residual"] = draw.normal(shape, case.dtype)
        made["w"] = draw.normal(shape[1:], case.dtype, scale=0.25)
        if device != "meta":
            made["w"] += 1
    return made


def reference(case: ReduceCase, inputs: Inputs) -> torch.Tensor:
    """[B, hidden] in fp64; fused, the rows of y, then those of h."""
    import torch

    total = inputs["x0"].double()
    for name in NAMES[1 : case.ranks]:
        total = total + inputs[name].to(total.device).double()
    if not case.fused:
        return total
    h = total + inputs["residual"].double()
    y = h * (h.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * inputs["w"].double()
    return torch.cat([y, h])


def decoded(case: ReduceCase, output: torch.Tensor) -> torch.Tensor:
    """The output of one rank. Of outputs of all ranks, [ranks, rows, hidden], an element that is not the same for all
    becomes NaN: ranks that go on with different sums drift apart."""
    import torch

    if output.ndim == 2:
        return output
    same = (output == output[:1]).all(0)
    return torch.where(same, output[0], float("nan"))


def work(case: ReduceCase) -> Work:
    """One rank's: its x, its y, and its share of the n - 1 additions of each element. Fused, also the residual, w and
    h, and 5 operations for each element."""
    flops = (case.ranks - 1) * case.elements // case.ranks
    least = Work(flops={"fma_fp32": flops}, bytes_read=case.size, bytes_written=case.size)
    return least + after(case) if case.fused else least


def after(case: ReduceCase) -> Work:
    """What the residual and the norm add."""
    read = case.size + case.hidden * BYTES[case.dtype]
    return Work(flops={"fma_fp32": 5 * case.elements}, bytes_read=read, bytes_written=case.size)


def one_shot(case: ReduceCase) -> Work:
    """One rank's, where it adds up all that the ranks hold."""
    flops = (case.ranks - 1 + 5 * case.fused) * case.elements
    return dataclasses.replace(work(case), flops={"fma_fp32": flops})


def tolerance(case: ReduceCase) -> Tolerance:
    """n terms in fp32 and one rounding. Libraries round up to n - 1 partial sums, whose errors add up to
    0.425 sqrt((n + 1) / 2) unit roundoffs (rms): 0.9 for 8 ranks."""
    why = "one rounding of the sum to its type; a library may round after each of its n - 1 additions"
    return rounded(case.dtype, terms="n terms", max_units=8, rms_units=1.5, why=why)


def results(case: ReduceCase, inputs: Inputs) -> list[Result]:
    """y and, fused, h."""
    y = Result("y", lambda y: y[: case.B], tolerance(case))
    return [y, Result("h", lambda y: y[case.B :], tolerance(case))] if case.fused else [y]


def adds_only(case: ReduceCase, target: Target) -> str | None:
    """The refusal of implementations that leave the residual and the norm to another launch."""
    return "only adds up: the residual and the norm are another launch" if case.fused else too_few(case, target)


def collective(way: str, case: ReduceCase, inputs: Inputs, shots: int = 1) -> Launch:
    """A launch on a host, whose output is [ranks, B, hidden]: what every rank got."""
    from kernels.common.ranks.group import Collective

    y = Segment((case.ranks, case.B, case.hidden), torch_dtype(case.dtype))
    return Collective(way, case, inputs["segment"], y, shots)


OP = Op(
    name="all_reduce",
    title="all-reduce",
    role="decode",
    about="the sum over the ranks of a model that is split, twice in each layer, alone or with residual and norm",
    formula="y[b, d] = sum_r x_r[b, d]; fused h = residual + sum_r x_r; y = h / sqrt(mean(h^2) + 1e-5) w",
    case_type=ReduceCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=NAMES,
    decoded=decoded,
    results=results,
    link_bytes=lambda case: case.size,
)
