"""Where do the microseconds of a decode step go? From the floor to the step, and each operation's share.

    floor by the datasheet -> floor at the measured read roof -> each operation alone -> beside each other
    -> gaps between kernels and small kernels -> step

Where a step was measured, its operations were too: alone, and in the step. Else the constants of `expected.json` say
what each takes, and what servers have between the large kernels. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.devices import DeviceSpec
from bench.predict import expected
from bench.predict.step_expected import alone_seconds, expect_step
from bench.predict.step_model import StepPrediction
from bench.units import percent
from kernels.models import ModelShape

OF_PART = {
    "ffn": ("gate_up", "down"),
    "experts": ("experts_gate_up", "experts_down"),
}
"""Parts of `kernels/decode_step` that are two operations of `step_work.py`."""


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
    """Of the time of all operations."""
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
    measured: bool
    levels: tuple[Level, ...]
    ops: tuple[OpRow, ...]
    notes: tuple[str, ...]

    @property
    def step(self) -> Level:
        return self.levels[-1]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For the screen: what was asked, the levels, then the notes."""
        how = "measured" if self.measured else "expected"
        asked = f"{self.model}, {self.layers} layers, weights {self.weights}, KV {self.kv}"
        found = [f"{asked}, batch {self.batch}, {self.context:,} tokens, on {self.part}: {how}"]
        width, before = max(len(level.name) for level in self.levels), 0.0
        for level in self.levels:
            share = percent(level.seconds / self.step.seconds)
            added = f"{(level.seconds - before) * 1e6:+,.0f} us"
            line = f"  {level.name:<{width}}  {level.seconds * 1e6:>11,.0f} us  {added:>13}  {share:>5}  {level.source}"
            found.append(line)
            before = level.seconds
        return [*found, *self.notes]

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
    in_step: float


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """Medians. `parts` are in the order of the step."""

    impl: str
    seconds: float
    parts: tuple[MeasuredPart, ...]
    peers: Mapping[str, float]
    """Seconds of the same step by other implementations."""
    source: str
    notes: tuple[str, ...] = ()


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
    notes = (f"10 to 90% of published servers: {found.low * 1e3:.3g} to {found.high * 1e3:.3g} ms", *found.rests_on)
    return _waterfall(predicted, shape, levels, shared(rows), measured=False, notes=notes)


def measured_waterfall(
    predicted: StepPrediction, shape: ModelShape, found: MeasuredStep, read_roof: float | None = None
) -> Waterfall:
    """By a step whose parts were measured alone and in the step."""
    floors, rows = floor_rows(predicted), []
    for part in found.parts:
        floor = sum(floors[name][1] for name in OF_PART.get(part.name, (part.name,)) if name in floors)
        rows.append((part.name, part.calls, floor, part.alone, part.in_step, found.source))
    alone, inside = sum(part.alone for part in found.parts), sum(part.in_step for part in found.parts)
    levels = [
        Level(name="floor", seconds=predicted.seconds, source=predicted.basis),
        *roof_level(predicted, read_roof),
        Level(name="each operation alone", seconds=alone, source=found.source),
        Level(name="dependencies: each in its place in the step", seconds=inside, source=found.source),
        Level(name=f"step ({found.impl})", seconds=found.seconds, source=found.source),
    ]
    peers = (f"the same step by {name}: {seconds * 1e3:,.2f} ms" for name, seconds in found.peers.items())
    notes = (*found.notes, *peers)
    return _waterfall(predicted, shape, levels, shared(rows), measured=True, notes=notes)


def _waterfall(
    predicted: StepPrediction,
    shape: ModelShape,
    levels: Sequence[Level],
    ops: tuple[OpRow, ...],
    *,
    measured: bool,
    notes: tuple[str, ...],
) -> Waterfall:
    return Waterfall(
        model=shape.name,
        part=predicted.device,
        batch=predicted.batch,
        context=predicted.context,
        weights=predicted.weights,
        kv=predicted.kv,
        layers=shape.layers,
        measured=measured,
        levels=tuple(levels),
        ops=ops,
        notes=notes,
    )
