"""What of one share's run counts in a fleet: a few kilobytes, however many samples the run has. Pure; no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.judge.busyness import taken_by_others
from bench.judge.resolution import resolutions
from bench.records import Record
from bench.run import Run

SCHEMA = 1

CLOCKS = {"sm_clock_hz": "sm_clock_max_hz", "memory_clock_hz": "memory_clock_max_hz"}
"""A clock as it was while cases ran, and the driver's name of the highest one."""

BOARD = (
    "driver",
    "board",
    "memory_bytes",
    "power_cap_w",
    "power_default_w",
    "pcie_generation",
    "pcie_generation_max",
    "pcie_width",
    "pcie_width_max",
    "nvlinks",
    "ecc",
    "mig",
    *CLOCKS.values(),
)
"""What the header of a run says of the board, by the names of `bench.devices.driver.FACTS`."""

COUNTED = ("ecc_corrected", "ecc_uncorrected", "pcie_replays", "nvlink_errors")
"""Errors that are summed over the cases of a run."""


def summarize(run: Run) -> dict[str, Any]:
    """The run as plain JSON values. Times are in seconds: `[low, median, high]` of the fastest implementation.

    `times` is by kind of work and case. A kind is an operation; the cases of `stream` and `host_link` are one kind for
    each thing that they do, because a slow link and a slow memory are different faults. `resolution` says for each
    kind by how much the run's own A/A pairs differ.
    """
    times: dict[str, dict[str, list[float]]] = {}
    fastest: dict[tuple[str, str], Record] = {}
    for record in run.trusted:
        key = (kind_of(record), record.case_id)
        if key not in fastest or (record.seconds or 0) < (fastest[key].seconds or 0):
            fastest[key] = record
    for (kind, case), record in fastest.items():
        if interval := record.interval:
            times.setdefault(kind, {})[case] = [interval.low, interval.median, interval.high]
    apart = resolutions(run)
    ill = ("wrong", "failed", "timeout")
    faults = [f"{r.op} {r.case_id} {r.impl}: {r.status}" for r in run.records if r.status in ill]
    return {
        "schema": SCHEMA,
        "run_id": run.header.get("run_id", ""),
        "complete": run.complete,
        "part": run.device_name,
        "on_gpu": run.on_gpu,
        "suite": run.header.get("suite"),
        "started": run.header.get("started"),
        "read_roof": run.ceilings.read_roof if run.ceilings else None,
        "launch_s": run.ceilings.launch_s if run.ceilings else None,
        "pipes": dict(run.ceilings.pipes) if run.ceilings else {},
        "times": times,
        "resolution": {kind: min(apart[op], 10.0) for kind in times if (op := kind.split()[0]) in apart},
        "facts": facts(run),
        "facts_by_kind": by_kind(run),
        "wrong": len(faults),
        "wrong_example": faults[0] if faults else None,
    }


def kind_of(record: Record) -> str:
    """`ffn_gemv`, `stream read`, `host_link h2d`."""
    return f"{record.op} {record.case['kind']}" if "kind" in record.case else record.op


def facts(run: Run) -> dict[str, Any]:
    """What the board says of itself, and what its clocks, power and errors were while cases ran. None: not told."""
    gpu = (run.header.get("environment") or {}).get("gpu") or {}
    found: dict[str, Any] = {name: gpu.get(name) for name in BOARD if gpu.get(name) is not None}
    found |= told([r.telemetry for r in run.timed if r.telemetry])
    found["others_share"] = taken_by_others(run)
    return {name: value for name, value in found.items() if value is not None}


def by_kind(run: Run) -> dict[str, dict[str, Any]]:
    """What the board did while the cases of each kind ran."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for record in run.timed:
        if record.telemetry:
            seen.setdefault(kind_of(record), []).append(record.telemetry)
    return {kind: found for kind, each in seen.items() if (found := told(each))}


def told(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Clocks in the median, the highest power and temperature, sums of errors, the shares of cases that were held."""
    found: dict[str, Any] = {}
    for name in CLOCKS:
        found[name] = middle(t[name].get("median") for t in seen if isinstance(t.get(name), Mapping))
    found["power_w"] = greatest(t.get("power_w") for t in seen)
    found["temperature_c"] = greatest(t.get("temperature_c") for t in seen)
    for name in COUNTED:
        counts = [t[name] for t in seen if t.get(name) is not None]
        found[name] = sum(counts) if counts else None
    for name in ("throttled", "power_capped"):
        held = [bool(t[name]) for t in seen if t.get(name) is not None]
        found[f"{name}_share"] = sum(held) / len(held) if held else None
    reasons = {reason for t in seen for reason in t.get("clock_reasons") or ()}
    found["clock_reasons"] = sorted(reasons) or None
    return {name: value for name, value in found.items() if value is not None}


def middle(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def greatest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
