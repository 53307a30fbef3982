"""What a library's all-to-all needs to know of a rank: what it packs, how many rows go where, and what it adds up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kernels.all_to_all.op import AllToAllCase, destinations, dispatched


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One rank's. Rows travel in the order of ranks."""

    pack: tuple[int, ...]
    """Rows of x in the order in which they are sent; empty where they lie in this order already."""
    sends: tuple[int, ...]
    """How many rows go to each rank."""
    gets: tuple[int, ...]
    """How many rows come from each rank."""
    adds: tuple[int, ...]
    """The row of y to which each row that comes is added; empty where what comes is y."""


@cache
def exchange(case: AllToAllCase, rank: int) -> Exchange:
    ranks, homes = range(case.ranks), destinations(case)[rank]
    out = [[b for b, to in enumerate(homes) if r in to] for r in ranks]
    back = tuple(sum(s == r for s, _ in dispatched(case)[rank]) for r in ranks)
    there, order = tuple(map(len, out)), tuple(b for tokens in out for b in tokens)
    if case.direction == "dispatch":
        return Exchange(pack=order, sends=there, gets=back, adds=())
    return Exchange(pack=(), sends=back, gets=there, adds=order)
