"""Ours beside the best time that anyone has published on the same part."""

from __future__ import annotations

from dataclasses import dataclass

from bench.devices import DeviceSpec
from bench.judge.published.best import Best, best
from bench.judge.view import Point, Table, View, once
from bench.units import duration, percent
from kernels.op import discover

REMARK = (
    "The best published time on this part of the same case, or of the case nearest to it. Above 1, ours is faster. The "
    "same case is compared by time, a near one by the share of its own datasheet floor. Only published rows count that "
    "no L2 can have served and that the datasheet allows."
)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One of our times and the published one."""

    ours: Point
    published: Best
    floor_s: float
    """Seconds that the part's datasheet allows at least for our case, see `floor`."""

    @property
    def ratio(self) -> float:
        """Our speed over the published one."""
        return self.published.over(self.ours.seconds, self.floor_s)


@once
def beside(view: View) -> list[Beside]:
    """Our fastest trusted time of each case that others have measured on this part, or nearly so."""
    part = view.run.part
    if part is None or not view.run.on_gpu:
        return []
    points = [p for p in view.best if p.trusted]
    found = [(p, best(part.key, p.record.op, p.record.case)) for p in points]
    return [Beside(ours=p, published=b, floor_s=floor(p, part)) for p, b in found if b]


def floor(point: Point, part: DeviceSpec) -> float:
    """Seconds that the datasheet allows at least for the compulsory work of a case, or for what crosses its link."""
    op = discover()[point.record.op]
    if op.link_bytes and part.link_bandwidth:
        return op.link_bytes(op.case_from_dict(point.record.case)) / part.link_bandwidth.value
    terms = [flops / part.peaks[pipe].value for pipe, flops in point.record.work["flops"].items() if pipe in part.peaks]
    if part.memory_bandwidth:
        terms.append(point.record.bytes / part.memory_bandwidth.value)
    return max(terms, default=0.0)


def table(view: View) -> Table:
    rows = []
    for each in beside(view):
        rows.append(
            (
                each.ours.record.op,
                each.ours.record.case_id,
                duration(each.ours.seconds),
                duration(each.published.seconds),
                f"{each.ratio:.2f}",
                percent(each.published.share),
                each.published.line,
            )
        )
    headers = ("op", "case", "ours", "best published", "speed over published", "its share of its floor", "by")
    return Table(headers=headers, rows=rows, numeric=(2, 3, 4, 5))
