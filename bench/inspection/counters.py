"""Hardware counters through NVIDIA's `ncu`: what a launch really moved and computed, against what its stages declare.

The parent runs `counters_child.py` once under `ncu`; it prepares every chosen case, warms it up, and launches it
once between `cudaProfilerStart` and `Stop` inside an NVTX range that names it. ncu replays each kernel as often as it
needs to read all counters, flushing the caches before each replay (`--cache-control all`), so that every kernel of a
launch starts cold: a merge of split partials then shows as DRAM reads what it finds in the L2 when not profiled.
Clocks are left as they are (`--clock-control none`). Written bytes still in the L2 at a kernel's end are not in
`dram_written`.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from bench.errors import require
from kernels.op import discover, implementations

NCU_FOLDERS = ("/usr/local/cuda/bin/ncu", "/usr/local/cuda-*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
MARK = "decodebench-"
"""NVTX ranges are named by this and the index of the case."""

SUMS = {
    "dram_read": "dram__bytes_read.sum",
    "dram_written": "dram__bytes_write.sum",
    "l2_hits": "lts__t_sectors_lookup_hit.sum",
    "l2_misses": "lts__t_sectors_lookup_miss.sum",
    "ffma": "sm__sass_thread_inst_executed_op_ffma_pred_on.sum",
    "fadd": "sm__sass_thread_inst_executed_op_fadd_pred_on.sum",
    "fmul": "sm__sass_thread_inst_executed_op_fmul_pred_on.sum",
    "seconds": "gpu__time_duration.sum",
}
"""Counters that add up over the kernels of a launch; fp32 instructions are counted per thread."""
RENAMED = {"dram__bytes_op_read.sum": "dram__bytes_read.sum", "dram__bytes_op_write.sum": "dram__bytes_write.sum"}
"""What a GeForce of sm_120 calls the same counters."""
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
READ = {*SUMS.values(), OCCUPANCY}
TENSOR = re.compile(
    r"sm__ops_path_tensor(?:_op_(?P<op>[a-z]+))?_src_(?P<src>(?:_?(?:bf16|fp16|tf32|fp8|fp6|fp4|int8))+)"
    r"(?:_dst_(?P<dst>[a-z0-9]+))?(?:_sparsity_(?P<sparsity>on|off))?"
)
"""Operations of the tensor cores by operand type, a multiply and an add counted apart. Chips and versions of ncu
differ in which they offer: the whole, or its parts by instruction, result type or sparsity, or both (GH100 all of
them). So the list is read from ncu itself."""

UNITS = {"": 1.0, "inst": 1.0, "sector": 1.0, "%": 0.01, "second": 1.0, "s": 1.0}
UNITS |= {f"{prefix}byte": 10.0**power for prefix, power in (("", 0), ("K", 3), ("M", 6), ("G", 9), ("T", 12))}
for _name in ("second", "s"):
    UNITS |= {f"{prefix}{_name}": 10.0**-power for prefix, power in (("m", 3), ("u", 6), ("n", 9))}

TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class CountersDenied:
    """No counters, and why, in one line that says what to do; a run goes on without them."""

    reason: str

    def lines(self) -> list[str]:
        return [self.reason]

    def as_dict(self) -> dict[str, Any]:
        return {"denied": self.reason}


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Counters of one launch. Bytes, seconds, instructions per thread; rates as fractions of one.

    `declared_read` and `declared_written` are what the implementation's stages say it moves.
    `tensor_ops` by operand type and `fma_flops` (2 FFMA + FADD + FMUL) are what was executed, padding included;
    `intensity` is both together per DRAM byte. None where ncu offers no such counter on this part.
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
        """For `Record.counters`."""
        return asdict(self)

    def line(self) -> str:
        """For a terminal."""

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
    """All that was counted, and by (op, impl, case id) the reasons of what could not be."""

    counted: tuple[Counted, ...] = ()
    failed: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        missing = [f"{op} {case_id} {impl}: {why}" for (op, impl, case_id), why in self.failed.items()]
        return [*(found.line() for found in self.counted), *missing]

    def as_dict(self) -> dict[str, Any]:
        failed = [
            {"op": op, "impl": impl, "case_id": case_id, "reason": why}
            for (op, impl, case_id), why in self.failed.items()
        ]
        return {"counted": [found.as_dict() for found in self.counted], "failed": failed}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to count: one case per operation, implementation and precision of a suite."""

    suite: str = "quick"
    ops: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    case: str = ""
    """Only cases whose id contains this."""


# ---- before anything runs


def check(choice: Choice) -> None:
    """BadRequest for implementations that none of the chosen operations has."""
    if choice.impls:
        ops = choice.ops or tuple(discover())
        require("implementation", choice.impls, sorted({impl.name for op in ops for impl in implementations(op)[0]}))


def find_ncu() -> str | None:
    return machine.find_program("ncu", NCU_FOLDERS)


def counters_problem(ncu: str | None, parameters: Mapping[str, str], may_administrate: bool) -> str | None:
    """Why counters can't be read, as far as it shows beforehand. `parameters` are the driver module's."""
    if ncu is None:
        return "ncu was found neither on PATH nor under /usr/local/cuda*/bin or /opt/nvidia: install Nsight Compute"
    if parameters.get("RmProfilingAdminOnly") == "1" and not may_administrate:
        return DENIED
    return None


DENIED = (
    "the driver keeps its counters for administrators: the machine's owner can load the nvidia module with "
    "NVreg_RestrictProfilingToAdminUsers=0, or run this with CAP_SYS_ADMIN"
)


def offered(listing: str) -> set[str]:
    """Names of metrics in the output of `ncu --query-metrics`."""
    return set(re.findall(r"^(\w+__\w+)\s", listing, re.MULTILINE))


def metrics_to_ask(names: set[str]) -> list[str]:
    """What to count of what is offered: ncu counts nothing at all if it is asked for one metric that it lacks.

    Without a list (the query failed) all that have a fixed name; ncu then says what is wrong.
    """
    fixed = [*SUMS.values(), OCCUPANCY]
    if not names:
        return fixed
    return [name for name in [*fixed, *RENAMED] if name.partition(".")[0] in names] + tensor_metrics(names)


def tensor_metrics(names: Iterable[str]) -> list[str]:
    """The tensor-core counters to ask for: the whole of each type where it is offered, else its parts."""
    found = {name: match.groupdict() for name in names if (match := TENSOR.fullmatch(name))}

    def part_of_another(name: str) -> bool:
        mine = found[name]
        return any(
            other != name and all(value in (None, mine[key]) for key, value in found[other].items()) for other in found
        )

    return sorted(f"{name}.sum" for name in found if not part_of_another(name))


def command(ncu: str, metrics: Sequence[str], log: Path, plan: Path) -> list[str]:
    """`ncu` around a child of ours; the CSV goes to `log`, apart from what the child prints."""
    return [
        *(ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)),
        *("--nvtx", "--profile-from-start", "off", "--replay-mode", "kernel"),
        *("--cache-control", "all", "--clock-control", "none", "--metrics", ",".join(metrics)),
        *(sys.executable, "-m", "bench.inspection.counters_child", str(plan)),
    ]


# ---- ncu's output


@dataclass(frozen=True, kw_only=True)
class Row:
    """One profiled kernel: the index of its case, its name, its counters in base units."""

    index: int
    kernel: str
    metrics: dict[str, float]


def parse(text: str) -> list[Row]:
    """The CSV of `ncu --csv --page raw`: messages, a row of names, a row of units, one row per kernel.

    There are more columns than were asked for, of other units and of words; only ours are read.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = list(csv.reader(line for line in lines[start:] if line.startswith('"')))
    names, units, rows = table[0], table[1] if len(table) > 1 else [], table[2:]
    ranges = [i for i, name in enumerate(names) if "Push/Pop_Range" in name]
    found = []
    for row in rows:
        marks = [mark for i in ranges for mark in re.findall(rf":{MARK}(\d+)[:\"]", row[i])]
        if not marks:
            continue
        metrics = {}
        for column, unit, text in zip(names, units, row, strict=True):
            name = RENAMED.get(column, column)
            if name in READ or TENSOR.fullmatch(name.removesuffix(".sum")):
                value = number(name, unit, text)
                if value is not None:
                    metrics[name] = value
        found.append(Row(index=int(marks[-1]), kernel=row[names.index("Kernel Name")], metrics=metrics))
    return found


def number(name: str, unit: str, text: str) -> float | None:
    """A value in base units. It may have thousands separators; None where ncu has words instead (`n/a`, `no data`)."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    if math.isnan(value):
        return None
    if unit not in UNITS:
        raise ValueError(f"ncu gives {name} in {unit!r}, a unit unknown here")
    return value * UNITS[unit]


def summarise(rows: Sequence[Row], entry: Mapping[str, Any]) -> Counted:
    """The kernels of one launch together: sums; the hit rate over all sectors, occupancy weighted by time.

    `entry` is what the child says of the launch.
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


def complaint(output: str, status: int) -> str:
    """What went wrong where no kernel was counted, in one line: ncu's first error (else its first warning), and the
    child's last words. An error may begin with a line that only says who reports it, and ends with a colon.
    """
    if "ERR_NVGPUCTRPERM" in output:
        return DENIED
    said = [re.findall(rf"^=={kind}== (.+)$", output, re.MULTILINE) for kind in ("ERROR", "WARNING")]
    reported = said[0] or said[1]
    first = next((i + 1 for i, line in enumerate(reported) if not line.endswith(":")), 0)
    words = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(("==", '"'))]
    return "; ".join([f"ncu ended with {status}", *([" ".join(reported[:first])] if first else []), *words[-1:]])


# ---- the parent


def count(choice: Choice, *, ncu: str | None = None, timeout_s: float = TIMEOUT_S) -> Counts | CountersDenied:
    """Count the chosen cases in one child process under ncu."""
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
        text = log.read_text() if log.exists() else ""
        entries = [json.loads(line) for line in answer.read_text().splitlines()] if answer.exists() else []
    rows = parse(text)
    if not rows:
        return CountersDenied(reason=complaint(text + "\n" + output, status))
    return collate(entries, rows)


def collate(entries: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> Counts:
    """Join what the child says it launched with what ncu saw."""
    counted, failed = [], {}
    for entry in entries:
        key = (entry["op"], entry["impl"], entry["case_id"])
        mine = [row for row in rows if row.index == entry["index"]]
        if entry["error"] or not mine:
            failed[key] = entry["error"] or "ncu saw no kernel of this launch"
        else:
            counted.append(summarise(mine, entry))
    return Counts(counted=tuple(counted), failed=failed)
