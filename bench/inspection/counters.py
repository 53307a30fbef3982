"""Hardware counters through NVIDIA's `ncu`: what a launch really moved and computed, beside what its stages declare.

The parent runs `counters_child.py` once under `ncu`. The child prepares every chosen case, warms it up, and launches it
once between `cudaProfilerStart` and `Stop`, inside an NVTX range that names it. ncu replays each kernel until it has
read all counters. It flushes the caches before each replay (`--cache-control all`), so every kernel of a launch starts
cold: a kernel that merges split partials then reads from DRAM what it would find in the L2 without ncu. Clocks are left
as they are (`--clock-control none`). Bytes that are still in the L2 when a kernel ends are not in `dram_written`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.errors import require
from bench.inspection.ncu import (
    OCCUPANCY,
    SUMS,
    TENSOR,
    Row,
    command,
    complaint,
    counters_problem,
    find_ncu,
    metrics_to_ask,
    offered,
    parse,
)
from kernels.op import discover, implementations

TIMEOUT_S = 600.0

TIMED_OUT = 124
"""The exit status that `machine.execute` gives a program which it ended."""

NO_TIME = "no time left"
"""Why a launch was not counted where the time was up first. A later call can count it."""


@dataclass(frozen=True, kw_only=True)
class CountersDenied:
    """Why there are no counters, in one line that says what to do. A run goes on without them."""

    reason: str

    def lines(self) -> list[str]:
        return [self.reason]

    def as_dict(self) -> dict[str, Any]:
        return {"denied": self.reason}


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Counters of one launch: bytes, seconds, instructions per thread; rates are fractions of one.

    `declared_read` and `declared_written` are the bytes that the implementation's stages say it moves. `tensor_ops` by
    operand type and `fma_flops` (2 FFMA + FADD + FMUL) were executed, padding included; `intensity` is their sum per
    DRAM byte. A field is None where ncu offers no such counter on this part.
    """

    op: str
    impl: str
    case_id: str
    declared_read: int
    declared_written: int
    dram_read: float | None
    dram_written: float | None
    l2_hit_rate: float | None
    tensor_ops: dict[str, float] | None
    ffma: float | None
    fma_flops: float | None
    occupancy: float | None
    seconds: float | None
    intensity: float | None
    kernels: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `Record.counters`."""
        return asdict(self)

    def line(self) -> str:
        """One line for a terminal."""

        def share(value: float | None) -> str:
            return "?" if value is None else f"{value:.0%}"

        def bytes_of(counted: float | None, declared: int) -> str:
            if counted is None:
                return f"? MB (declared {declared / 1e6:.1f})"
            more = f", {counted / declared - 1:+.1%}" if declared else ""
            return f"{counted / 1e6:.1f} MB (declared {declared / 1e6:.1f}{more})"

        intensity = "?" if self.intensity is None else f"{self.intensity:.2f}"
        return (
            f"{self.op} {self.case_id} {self.impl}: read {bytes_of(self.dram_read, self.declared_read)}, "
            f"wrote {bytes_of(self.dram_written, self.declared_written)}, L2 hits {share(self.l2_hit_rate)}, "
            f"{intensity} FLOP/B, occupancy {share(self.occupancy)}, kernels: {len(self.kernels)}"
        )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was counted, and why other launches were not, by (op, impl, case id)."""

    counted: tuple[Counted, ...] = ()
    failed: dict[tuple[str, str, str], str] = field(default_factory=dict)
    timed_out: bool = False
    """ncu was ended when the time was up, perhaps before it wrote anything."""
    damaged: tuple[str, ...] = ()
    """What of ncu's output could not be read."""

    @property
    def complete(self) -> bool:
        """Nothing is left that more time could count."""
        return not self.timed_out and NO_TIME not in self.failed.values()

    def lines(self) -> list[str]:
        missing = [f"{op} {case_id} {impl}: {why}" for (op, impl, case_id), why in self.failed.items()]
        late = ["ncu was ended when the time was up"] if self.timed_out else []
        return [*(found.line() for found in self.counted), *missing, *late, *self.damaged]

    def as_dict(self) -> dict[str, Any]:
        failed = [
            {"op": op, "impl": impl, "case_id": case_id, "reason": why}
            for (op, impl, case_id), why in self.failed.items()
        ]
        return {"counted": [found.as_dict() for found in self.counted], "failed": failed}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to count: one case per operation, implementation, kind and precision of a suite."""

    suite: str = "quick"
    ops: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    case: str = ""
    """Only cases whose id contains this."""
    done: tuple[tuple[str, str, str], ...] = ()
    """(op, implementation, case id) of what was counted before and is left out."""


def check(choice: Choice) -> None:
    """Raise `BadRequest` for implementations that none of the chosen operations has."""
    if choice.impls:
        ops = choice.ops or tuple(discover())
        require("implementation", choice.impls, sorted({impl.name for op in ops for impl in implementations(op)[0]}))


def summarise(rows: Sequence[Row], entry: Mapping[str, Any]) -> Counted:
    """The kernels of one launch together: sums, the hit rate over all sectors, the occupancy weighted by time.

    `entry` is what the child says about the launch.
    """

    def add(metric: str) -> float | None:
        values = [row.metrics.get(metric) for row in rows]
        return None if None in values else sum(v for v in values if v is not None)

    sums = {name: add(metric) for name, metric in SUMS.items()}
    hits, misses = sums["l2_hits"], sums["l2_misses"]
    ffma, fadd, fmul = sums["ffma"], sums["fadd"], sums["fmul"]
    sectors = hits + misses if hits is not None and misses is not None else 0.0
    fma_flops = None if ffma is None or fadd is None or fmul is None else 2 * ffma + fadd + fmul
    tensor: dict[str, float] = {}
    for row in rows:
        for name, value in row.metrics.items():
            match = TENSOR.fullmatch(name.removesuffix(".sum"))
            if match:
                tensor[match["src"]] = tensor.get(match["src"], 0.0) + value
    read, written, seconds = sums["dram_read"], sums["dram_written"], sums["seconds"]
    moved = read + written if read is not None and written is not None else 0.0
    executed = None if fma_flops is None else fma_flops + sum(tensor.values())
    return Counted(
        op=entry["op"],
        impl=entry["impl"],
        case_id=entry["case_id"],
        declared_read=entry["declared_read"],
        declared_written=entry["declared_written"],
        dram_read=read,
        dram_written=written,
        l2_hit_rate=(hits or 0.0) / sectors if sectors else None,
        tensor_ops=tensor or None,
        ffma=ffma,
        fma_flops=fma_flops,
        occupancy=weighted(rows, OCCUPANCY, SUMS["seconds"]) if seconds else None,
        seconds=seconds,
        intensity=executed / moved if moved and executed is not None else None,
        kernels=tuple(row.kernel for row in rows),
    )


def weighted(rows: Sequence[Row], metric: str, weight: str) -> float | None:
    pairs = [(row.metrics[metric], row.metrics[weight]) for row in rows if metric in row.metrics]
    total = sum(w for _, w in pairs)
    return sum(value * w for value, w in pairs) / total if total and len(pairs) == len(rows) else None


def count(choice: Choice, *, ncu: str | None = None, timeout_s: float = TIMEOUT_S) -> Counts | CountersDenied:
    """Count the chosen cases in one child process under ncu. A time-out is no denial."""
    ncu = ncu or find_ncu()
    problem = counters_problem(ncu, machine.driver_parameters(), machine.may_administrate())
    if problem or ncu is None:
        return CountersDenied(reason=problem or "")
    _, listing = machine.execute([ncu, "--query-metrics"], 60.0)
    metrics = metrics_to_ask(offered(listing))
    with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
        plan, log, answer = (Path(folder) / name for name in ("plan.json", "ncu.csv", "plan.json.done"))
        plan.write_text(json.dumps({"choice": asdict(choice), "budget_s": timeout_s / 2}))
        status, output = machine.execute(command(ncu, metrics, log, plan), timeout_s)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        entries = [json.loads(line) for line in answer.read_text().splitlines()] if answer.exists() else []
    damaged: list[str] = []
    rows = parse(text, damaged)
    timed_out = status == TIMED_OUT
    if not rows and not timed_out and (entries or status):
        return CountersDenied(reason=complaint(text + "\n" + output, status))
    return replace(collate(entries, rows, timed_out=timed_out), damaged=tuple(damaged))


def collate(entries: Sequence[Mapping[str, Any]], rows: Sequence[Row], *, timed_out: bool = False) -> Counts:
    """Join what the child launched with what ncu saw."""
    counted, failed = [], {}
    unseen = NO_TIME if timed_out else "ncu saw no kernel of this launch"
    for entry in entries:
        key = (entry["op"], entry["impl"], entry["case_id"])
        mine = [row for row in rows if row.index == entry["index"]]
        if entry["error"] or not mine:
            failed[key] = entry["error"] or unseen
        else:
            counted.append(summarise(mine, entry))
    return Counts(counted=tuple(counted), failed=failed, timed_out=timed_out)
