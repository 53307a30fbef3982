"""What the figures share: colours, axes, points, titles, labels.

Colours are Okabe and Ito's palette without its yellow, and every op has a marker of its own as well, so that nothing
hangs on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.report.frame import Point, View

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8C3B73", "#E69F00", "#56B4E9", "#444444")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#1f2328"
PALE = "#6e7781"
GRID = "#d8dee4"


def style(view: View, op: str) -> tuple[str, str]:
    """Colour and marker of an op: the same in every figure of a run."""
    index = view.ops.index(op)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    dress(axes)
    return figure, axes


def panels(count: int, finding: str, note: str) -> tuple[Figure, list[Axes]]:
    """Small multiples of equal axes, up to three in a row, under one title."""
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
        view.device_name,
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
    """Points, flagged ones with a ring of ink around them."""
    if not points:
        return
    xs, ys = zip(*map(place, points), strict=True)
    edges = [INK if p.record.flags else colour for p in points]
    axes.scatter(
        xs, ys, s=16 if hollow else 26, marker=marker, label=label or None, alpha=0.75 if hollow else 0.9,
        facecolors="none" if hollow else colour, edgecolors=edges, linewidths=0.9, zorder=2 if hollow else 3,
    )  # fmt: skip


def scatter_op(
    axes: Axes,
    view: View,
    op: str,
    points: Sequence[Point],
    place: Callable[[Point], tuple[float, float]],
    *,
    peers: str = "",
) -> None:
    """An op's points, ours filled over the hollow peers; `peers` is their colour where it is not the op's."""
    colour, marker = style(view, op)
    mine = [p for p in points if p.record.op == op and p.record.ours]
    others = [p for p in points if p.record.op == op and not p.record.ours]
    scatter(axes, others, place, peers or colour, marker, hollow=True, label="" if mine else op)
    scatter(axes, mine, place, colour, marker, label=op)


def legend(figure: Figure, axes: Axes, view: View) -> None:
    """The ops' markers in rows below the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        heading = "filled: ours, hollow: peers, dark rim: flagged" if view.ours else "dark rim: flagged"
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False, labelcolor=INK,
            title=heading, title_fontproperties={"size": 8.5}, handletextpad=0.2,
        )  # fmt: skip


def slope_label(axes: Axes, x: float, bandwidth: float, text: str, colour: str) -> None:
    """A label that runs along a bandwidth roof: ink below its line, pale above its own."""
    here, there = axes.transData.transform([(x, x * bandwidth), (10 * x, 10 * x * bandwidth)])
    angle = math.degrees(math.atan2(there[1] - here[1], there[0] - here[0]))
    below = colour == INK
    axes.annotate(
        text, (x, x * bandwidth), xytext=(3, -3) if below else (-1, 2), textcoords="offset points", size=8.5,
        color=colour, rotation=angle, rotation_mode="anchor", ha="left", va="top" if below else "bottom",
    )  # fmt: skip


def end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]], step: float) -> None:
    """(y, x, text, colour): names right of the axes at their heights, at least `step` of the height apart."""
    low, high = (math.log(v) for v in axes.get_ylim())
    last = -math.inf
    for y, x, text, colour in sorted(ends):
        last = max(math.log(y), last + step * (high - low))
        axes.annotate(text, (x * 1.15, math.exp(last)), size=8.5, color=colour, va="center", annotation_clip=False)
