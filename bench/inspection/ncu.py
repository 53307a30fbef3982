"""NVIDIA's `ncu`: which counters it offers, how it is called, and what its output says."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine

NCU_FOLDERS = ("/usr/local/cuda/bin/ncu", "/usr/local/cuda-*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
MARK = "decodebench-"
"""The name of an NVTX range is this and the index of the case."""

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
"""Counters that add up over the kernels of a launch. fp32 instructions are counted per thread."""
RENAMED = {"dram__bytes_op_read.sum": "dram__bytes_read.sum", "dram__bytes_op_write.sum": "dram__bytes_write.sum"}
"""The names of the same counters on a GeForce of sm_120."""
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
READ = {*SUMS.values(), OCCUPANCY}
TENSOR = re.compile(
    r"sm__ops_path_tensor(?:_op_(?P<op>[a-z]+))?_src_(?P<src>(?:_?(?:bf16|fp16|tf32|fp8|fp6|fp4|int8))+)"
    r"(?:_dst_(?P<dst>[a-z0-9]+))?(?:_sparsity_(?P<sparsity>on|off))?"
)
"""Operations of the tensor cores by operand type; a multiply-add counts as two.

Chips and versions of ncu differ in what they offer: the whole, or its parts by instruction, result type or sparsity, or
both (GH100 offers all of them). So the list is read from ncu itself."""

UNITS = {"": 1.0, "inst": 1.0, "sector": 1.0, "%": 0.01, "second": 1.0, "s": 1.0}
UNITS |= {f"{prefix}byte": 10.0**power for prefix, power in (("", 0), ("K", 3), ("M", 6), ("G", 9), ("T", 12))}
for _name in ("second", "s"):
    UNITS |= {f"{prefix}{_name}": 10.0**-power for prefix, power in (("m", 3), ("u", 6), ("n", 9))}


# ---- before it runs


def find_ncu() -> str | None:
    return machine.find_program("ncu", NCU_FOLDERS)


def counters_problem(ncu: str | None, parameters: Mapping[str, str], may_administrate: bool) -> str | None:
    """Why counters cannot be read, if that can be told beforehand. `parameters` are those of the driver's module."""
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
    """The names of metrics in the output of `ncu --query-metrics`."""
    return set(re.findall(r"^(\w+__\w+)\s", listing, re.MULTILINE))


def metrics_to_ask(names: set[str]) -> list[str]:
    """The metrics to ask for among those offered: ncu counts nothing if it is asked for one that it lacks.

    If the list is empty because the query failed, these are all metrics with a fixed name; ncu then says what is wrong.
    """
    fixed = [*SUMS.values(), OCCUPANCY]
    if not names:
        return fixed
    return [name for name in [*fixed, *RENAMED] if name.partition(".")[0] in names] + tensor_metrics(names)


def tensor_metrics(names: Iterable[str]) -> list[str]:
    """The tensor-core counters to ask for: for each type the whole if it is offered, else the parts."""
    found = {name: match.groupdict() for name in names if (match := TENSOR.fullmatch(name))}

    def part_of_another(name: str) -> bool:
        mine = found[name]
        return any(
            other != name and all(value in (None, mine[key]) for key, value in found[other].items()) for other in found
        )

    return sorted(f"{name}.sum" for name in found if not part_of_another(name))


def command(ncu: str, metrics: Sequence[str], log: Path, plan: Path) -> list[str]:
    """The command that runs our child under `ncu`. The CSV goes to `log`, apart from the child's output."""
    return [
        *(ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)),
        *("--nvtx", "--profile-from-start", "off", "--replay-mode", "kernel"),
        *("--cache-control", "all", "--clock-control", "none", "--metrics", ",".join(metrics)),
        *(sys.executable, "-m", "bench.inspection.counters_child", str(plan)),
    ]


# ---- its output


@dataclass(frozen=True, kw_only=True)
class Row:
    """One profiled kernel: the index of its case, its name, and its counters in base units."""

    index: int
    kernel: str
    metrics: dict[str, float]


def parse(text: str, damaged: list[str] | None = None) -> list[Row]:
    """Read the CSV of `ncu --csv --page raw`: messages, a row of names, a row of units, one row per kernel.

    ncu adds columns that nobody asked for, with other units or with words. They are not read.

    A launch is left out if a row of it is damaged: its kernels would not add up. `damaged` then gets a sentence.
    Without such a list a unit that is not known is a ValueError.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    said: list[str] = []
    table = [(i + 1, line) for i, line in enumerate(lines) if i >= start and line.startswith('"')]
    names = _columns(table[0][1])
    units = _columns(table[1][1]) if len(table) > 1 else []
    if "Kernel Name" not in names or (units and len(units) != len(names)):
        _say(damaged, f"line {table[0][0]}: the row of names or of units is damaged: nothing is read")
        return []
    ranges = [i for i, name in enumerate(names) if "Push/Pop_Range" in name]
    found: list[Row] = []
    broken: set[int] = set()
    for line_number, line in table[2:]:
        row = _columns(line)
        marks = re.findall(
            rf":{MARK}(\d{{1,9}})[:\"]", line if len(row) != len(names) else " ".join(row[i] for i in ranges)
        )
        try:
            if len(row) != len(names) or not line.endswith('"') or line.count('"') % 2:
                raise ValueError("the row is not whole")
            if marks:
                metrics = _metrics(names, units, row)
                found.append(Row(index=int(marks[-1]), kernel=row[names.index("Kernel Name")], metrics=metrics))
        except ValueError as error:
            if damaged is None and "unit unknown" in str(error):
                raise
            index = int(marks[-1]) if marks else found[-1].index if found else -1
            broken.add(index)
            said.append(f"line {line_number} of ncu's output: {error}; the launch is left out")
    for sentence in said:
        _say(damaged, sentence)
    return [row for row in found if row.index not in broken]


def _say(damaged: list[str] | None, sentence: str) -> None:
    if damaged is not None:
        damaged.append(sentence)


def _columns(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _metrics(names: Sequence[str], units: Sequence[str], row: Sequence[str]) -> dict[str, float]:
    metrics = {}
    for column, unit, text in zip(names, units, row, strict=True):
        name = RENAMED.get(column, column)
        if name in READ or TENSOR.fullmatch(name.removesuffix(".sum")):
            value = number(name, unit, text)
            if value is not None:
                metrics[name] = value
    return metrics


NUMBER = re.compile(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d*)?([eE][-+]?\d{1,3})?")
"""A number as ncu writes it under `LC_ALL=C`: a comma only between thousands."""


def number(name: str, unit: str, text: str) -> float | None:
    """A value in base units, 0 or more; None where ncu has words instead of a number (`n/a`, `no data`)."""
    if not any(each.isdigit() for each in text):
        return None
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{name} is {text[:40]!r}, no number as ncu writes it")
    value = float(text.replace(",", ""))
    if not 0 <= value < 1e30:
        raise ValueError(f"{name} is {text[:40]!r}, which no counter reaches")
    if unit not in UNITS:
        raise ValueError(f"ncu gives {name} in {unit!r}, a unit unknown here")
    return value * UNITS[unit]


def complaint(output: str, status: int) -> str:
    """Why no kernel was counted, in one line: ncu's first error or else its first warning, and the child's last line.

    An error may begin with a line that ends with a colon and only says who reports it.
    """
    if "ERR_NVGPUCTRPERM" in output:
        return DENIED
    said = [re.findall(rf"^=={kind}== (.+)$", output, re.MULTILINE) for kind in ("ERROR", "WARNING")]
    reported = said[0] or said[1]
    first = next((i + 1 for i, line in enumerate(reported) if not line.endswith(":")), 0)
    words = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(("==", '"'))]
    return "; ".join([f"ncu ended with {status}", *([" ".join(reported[:first])] if first else []), *words[-1:]])
