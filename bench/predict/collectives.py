"""What an all-reduce, an all-to-all or an exchange of experts' rows among the parts of a server is expected to take.

    seconds = min(one-shot, two-shot)
    one-shot = start + rank log2(n) + (n - 1) S / (rate x link)
    two-shot = start + rank log2(n) + 2 (n - 1) / n S / (rate x link)

n parts each hold S bytes. In one shot, every part reads what all others hold, and adds up alone; in two, each adds up a
part of it, and all read the sums. `start` and `rank` are the latency: the launch and the barriers among n parts. `rate`
is the share of the link's datasheet bandwidth in one direction. Each algorithm has constants of its own; a library
takes the one that is faster at a size. The constants belong to a library and a generation of parts. They are fitted on
published times (`bench/judge/published/link_fit.py`) of messages from 8 KB to 16 MB and stored in `expected.json`.

An all-to-all, in which each part sends S bytes, those for itself included, has one algorithm:

    seconds = start + rank log2(n) + (n - 1) / n S / (rate x link)

It is fitted on NCCL's, whose parts are equal. Servers exchange the rows of experts by other kernels, DeepEP's. A
dispatch in 8 bits, or a combine in 16 bits, in which each part has S bytes of rows for E experts, takes

    seconds = start + expert E + (n - 1) / n S / (rate x link)

Its latency grows with the experts: every part tells every expert how many rows come, and waits for as many answers. A
row goes once to each of its experts, also where two of them are on one part. Among 8 parts alone it was published, so
`start` is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bench.devices import DeviceSpec
from bench.predict import expected
from kernels.models import ModelShape

LIBRARIES = ("nccl", "trtllm", "vllm", "sglang")
DEEPEP = "deepep"
LEAST, MOST = 8 << 10, 16 << 20
"""Bytes of the smallest and of the largest message that were fitted."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """`start` and `rank` in seconds, `rate` as a share of the link's datasheet."""

    start: float
    rank: float
    rate: float

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Algorithm:
        return cls(**{field.name: said[field.name] for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Library:
    """One library on one generation of parts."""

    one_shot: Algorithm
    two_shot: Algorithm

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Library:
        return cls(one_shot=Algorithm.of(said["one_shot"]), two_shot=Algorithm.of(said["two_shot"]))


def seconds(library: Library, *, size: Any, ranks: Any, link: Any) -> Any:
    """Seconds of an all-reduce of `size` bytes among `ranks` parts, for numbers or arrays. `link` in B/s."""
    one, two = library.one_shot, library.two_shot
    steps, others = np.log2(ranks), ranks - 1
    first = one.start + one.rank * steps + others * size / (one.rate * link)
    second = two.start + two.rank * steps + 2 * others / ranks * size / (two.rate * link)
    return np.minimum(first, second)


def exchange_seconds(way: Algorithm, *, size: Any, ranks: Any, link: Any) -> Any:
    """Seconds of an all-to-all in which each of `ranks` parts sends `size` bytes, those for itself included."""
    return way.start + way.rank * np.log2(ranks) + (ranks - 1) / ranks * size / (way.rate * link)


@dataclass(frozen=True, kw_only=True)
class ExpectedCollective:
    """Seconds of one collective by the library that is expected to be the fastest, and what they rest on."""

    seconds: float
    library: str
    rests_on: str


@dataclass(frozen=True, kw_only=True)
class Routed:
    """DeepEP's low-latency kernels on one generation of parts. `start` and `expert` in seconds, `rate` as a share of
    the link's datasheet."""

    start: float
    expert: float
    rate: float

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Routed:
        return cls(**{field.name: said[field.name] for field in fields(cls)})


def routed_seconds(way: Routed, *, size: Any, experts: Any, ranks: Any, link: Any) -> Any:
    """Seconds in which each of `ranks` parts sends `size` bytes of rows to experts, or gets them back. They include the
    rows that stay on their part."""
    return way.start + way.expert * experts + (ranks - 1) / ranks * size / (way.rate * link)


def expect(
    spec: DeviceSpec, size: float, ranks: int, among: Mapping[str, Any] | None = None
) -> ExpectedCollective | None:
    """The fastest library's time; None without a published link, or for a part of no generation that was measured.

    `among` holds other constants than those of `expected.json`, by `library generation`.
    """

    known = expected.all_reduces() if among is None else among
    if spec.link_bandwidth is None or ranks < 2 or spec.sm not in expected.GENERATIONS:
        return None
    found = []
    for name in LIBRARIES:
        if said := known.get(f"{name} {expected.generation(spec)}"):
            time = seconds(Library.of(said), size=size, ranks=ranks, link=spec.link_bandwidth.value)
            found.append((float(time), name, said["rests_on"]))
    if not found:
        return None
    least, name, rests_on = min(found)
    return ExpectedCollective(seconds=least, library=name, rests_on=rests_on)


def whole_experts(shape: ModelShape, spec: DeviceSpec, tokens: float, ranks: int) -> tuple[float, float] | None:
    """Seconds of a dispatch in 8 bits and a combine in 16 bits, in a layer whose experts stay whole on `ranks` parts.

    `tokens` are those of all parts, and each goes to its experts one by one. None for a model without experts, without
    a published link, and for a part of no generation that was measured.
    """
    if not shape.is_moe or spec.link_bandwidth is None or ranks < 2 or spec.sm not in expected.GENERATIONS:
        return None
    rows, link = tokens / ranks * shape.experts_per_token * shape.hidden, spec.link_bandwidth.value
    found = []
    for direction, width in (("dispatch", 1), ("combine", 2)):
        said = expected.exchanges(direction).get(f"{DEEPEP} {expected.generation(spec)}")
        if said is None:
            return None
        way = Routed.of(said)
        found.append(float(routed_seconds(way, size=width * rows, experts=shape.experts, ranks=ranks, link=link)))
    return found[0], found[1]
