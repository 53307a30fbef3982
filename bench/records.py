"""The run file: JSON Lines, append-only, each line synced to disk. This module never imports torch.

Line kinds, in the order in which they appear:

- `run`: once per process that writes (a resumed run has several): suite, argv, environment, device, time
- `prediction`: op, impl, case id and the prediction; it is on disk before the measurement starts
- `record`: one case of one implementation, with every sample, or with the reason why it has none
- `note`: a fact about the whole run: the A/A difference, cases left out, an interruption
- `end`: the run has finished its schedule

`decodebench share` writes the same lines, without predictions, into a file with another name.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args
from zlib import crc32

import numpy as np

from bench.errors import BadRequest
from bench.schema import STAGE, check_record
from bench.stats import Interval, median_interval, median_of, resampled_medians
from kernels.op import recorded_case

SCHEMA = 1

FILE = "records.jsonl"

SHARED = "shared"
"""The field of a header that says that the file was made by `decodebench share`, with the version of its form."""

Status = Literal["ok", "refused", "wrong", "failed", "timeout", "skipped"]

FLAGS = {
    "noisy": "sampling reached its time or sample cap before the interval of the median was narrow enough: 0.5% of it "
    "on a GPU; on a host 2% of it, or of the median ratio to the reads of the roof around each sample",
    "disturbed": "other programs or other machines had more than 10% of the host's cores during the measurement, and "
    "again when it was repeated at the end of the run, if there was time for that",
    "throttled": "the device lowered its clocks during the measurement, and again when the measurement was repeated",
    "power-capped": "the board's power limit held the clocks down; measuring again would not help",
    "impossible": "more than 2% (on a host 50%) faster than the fastest read of the run, or for a ceiling than the "
    "datasheet: the caches were warm or the work was not done",
    "warm": "the rotating copies together are smaller than four times the cache, or the size of the cache is unknown: "
    "the cache may have served a part of the reads",
    "allocates": "the launch allocates memory, and the time includes this",
    "waited": "the launch waited or slept: on a host, less than half a core was busy; on a GPU, the call took the host "
    "over 10 ms more than the device needs",
}
"""Every flag that a record can have, and its meaning. A flagged number is kept and shown."""

RENAMED_FLAGS = {"idle": "waited"}
"""Flags of earlier records by the names that they have now."""

MAY_BE_TOO_SHORT = frozenset({"impossible", "warm"})
"""Flags of times that may be too short. Tables and figures show these times, but no roof, headline or verdict is made
from them."""


def now() -> str:
    """The time as every line of a record file writes it: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One case of one implementation. Units: second, byte, FLOP, joule, watt, hertz.

    `status` is `ok`, `refused` (the implementation does not support the case), `wrong` (the gate failed), `failed` (the
    launch raised, or its process died), `timeout` or `skipped` (no time was left). `reason` explains all but `ok`.
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
    """The library of the implementation, e.g. `torch 2.11.0`."""
    work: dict[str, Any]
    """Compulsory minimum: `{"flops": {pipe: n}, "bytes_read": n, "bytes_written": n}`."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """What the implementation really does, one entry a kernel: the fields of `kernels.op.Stage`. Records of earlier
    versions lack the newer ones."""
    prediction: dict[str, Any] = field(default_factory=dict)
    """`{"datasheet": Prediction | None, "measured": Prediction | None, "at": iso time}`, made before measuring."""
    samples_s: list[float] = field(default_factory=list)
    """Seconds per launch with cold caches and without launch gaps (graph replay on a GPU)."""
    roof: dict[str, Any] = field(default_factory=dict)
    """How fast the memory was in the same seconds: `{"bytes": n, "before_s": [...], "after_s": [...]}`. Each sample of
    a host lies between two cold reads of so many bytes, which took `before_s[i]` and `after_s[i]` seconds. Empty on a
    GPU, and in records of earlier versions."""
    core: dict[str, Any] = field(default_factory=dict)
    """How long the kernel's instructions take without waiting for the memory, on a host: `{"case_id", "times",
    "samples_s", "empty_s"}`. After each sample, a smaller case was timed in the caches of the cores, in seconds of a
    launch, and as many empty launches; the whole case is `times` as much. Empty on a GPU, for peers, for operations
    without a smaller case, and in records of earlier versions."""
    ranks_s: list[list[float]] = field(default_factory=list)
    """Seconds of each rank in each sample, of which the largest is the sample. Empty where a launch has no ranks, on
    GPUs, where one clock times all ranks together, and in records of earlier versions."""
    isolated_s: list[float] = field(default_factory=list)
    """Seconds of single cold launches, one event pair each; empty on a CPU."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Only for a launch that runs a whole step: `{"name", "calls", "alone_s", "in_step_s"}` of each part, the seconds
    of all its calls in a row and in their places. On a host also the reads of the roof around each, `alone_reads_s`
    and `in_step_reads_s`, and `core`: of each case of the part what the field `core` has. A GPU's parts are timed
    alone."""
    stop: str = ""
    """Why sampling ended: `converged` (interval of the median within the aim), `time cap` or `sample cap`."""
    error: dict[str, Any] | None = None
    """`kernels.common.compare.Errors` of the worst checked output."""
    rotation: dict[str, Any] = field(default_factory=dict)
    """`{"copies", "bytes_per_copy", "touched_bytes", "total_bytes", "cache_bytes", "flush_bytes", "cold"}`."""
    telemetry: dict[str, Any] = field(default_factory=dict)
    """Clocks, power, temperature, throttle reasons and energy while the whole case was sampled, that is while all its
    implementations took turns, with spin kernels between them. Empty if nothing can be read."""
    counters: dict[str, Any] = field(default_factory=dict)
    """`counters.Counted` of one cold launch if counters were requested and allowed. It is read from a `note`."""
    flags: list[str] = field(default_factory=list)
    """Names of `FLAGS`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Only for our kernels. `launches`: kernel, grid, constants, `num_warps` and `num_stages` of each. `tuned`: what
    offline tuning chose for this part, `{}` if the default configuration was best, None if nothing was tuned."""
    seed: int = 0
    repeat: int = 0
    """The number of the run's repetition, from 0."""
    measured_at: str = ""
    run_id: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies a measurement within a repetition of a run."""
        return (self.op, self.impl, self.case_id)

    @cached_property
    def ordered(self) -> np.ndarray:
        """The samples in ascending order: what every resampling needs."""
        return np.sort(np.asarray(self.samples_s, dtype=float))

    @cached_property
    def in_reads(self) -> np.ndarray:
        """Each sample over the mean of the two reads around it, in ascending order; empty without such reads."""
        return in_reads(self.samples_s, self.roof)

    @property
    def read_s(self) -> float | None:
        """Seconds of the roof's read in the seconds of this measurement: the median sample over the median of
        `in_reads`. None without such reads."""
        return self.seconds / float(np.median(self.in_reads)) if self.seconds and len(self.in_reads) else None

    @cached_property
    def core_s(self) -> float | None:
        """Seconds of the whole case's instructions by `core`, without the launch; None without such samples."""
        return core_seconds(self.core) if self.core else None

    @cached_property
    def core_s_of_parts(self) -> dict[str, float]:
        """The same for each of `parts` that has it."""
        return {part["name"]: sum(map(core_seconds, part["core"])) for part in self.parts if part.get("core")}

    @cached_property
    def interval(self) -> Interval | None:
        """Median seconds with their 95% interval; None without samples."""
        return median_interval(self.ordered) if self.samples_s else None

    @cached_property
    def resampled(self) -> np.ndarray:
        """The medians of draws from the samples. Each record has a seed of its own, so two records are independent."""
        return self._drawn(self.ordered)

    @cached_property
    def resampled_in_reads(self) -> np.ndarray:
        """The same of `in_reads`."""
        return self._drawn(self.in_reads)

    def _drawn(self, samples: np.ndarray) -> np.ndarray:
        name = "/".join((*self.key, str(self.repeat)))
        return resampled_medians(samples, np.random.default_rng(crc32(name.encode())))

    @cached_property
    def seconds(self) -> float | None:
        """Median seconds of one launch."""
        return median_of(self.ordered) if self.samples_s else None

    @property
    def may_be_too_short(self) -> bool:
        """Does a flag say that the time may be too short? An `l2_read` of `stream` is warm on purpose."""
        intended = {"warm"} if self.op == "stream" and self.case.get("kind") == "l2_read" else set()
        return bool(MAY_BE_TOO_SHORT.intersection(self.flags) - intended)

    @property
    def is_timed(self) -> bool:
        """Whether it holds a time, trusted or not."""
        return self.status == "ok" and bool(self.seconds)

    @property
    def is_trusted(self) -> bool:
        """Whether it holds a time, and no flag says that the time may be too short."""
        return self.is_timed and not self.may_be_too_short

    @cached_property
    def bytes(self) -> int:
        """Compulsory DRAM bytes of one launch."""
        return self.work["bytes_read"] + self.work["bytes_written"]

    @cached_property
    def flops(self) -> int:
        """Compulsory FLOPs of one launch, all pipes."""
        return sum(self.work["flops"].values())


def core_seconds(core: Mapping[str, Any]) -> float:
    """Seconds of the instructions that a record's `core` timed, for the whole case."""
    alone = median_of(np.sort(core["samples_s"])) - median_of(np.sort(core["empty_s"]))
    return max(0.0, alone) * float(core["times"])


def in_reads(samples_s: Sequence[float], roof: Mapping[str, Any]) -> np.ndarray:
    """Samples over the mean of the two reads of a record's `roof` around them, in ascending order."""
    if not roof or not len(samples_s):
        return np.array([])
    around = (np.asarray(roof["before_s"], dtype=float) + np.asarray(roof["after_s"], dtype=float)) / 2
    return np.sort(np.asarray(samples_s, dtype=float) / around)


def comparable(records: Sequence[Record]) -> list[np.ndarray]:
    """The samples of each record in ascending order, in one unit: only ratios of them mean something.

    The unit is the read of the roof around each sample, if all records have such reads of one size. Then a memory that
    was slower for one record than for another is not taken for a difference between them. Else it is the second.
    """
    return [r.in_reads for r in records] if _in_reads(records) else [r.ordered for r in records]


def comparable_medians(records: Sequence[Record]) -> list[np.ndarray]:
    """The medians of draws from the samples that `comparable` gives."""
    return [r.resampled_in_reads for r in records] if _in_reads(records) else [r.resampled for r in records]


def _in_reads(records: Sequence[Record]) -> bool:
    return all(len(r.in_reads) for r in records) and len({r.roof["bytes"] for r in records}) == 1


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
    """End a half-written last line with a newline, so that the next line starts alone. A killed run leaves one."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def as_line(record: Record) -> dict[str, Any]:
    return dataclasses.asdict(record)


def migrate(line: dict[str, Any]) -> dict[str, Any]:
    """Bring a record's line to the present schema. ValueError for a newer schema."""
    schema = line.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(f"schema {schema} is newer than this program's {SCHEMA}")
    if isinstance(flags := line.get("flags"), list):
        line = {**line, "flags": [RENAMED_FLAGS.get(flag, flag) if isinstance(flag, str) else flag for flag in flags]}
    return line


def _of(*types: type) -> Callable[[Any], bool]:
    """Accept these types. `true` and `false` are not numbers in JSON, although bool is an int in Python."""
    allowed = frozenset(types)
    return lambda value: type(value) in allowed


def _list_of(*types: type) -> Callable[[Any], bool]:
    allowed = frozenset(types)
    return lambda value: type(value) is list and allowed.issuperset(map(type, value))


SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _of(int)),
    "bool": ("a truth value", _of(bool)),
    "str": ("a text", _of(str)),
    "str | None": ("a text", _of(str, type(None))),
    "Status": (f"a status ({', '.join(get_args(Status))})", lambda value: value in get_args(Status)),
    "dict[str, Any]": ("an object", _of(dict)),
    "dict[str, Any] | None": ("an object", _of(dict, type(None))),
    "list[dict[str, Any]]": ("a list of objects", _list_of(dict)),
    "list[float]": ("a list of numbers", _list_of(int, float)),
    "list[list[float]]": ("a list of lists", _list_of(list)),
    "list[str]": ("a list of texts", _list_of(str)),
}
"""By the annotation of a record's field: the name of the type, and the test whether a JSON value has it."""


_FIELDS = [(f.name, *SHAPES[str(f.type)]) for f in dataclasses.fields(Record)]
_NEEDED = [
    f.name
    for f in dataclasses.fields(Record)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
]


def from_line(line: dict[str, Any]) -> Record:
    """Make a record from a line. Fields that are unknown here are ignored. ValueError names a wrong field."""
    line = migrate(line)
    given = {name: line[name] for name, _, _ in _FIELDS if name in line}
    if absent := [name for name in _NEEDED if name not in given]:
        raise ValueError(f"lacks the field{'s' if len(absent) > 1 else ''} {', '.join(absent)}")
    for name, what, fits in _FIELDS:
        if name in given and not fits(given[name]):
            raise ValueError(f"field {name} is not {what}")
    check_record(given)
    if (roof := given.get("roof")) and not len(roof["before_s"]) == len(roof["after_s"]) == len(given["samples_s"]):
        raise ValueError("field roof has not two reads for each sample")
    ranks = given.get("ranks_s")
    if ranks and (len(ranks) != len(given["samples_s"]) or len(set(map(len, ranks))) > 1):
        raise ValueError("field ranks_s has not the same ranks for each sample")
    given["stages"] = [{**STAGE, **stage} for stage in given.get("stages", ())]
    try:
        given["case"] = recorded_case(given["op"], given["case"])
    except ValueError as error:
        raise ValueError(f"case: {error}") from None
    return Record(**given)
