"""What a reader must know of a time: which flags its record gets. `bench.records.FLAGS` says what each means."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench.measure.timing import MIN_CACHEABLE, Rotation, Sampling
from kernels.op import Launch, Target

IMPOSSIBLE_MARGIN = {"cuda": 1.02, "cpu": 1.5}
"""By kind of target: compulsory bytes over time may be at most this many times the fastest read that was seen.

A GPU's clocks move by a percent or two. A host shares its memory with whatever else runs on it.
"""

MAX_IDLE_CALL_S = 0.01
"""A launch call on the host that lasts longer than its device time and this must be waiting or sleeping."""


def flags_of(
    sampling: Sampling,
    telemetry: Mapping[str, Any],
    rotation: Rotation,
    target: Target,
    *,
    work_bytes: int,
    fastest_read: float | None,
    waited: bool,
) -> list[str]:
    """The names of all flags that apply. `fastest_read` in B/s is what compulsory traffic cannot exceed, if known."""
    rate = work_bytes / statistics.median(sampling.samples_s)
    found = {
        "noisy": not sampling.converged,
        "disturbed": telemetry.get("disturbed"),
        "throttled": telemetry.get("throttled"),
        "power-capped": telemetry.get("power_capped"),
        "warm": not rotation.cold and rotation.touched_bytes >= MIN_CACHEABLE,
        "waited": waited,
        "impossible": fastest_read and rate > IMPOSSIBLE_MARGIN[target.kind] * fastest_read,
    }
    return [name for name, applies in found.items() if applies]


def waits(launch: Launch, samples_s: Sequence[float], target: Target) -> bool:
    """On a GPU, does the launch call hold up the host for longer than the device needs?"""
    if target.kind != "cuda":
        return False
    start = time.perf_counter()
    launch()
    return time.perf_counter() - start > MAX_IDLE_CALL_S + min(samples_s)


def allocates(launch: Launch, target: Target) -> bool:
    """Does a warm launch take memory from the GPU's allocator?"""
    if target.kind != "cuda":
        return False
    import torch

    def taken() -> int:
        return torch.cuda.memory_stats().get("allocation.all.allocated", 0)

    before = taken()
    launch()
    return taken() > before
