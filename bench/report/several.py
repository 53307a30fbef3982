"""Several runs on one page: parts side by side, and each part over time with a trend.

A part that has more than one run gets a trend: its times relative to those of its first run, over the cases that all
its runs timed. What is slower in the last run than in the first by more than a threshold is named, for CI.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.errors import BadRequest
from bench.files import write_text
from bench.judge.answer import answer
from bench.judge.busyness import banner
from bench.judge.compare import Match, compare
from bench.judge.view import Point, Table, View
from bench.report import drawing, require_pages, tables
from bench.report.markdown import escape, markdown_table
from bench.report.names import case_name
from bench.run import load_run
from bench.units import measured, percent, si

THRESHOLD = 0.05
"""A case counts as slower if its whole interval lies above 1 plus this, and above what the runs can resolve."""

Key = tuple[str, str, str]
"""Operation, implementation, case id."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The runs of one part, the oldest first. Ratios are times over those of the first run."""

    views: tuple[View, ...]
    threshold: float

    @property
    def part(self) -> str:
        return self.views[0].run.device_name

    @cached_property
    def ratios(self) -> dict[str, list[list[float]]]:
        """By operation, for each run, the ratio of each case that all runs timed with the same compulsory work."""
        first, *others = found = [{key_of(p): p for p in view.points} for view in self.views]
        shared = [
            key
            for key, p in first.items()
            if all(key in other and other[key].record.work == p.record.work for other in others)
        ]
        return {
            op: [[each[key].seconds / first[key].seconds for key in shared if key[0] == op] for each in found]
            for op in dict.fromkeys(key[0] for key in shared)
        }

    @cached_property
    def slower(self) -> tuple[Match, ...]:
        """The cases of the last run that are slower than in the first, the slowest first."""
        matches = compare(self.views[0].run, self.views[-1].run).matches
        found = [m for m in matches if m.verdict == "slower" and m.ratio.low > 1 + self.threshold]
        return tuple(sorted(found, key=lambda m: -m.ratio.median))

    @property
    def summary(self) -> str:
        shared = sum(len(found[0]) for found in self.ratios.values())
        over = f"by more than {percent(self.threshold)}"
        count = f"{len(self.slower) or 'No'} time{'s are' if len(self.slower) != 1 else ' is'} slower {over}"
        return f"{count} in the last run than in the first; the runs share {shared} times."


@dataclass(frozen=True, kw_only=True)
class Several:
    """What `write` wrote, and the trends that it found."""

    paths: tuple[Path, ...]
    trends: tuple[Trend, ...]

    @property
    def exit_code(self) -> int:
        """1 if a part became slower, else 0."""
        return int(any(trend.slower for trend in self.trends))

    def lines(self) -> list[str]:
        """For a terminal: each trend, what became slower, and the files."""
        said = [f"{trend.part}: {trend.summary}" for trend in self.trends]
        said += [f"slower: {' '.join(row)}" for trend in self.trends for row in slower_table(trend).rows]
        return [*said, *map(str, self.paths)]


def write(runs: Sequence[Path], out: Path, threshold: float = THRESHOLD) -> Several:
    """Write `comparison.md` and `comparison.html` about two or more runs into the directory `out`.

    Raises `BadRequest` where a run is missing or named twice, or where the threshold is no number from 0 on.
    """
    require_pages("comparison.html")
    if not len({path.resolve() for path in runs}) == len(runs) > 1:
        raise BadRequest("name two or more different runs")
    return write_views([View(load_run(path)) for path in runs], out, threshold)


def write_views(runs: Sequence[View], out: Path, threshold: float = THRESHOLD) -> Several:
    """As `write`, of runs that were read."""
    from bench.report.html import several

    if not 0 <= threshold < math.inf:
        raise BadRequest(f"--threshold: wants 0 or more, not {threshold:g}")
    views = sorted(runs, key=lambda view: (view.run.device_name, str(view.run.header.get("started", ""))))
    trends = tuple(trends_of(views, threshold))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"cannot write into {out}: {error.strerror}") from None
    page, interactive = out / "comparison.md", out / "comparison.html"
    write_text(page, markdown(views, trends))
    write_text(interactive, several(views, trends))
    return Several(paths=(page, interactive), trends=trends)


def trends_of(views: Sequence[View], threshold: float) -> list[Trend]:
    """A trend for each part that has more than one run."""
    parts: dict[str, list[View]] = {}
    for view in views:
        parts.setdefault(view.run.device_name, []).append(view)
    return [Trend(views=tuple(found), threshold=threshold) for found in parts.values() if len(found) > 1]


def key_of(p: Point) -> Key:
    return p.record.op, p.record.impl, p.record.case_id


def labels(views: Sequence[View]) -> list[str]:
    """A short name for each run: its part, with the time or else the directory where parts or times occur twice."""
    parts = Counter(view.run.device_name for view in views)
    named = [
        name if parts[name] == 1 else f"{name}, {str(view.run.header.get('started', ''))[:16]}"
        for view in views
        for name in (view.run.device_name,)
    ]
    twice = Counter(named)
    return [
        name if twice[name] == 1 else f"{name}, {view.run.path.name}" for name, view in zip(named, views, strict=True)
    ]


def runs_table(views: Sequence[View]) -> Table:
    """One row for each run: the roof and the three tiles."""
    rows = []
    for label, view in zip(labels(views), views, strict=True):
        roof = si(view.run.ceilings.read_roof, "B/s") if view.run.ceilings else "not measured"
        said = [f"{tile.answer}: {tile.because}" for tile in answer(view).tiles]
        rows.append((label, str(view.run.header.get("suite", "")), roof, *said))
    headers = ("run", "suite", "read roof", "memory-bound?", "how much?", "trust")
    return Table(headers=headers, rows=rows, numeric=(2,))


def cases_table(views: Sequence[View]) -> Table:
    """One row for each implementation of a case that two or more runs timed: time, share of the roof, flags."""
    found: list[dict[Key, Point]] = [{key_of(p): p for p in view.points} for view in views]
    rows = []
    for key in dict.fromkeys(key for points in found for key in points):
        if sum(key in points for points in found) > 1:
            p = next(points[key] for points in found if key in points)
            cells = [said(points[key]) if key in points else "" for points in found]
            rows.append((key[0], case_name(key[0], p.record.case), key[2], key[1], *cells))
    return Table(headers=("op", "what it is", "case", "implementation", *labels(views)), rows=rows)


def said(p: Point) -> str:
    share = f", {tables.share(p.share)} of the roof" if p.share is not None else ""
    return measured(p.time) + share + (f" [{', '.join(p.record.flags)}]" if p.record.flags else "")


def trend_table(trend: Trend) -> Table:
    """One row for each operation: the median ratio to the first run in every later one."""
    rows = [
        (op, str(len(found[0])), *(f"{statistics.median(each):.3f}x" for each in found))
        for op, found in trend.ratios.items()
    ]
    columns = range(1, 2 + len(trend.views))
    return Table(headers=("op", "times", *labels(trend.views)), rows=rows, numeric=tuple(columns))


def slower_table(trend: Trend) -> Table:
    rows = [
        (m.op, m.case_id, m.impl, f"{m.ratio.median:.3f}x [{m.ratio.low:.3f}, {m.ratio.high:.3f}]", ", ".join(m.flags))
        for m in trend.slower
    ]
    return Table(headers=("op", "case", "implementation", "last / first", "flags"), rows=rows)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One operation's line in the figure of a trend, in a box of 600 by 200."""

    op: str
    colour: int
    points: tuple[tuple[float, float], ...]


def drawn(trend: Trend) -> tuple[list[Line], list[tuple[str, float, float]]]:
    """The lines of the figure, and its marks: texts, the heights they mark, and their own: no text covers another.

    The first run, the threshold and the longest time are marked.
    """
    medians = {op: [statistics.median(each) for each in found] for op, found in trend.ratios.items()}
    values = [value for each in medians.values() for value in each]
    low, high = min([*values, 0.95]), max([*values, 1 + 1.5 * trend.threshold])

    def height(value: float) -> float:
        return round(190 - 180 * (value - low) / (high - low), 1)

    step = 600 / (len(trend.views) - 1)
    lines = [
        Line(
            op=op,
            colour=drawing.style_numbers(op)[0],
            points=tuple((round(i * step, 1), height(value)) for i, value in enumerate(each)),
        )
        for op, each in medians.items()
    ]
    marks: list[tuple[str, float, float]] = []
    for value in sorted({1.0, 1 + trend.threshold, *([max(values)] if max(values, default=0) > 1 else [])}):
        text = "as in the first run" if value == 1 else f"{value:.2f} times as long"
        place = min([height(value), *(lowest - 14 for *_, lowest in marks[-1:])])
        marks.append((text, height(value), place))
    return lines, marks


def warnings(views: Sequence[View]) -> list[str]:
    return [f"{label}: {busy}" for label, view in zip(labels(views), views, strict=True) if (busy := banner(view.run))]


def markdown(views: Sequence[View], trends: Sequence[Trend]) -> str:
    parts = [f"# decodebench: {len(views)} runs", *(f"> **{escape(line)}**" for line in warnings(views))]
    parts.append(markdown_table(runs_table(views)))
    for trend in trends:
        parts += [f"## {escape(trend.part)} over time", escape(trend.summary), markdown_table(trend_table(trend))]
        if trend.slower:
            parts.append(markdown_table(slower_table(trend)))
    return "\n\n".join([*parts, "## Every case that two or more runs timed", markdown_table(cases_table(views))]) + "\n"
