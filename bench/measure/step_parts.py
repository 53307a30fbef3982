"""`decodebench step --device cpu`: a decode step on this host, the whole of it and each of its parts, without a run."""

from __future__ import annotations

import os
import statistics
from typing import Any

from bench import machine
from bench.errors import BadRequest
from bench.measure import parts
from bench.measure.memory import free_memory
from bench.measure.roof import read_roof
from bench.measure.timing import HostTimer, sample_interleaved
from bench.predict import step_request
from bench.predict.step_waterfall import MeasuredStep, Waterfall, measured_waterfall, parts_of, sizes_of
from kernels.op import Target, discover, implementations

OP, OURS, PEER = "decode_step", "numba", "torch"

SECONDS = 1.0
"""How long each implementation is sampled, and the parts of ours."""


def require_memory(case: Any, target: Target) -> None:
    """Raises `BadRequest` where the inputs of a step do not fit into memory."""
    need = sum(tensor.nbytes for tensor in discover()[OP].inputs(case, "meta", 0).values())
    if need > 0.8 * (free := free_memory(target)):
        raise BadRequest(f"its weights and cache take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def measure_step(case: Any, target: Target) -> tuple[MeasuredStep, float | None]:
    """The step of our kernels on this host, and torch's beside it; and the read roof between their samples in B/s.

    Raises `BadRequest` where it does not fit into memory, or where a part of it does not run here.
    """
    require_memory(case, target)
    impls = {impl.name: impl for impl in implementations(OP)[0]}
    if refusal := impls[OURS].supports(case, target):
        raise BadRequest(refusal)
    inputs, roof = discover()[OP].inputs(case, target.device, 0), read_roof("kernels.op", target)
    names = [name for name in (OURS, PEER) if impls[name].supports(case, target) is None]
    launches = {name: impls[name].prepare(case, inputs, target) for name in names}
    timers = {name: HostTimer([launch]) for name, launch in launches.items()}
    found = sample_interleaved(timers, cap_s=SECONDS, roof=roof)
    times = {name: statistics.median(sampling.samples_s) for name, sampling in found.items()}
    stages = impls[OURS].stages(case, target)
    reads = [*found[OURS].before_s, *found[OURS].after_s]
    read = statistics.median(reads) if reads else None
    measured = MeasuredStep(
        impl=OURS,
        seconds=times[OURS],
        parts=parts_of(parts.sample(parts.calls_of(launches[OURS], stages), target, roof, SECONDS), read),
        peers={name: times[name] for name in names if name != OURS},
        source=f"medians on {target.name}, {target.sm_count} cores",
        bytes=discover()[OP].work(case).bytes,
        sizes=sizes_of((stage.name, stage.work.bytes) for stage in stages),
        notes=busy_note(target),
    )
    return measured, roof.size / read if roof and read else None


def measure_request(request: step_request.Request) -> Waterfall:
    """The waterfall of a step on this host. Raises `BadRequest`."""
    machine.let_waiting_threads_sleep()
    machine.want_large_pages()
    target = machine.detect("cpu")
    found, roof = measure_step(request.case, target)
    return measured_waterfall(request.case, found, part=target.name, roof=roof)


def busy_note(target: Target) -> tuple[str, ...]:
    """Whether other processes want the cores too; the step's own threads are as many as there are cores."""
    load = os.getloadavg()[0]
    if load <= target.sm_count + 1:
        return ()
    return (f"other processes are at work: a load of {load:.0f} on {target.sm_count} cores; these times say little",)
