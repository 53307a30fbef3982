"""Where do the microseconds of a decode step go? From the floor to the step, and each operation's share.

    floor by the datasheet -> floor at the measured read roof -> each operation alone -> launches
    -> dependencies: one after the other -> step

A run that measures a step also measures its operations: each alone and, on a host, each within the step. Without such a
run, the constants of `expected.json` say what each takes, and what servers run between large kernels. Pure: no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.devices import DeviceSpec, Quantity
from bench.predict import collectives, expected
from bench.predict.step_expected import ExpectedStep, alone_seconds, expect_step
from bench.predict.step_model import StepPrediction
from bench.units import duration, percent
from kernels.models import ModelShape
from kernels.work import part_of


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of the waterfall: the seconds of a step so far, and where the number is from."""

    name: str
    seconds: float
    source: str


@dataclass(frozen=True, kw_only=True)
class OpRow:
    """One operation of a step, all layers together. `floor` is 0 for small kernels, which the floor leaves out."""

    name: str
    calls: int
    floor: float
    seconds: float
    """Alone, expected or measured."""
    in_step: float | None
    """As measured between the other operations of the step."""
    share: float
    """Its share of the time of all operations."""
    gap: float
    """Its part of what all operations take above their floors; negative for one that is faster than its floor."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """The levels in order; `step` is the last one."""

    model: str
    part: str
    batch: int
    context: int
    weights: str
    kv: str
    layers: int
    devices: int = 1
    """How many parts share the model."""
    drafts: int = 0
    """Drafted tokens of each sequence that the step verifies; costs count one token a sequence all the same."""
    measured: bool
    levels: tuple[Level, ...]
    ops: tuple[OpRow, ...]
    notes: tuple[str, ...]
    fits: bool | None = None
    """Whether the batch fits into memory; None where that is not known."""
    mbu: float | None = None
    """Compulsory bytes over what the memory could have moved in the time of the step."""
    mfu: float | None = None
    """The same of FLOPs; None where a peak is not known."""
    watts: float | None = None
    """Of all parts together; None where neither a datasheet nor a run says so."""
    power_source: str = ""
    dollars_per_hour: float | None = None
    """For one part, as the user gave it."""

    @property
    def joules_per_token(self) -> float | None:
        return None if self.watts is None else self.watts * self.step.seconds / self.batch

    @property
    def dollars_per_million_tokens(self) -> float | None:
        if self.dollars_per_hour is None:
            return None
        return self.dollars_per_hour * self.devices / 3600 * self.step.seconds / self.batch * 1e6

    def costs(self) -> list[str]:
        """What a token takes of power and money by the time of the step, and where watts and price are from."""
        said = []
        if self.joules_per_token is not None:
            said.append(f"{self.joules_per_token:.3g} J a token: {self.watts:,.0f} W, {self.power_source}, x the step")
        if self.dollars_per_million_tokens is not None:
            price = f"${self.dollars_per_hour:g} an hour and part, as --price says"
            said.append(f"${self.dollars_per_million_tokens:.3g} a million tokens: {price}, x the step")
        return said

    @property
    def step(self) -> Level:
        return self.levels[-1]

    def rises(self) -> Iterator[tuple[Level, float, float]]:
        """Each level, the seconds that it adds to the one before, and its share of the step."""
        before = 0.0
        for level in self.levels:
            yield level, level.seconds - before, level.seconds / self.step.seconds
            before = level.seconds

    def as_dict(self) -> dict[str, Any]:
        costs = ("joules_per_token", "dollars_per_million_tokens")
        return asdict(self) | {name: getattr(self, name) for name in costs}

    def lines(self) -> list[str]:
        """For the screen: what was asked, the levels, where they are from, then the notes."""
        how = "measured" if self.measured else "expected"
        asked = f"{self.model}, {self.layers} layers, weights {self.weights}, KV {self.kv}"
        part = self.part if self.devices == 1 else f"{self.devices} x {self.part}"
        found = [f"{asked}, batch {self.batch:,}, {self.context:,} tokens, on {part}: {how}"]
        width = max(len(level.name) for level in self.levels)
        sources: dict[str, list[str]] = {}
        for level, added, share in self.rises():
            more = f"{added * 1e6:+,.0f} us"
            found.append(f"  {level.name:<{width}} {level.seconds * 1e6:>10,.0f} us {more:>13} {percent(share):>5}")
            sources.setdefault(level.source, []).append(level.name.partition(":")[0])
        said = [f"{'; '.join(names)}: {source}" for source, names in sources.items()]
        return [*found, *said, *self.costs(), *(note for note in self.notes if note not in sources)]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and cells: each operation with its share of the time and of the gap."""
        headers = ["operation", "launches", "floor us", "alone us", "in the step us", "of the time", "of the gap"]
        rows = []
        for op in self.ops:
            inside = "" if op.in_step is None else f"{op.in_step * 1e6:,.1f}"
            numbers = [f"{op.calls:,}", f"{op.floor * 1e6:,.1f}", f"{op.seconds * 1e6:,.1f}", inside]
            rows.append([op.name, *numbers, percent(op.share), percent(op.gap)])
        return headers, rows


@dataclass(frozen=True, kw_only=True)
class MeasuredPart:
    """Seconds of all launches of one part of the step: in a row without the others, and in the step."""

    name: str
    calls: int
    alone: float
    in_step: float | None
    """None where only whole steps can be timed, as in a GPU's graph."""


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """Medians. `parts` are in the order of the step."""

    impl: str
    seconds: float
    parts: tuple[MeasuredPart, ...]
    peers: Mapping[str, float]
    """Seconds of the same step by other implementations."""
    source: str
    bytes: int
    """Compulsory bytes of the step."""
    sizes: Mapping[str, int]
    """Bytes that the kernels of each part move."""
    expected: float | None = None
    """Seconds that the stages of all kernels take under measured ceilings."""
    launches: int = 0
    launch_s: float = 0.0
    """Seconds of an empty launch."""
    watts: float | None = None
    """Mean power of the board while the case was sampled."""
    notes: tuple[str, ...] = ()


def communication(predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec, found: ExpectedStep) -> Iterator[str]:
    """What parts that share a model say to each other: the all-reduces of a step, and dispatch and combine of experts
    that stay whole instead."""
    if predicted.devices == 1:
        return
    if found.reduce_seconds is not None:
        share = percent(found.reduce_seconds / found.seconds)
        around = expected.servers()["constants"]["reduce"]
        both = found.reduce_seconds + found.reduces * around
        yield (
            f"{found.reduces} all-reduces: {found.reduce_seconds * 1e6:,.0f} us, {share} of the expected step; "
            f"{both * 1e6:,.0f} us, {percent(both / found.seconds)}, with {around * 1e6:.1f} us around each in servers"
        )
    else:
        yield f"all-reduces of {spec.name} were not published: they take their floor here"
    if ways := collectives.whole_experts(shape, spec, predicted.batch * predicted.q_len, predicted.devices):
        dispatch, combine = ways
        spent = shape.moe_layers * (dispatch + combine)
        yield (
            f"were experts whole: dispatch in 8 bits {dispatch * 1e6:.1f} us and combine in 16 bits "
            f"{combine * 1e6:.1f} us a layer, {spent * 1e6:,.0f} us a step, {percent(spent / found.seconds)} of the "
            "expected one, by DeepEP's kernels"
        )


def sizes_of(stages: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The bytes of each part: the sum over its stages, which are given as (name, bytes)."""
    found: dict[str, int] = {}
    for name, size in stages:
        found[part_of(name)] = found.get(part_of(name), 0) + size
    return found


def parts_of(recorded: Sequence[Mapping[str, Any]], read_s: float | None = None) -> tuple[MeasuredPart, ...]:
    """The medians of `Record.parts`. With `read_s`, they are those of a memory that reads the roof in so many seconds:
    that of the step's own samples."""

    def median(part: Mapping[str, Any], key: str) -> float | None:
        samples, reads = part.get(f"{key}_s"), part.get(f"{key}_reads_s")
        if not samples or not (read_s and reads):
            return statistics.median(samples) if samples else None
        return read_s * statistics.median(seconds / read for seconds, read in zip(samples, reads, strict=True))

    return tuple(
        MeasuredPart(
            name=part["name"], calls=part["calls"], alone=median(part, "alone") or 0.0, in_step=median(part, "in_step")
        )
        for part in recorded
    )


def floor_rows(predicted: StepPrediction) -> dict[str, tuple[int, float]]:
    """Calls and seconds of the floor by operation; their sum is the whole time of `decodebench predict`."""
    return {op.name: (op.calls, op.seconds) for op in predicted.ops}


def shared(rows: Sequence[tuple[str, int, float, float, float | None, str]]) -> tuple[OpRow, ...]:
    """Rows of name, calls, floor, seconds, seconds in the step and source, with their shares."""
    spent = [row[3] if row[4] is None else row[4] for row in rows]
    above = [seconds - row[2] for seconds, row in zip(spent, rows, strict=True)]
    total, gap = sum(spent) or 1.0, sum(above) or 1.0
    return tuple(
        OpRow(
            name=name,
            calls=calls,
            floor=floor,
            seconds=seconds,
            in_step=in_step,
            share=own / total,
            gap=over / gap,
            source=source,
        )
        for (name, calls, floor, seconds, in_step, source), own, over in zip(rows, spent, above, strict=True)
    )


def roof_level(predicted: StepPrediction, read_roof: float | None) -> list[Level]:
    """The bytes of all operations at the fastest measured read."""
    if not read_roof:
        return []
    size = sum(op.work.bytes for op in predicted.ops)
    return [
        Level(
            name="floor at the measured roof", seconds=size / read_roof, source=f"read at {read_roof / 1e9:,.1f} GB/s"
        )
    ]


def expected_waterfall(
    predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec, read_roof: float | None = None
) -> Waterfall:
    """By published constants alone."""
    alone, said = alone_seconds(predicted, shape, spec), expected.servers()
    constants, floors, rows = said["constants"], floor_rows(predicted), []
    for each in alone:
        calls, floor = floors[each.names[0]][0], sum(floors[name][1] for name in each.names)
        name = " + ".join(each.names)
        rows.append((name, calls, floor, each.seconds, None, each.rests_on or "the floor: nobody fitted constants"))
    kernels = sum(each.seconds for each in alone)
    beside = constants["kernels"] * kernels
    gaps = beside + shape.layers * constants["layer"]
    found = expect_step(predicted, shape, spec)
    servers = said["rests_on"]
    levels = [
        Level(name="floor by the datasheet", seconds=predicted.seconds, source=predicted.basis),
        *roof_level(predicted, read_roof),
        Level(name="each operation alone", seconds=kernels, source="constants by operation, below"),
        Level(name="dependencies: one after the other in a step", seconds=beside, source=servers),
        Level(name="gaps and small kernels of the layers", seconds=gaps, source=servers),
        Level(name="step, with sampling and scheduler", seconds=found.seconds, source=servers),
    ]
    notes = [
        f"10 to 90% of published servers: {duration(found.low)} to {duration(found.high)}",
        *communication(predicted, shape, spec, found),
        *found.rests_on,
    ]
    if predicted.fits is False:
        notes.append(f"this batch does not fit: at most {predicted.max_batch:,} sequences of this context do")
    return Waterfall(
        model=shape.name,
        part=predicted.device,
        batch=predicted.batch,
        context=predicted.context,
        weights=predicted.weights,
        kv=predicted.kv,
        layers=shape.layers,
        devices=predicted.devices,
        drafts=predicted.q_len - 1,
        measured=False,
        levels=tuple(levels),
        ops=shared(rows),
        notes=tuple(notes),
        fits=predicted.fits,
        mbu=predicted.mbu * predicted.seconds / found.seconds,
        mfu=None if predicted.mfu is None else predicted.mfu * predicted.seconds / found.seconds,
        watts=predicted.power_watts,
        power_source=f"the rated power of {spec.name} ({spec.power.kind})" if spec.power else "",
    )


def measured_waterfall(
    case: Any, found: MeasuredStep, *, part: str, roof: float | None = None, sheet: Quantity | None = None
) -> Waterfall:
    """By a step of `kernels/decode_step` whose parts were measured too. `roof` is the measured read roof in B/s,
    `sheet` the bandwidth that is published."""
    rate = roof or (sheet.value if sheet else math.inf)
    rows = [
        (each.name, each.calls, found.sizes.get(each.name, 0) / rate, each.alone, each.in_step, found.source)
        for each in found.parts
    ]
    whole, alone, levels = found.bytes, sum(each.alone for each in found.parts), []
    gaps = min(alone, found.launches * found.launch_s)

    def level(name: str, seconds: float, source: str) -> None:
        levels.append(Level(name=name, seconds=seconds, source=source))

    if sheet:
        level("floor by the datasheet", whole / sheet.value, f"{sheet.value / 1e9:,.0f} GB/s ({sheet.kind})")
    if roof:
        level("floor at the measured roof", whole / roof, f"read at {roof / 1e9:,.1f} GB/s")
    if found.expected is not None:
        level("expected of its kernels", found.expected, "their own bytes and FLOPs under the measured ceilings")
    if gaps:
        level("each operation alone, without launches", alone - gaps, found.source)
        level("launches", alone, f"{found.launches:,} of {found.launch_s * 1e6:,.1f} us")
    elif found.parts:
        level("each operation alone", alone, found.source)
    if found.parts and all(each.in_step is not None for each in found.parts):
        inside = sum(each.in_step or 0.0 for each in found.parts)
        level("dependencies: each in its place in the step", inside, found.source)
    level(f"step ({found.impl})", found.seconds, found.source)
    peers = (f"the same step by {name}: {seconds * 1e3:,.2f} ms" for name, seconds in found.peers.items())
    return Waterfall(
        model=case.model,
        part=part,
        batch=case.B,
        context=case.T,
        weights=case.weights,
        kv=case.kv or case.dtype,
        layers=case.measured_layers,
        measured=True,
        levels=tuple(levels),
        ops=shared(rows),
        notes=(*found.notes, *peers),
        mbu=whole / rate / found.seconds if math.isfinite(rate) else None,
        watts=found.watts,
        power_source="measured while its implementations were sampled in turn" if found.watts else "",
    )
