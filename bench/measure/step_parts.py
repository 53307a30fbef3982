"""A decode step on this machine: the whole of it, and each of its operations alone and in its place.

Each layer has its own weights, so an operation that runs through all layers meets none of them in a cache, if together
they are larger than it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench import machine
from bench.errors import BadRequest
from bench.measure.memory import free_memory
from bench.predict import step_request
from bench.predict.step_waterfall import MeasuredPart, MeasuredStep, Waterfall
from kernels.op import Target, discover, implementations

OP, OURS, PEER = "decode_step", "numba", "torch"

SECONDS = 1.0
"""How long each thing is timed, and at least `LEAST` times."""
LEAST = 5

STREAM_BYTES = 256 << 20
"""Bytes of the read that gives the roof of a host; more than its caches hold."""

Calls = Sequence[Callable[[], Any]]


def in_turn(calls: Calls) -> Callable[[], None]:
    def launch() -> None:
        for call in calls:
            call()

    return launch


def median_of(launch: Callable[[], Any]) -> float:
    """Seconds of one launch on the host, by the median."""
    launch()
    samples: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(samples) < LEAST or time.perf_counter() < end:
        before = time.perf_counter()
        launch()
        samples.append(time.perf_counter() - before)
    return statistics.median(samples)


def in_place(calls: Calls) -> list[float]:
    """Median seconds of each call, while all run one after the other."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + SECONDS
    while len(times[0]) < LEAST or time.perf_counter() < end:
        before = time.perf_counter()
        for call, found in zip(calls, times, strict=True):
            call()
            now = time.perf_counter()
            found.append(now - before)
            before = now
    return [statistics.median(found) for found in times]


def needed_bytes(case: Any) -> int:
    """Bytes of the inputs of a step."""
    return sum(tensor.nbytes for tensor in discover()[OP].inputs(case, "meta", 0).values())


def measure_step(case: Any, target: Target) -> MeasuredStep:
    """The step of our kernels on this host, and torch's beside it.

    Raises `BadRequest` where it does not fit into memory, or where a part of it does not run here.
    """
    need, free = needed_bytes(case), free_memory(target)
    if need > 0.8 * free:
        raise BadRequest(f"its weights and cache take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    machine.let_waiting_threads_sleep()
    impls = {impl.name: impl for impl in implementations(OP)[0]}
    if refusal := impls[OURS].supports(case, target):
        raise BadRequest(refusal)
    inputs = discover()[OP].inputs(case, target.device, 0)
    launch = impls[OURS].prepare(case, inputs, target)
    peer = impls[PEER].prepare(case, inputs, target) if impls[PEER].supports(case, target) is None else None
    return MeasuredStep(
        impl=OURS,
        seconds=median_of(launch),
        parts=measured_parts(launch.parts),  # type: ignore[attr-defined]
        peers={PEER: median_of(peer)} if peer else {},
        source=f"medians on {target.name}, {target.sm_count} cores",
        notes=busy_note(target),
    )


def measure_request(request: step_request.Request) -> Waterfall:
    """The waterfall of a step on this host. Raises `BadRequest`."""
    target = machine.detect("cpu")
    roof = read_roof(target)
    return step_request.measured(request, measure_step(request.case, target), target.name, roof)


def busy_note(target: Target) -> tuple[str, ...]:
    """Whether other processes want the cores too; the step's own threads are as many as there are cores."""
    load = os.getloadavg()[0]
    if load <= target.sm_count + 1:
        return ()
    return (f"other processes are at work: a load of {load:.0f} on {target.sm_count} cores; these times say little",)


def measured_parts(parts: Sequence[tuple[str, Callable[[], Any]]]) -> tuple[MeasuredPart, ...]:
    """By name, in the order of the first layer."""
    calls = [call for _, call in parts]
    inside = in_place(calls)
    groups: dict[str, list[int]] = {}
    for i, (name, _) in enumerate(parts):
        groups.setdefault(name, []).append(i)
    return tuple(
        MeasuredPart(
            name=name,
            calls=len(mine),
            alone=median_of(in_turn([calls[i] for i in mine])),
            in_step=sum(inside[i] for i in mine),
        )
        for name, mine in groups.items()
    )


def read_roof(target: Target) -> float:
    """B/s of the fastest of some reads of a large array on this host."""
    op = discover()["stream"]
    case = op.case_from_dict({"kind": "read", "size": STREAM_BYTES})
    impl = next(each for each in implementations("stream")[0] if each.name == OURS)
    launch = impl.prepare(case, op.inputs(case, target.device, 0), target)
    samples = []
    for _ in range(10):
        before = time.perf_counter()
        launch()
        samples.append(time.perf_counter() - before)
    return STREAM_BYTES / min(samples)
