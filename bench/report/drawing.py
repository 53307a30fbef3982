"""What the figures share: colours, axes, points, titles, labels.

The colours are those of Okabe and Ito without their yellow, which is faint on white, with a grey instead of their
black, and with two dark colours of Tol's. Any two of them are at least 16 apart in CIELAB (ΔE of 1976), also as
colour-blind people see them (as simulated by Machado, Oliveira and Fernandes, 2009). Every op has its own marker too,
so that no reader depends on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.judge.view import Point, View
from kernels.op import discover

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#661100", "#332288", "#444444")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
INK = "#1f2328"
PALE = "#6e7781"
GRID = "#d8dee4"
PEERS = "#8c959f"
"""The colour of peers where our points are to stand out."""

FILLED: dict[str, Any] = {"s": 26, "alpha": 0.9, "zorder": 3}
HOLLOW: dict[str, Any] = {"s": 20, "alpha": 0.8, "zorder": 2, "facecolors": "none"}
HALO = [withStroke(linewidth=2.5, foreground="white")]
"""Around a label that lies over points."""
LEGEND: dict[str, Any] = {"frameon": False, "labelcolor": INK}


def style_numbers(op: str) -> tuple[int, int]:
    """The numbers of an op's colour and marker, by its place in the registry, so that they are the same in every run.

    Where the colours start again, they are combined with other markers. Unknown ops come last.
    """
    drawn = [name for name, known in discover().items() if not known.is_ceiling]
    place = drawn.index(op) if op in drawn else len(drawn)
    return place % len(COLOURS), (place + place // len(COLOURS)) % len(MARKERS)


def style(op: str) -> tuple[str, str]:
    """The colour and the marker of an op."""
    colour, marker = style_numbers(op)
    return COLOURS[colour], MARKERS[marker]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    dress(axes)
    return figure, axes


def panels(count: int, finding: str, note: str) -> tuple[Figure, list[Axes]]:
    """Equal axes side by side, up to three in a row, under one title."""
    columns = min(3, count)
    rows = math.ceil(count / columns)
    height = 1.0 + 2.3 * rows
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.5 / height), hspace=0.06)
    figure = Figure(figsize=(8.5, height), layout=layout)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in grid[:count]:
        dress(axes)
        axes.tick_params(axis="x", labelbottom=True)
    for axes in grid[count:]:
        axes.set_axis_off()
    figure.text(0.008, 1 - 0.08 / height, finding, size=11.5, color=INK, va="top", fontweight="bold")
    figure.text(0.008, 1 - 0.33 / height, note, size=8.5, color=PALE, va="top")
    return figure, grid[:count]


def dress(axes: Axes) -> None:
    axes.grid(True, color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=8.5, length=3)
    axes.xaxis.label.set(size=9.5, color=INK)
    axes.yaxis.label.set(size=9.5, color=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PALE)


def title(axes: Axes, finding: str, view: View) -> None:
    axes.set_title(f"{finding}\n", size=11.5, color=INK, loc="left", fontweight="bold", linespacing=1.3)
    axes.annotate(
        view.run.device_name,
        (0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        size=8.5,
        color=PALE,
    )


def logarithmic(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*x)
    axes.set_ylim(*y)


def log_ticks(axis: Axis, low: float, high: float, write: Callable[[float], str]) -> None:
    """Label the powers of ten, and 2 and 5 times each if the axis has few of them. Other ticks have no label."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=100))
    axis.set_minor_formatter(NullFormatter())


def scatter(
    axes: Axes,
    points: list[Point],
    place: Callable[[Point], tuple[float, float]],
    colour: str,
    marker: str,
    *,
    hollow: bool = False,
    label: str = "",
) -> None:
    """Draw points, with a dot inside each flagged one. Markers at the edge of the axes are not cut."""
    if not points:
        return
    xs, ys = zip(*map(place, points), strict=True)
    look = HOLLOW if hollow else {**FILLED, "facecolors": colour}
    axes.scatter(xs, ys, marker=marker, label=label or None, edgecolors=colour, linewidths=1.1, clip_on=False, **look)
    if flagged := [place(p) for p in points if p.record.flags]:
        xs, ys = zip(*flagged, strict=True)
        axes.scatter(xs, ys, s=4, color=INK, lw=0, zorder=4, clip_on=False)


def scatter_op(
    axes: Axes, op: str, points: Sequence[Point], place: Callable[[Point], tuple[float, float]], *, peers: str = ""
) -> None:
    """Draw an op's points: peers hollow, ours filled and above them. `peers` is the peers' colour, if not the op's."""
    colour, marker = style(op)
    mine = [p for p in points if p.record.op == op and p.record.ours]
    others = [p for p in points if p.record.op == op and not p.record.ours]
    scatter(axes, others, place, peers or colour, marker, hollow=True, label="" if mine else op)
    scatter(axes, mine, place, colour, marker, label=op)


def legend(figure: Figure, axes: Axes, view: View) -> None:
    """Show the ops' markers in rows of up to five below the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = math.ceil(len(handles) / math.ceil(len(handles) / 5))
        look = {**LEGEND, "fontsize": 8.5, "ncols": columns, "handletextpad": 0.2, "columnspacing": 1.4}
        found = figure.legend(handles, labels, loc="outside lower center", title=key(view), **look)
        found.get_title().set(size=8.5, color=PALE)


def key(view: View) -> str:
    """What filled, hollow and dotted markers mean in this run."""
    if view.ours:
        return "filled: ours, hollow: peers, dot inside: flagged"
    return "hollow: torch, for there is none of ours here; dot inside: flagged"


def roof_labels(axes: Axes, points: Sequence[tuple[float, float]], lines: Sequence[tuple[float, str, str]]) -> None:
    """Write the texts of `lines` (bandwidth, text, colour; the lower roof first) along and above the upper roof.

    They start at the first place along the roof where no point is near, or else where the nearest point is farthest
    away. The layout must be settled before, since it decides the roof's angle.
    """
    (low, high), (floor, top) = axes.get_xlim(), axes.get_ylim()
    roof = max(bandwidth for bandwidth, _, _ in lines)
    start, end = max(low, floor / roof), min(high, top / roof)
    a, b = axes.transData.transform([(start, start * roof), (end, end * roof)])
    length = math.dist(a, b)
    along = (b - a) / length
    across = (-along[1], along[0])
    dots: Any = axes.transData.transform(list(points)) if points else ()
    pixels = axes.figure.dpi / 72
    size = 8.5 * pixels
    room, depth = 0.55 * size * max(len(text) for _, text, _ in lines), 1.25 * size * len(lines)

    def clearance(at: float) -> float:
        """The distance of the nearest point from the middle line of the texts."""
        spots = [a + along * (at + room * i / 8) + [0.5 * depth * c for c in across] for i in range(9)]
        away = np.hypot(*(np.asarray(spots)[:, None] - dots).T) if len(dots) else math.inf
        return float(np.min(away))

    tries = [0.02 * length + step * max(0.0, 0.9 * length - room) / 40 for step in range(41)]
    clear = next((at for at in tries if clearance(at) > depth + size), max(tries, key=clearance))
    x, y = axes.transData.inverted().transform(a + along * clear)
    angle = math.degrees(math.atan2(along[1], along[0]))
    for i, (_, text, colour) in enumerate(lines):
        above = 4 + 11 * i
        place: dict[str, Any] = {"xytext": [c * above for c in across], "textcoords": "offset points"}
        turn: dict[str, Any] = {"rotation": angle, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
        axes.annotate(text, (x, y), size=8.5, color=colour, **place, **turn)


def end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]], step: float) -> None:
    """Write the texts of `ends` (y, x, text, colour) to the right of the axes, `step` of the height apart or more."""
    low, high = (math.log(v) for v in axes.get_ylim())
    last = -math.inf
    for y, x, text, colour in sorted(ends):
        last = max(math.log(y), last + step * (high - low))
        axes.annotate(text, (x * 1.15, math.exp(last)), size=8.5, color=colour, va="center", annotation_clip=False)
