"""Ours beside peers: case by case, by peer, and beside the fastest peer of each case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.judge.resolution import SAME, resolutions, side
from bench.judge.view import Peer, Table, View, once
from bench.records import comparable_medians
from bench.run import fastest_of_each
from bench.stats import BOUNDS, Interval
from bench.units import percent, ratio

REMARK = (
    "A peer's median time over the median time of our fastest implementation of the same case in the same run, with a "
    "95% bootstrap interval: above 1, ours is faster. One side counts as faster if the whole interval lies on its side "
    f"by more than {percent(SAME)} and by more than the op's resolution in this run. Otherwise the case is undecided."
)

STANDING = (
    "Beside peers: the fastest peer's time over ours, as the geometric mean over all cases with its 95% interval, and "
    "the case that is worst for ours."
)


@once
def fastest(view: View, op: str | None = None) -> list[Peer]:
    """The fastest peer of each case that both ours and a peer timed. Times that may be too short do not count."""
    asked = [p for p in view.peers if op in (None, p.ours.record.op) and p.ours.trusted and p.peer.trusted]
    return fastest_of_each(asked, case=lambda p: p.ours.case, seconds=lambda p: p.ratio.median)


def geometric_mean(peers: Sequence[Peer]) -> Interval:
    """The geometric mean of the ratios. Resampling both sides' samples of every case gives its 95% interval."""
    pairs = [comparable_medians([p.peer.record, p.ours.record]) for p in peers]
    ratios = [theirs / ours for theirs, ours in pairs]
    resampled = np.mean(np.log(ratios), axis=0)
    low, high = np.exp(np.quantile(resampled, BOUNDS))
    mean = np.exp(np.mean([np.log(p.ratio.median) for p in peers]))
    if any(len(each.record.samples_s) == 1 for p in peers for each in (p.peer, p.ours)):
        low, high = 0.0, np.inf
    return Interval(low=float(low), median=float(mean), high=float(high))


def name(peer: Peer) -> str:
    return f"{peer.peer.record.impl}, {peer.ours.record.case_id}"


def standing(view: View, op: str) -> tuple[str, str]:
    """An op beside the fastest peers: the geometric mean with its interval, and the worst case with its name."""
    found = fastest(view, op)
    if not found:
        return "", ""
    worst = min(found, key=lambda p: p.ratio.median)
    return (
        f"{ratio(geometric_mean(found), 2)} over {len(found)} case{'s' * (len(found) > 1)}",
        f"{worst.ratio.median:.2f} ({name(worst)})",
    )


@once
def faster(view: View) -> list[str]:
    """Who is faster, for each of the view's peers: `ours`, `peer`, or `undecided` where the run cannot tell."""
    apart = resolutions(view.run)
    words = {"above": "ours", "below": "peer", None: "undecided"}
    return [words[side(p.ratio, apart.get(p.ours.record.op, 0.0))] for p in view.peers]


@once
def by_case(view: View) -> Table:
    """The peers' times over ours, case by case."""
    rows = [
        (
            p.ours.record.op,
            p.ours.record.case_id,
            p.peer.record.impl + (f" ({p.peer.record.version})" if p.peer.record.version else ""),
            p.ours.record.impl,
            ratio(p.ratio),
            who,
            ", ".join(p.flags),
        )
        for p, who in zip(view.peers, faster(view), strict=True)
    ]
    return Table(
        headers=("op", "case", "peer", "ours", "peer's time / ours", "faster", "flags"), rows=rows, numeric=(4,)
    )


@once
def by_peer(view: View) -> Table:
    """One row per op and peer: how often each side is faster, and the geometric mean and the range of the ratios."""
    groups: dict[tuple[str, str], list[tuple[Peer, str]]] = {}
    for p, who in zip(view.peers, faster(view), strict=True):
        groups.setdefault((p.ours.record.op, p.peer.record.impl), []).append((p, who))
    rows = []
    for (op, impl), group in groups.items():
        found, decided = zip(*group, strict=True)
        medians = sorted(p.ratio.median for p in found)
        rows.append(
            (
                op,
                impl,
                str(len(found)),
                str(decided.count("ours")),
                str(decided.count("peer")),
                ratio(geometric_mean(found), 2),
                f"{medians[0]:.2f} to {medians[-1]:.2f}",
            )
        )
    return Table(
        headers=("op", "peer", "cases", "ours faster", "peer faster", "geometric mean", "range"),
        rows=rows,
        numeric=(2, 3, 4, 5),
    )
