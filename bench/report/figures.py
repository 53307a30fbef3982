"""The figures of a report as PNG, for a light page of about 850 px. Each title states what the figure shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.files import replacing
from bench.judge import steps
from bench.judge.batches import SAME_BATCH, all_batches, free_batch, main_batches
from bench.judge.ridges import left_of_ridge, ridges
from bench.judge.view import PREDICTION_BAND, Point, View
from bench.report.drawing import (
    COLOURS,
    HALO,
    INK,
    LEGEND,
    PALE,
    PEERS,
    canvas,
    dress,
    end_labels,
    key,
    legend,
    log_ticks,
    logarithmic,
    panels,
    roof_labels,
    scatter_op,
    title,
)
from bench.report.tables import share
from bench.units import brief, duration, percent, si, tick

DPI = 200


def draw_all(view: View, directory: Path) -> dict[str, Path]:
    """Draw every figure that the run has data for. Returns the files by the figures' names."""
    directory.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[View], Figure | None]] = {
        "roofline": roofline,
        "prediction": prediction,
        "efficiency": efficiency,
        "batch": batch_knee,
        "waterfall": waterfall,
    }
    paths = {}
    for name, draw in drawings.items():
        path = directory / f"{name}.png"
        figure = draw(view)
        if figure is not None:
            with replacing(path) as fresh:
                figure.savefig(fresh, dpi=DPI, facecolor="white")
            paths[name] = path
    return paths


def roofline(view: View) -> Figure | None:
    """Achieved FLOP/s over intensity, under the measured and the published roofs. Ops without FLOPs are left out."""
    points = [p for p in view.points if p.intensity > 0]
    ceilings = view.run.ceilings
    if not points or ceilings is None:
        return None
    figure, axes = canvas(8.5, 5.4)
    sheet = view.run.published("memory_bandwidth")
    shown = sorted({pipe for p in points for pipe in p.record.work["flops"]})
    claims = {pipe: claimed.value for pipe in shown if (claimed := view.run.published(pipe))}
    peaks = {pipe: ceilings.pipes[pipe] for pipe in shown if pipe in ceilings.pipes}
    low = min(p.intensity for p in points) / 2
    bends = [peak / ceilings.read_roof for peak in peaks.values()]
    high = 4 * max([*bends, *(p.intensity for p in points)])

    ends: list[tuple[float, float, str, str]] = []

    def roof(bandwidth: float, peak: float | None, *, dashes: bool) -> None:
        ridge = min(high, peak / bandwidth) if peak else high
        xs, ys = [low, ridge], [low * bandwidth, ridge * bandwidth]
        if peak and ridge < high:
            xs, ys = [*xs, high], [*ys, peak]
        axes.plot(xs, ys, color=PALE if dashes else INK, lw=1.0 if dashes else 1.6, ls="--" if dashes else "-")

    for claim in claims.values():
        if sheet:
            roof(sheet.value, claim, dashes=True)
    for pipe, measured in peaks.items():
        roof(ceilings.read_roof, measured, dashes=False)
        of_claim = f"\n{percent(measured / claims[pipe])} of published" if pipe in claims else ""
        ends.append((measured, high, f"{pipe} {si(measured, 'FLOP/s')}{of_claim}", INK))
    if not ends:
        roof(ceilings.read_roof, None, dashes=False)
    for ridge in ridges(view):
        axes.axvline(ridge.intensity, color=PALE, lw=0.8, ls=":", zorder=1)
        foot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "rotation": 90, "ha": "right", "va": "bottom"}
        axes.text(ridge.intensity, 0.02, f"{ridge.text} ", size=7.5, color=INK, path_effects=HALO, zorder=4, **foot)

    def place(point: Point) -> tuple[float, float]:
        return point.intensity, point.record.flops / point.seconds

    for op in view.ops:
        scatter_op(axes, op, points, place)
    rates = [place(p)[1] for p in points]
    floor, top = min(rates) / 2, max([*peaks.values(), *claims.values(), *rates])
    logarithmic(axes, (low, high), (floor, 2 * top))
    axes.set_xlabel("intensity: compulsory FLOP per compulsory byte of DRAM")
    axes.set_ylabel("FLOP/s")
    log_ticks(axes.xaxis, low, high, brief)
    log_ticks(axes.yaxis, floor, 1e9 * floor, lambda y: tick(y, ""))
    legend(figure, axes, view)
    sides = [side for p in view.decode if (side := left_of_ridge(p, ceilings)) is not None]
    finding = f"{sum(sides)} of {len(sides)} decode cases lie left of their ridge by compulsory work"
    title(axes, finding if sides else "Decode cases under the measured read roof", view)
    end_labels(axes, ends, step=1 / 13)
    figure.draw_without_rendering()  # settles the layout, and with it the angle of the labels
    lines = [(ceilings.read_roof, f"measured {si(ceilings.read_roof, 'B/s')}", INK)]
    if sheet:
        lines.append((sheet.value, f"{sheet.kind} {si(sheet.value, 'B/s')}", PALE))
    roof_labels(axes, [place(p) for p in points], lines)
    return figure


def prediction(view: View) -> Figure | None:
    """Measured over predicted time: at 1 the prediction came true."""
    points = [p for p in view.points if p.predicted("measured")]
    accuracy = view.accuracy
    if not points or accuracy is None:
        return None
    figure, axes = canvas(8.5, 4.6)
    axes.axhspan(1 - PREDICTION_BAND, 1 + PREDICTION_BAND, color="#dbe9f6", zorder=0)
    axes.axhline(1, color=INK, lw=1.2, zorder=1)
    for op in view.ops:
        scatter_op(axes, op, points, measured_over_predicted)
    ratios = [measured_over_predicted(p)[1] for p in points]
    times = [measured_over_predicted(p)[0] for p in points]
    low, high = min(0.75, min(ratios) / 1.08), max(1.35, 1.08 * max(ratios))
    left, right = min(times) / 1.5, max(times) * 1.5
    logarithmic(axes, (left, right), (low, high))
    narrow = high / low < 5
    ticks = [0.1, 0.2, 0.33, 0.5, 0.7, *((0.8, 0.9, 1, 1.1, 1.25) if narrow else (1,)), 1.5, 2, 3, 5, 10, 20, 50, 100]
    ticks = [t for t in ticks if low <= t <= high]
    axes.set_yticks(ticks, [f"{t:g}×" for t in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    corner: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    axes.text(0.995, 1 + PREDICTION_BAND, f"±{percent(PREDICTION_BAND)}", size=8.5, color=COLOURS[0], **corner)
    axes.set_xlabel("predicted time of one launch, from the ceilings measured in this run")
    log_ticks(axes.xaxis, left, right, lambda x: tick(x, "s"))
    axes.set_ylabel("measured / predicted time")
    legend(figure, axes, view)
    whose = "of our times" if view.ours else "times"
    finding = (
        f"{percent(accuracy.within)} of {accuracy.cases} {whose} lie within {percent(PREDICTION_BAND)} "
        f"of their prediction (median error {percent(accuracy.median, 1)})"
    )
    title(axes, finding, view)
    return figure


LITTLE = 0.05
"""If an op stays below this share of the read roof, its panel says so: such points are easily overlooked."""

TOP = 1.2
"""A larger share is drawn at the upper edge with its number: it carries a flag, or the roof was measured too low."""


def efficiency(view: View) -> Figure | None:
    """The share of the read roof over compulsory bytes, one panel per op. A line shows a plain read of each size."""
    ceilings = view.run.ceilings
    points = [p for p in view.points if p.record.bytes]
    if ceilings is None or not points:
        return None
    found = [(op.name, large[-1].share or 0.0) for op in view.leading_ops if (large := view.large(op.name))]
    size = "large cases" if view.run.on_gpu else "cases"
    best_text = " and ".join(f"{op} {percent(share)}" for op, share in found)
    finding = f"Of the read roof, the best {size} reach: {best_text}" if found else "Share of the read roof"
    note = f"{view.run.device_name}; {key(view)}; line: a plain read; 100%: {si(ceilings.read_roof, 'B/s')}"
    ops = list(dict.fromkeys(p.record.op for p in points))
    figure, grid = panels(len(ops), finding, note)
    sizes = [p.record.bytes for p in points]
    low, high = min(sizes) / 2, max(sizes) * 2
    start = ceilings.read_points[0][0]
    line = [start * (high / start) ** (i / 80) for i in range(81)] if start < high else []
    step = 2 if high / low > 1e4 else 1
    for axes, op in zip(grid, ops, strict=True):
        axes.axhline(1, color=INK, lw=1.0)
        axes.plot(line, [ceilings.read(round(x)) / ceilings.read_roof for x in line], color=PALE, lw=1.2)
        scatter_op(axes, op, points, size_and_share, peers=PEERS if view.ours else "")
        shares = [p.share or 0.0 for p in view.best if p.record.op == op and p.trusted]
        reached = f": up to {share(max(shares))}" if shares else ""
        axes.set_title(f"{op}{reached}", size=10, color=INK, loc="left")
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(-0.05, 1.05 * TOP)
        axes.xaxis.set_major_locator(FixedLocator([10.0**n for n in range(0, 13, step)]))
        axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=100))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick(x, "B")))
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: percent(y)))
        mine = [p for p in points if p.record.op == op]
        if max(p.share or 0.0 for p in mine) < LITTLE:
            said = f"every point is below {percent(LITTLE)}"
            axes.text(0.96, 0.17, said, transform=axes.transAxes, size=8.5, color=PALE, ha="right")
        for p in mine:
            if (p.share or 0.0) > TOP:
                left: dict[str, Any] = {"xytext": (-5, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
                axes.annotate(percent(p.share or 0.0), size_and_share(p), size=8.5, color=INK, **left)
    figure.supxlabel("compulsory bytes of one launch", size=9.5, color=INK)
    figure.supylabel("of the read roof", size=9.5, color=INK)
    return figure


def size_and_share(point: Point) -> tuple[float, float]:
    return point.record.bytes, min(point.share or 0.0, TOP)


def batch_knee(view: View) -> Figure | None:
    """The time of a projection over the batch, one panel for the largest weight of each precision."""
    series = all_batches(view)
    if not series:
        return None
    largest: dict[str, tuple[int, int]] = {}
    for n, k, kind, _ in series:
        if kind not in largest or n * k > math.prod(largest[kind]):
            largest[kind] = (n, k)
    shown = {key: found for key, found in series.items() if largest[key[2]] == key[:2]}
    leading = main_batches(shown)
    assert leading
    (_, _, main, _), longest = leading
    free = free_batch(longest)
    smallest = next(iter(longest))
    more = f"{percent(SAME_BATCH)} more than at batch {smallest}"
    finding = f"Up to batch {free} a {main} projection costs at most {more}"
    if free == smallest:
        finding = f"A {main} projection costs over {percent(SAME_BATCH)} more from the second batch size on"
    kinds = sorted(largest, key=lambda kind: (kind != main, kind))
    note = "solid: ours; dashed: predicted for ours; dotted: peers"
    figure, grid = panels(len(kinds), finding, f"{view.run.device_name}; {note}")
    sizes = sorted({b for found in shown.values() for b in found})
    times = [p.seconds for found in shown.values() for p in found.values()]
    for axes, kind in zip(grid, kinds, strict=True):
        impls = {key[3]: found for key, found in shown.items() if key[2] == kind}
        drawn = [name for name, found in impls.items() if ours(found)]
        for name, found in sorted(impls.items(), key=lambda item: ours(item[1])):
            colour = COLOURS[drawn.index(name) % len(COLOURS)] if name in drawn else PEERS
            width, dashes, fill = (1.8, "-", colour) if name in drawn else (1.1, ":", "white")
            ys = [p.seconds for p in found.values()]
            axes.plot(list(found), ys, color=colour, marker="o", ms=4, label=name, lw=width, ls=dashes, mfc=fill)
            expected = [(b, t) for b, p in found.items() if name in drawn and (t := p.predicted("measured"))]
            if expected:
                axes.plot(*zip(*expected, strict=True), color=INK, lw=1.0, ls="--")
        n, k = largest[kind]
        axes.set_title(f"{kind}, {n} × {k}", size=10, color=INK, loc="left")
        logarithmic(axes, (sizes[0] / 1.3, sizes[-1] * 1.3), (min(times) / 1.3, max(times) * 1.6))
        axes.legend(loc="upper left", fontsize=8, handlelength=1.6, **LEGEND)
        axes.xaxis.set_major_locator(FixedLocator([b for b in sizes if math.log2(b) % 3 == 0]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick(y, "s")))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
    figure.supxlabel("batch", size=9.5, color=INK)
    figure.supylabel("time of one launch", size=9.5, color=INK)
    return figure


def waterfall(view: View) -> Figure | None:
    """The largest step: its levels from the floor up, and each operation's share of the time and of the gap."""
    found = steps.waterfalls(view)
    if not found:
        return None
    shown = found[0][1]
    levels, ops = shown.levels, shown.ops
    figure = Figure(figsize=(8.5, 1.8 + 0.3 * (len(levels) + len(ops))), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(len(levels), len(ops)))
    for row, (level, change, _) in enumerate(shown.rises()):
        before = level.seconds - change
        colour = COLOURS[0] if not row else COLOURS[1] if change >= 0 else COLOURS[2]
        upper.barh(row, change * 1e3, left=before * 1e3, color=colour, height=0.6)
        end: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        upper.annotate(tick(level.seconds, "s"), (1e3 * max(level.seconds, before), row), size=8.5, color=INK, **end)
    upper.set_yticks(range(len(levels)), [level.name for level in levels])
    upper.set_xlim(0, 1.15e3 * max(level.seconds for level in levels))
    upper.set_xlabel("ms of one step")
    for offset, values, label, colour in (
        (-0.2, [op.share for op in ops], "share of the time", COLOURS[0]),
        (0.2, [op.gap for op in ops], "share of the gap above the floor", COLOURS[1]),
    ):
        places = [row + offset for row in range(len(ops))]
        lower.barh(places, [100 * value for value in values], height=0.36, color=colour, label=label)
    lower.set_yticks(range(len(ops)), [op.name for op in ops])
    lower.set_xlabel("%")
    lower.legend(fontsize=8.5, **LEGEND)
    for axes in (upper, lower):
        dress(axes)
        axes.invert_yaxis()
    asked = f"{shown.model}, {shown.layers} layers, batch {shown.batch:,}, {shown.context:,} tokens"
    finding = f"A step of {asked} takes {duration(shown.step.seconds)}"
    figure.suptitle(finding, x=0.008, size=11.5, color=INK, ha="left", fontweight="bold")
    upper.set_title(view.run.device_name, size=8.5, color=PALE, loc="left")
    return figure


def ours(series: Mapping[int, Point]) -> bool:
    return next(iter(series.values())).record.ours


def measured_over_predicted(point: Point) -> tuple[float, float]:
    expected = point.predicted("measured") or math.nan
    return expected, point.seconds / expected
