"""The run file: JSON Lines, append-only, each line flushed to the disk. Never imports torch.

Line kinds, in the order in which they appear:

- `run`: once per process that writes (a resumed run has several): suite, argv, environment, device, time
- `prediction`: op, impl, case id, what is expected; on disk before the measurement starts
- `record`: one case of one implementation, with every sample, or the reason why there is none
- `note`: something found out about the whole run: the A/A difference, cases left out, an interruption
- `end`: the run went through all that it planned
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bench.errors import BadRequest
from bench.stats import Interval, median_interval

if TYPE_CHECKING:
    import pandas

SCHEMA = 1

FILE = "records.jsonl"

Status = Literal["ok", "refused", "wrong", "failed", "timeout", "skipped"]

FLAGS = {
    "noisy": "the interval of the median stayed wider than the aim until the time or sample cap",
    "throttled": "the device lowered its clocks while this was measured, also when it was measured again",
    "power-capped": "the board's power limit held the clocks down; measuring again would not help",
    "impossible": "over 2% (on a host 50%) faster than the fastest read seen (a ceiling: than the datasheet says): the "
    "caches were warm or the work was not done",
    "warm": "the rotating copies together are smaller than four times the cache, or its size is not known: part may be "
    "read from there",
    "allocates": "the launch allocates memory; the time of that is inside the number",
    "idle": "the launch waited or slept: on a host, less than half a core was busy; on a GPU, the call took the host "
    "over 10 ms more than the device needs",
}
"""Every flag a record can carry and what it means; kept and shown, never a reason to drop a number."""

MAY_BE_TOO_SHORT = frozenset({"impossible", "warm"})
"""Flags of times that may be too short: shown in every table and figure, but they make no roof and no headline, and
judge no claim."""


def now() -> str:
    """The time as every line of a record file writes it: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One case of one implementation. Seconds, bytes, FLOP, joule, watt, hertz throughout.

    `status`: `ok`; `refused` (the implementation does not support it), `wrong` (gate failed), `failed` (raised, or its
    process died), `timeout`, `skipped` (no time left); `reason` says why for all but `ok`.
    """

    schema: int = SCHEMA
    op: str
    impl: str
    ours: bool
    case_id: str
    case: dict[str, Any]
    status: Status
    reason: str | None = None
    version: str = ""
    """Of the library behind the implementation, e.g. `torch 2.11.0`."""
    work: dict[str, Any]
    """Compulsory minimum: `{"flops": {pipe: n}, "bytes_read": n, "bytes_written": n}`."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """What it really does, one entry per kernel: name, work, l2_bytes, link_bytes, ctas, ctas_per_sm."""
    prediction: dict[str, Any] = field(default_factory=dict)
    """`{"datasheet": Prediction | None, "measured": Prediction | None, "at": iso time}`, made before measuring."""
    samples_s: list[float] = field(default_factory=list)
    """Seconds per launch, cold caches, launch gaps out (graph replay on a GPU)."""
    isolated_s: list[float] = field(default_factory=list)
    """Seconds of single cold launches, one event pair each; empty on a CPU."""
    stop: str = ""
    """Why sampling ended: `converged` (interval of the median within the aim), `time cap` or `sample cap`."""
    error: dict[str, Any] | None = None
    """`kernels.common.compare.Errors` of the worst checked output."""
    rotation: dict[str, Any] = field(default_factory=dict)
    """`{"copies", "bytes_per_copy", "touched_bytes", "total_bytes", "cache_bytes", "flush_bytes", "cold"}`."""
    telemetry: dict[str, Any] = field(default_factory=dict)
    """Clocks, power, temperature, throttle reasons, energy while the whole case was sampled: all its implementations
    in turn, spin kernels between them included; empty where nothing can be read."""
    counters: dict[str, Any] = field(default_factory=dict)
    """`counters.Counted` of one cold launch, where counters were asked for and allowed: read from a `note`."""
    flags: list[str] = field(default_factory=list)
    """Names of `FLAGS`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Of our kernels: `launches`, each with kernel, grid, constants, `num_warps`, `num_stages`; and what of that was
    `tuned` offline for this part: `{}` if the reasoned configuration was found best, None if nothing was tried."""
    seed: int = 0
    repeat: int = 0
    """Which of the run's repetitions; 0 for the first."""
    measured_at: str = ""
    run_id: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies a measurement within a run."""
        return (self.op, self.impl, self.case_id)

    @cached_property
    def interval(self) -> Interval | None:
        """Median seconds with its 95% interval, None without samples."""
        return median_interval(self.samples_s) if self.samples_s else None

    @property
    def seconds(self) -> float | None:
        """Median seconds of one launch."""
        return self.interval.median if self.interval else None

    @property
    def may_be_too_short(self) -> bool:
        """Whether a flag says so of the time; an `l2_read` of `stream` is warm by intent."""
        intended = {"warm"} if self.op == "stream" and self.case.get("kind") == "l2_read" else set()
        return bool(MAY_BE_TOO_SHORT.intersection(self.flags) - intended)

    @property
    def bytes(self) -> int:
        """Compulsory DRAM bytes of one launch."""
        return self.work["bytes_read"] + self.work["bytes_written"]

    @property
    def flops(self) -> int:
        """Compulsory FLOPs of one launch, all pipes."""
        return sum(self.work["flops"].values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run file as read: damaged lines are named in `warnings` and the rest is used."""

    path: Path
    header: dict[str, Any]
    """The first `run` line: run_id, suite, argv, started, device, target, environment, project."""
    headers: list[dict[str, Any]]
    records: list[Record]
    """The last record of each (op, impl, case) of the first repetition, in the order in which they came."""
    repeats: list[Record]
    """Those of further repetitions (`run --repeat N`)."""
    notes: list[dict[str, Any]]
    warnings: list[str]
    complete: bool

    @property
    def on_gpu(self) -> bool:
        return self.header.get("target", {}).get("kind") == "cuda"


class Writer:
    """Appends lines to `<dir>/records.jsonl`, each flushed and synced before `append` returns."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            mend_tail(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise BadRequest(f"cannot write to {directory}: {error.strerror or error}") from error

    def append(self, kind: str, content: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, **content}, separators=(",", ":"))
        try:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise BadRequest(
                f"cannot write to {self.path}: {error.strerror or error}; what was written before is kept"
            ) from error

    def close(self) -> None:
        self._file.close()


def mend_tail(path: Path) -> None:
    """End a half-written last line (a killed run leaves one) with a newline, so that the next starts its own."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def as_line(record: Record) -> dict[str, Any]:
    return dataclasses.asdict(record)


def load_run(path: Path | str) -> Run:
    """Read a run's directory or its `records.jsonl`. BadRequest if there is no such file or no usable line in it."""
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
                if not isinstance(line, dict) or "kind" not in line:
                    raise ValueError("lacks its kind")
                kind = line.pop("kind")
                if kind == "record":
                    record = from_line(line)
                    records[(*record.key, record.repeat)] = record
                elif isinstance(kind, str) and kind in lines:
                    lines[kind].append(line)
                else:
                    raise ValueError(f"is of the unknown kind {kind!r}")
            except json.JSONDecodeError as error:
                warnings.append(f"{file.name}:{number}: not JSON ({error.msg} at column {error.colno}); {LEFT_OUT}")
            except ValueError as error:
                warnings.append(f"{file.name}:{number}: {error}; {LEFT_OUT}")
    for note in lines["note"]:
        key = (note.get("op"), note.get("impl"), note.get("case_id"), 0)
        if note.get("note") == "counters" and key in records:
            records[key] = dataclasses.replace(records[key], counters=note)
    if not lines["run"] and not records:
        raise BadRequest(f"{file} holds no run" + (f" ({warnings[0]})" if warnings else ""))
    return Run(
        path=file.parent,
        header=lines["run"][0] if lines["run"] else {},
        headers=lines["run"],
        records=[record for record in records.values() if not record.repeat],
        repeats=[record for record in records.values() if record.repeat],
        notes=lines["note"],
        warnings=warnings,
        complete=bool(lines["end"]),
    )


LEFT_OUT = "the line is left out"


def migrate(line: dict[str, Any]) -> dict[str, Any]:
    """Bring a record's line to the present schema. ValueError for one from the future."""
    schema = line.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(f"schema {schema} is newer than this program's {SCHEMA}")
    return line


def _of(*types: type) -> Callable[[Any], bool]:
    """JSON's true and false are no numbers, though Python's are."""
    return lambda value: isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _list_of(*types: type) -> Callable[[Any], bool]:
    fits = _of(*types)
    return lambda value: isinstance(value, list) and all(map(fits, value))


SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("whole number", _of(int)),
    "bool": ("truth value", _of(bool)),
    "str": ("text", _of(str)),
    "str | None": ("text", _of(str, type(None))),
    "Status": (f"status ({', '.join(get_args(Status))})", lambda value: value in get_args(Status)),
    "dict[str, Any]": ("object", _of(dict)),
    "dict[str, Any] | None": ("object", _of(dict, type(None))),
    "list[dict[str, Any]]": ("list of objects", _list_of(dict)),
    "list[float]": ("list of numbers", _list_of(int, float)),
    "list[str]": ("list of texts", _list_of(str)),
}
"""Of a record's fields, by the type as it is written there: what it is called, and whether a JSON value is one."""


def from_line(line: dict[str, Any]) -> Record:
    """The record of a line, less the fields unknown here. ValueError names the field that is not as it should be."""
    line = migrate(line)
    known = dataclasses.fields(Record)
    given = {f.name: line[f.name] for f in known if f.name in line}
    needed = [f.name for f in known if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if absent := [name for name in needed if name not in given]:
        raise ValueError(f"lacks the field{'s' if len(absent) > 1 else ''} {', '.join(absent)}")
    for f in known:
        what, fits = SHAPES[str(f.type)]
        if f.name in given and not fits(given[f.name]):
            raise ValueError(f"field {f.name} is no {what}")
    return Record(**given)


def load(paths: Path | str | Iterable[Path | str]) -> pandas.DataFrame:
    """A tidy frame, one row per record of all runs. Units are in the column names.

    Columns: run, device, op, impl, ours, case_id, status, reason, median_s, low_s, high_s, samples, bytes, flops,
    intensity_flop_per_byte, bytes_per_s, flops_per_s, predicted_datasheet_s, predicted_measured_s, bound, flags, and
    every field of the case as `case.<name>`.
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
                    "run": record.run_id,
                    "device": run.header.get("device", {}).get("name", ""),
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
                    **{f"case.{name}": value for name, value in record.case.items()},
                }
            )
    return pandas.DataFrame(rows)
