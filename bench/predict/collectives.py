"""What an all-reduce among the parts of a server is expected to take.

    seconds = min(one-shot, two-shot)
    one-shot = start + rank log2(n) + (n - 1) S / (rate x link)
    two-shot = start + rank log2(n) + 2 (n - 1) / n S / (rate x link)

n parts each hold S bytes. In one shot, every part reads what all others hold, and adds up alone; in two, each adds up a
part of it, and all read the sums. `start` and `rank` are the latency: the launch and the barriers among n parts. `rate`
is the share of the link's datasheet bandwidth in one direction. Each algorithm has constants of its own; a library
takes the one that is faster at a size. The constants belong to a library and a generation of parts. They are fitted on
published times (`bench/judge/published/link_fit.py`) of messages from 8 KB to 16 MB and stored in `expected.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.devices import DeviceSpec
from bench.predict import expected

LIBRARIES = ("nccl", "trtllm", "vllm", "sglang")
LEAST, MOST = 8 << 10, 16 << 20
"""Bytes of the smallest and of the largest message that were fitted."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """`start` and `rank` in seconds, `rate` as a share of the link's datasheet."""

    start: float
    rank: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Library:
    """One library on one generation of parts."""

    one_shot: Algorithm
    two_shot: Algorithm

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Library:
        return cls(one_shot=Algorithm(**said["one_shot"]), two_shot=Algorithm(**said["two_shot"]))


def seconds(library: Library, *, size: Any, ranks: Any, link: Any) -> Any:
    """Seconds of an all-reduce of `size` bytes among `ranks` parts, for numbers or arrays. `link` in B/s."""
    one, two = library.one_shot, library.two_shot
    steps, others = np.log2(ranks), ranks - 1
    first = one.start + one.rank * steps + others * size / (one.rate * link)
    second = two.start + two.rank * steps + 2 * others / ranks * size / (two.rate * link)
    return np.minimum(first, second)


@dataclass(frozen=True, kw_only=True)
class ExpectedReduce:
    """Seconds of one collective by the library that is expected to be the fastest, and what they rest on."""

    seconds: float
    library: str
    rests_on: str


def expect(spec: DeviceSpec, size: float, ranks: int, among: Mapping[str, Any] | None = None) -> ExpectedReduce | None:
    """The fastest library's time; None without a published link, or for a part of no generation that was measured.

    `among` holds other constants than those of `expected.json`, by `library generation`.
    """

    def time(library: Library, link: float) -> float:
        return float(seconds(library, size=size, ranks=ranks, link=link))

    return _fastest(spec, ranks, time, expected.all_reduces() if among is None else among)


def exchange(spec: DeviceSpec, size: float, ranks: int) -> ExpectedReduce | None:
    """An all-to-all in which each part sends `size` bytes, those for itself included.

    seconds = start + rank log2(n) + (n - 1) / n S / (rate x link), with the one-shot constants of the fastest library.
    Nobody's all-to-all is among the published tables. In a one-shot all-reduce too, every part reads something else
    from every other part, after one barrier. None as for `expect`.
    """

    def time(library: Library, link: float) -> float:
        way = library.one_shot
        return way.start + way.rank * math.log2(ranks) + (ranks - 1) / ranks * size / (way.rate * link)

    return _fastest(spec, ranks, time, expected.all_reduces())


def _fastest(
    spec: DeviceSpec, ranks: int, time: Callable[[Library, float], float], known: Mapping[str, Any]
) -> ExpectedReduce | None:
    if spec.link_bandwidth is None or ranks < 2 or spec.sm not in expected.GENERATIONS:
        return None
    found = []
    for name in LIBRARIES:
        if said := known.get(f"{name} {expected.generation(spec)}"):
            found.append((time(Library.of(said), spec.link_bandwidth.value), name, said["rests_on"]))
    if not found:
        return None
    least, name, rests_on = min(found)
    return ExpectedReduce(seconds=least, library=name, rests_on=rests_on)
