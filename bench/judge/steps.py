"""Where do the microseconds of the decode steps go that a run measured? One waterfall for each step of ours."""

from __future__ import annotations

from typing import Any

from bench.judge.view import Point, Table, View, once
from bench.predict.step_waterfall import MeasuredStep, Waterfall, measured_waterfall, parts_of, sizes_of
from bench.units import duration, percent, signed
from kernels.op import discover

HEADING = "Where the time of a decode step goes"
REMARK = (
    "The levels lead from the floor, which moves the compulsory bytes at full rate, to the step as it was measured. "
    "Each operation was also measured alone, all its launches in a row, and on a host in its place in the step. "
    "The gap is what an operation takes above its floor."
)

Found = tuple[Point, Waterfall]


@once
def waterfalls(view: View) -> list[Found]:
    """Each case of a step with its waterfall, by our fastest implementation; the step with the most bytes first."""
    found = [(point, _waterfall(view, point)) for point in view.best if point.record.parts and point.trusted]
    return sorted(found, key=lambda each: -each[0].record.bytes)


def _waterfall(view: View, point: Point) -> Waterfall:
    record, run = point.record, view.run
    case: Any = discover()[record.op].case_from_dict(record.case)
    here = run.ceilings.beside(record) if run.ceilings else None
    others = [p for p in view.by_case[point.case] if p.record.impl != record.impl and p.trusted]
    step = MeasuredStep(
        impl=record.impl,
        seconds=point.seconds,
        parts=parts_of(record.parts, record.read_s),
        peers={p.record.impl: p.seconds for p in others},
        source=f"medians of this run on {run.device_name}",
        bytes=record.bytes,
        sizes=sizes_of((s["name"], s["work"]["bytes_read"] + s["work"]["bytes_written"]) for s in record.stages),
        expected=point.predicted("measured"),
        launches=len(record.stages),
        launch_s=here.launch_s if here else 0.0,
        watts=record.telemetry.get("power_w"),
    )
    roof, sheet = here.read_roof if here else None, run.published("memory_bandwidth")
    return measured_waterfall(case, step, part=run.device_name, roof=roof, sheet=sheet)


def sentence(found: Found) -> str:
    """What was asked, what it took, how far that is from its expected time, and which two operations take most."""
    point, waterfall = found
    asked = f"{waterfall.model}, {waterfall.layers} layers, weights {waterfall.weights}"
    said = f"{asked}, batch {waterfall.batch:,}, {waterfall.context:,} tokens: {duration(point.seconds)}"
    if (error := point.error("measured")) is not None:
        said += f", {signed(error)} against its expected time"
    largest = sorted(waterfall.ops, key=lambda op: -op.share)[:2]
    share = percent(sum(op.share for op in largest))
    return f"{said}; {share} of the time of its operations is in {' and '.join(op.name for op in largest)}"


def levels(waterfall: Waterfall) -> Table:
    rows = [
        (level.name, duration(level.seconds), f"{added * 1e6:+,.0f} µs", percent(share), level.source)
        for level, added, share in waterfall.rises()
    ]
    return Table(headers=("level", "time", "added", "of the step", "from"), rows=rows, numeric=(1, 2, 3))


def operations(waterfall: Waterfall) -> Table:
    headers, rows = waterfall.table()
    return Table(headers=headers, rows=rows, numeric=tuple(range(1, len(headers))))
