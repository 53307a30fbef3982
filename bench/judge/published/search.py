"""The search by which constants are fitted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.judge.published.table import Array


def simplex(error: Callable[[Array], float], start: Array, *, steps: int = 700, size: float = 0.3) -> Array:
    """The argument with the least error that Nelder and Mead's search finds."""
    points = [start, *(start + size * unit for unit in np.eye(len(start)))]
    errors = [error(point) for point in points]
    for _ in range(steps):
        order = np.argsort(errors, kind="stable")
        points, errors = [points[i] for i in order], [errors[i] for i in order]
        if errors[-1] - errors[0] < 1e-6:
            break
        middle = np.mean(points[:-1], axis=0)
        reflected = 2 * middle - points[-1]
        at = error(reflected)
        if at < errors[0]:
            further = 3 * middle - 2 * points[-1]
            there = error(further)
            points[-1], errors[-1] = (further, there) if there < at else (reflected, at)
        elif at < errors[-2]:
            points[-1], errors[-1] = reflected, at
        else:
            nearer = (middle + points[-1]) / 2
            there = error(nearer)
            if there < errors[-1]:
                points[-1], errors[-1] = nearer, there
            else:
                points = [points[0], *((points[0] + point) / 2 for point in points[1:])]
                errors = [errors[0], *(error(point) for point in points[1:])]
    return points[int(np.argmin(errors))]
