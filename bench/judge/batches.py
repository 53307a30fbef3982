"""How does a product's time grow with the batch?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.judge.view import Point, View, once, role

SAME_BATCH = 0.10
"""A larger batch is free as long as it takes at most this much longer than the smallest."""


@once
def all_batches(view: View) -> dict[tuple[int, int, str, str], dict[int, Point]]:
    """`batches` of all points of a run."""
    return batches(view.points)


def batches(points: Sequence[Point]) -> dict[tuple[int, int, str, str], dict[int, Point]]:
    """Decode's products of a weight [N, K] with B rows: points by (N, K, precision, impl), then by B.

    A series has at least three batches.
    """
    series: dict[tuple[int, int, str, str], dict[int, Point]] = {}
    for point in points:
        case = point.record.case
        if role(point.record.op) == "decode" and {"B", "N", "K"} <= case.keys():
            key = (case["N"], case["K"], point.precision, point.record.impl)
            series.setdefault(key, {})[case["B"]] = point
    return {key: dict(sorted(found.items())) for key, found in series.items() if len(found) >= 3}


def main_batches(
    series: Mapping[tuple[int, int, str, str], dict[int, Point]],
) -> tuple[tuple[int, int, str, str], dict[int, Point]] | None:
    """The series that headlines are about: of ours if there are any, with the most batches, of the largest weight."""
    mine = {key: found for key, found in series.items() if next(iter(found.values())).record.ours} or series
    return max(mine.items(), key=lambda item: (len(item[1]), item[0][0] * item[0][1]), default=None)


def free_batch(series: dict[int, Point]) -> int:
    """The largest batch up to which no batch takes more than `SAME_BATCH` longer than the smallest."""
    first = next(iter(series.values())).usual_seconds
    free = next(iter(series))
    for batch, point in series.items():
        if point.usual_seconds > (1 + SAME_BATCH) * first:
            break
        free = batch
    return free
