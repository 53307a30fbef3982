"""A run as it was read, and the one answer to what every reader asks of it. Never imports torch.

Reports, claims, calibration and comparisons all ask here: which times can be trusted, which ceilings were measured, on
which part, what its vendor publishes, and which implementation was the fastest at a case.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.ceilings import Ceilings, usual_read
from bench.devices import DEVICES, DeviceSpec, Quantity
from bench.errors import BadRequest
from bench.records import FILE, Record, from_line
from bench.schema import check_line
from bench.units import si, tick
from kernels.op import Target

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run file as read: damaged lines are named in `warnings` and the rest is used."""

    path: Path
    """The run's directory; of a shared file, a directory named like it, where its report goes."""
    header: dict[str, Any]
    """The first `run` line: run_id, suite, argv, started, device, target, environment, decodebench."""
    headers: list[dict[str, Any]]
    records: list[Record]
    """The last record of each (op, impl, case) of the first repetition, in the order in which they came."""
    repeats: list[Record]
    """The records of further repetitions (`run --repeat N`)."""
    notes: list[dict[str, Any]]
    warnings: list[str]
    complete: bool

    @property
    def on_gpu(self) -> bool:
        return self.header.get("target", {}).get("kind") == "cuda"

    @property
    def on_host(self) -> bool:
        """Neither this nor `on_gpu` holds where the header is missing: where it was measured is then not known."""
        return self.header.get("target", {}).get("kind") == "cpu"

    @property
    def target(self) -> Target:
        """Where the run measured, as far as its header says."""
        said = {name: value for name, value in self.header.get("target", {}).items() if name in TARGET_FIELDS}
        return Target(**{"kind": "cpu", "name": "", **said})

    @property
    def device(self) -> dict[str, Any]:
        """What the header says of the part: key, name and published numbers."""
        return self.header.get("device", {})

    @property
    def device_name(self) -> str:
        """The name that the driver gives the part; on a host, the name of the processor."""
        return self.device.get("name") or self.header.get("target", {}).get("name") or "an unnamed device"

    @property
    def part(self) -> DeviceSpec | None:
        """The part's row in the table of devices; None for a part that the table does not hold."""
        return DEVICES.get(self.device.get("key") or "")

    def published(self, name: str) -> Quantity | None:
        """The part's `memory_bandwidth`, another field of `DeviceSpec`, or a pipe's peak, as predictions used it.

        The header has the number, also where it was derived from the driver. Headers of old runs lack it; for them it
        comes from the table.
        """
        if found := self.device.get(name) or (self.device.get("peaks") or {}).get(name):
            return Quantity(**found)
        if self.part is None:
            return None
        return self.part.peaks.get(name) or getattr(self.part, name, None)

    @cached_property
    def timed(self) -> list[Record]:
        """Every record with a time, trusted or not."""
        return [r for r in self.records if r.is_timed]

    @cached_property
    def trusted(self) -> list[Record]:
        """Every record with a time that no flag says may be too short: what conclusions are drawn from."""
        return [r for r in self.records if r.is_trusted]

    @cached_property
    def ceilings(self) -> Ceilings | None:
        """The measured roofs; None if no read was measured."""
        return Ceilings.from_records(self.trusted)

    @cached_property
    def trusted_of(self) -> dict[str, list[Record]]:
        """The trusted records by op."""
        found: dict[str, list[Record]] = {}
        for record in self.trusted:
            found.setdefault(record.op, []).append(record)
        return found

    def at_usual_speed(self) -> Run:
        """The run with the times that its cases would have taken if the memory had always been as fast as in the median
        of the run. Only times with reads of the roof around them change."""
        usual = usual_read(self.trusted)

        def changed(record: Record) -> Record:
            if not record.roof:
                return record
            return replace(record, samples_s=[usual * t for t in record.in_reads], roof={}, ranks_s=[])

        return replace(self, records=[changed(r) for r in self.records]) if usual else self

    def find(self, op: str, **fields: object) -> list[Record]:
        """The trusted records of an op whose case has these values; a tuple allows any of several values."""

        allowed = [(name, value if isinstance(value, tuple) else (value,)) for name, value in fields.items()]
        found = self.trusted_of.get(op, [])
        return [r for r in found if all(r.case.get(name) in values for name, values in allowed)]

    def fastest(self, op: str, **fields: object) -> list[Record]:
        """The fastest implementation of each case among the records that `find` gives."""
        found = self.find(op, **fields)
        return fastest_of_each(found, case=lambda r: r.case_id, seconds=lambda r: r.seconds or math.inf)

    def repetitions(self) -> dict[tuple[str, str, str], list[Record]]:
        """Every record with a time, by (op, impl, case): the first repetition, then the others."""
        found: dict[tuple[str, str, str], list[Record]] = {}
        for record in (*self.records, *self.repeats):
            if record.is_timed:
                found.setdefault(record.key, []).append(record)
        return found


def fastest_of_each(timed: Iterable[T], *, case: Callable[[T], Hashable], seconds: Callable[[T], float]) -> list[T]:
    """The fastest of each case, in the order in which the cases first appear."""
    best: dict[Hashable, T] = {}
    for each in timed:
        key = case(each)
        if key not in best or seconds(each) < seconds(best[key]):
            best[key] = each
    return list(best.values())


TARGET_FIELDS = {f.name for f in dataclasses.fields(Target)} - {"config"}

LEFT_OUT = "the line is left out"
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""What may be half of a character in JSON. Two halves in a row are whole, one alone cannot be written anywhere."""

DEEPEST = 30
"""Levels of lists and objects inside each other that a line may have; those of a run have up to 6."""


def check_depth(line: Any) -> None:
    """ValueError if lists and objects of the line are nested too deeply for what reads them."""
    level = [line]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def check_characters(line: Any) -> None:
    """ValueError if a text of the line has half of a character."""
    try:
        json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text has half of a character (a lone surrogate)") from None


@contextmanager
def without_collecting() -> Iterator[None]:
    """No search for cycles of garbage meanwhile: a run is many objects that stay, and each search looks at them all."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@without_collecting()
def load_run(path: Path | str) -> Run:
    """Read a run's directory, its `records.jsonl`, or a shared file.

    BadRequest if there is no such file or no usable line in it.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise BadRequest(f"no {FILE} in {path}" if path.is_dir() else f"no such run: {path}")
    lines: dict[str, list[dict[str, Any]]] = {"run": [], "prediction": [], "note": [], "end": []}
    records: dict[tuple[str, str, str, int], Record] = {}
    warnings: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as handle:
        for number, text in enumerate(handle, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                if HALF.search(text):
                    check_characters(line)
                if text.count("[") + text.count("{") > DEEPEST:
                    check_depth(line)
                if not isinstance(line, dict) or "kind" not in line:
                    raise ValueError("lacks its kind")
                kind = line.pop("kind")
                if kind == "record":
                    record = from_line(line)
                    records[(*record.key, record.repeat)] = record
                elif isinstance(kind, str) and kind in lines:
                    check_line(kind, line)
                    lines[kind].append(line)
                else:
                    raise ValueError(f"is of the unknown kind {kind!r}")
            except json.JSONDecodeError as error:
                warnings.append(f"{file.name}:{number}: not JSON ({error.msg} at column {error.colno}); {LEFT_OUT}")
            except RecursionError:
                warnings.append(f"{file.name}:{number}: nested too deeply; {LEFT_OUT}")
            except ValueError as error:
                warnings.append(f"{file.name}:{number}: {error}; {LEFT_OUT}")
    for note in lines["note"]:
        key = (note.get("op"), note.get("impl"), note.get("case_id"), 0)
        if note.get("note") == "counters" and key in records:
            records[key] = replace(records[key], counters=note)
    if not lines["run"] and not records:
        raise BadRequest(f"{file} holds no run" + (f" ({warnings[0]})" if warnings else ""))
    return Run(
        path=file.parent if file.name == FILE else file.with_suffix(""),
        header=lines["run"][0] if lines["run"] else {},
        headers=lines["run"],
        records=[record for record in records.values() if not record.repeat],
        repeats=[record for record in records.values() if record.repeat],
        notes=lines["note"],
        warnings=warnings,
        complete=bool(lines["end"]),
    )


def load(paths: Path | str | Iterable[Path | str]) -> pandas.DataFrame:
    """A tidy frame with one row per record of all runs. The column names hold the units.

    Columns: path, run, device, op, impl, ours, case_id, status, reason, median_s, low_s, high_s, samples, bytes, flops,
    intensity_flop_per_byte, bytes_per_s, flops_per_s, predicted_datasheet_s, predicted_measured_s, bound, flags, and
    every field of the case as `case.<name>`. `path` is the run's as it was given: runs of several machines may have
    begun in one second, and then have one name in `run`.
    """
    import pandas

    rows = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        run = load_run(path)
        for record in run.records:
            interval = record.interval
            datasheet = record.prediction.get("datasheet") or {}
            measured = record.prediction.get("measured") or {}
            rows.append(
                {
                    "path": str(path),
                    "run": record.run_id,
                    "device": run.device.get("name", ""),
                    "op": record.op,
                    "impl": record.impl,
                    "ours": record.ours,
                    "case_id": record.case_id,
                    "status": record.status,
                    "reason": record.reason,
                    "median_s": interval.median if interval else None,
                    "low_s": interval.low if interval else None,
                    "high_s": interval.high if interval else None,
                    "samples": len(record.samples_s),
                    "bytes": record.bytes,
                    "flops": record.flops,
                    "intensity_flop_per_byte": record.flops / record.bytes if record.bytes else None,
                    "bytes_per_s": record.bytes / interval.median if interval else None,
                    "flops_per_s": record.flops / interval.median if interval else None,
                    "predicted_datasheet_s": datasheet.get("seconds"),
                    "predicted_measured_s": measured.get("seconds"),
                    "bound": measured.get("bound") or datasheet.get("bound"),
                    "flags": " ".join(record.flags),
                    **{f"case.{name}": as_cell(value) for name, value in record.case.items()},
                }
            )
    return pandas.DataFrame(rows)


def as_cell(value: Any) -> Any:
    """The value, or its text if it is a whole number of more than 64 bits: such a number is damage, and pandas 2.2
    cannot hold it."""
    return str(value) if isinstance(value, int) and value.bit_length() > 63 else value


UNITS = {"_bytes": "B", "smem_per_sm": "B", "_hz": "Hz", "_w": "W"}
"""The units of a header's numbers, by how their names end."""


def flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """`("device.name", "NVIDIA H100")` for every leaf of a header that says something; a Quantity stays on one line."""
    if isinstance(value, dict):
        if {"value", "unit"} <= value.keys():
            yield name, f"{si(value['value'], value['unit'])}, {value.get('kind', '')}: {value.get('source', '')}"
            return
        for key, inner in value.items():
            yield from flatten(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, list | tuple):
        if value:
            yield name, ", ".join(map(str, value))
    elif value is not None and value != "":
        unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), None)
        yield name, str(value) if unit is None else tick(value, unit)
