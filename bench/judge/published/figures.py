"""Figures of `decodebench validate`: the share of the roof against bytes, and predicted against measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BadRequest
from bench.files import replacing
from bench.judge.published.expectation import expectation
from bench.judge.published.table import Array, Table
from bench.judge.published.work import work

MOST = 4000
"""Points of one colour: more are drawn from with a fixed seed."""
COLUMNS = 3


def draw(folder: Path, rows: Table) -> list[Path]:
    """Write `roof.png` and `expected.png` into the folder. Raises `BadRequest` for an empty table."""
    if not len(rows):
        raise BadRequest("nothing to draw: no row is left")
    folder.mkdir(parents=True, exist_ok=True)
    floor, predicted = work(rows), expectation(rows)
    return [
        _panels(
            folder / "roof.png",
            rows,
            floor.bytes,
            floor.seconds / rows["seconds"],
            x="bytes that must move",
            y="share of the roof (datasheet)",
            top=2.0,
            line=1.0,
        ),
        _panels(
            folder / "expected.png",
            rows,
            predicted * 1e6,
            rows["seconds"] * 1e6,
            x="expected, us",
            y="measured, us",
        ),
    ]


def _panels(
    path: Path, rows: Table, x_values: Array, y_values: Array, *, x: str, y: str, top: float = 0, line: float = 0
) -> Path:
    """One panel for each operation, one colour for each part, doubly logarithmic."""
    from matplotlib.figure import Figure

    known = np.isfinite(x_values) & np.isfinite(y_values)
    ops = [op for op in rows.present("op") if known[rows["op"] == rows.code("op", op)].any()]
    parts = rows.present("part")
    lines = -(-len(ops) // COLUMNS)
    figure = Figure(figsize=(5 * min(COLUMNS, len(ops)), 4 * lines), layout="constrained")
    draw_from = np.random.default_rng(0)
    for panel, op in enumerate(ops):
        axes: Any = figure.add_subplot(lines, min(COLUMNS, len(ops)), panel + 1)
        for number, part in enumerate(parts):
            here = known & (rows["op"] == rows.code("op", op)) & (rows["part"] == rows.code("part", part))
            index = np.flatnonzero(here)
            if len(index) > MOST:
                index = draw_from.choice(index, MOST, replace=False)
            axes.scatter(x_values[index], y_values[index], s=2, alpha=0.3, color=f"C{number}", label=part)
        axes.set(xscale="log", yscale="log", title=op, xlabel=x, ylabel=y)
        if top:
            axes.set_ylim(top=top)
            axes.axhline(line, color="black", linewidth=0.8)
        else:
            ends = axes.get_xlim()
            axes.plot(ends, ends, color="black", linewidth=0.8)
    figure.axes[0].legend(markerscale=5, fontsize=8)
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=110)
    return path
