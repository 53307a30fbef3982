"""The parts of a launch that runs a whole step: each alone, and each in its place between the others.

A part is all launches of one name, over all layers. Each layer has its own weights. If all of them are larger than
the cache, a part that runs alone through all layers finds none of them there. On a host a cold read of the roof lies
between any two samples, as between those of whole launches (`roof.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bench.measure.core import InCache
from bench.measure.timing import FEWEST_SAMPLES, GraphTimer, Timer
from kernels.launch import Built, PartedLaunch
from kernels.op import Launch, Stage, Target
from kernels.work import part_of

LEAST = 9
"""Rounds on a host: each has one sample of every part, alone and in its place."""

Call = Callable[[], Any]
Calls = Sequence[tuple[str, Call]]


def calls_of(launch: Launch, stages: Sequence[Stage]) -> Calls:
    """The calls of a launch in order, each with the name of its part; none for a launch that is one operation.

    The kernels of a `Built` launch are its stages. Those of a step are called `<layer>.<part> <stage>`.
    """
    if isinstance(launch, PartedLaunch):
        return launch.parts
    layered = any("." in stage.name.partition(" ")[0] for stage in stages)
    if not isinstance(launch, Built) or len(launch.launches) != len(stages) or not layered:
        return ()
    return [(part_of(stage.name), call) for stage, call in zip(stages, launch.launches, strict=True)]


def grouped(calls: Calls) -> dict[str, list[int]]:
    """The places of each part's calls."""
    found: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(calls):
        found.setdefault(name, []).append(place)
    return found


def in_turn(calls: Sequence[Call]) -> Call:
    def launch() -> None:
        for call in calls:
            call()

    return launch


Cores = Mapping[str, Sequence[InCache]]
"""By the name of a part: its cases in the caches of a host's cores."""


def sample(
    calls: Calls, target: Target, roof: Timer | None = None, seconds: float = 0.0, cores: Cores = MappingProxyType({})
) -> list[dict[str, Any]]:
    """The fields of `Record.parts`. A GPU's parts are timed alone, in graphs; a host's also in place and in the caches
    of its cores, for `seconds` and `LEAST` rounds at least."""
    return _on_gpu(calls) if target.kind == "cuda" else _on_host(calls, roof, seconds, cores)


def _on_gpu(calls: Calls) -> list[dict[str, Any]]:
    found = []
    for name, places in grouped(calls).items():
        timer = GraphTimer([in_turn([calls[place][1] for place in places])])
        found.append({"name": name, "calls": len(places), "alone_s": [timer.sample() for _ in range(FEWEST_SAMPLES)]})
        timer.close()
    return found


def _on_host(calls: Calls, roof: Timer | None, seconds: float, cores: Cores) -> list[dict[str, Any]]:
    groups = grouped(calls)
    alone = {name: in_turn([calls[place][1] for place in places]) for name, places in groups.items()}
    keys = ("alone_s", "in_step_s", *(("alone_reads_s", "in_step_reads_s") if roof else ()))
    found: dict[str, dict[str, Any]] = {
        name: {"name": name, "calls": len(places), **{key: [] for key in keys}} for name, places in groups.items()
    }
    before, end, rounds = roof.sample() if roof else 0.0, time.perf_counter() + seconds, 0

    def keep(key: str, times: Mapping[str, float]) -> None:
        """The times, and the mean of the reads before and after them."""
        nonlocal before
        after = roof.sample() if roof else 0.0
        for name, value in times.items():
            found[name][f"{key}_s"].append(value)
            if roof:
                found[name][f"{key}_reads_s"].append((before + after) / 2)
        before = after

    while rounds < LEAST or time.perf_counter() < end:
        rounds += 1
        times = _in_place(calls)
        keep("in_step", {name: sum(times[place] for place in places) for name, places in groups.items()})
        for name, launch in alone.items():
            start = time.perf_counter()
            launch()
            keep("alone", {name: time.perf_counter() - start})
        for timers in cores.values():
            for timer in timers:
                timer.sample()
    for name, timers in cores.items():
        found[name]["core"] = [timer.as_dict() for timer in timers]
    return list(found.values())


def _in_place(calls: Calls) -> list[float]:
    """Seconds of each call, while all run one after the other."""
    times, before = [], time.perf_counter()
    for _, call in calls:
        call()
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times
