"""What an all-reduce or an all-to-all among the parts of a server is expected to take.

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

It is fitted on NCCL's, whose parts are equal. The rows of experts are exchanged by other kernels in servers, which were
published to take 2 to 4 times as long: see `bench/judge/README.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bench.devices import DeviceSpec
from bench.predict import expected
from kernels.models import ModelShape

LIBRARIES = ("nccl", "trtllm", "vllm", "sglang")
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


def expect(
    spec: DeviceSpec, size: float, ranks: int, among: Mapping[str, Any] | None = None
) -> ExpectedCollective | None:
    """The fastest library's time; None without a published link, or for a part of no generation that was measured.

    `among` holds other constants than those of `expected.json`, by `library generation`.
    """

    def time(said: Mapping[str, Any], link: float) -> float:
        return float(seconds(Library.of(said), size=size, ranks=ranks, link=link))

    return _fastest(spec, ranks, time, expected.all_reduces() if among is None else among)


def exchange(spec: DeviceSpec, size: float, ranks: int) -> ExpectedCollective | None:
    """The fastest library's all-to-all in which each part sends `size` bytes, those for itself included. None as for
    `expect`. NCCL's alone was published by size."""

    def time(said: Mapping[str, Any], link: float) -> float:
        return float(exchange_seconds(Algorithm.of(said), size=size, ranks=ranks, link=link))

    return _fastest(spec, ranks, time, expected.all_to_alls())


def whole_experts(shape: ModelShape, spec: DeviceSpec, tokens: float, ranks: int) -> tuple[float, float] | None:
    """Seconds of a dispatch in 8 bits and a combine in 16 bits, in a layer whose experts stay whole on `ranks` parts.

    `tokens` are those of all parts, and each goes to its experts one by one. None for a model without experts, and as
    for `exchange`.
    """
    if not shape.is_moe:
        return None
    rows = tokens / ranks * shape.experts_per_token * shape.hidden
    ways = [exchange(spec, rows * size, ranks) for size in (1, 2)]
    dispatch, combine = (way.seconds if way else None for way in ways)
    return None if dispatch is None or combine is None else (dispatch, combine)


def _fastest(
    spec: DeviceSpec, ranks: int, time: Callable[[Mapping[str, Any], float], float], known: Mapping[str, Any]
) -> ExpectedCollective | None:
    if spec.link_bandwidth is None or ranks < 2 or spec.sm not in expected.GENERATIONS:
        return None
    found = []
    for name in LIBRARIES:
        if said := known.get(f"{name} {expected.generation(spec)}"):
            found.append((time(said, spec.link_bandwidth.value), name, said["rests_on"]))
    if not found:
        return None
    least, name, rests_on = min(found)
    return ExpectedCollective(seconds=least, library=name, rests_on=rests_on)
