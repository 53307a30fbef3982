"""y_r[i] = sum over ranks s of x_s[rows_r[i, s]], where rows_r[i, s] is not -1: rows that go from rank to rank.

Experts that are split over n ranks need it twice in each layer:

- dispatch: rank s has B tokens, x_s [B, hidden]. Each goes once to every rank that has one of its k experts. Rank r
  gets them in the order of ranks, then of tokens: y_r [received, hidden], and every row has one source
- combine, the way back: rank s has a row for each token that it got, x_s [received, hidden], and y_r [B, hidden] is
  for each token the sum of its rows on at most n ranks, in fp32, rounded once. The experts' weights are in the rows

Ranks receive unequal numbers of rows. `received` is the largest one, and the rows behind a rank's own number hold
anything. The case fixes who chooses which expert, each set of k out of E equally likely, so the bytes are known before.
The lists `rows` are given, on the rank that receives: a server makes them of the router's choices, which it has
gathered from all ranks. That is not a part of the operation.

Processes and GPUs are those of `all_reduce`. On a host, the output of every rank is checked; on GPUs that of rank 0.
`Work` is that of the rank that receives the most rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common.compare import rounded
from kernels.common.fields import Count, OneOf
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.common.ranks.cases import RankedCase, of_ranks, xs_of
from kernels.common.ranks.segment import Segment
from kernels.models import MODELS
from kernels.op import Inputs, Launch, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

DIRECTIONS = ("dispatch", "combine")

Rows = tuple[tuple[int, ...], ...]
"""By row of the output and by rank: the row of that rank's input that is added, or -1."""


@dataclass(frozen=True, kw_only=True)
class AllToAllCase(RankedCase):
    """`B` tokens on each rank; `E` experts, of which each token chooses `k`, lie in equal parts on the ranks."""

    direction: Annotated[str, OneOf(*DIRECTIONS)]
    B: int
    E: int
    k: int
    hidden: int
    idle: Count = 0
    """So many of the last ranks have no expert that anybody chooses: they receive nothing, and send nothing back."""

    PLAIN: ClassVar[Mapping[str, Any]] = {"idle": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.E % self.ranks:
            raise ValueError(f"E = {self.E} experts: the {self.ranks} ranks must have equally many")
        if self.k > self.chosen_from:
            raise ValueError(f"k = {self.k}: at most the {self.chosen_from} experts of ranks that are not idle")

    @property
    def id(self) -> str:
        idle = f"-idle{self.idle}" if self.idle else ""
        return f"{self.direction}-n{self.ranks}-B{self.B}-E{self.E}k{self.k}-D{self.hidden}{idle}-{self.dtype}"

    @property
    def chosen_from(self) -> int:
        return self.E // self.ranks * (self.ranks - self.idle)

    @property
    def row_bytes(self) -> int:
        return self.hidden * BYTES[self.dtype]


@cache
def destinations(case: AllToAllCase) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """By rank and token: the ranks to which the token goes, in order."""
    rng, each = random.Random(0), case.E // case.ranks
    chosen = [[rng.sample(range(case.chosen_from), case.k) for _ in range(case.B)] for _ in range(case.ranks)]
    return tuple(tuple(tuple(sorted({expert // each for expert in of})) for of in tokens) for tokens in chosen)


@cache
def dispatched(case: AllToAllCase) -> tuple[tuple[tuple[int, int], ...], ...]:
    """By rank that receives: (rank, token) of each row, in order."""
    return tuple(
        tuple((s, b) for s, tokens in enumerate(destinations(case)) for b, to in enumerate(tokens) if r in to)
        for r in range(case.ranks)
    )


@cache
def rows_of(case: AllToAllCase, rank: int) -> Rows:
    """Where the rows that this rank gets come from."""
    if case.direction == "dispatch":
        return tuple(tuple(b if q == s else -1 for q in range(case.ranks)) for s, b in dispatched(case)[rank])
    place = [{each: i for i, each in enumerate(received)} for received in dispatched(case)]
    return tuple(tuple(place[q].get((rank, b), -1) for q in range(case.ranks)) for b in range(case.B))


def received(case: AllToAllCase) -> int:
    """The most rows that a dispatch gives to a rank."""
    return max(map(len, dispatched(case)))


def shape(case: AllToAllCase) -> tuple[int, int]:
    """Of the output of one rank."""
    return (received(case) if case.direction == "dispatch" else case.B, case.hidden)


def of_model(model: str, direction: str, B: int, ranks: int) -> AllToAllCase:
    """The experts of a model on so many ranks, with B tokens on each."""
    m = MODELS[model]
    return AllToAllCase(
        model=model, direction=direction, B=B, E=m.experts, k=m.experts_per_token, hidden=m.hidden, ranks=ranks
    )


def cases(suite: str) -> list[AllToAllCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [of_model("deepseek-v3", "dispatch", 16, 8)]
    if suite == "full":
        wanted = [("deepseek-v3", 8, (128, 16, 1)), ("gpt-oss-120b", 4, (64, 1)), ("gpt-oss-120b", 2, (64, 1))]
        return [of_model(model, way, B, n) for way in DIRECTIONS for model, n, batches in wanted for B in batches]
    odd: dict[str, Any] = {"B": 5, "E": 6, "k": 2, "hidden": 43}
    return [
        *(AllToAllCase(direction=way, ranks=3, dtype="fp32", **odd) for way in DIRECTIONS),
        *(AllToAllCase(direction=way, ranks=2, B=3, E=4, k=1, hidden=200, dtype="fp16") for way in DIRECTIONS),
        AllToAllCase(direction="combine", ranks=4, B=1, E=4, k=4, hidden=1, dtype="fp32"),
        *(AllToAllCase(direction=way, ranks=3, idle=1, dtype="fp16", **odd) for way in DIRECTIONS),
    ]


def inputs(case: AllToAllCase, device: str, seed: int) -> Inputs:
    """`of_ranks`, and beside x_0 `rows` [ranks, rows, ranks], -1 behind a rank's own, and `counts` [ranks].

    What a rank did not receive holds NaN.
    """
    height = case.B if case.direction == "dispatch" else received(case)
    made = of_ranks(case, (height, case.hidden), device, seed)
    lists = [rows_of(case, r) for r in range(case.ranks)]
    nothing = (-1,) * case.ranks
    table = [[*rows, *[nothing] * (shape(case)[0] - len(rows))] for rows in lists]
    draw = RandomInputs(device, seed)
    made["rows"] = draw.table([row for rows in table for row in rows]).view(case.ranks, shape(case)[0], case.ranks)
    made["counts"] = draw.table([[len(rows) for rows in lists]])[0]
    if case.direction == "combine" and device != "meta":
        for x, own in zip(xs_of(case, made), dispatched(case), strict=True):
            x[len(own) :] = float("nan")
    return made


def checked_ranks(inputs: Inputs) -> int:
    """Of so many ranks the output is checked: of all on a host."""
    return 1 if inputs["x0"].device.type == "cuda" else len(inputs["counts"])


def reference(case: AllToAllCase, inputs: Inputs) -> torch.Tensor:
    """[ranks that are checked, rows, hidden] in fp64; 0 behind a rank's own rows."""
    import torch

    home = inputs["x0"].device
    y = torch.zeros(checked_ranks(inputs), *shape(case), dtype=torch.float64, device=home)
    for r, of_rank in enumerate(y):
        for s, x in enumerate(xs_of(case, inputs)):
            sources = inputs["rows"][r, :, s]
            at = (sources >= 0).nonzero()[:, 0]
            of_rank[at] += x.to(home)[sources[at].long()].double()
    return y


def decoded(case: AllToAllCase, output: torch.Tensor) -> torch.Tensor:
    """The output of each rank; 0 for what stands behind its own rows."""
    import torch

    y = output.view(-1, *shape(case))
    counts = torch.tensor([len(rows_of(case, r)) for r in range(len(y))], device=y.device)
    live = torch.arange(y.shape[1], device=y.device) < counts[:, None]
    return torch.where(live[..., None], y, 0)


def work(case: AllToAllCase) -> Work:
    """Of the rank that receives the most: the rows that it has and gets, once, and the number of each row that moves.

    On a host, where there are no links, the stages have the work of all ranks."""
    return of_rank(case, max(range(case.ranks), key=lambda r: len(dispatched(case)[r])))


def of_rank(case: AllToAllCase, rank: int) -> Work:
    """What a rank has is read, by whomever: all of its B tokens, or all rows that it got."""
    got, homes = len(dispatched(case)[rank]), destinations(case)[rank]
    has, gets = (case.B, got) if case.direction == "dispatch" else (got, case.B)
    moved = got if case.direction == "dispatch" else sum(map(len, homes))
    adds = 0 if case.direction == "dispatch" else sum(len(to) - 1 for to in homes) * case.hidden
    return Work(
        flops={"fma_fp32": adds} if adds else {},
        bytes_read=has * case.row_bytes + 4 * moved,
        bytes_written=gets * case.row_bytes,
    )


def of_all_ranks(case: AllToAllCase) -> Work:
    """The work of all ranks, for ranks that share one memory."""
    result = Work()
    for r in range(case.ranks):
        result = result + of_rank(case, r)
    return result


def from_others(case: AllToAllCase, rank: int) -> int:
    """Rows that this rank gets from other ranks."""
    return sum(row >= 0 for sources in rows_of(case, rank) for s, row in enumerate(sources) if s != rank)


def most_from_others(case: AllToAllCase) -> int:
    """Bytes of rows that cross the links to the rank that gets the most."""
    return max(from_others(case, r) for r in range(case.ranks)) * case.row_bytes


def tolerance(case: AllToAllCase) -> Tolerance:
    """Dispatched rows are copied. n terms of a combine are added in fp32 and rounded once; a library may round after
    each addition, see `kernels/all_reduce/op.py`."""
    why = "one rounding of the sum to its type; a library may round after each of its n - 1 additions"
    return rounded(case.dtype, terms="n terms", max_units=8, rms_units=1.5, why=why)


def collective(way: str, case: AllToAllCase, inputs: Inputs) -> Launch:
    """A launch on a host, whose output is [ranks, rows, hidden]: what every rank got."""
    from kernels.common.ranks.group import Collective

    y = Segment((case.ranks, *shape(case)), torch_dtype(case.dtype))
    return Collective(way, case, inputs["segment"], y)


OP = Op(
    name="all_to_all",
    title="all-to-all",
    role="decode",
    about="tokens to the ranks that have their experts (dispatch), and the sums of their rows back (combine)",
    formula="y_r[i] = sum_s x_s[rows_r[i, s]], without the s for which rows_r[i, s] = -1",
    case_type=AllToAllCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=tuple(f"x{r}" for r in range(8)),
    decoded=decoded,
    link_bytes=most_from_others,
)
