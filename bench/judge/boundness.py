"""Memory-bound or not, shown by intervention: what the times say, and whether hardware counters agree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.judge.interventions import CLEAR, Intervention, left_out
from bench.judge.view import Table, View, once, role
from bench.records import Record
from bench.stats import Interval
from bench.units import percent, ratio

HEADING = "Is it memory? Shown by intervention"

REMARK = (
    "If memory is what a kernel waits for, its time follows the bytes and ignores the arithmetic. So this table "
    "compares cases that differ only in bytes or only in FLOPs. More query heads over the same cache, or a larger "
    "batch over the same weights, multiply the FLOPs and keep the bytes. A smaller type, or fewer KV heads, divide "
    "the bytes and keep the FLOPs. e_bytes says by how many percent the time grows when the bytes grow by one "
    "percent, and e_FLOPs says the same of the FLOPs, each with a 95% interval. Bound by memory: 1 and 0. Bound by "
    "arithmetic: 0 and 1. Bound by a launch: 0 and 0. A case with a prediction is used only if the prediction is "
    f"clear: its largest term is at least {CLEAR:g} times the next. Here the bytes of the memory and of the L2 are "
    "one term. The headline counts the cases that are predicted to be memory-bound."
)

COUNTED = (
    "Counters: the counted DRAM bytes and the executed FLOPs, each as a share of what its measured roof allows in the "
    "measured time. The kernel waits for the one that is above one half."
)

WORDS = {
    "memory": "memory",
    "compute": "arithmetic",
    "not compute": "FLOPs are free",
    "not memory": "bytes are free",
    "neither": "neither",
}
"""The words for each verdict of an intervention."""

MEMORY = ("memory", "not compute")
ARITHMETIC = ("compute", "not memory")

CLEARLY = 0.75
"""The share of groups that must agree before the answer is a plain yes or no."""

BUSY = 0.5
"""If the counters see a unit above this share of its roof, the kernel waits for that unit."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the interventions among decode's cases say. Groups predicted to be bound by arithmetic do not count."""

    yes: int
    """Groups whose time follows the bytes and not the FLOPs."""
    no: int
    """Groups whose time follows the FLOPs or does not follow the bytes."""
    undecided: int
    free: int
    """Groups in which only FLOPs changed and cost no time. They prove no yes: launch-bound kernels do the same."""
    e_bytes: float | None
    """The median over the yes."""
    e_flops: float | None
    """The median over the yes if there are any, else over the free."""

    @property
    def groups(self) -> int:
        return self.yes + self.no + self.undecided

    @property
    def answer(self) -> Literal["yes", "no", "in part", "undecided", "probably"]:
        """What the groups say together. `probably`: FLOPs are free, but no bytes varied, so it may be a launch."""
        if not self.groups:
            return "probably"
        if self.yes >= CLEARLY * self.groups:
            return "yes"
        if self.no >= CLEARLY * self.groups:
            return "no"
        return "in part" if self.yes or self.no else "undecided"


@once
def leading(view: View) -> list[Intervention]:
    """The interventions that tell the most: of ours if there are any, and fitted together where that was possible."""
    mine = [i for i in view.interventions if i.ours or not view.ours]
    together = {(i.op, i.impl, i.expected) for i in mine if i.changed == "FLOPs and bytes"}
    return [i for i in mine if i.changed == "FLOPs and bytes" or (i.op, i.impl, i.expected) not in together]


def evidence(view: View) -> Evidence | None:
    """What the leading groups say that are predicted to be memory-bound or not predicted; None if there are none."""
    asked = [i for i in leading(view) if i.expected in ("memory", "") and role(i.op) == "decode"]
    if not asked:
        return None
    yes = [i for i in asked if i.verdict == "memory"]
    no = [i for i in asked if i.verdict in ARITHMETIC]
    free = [i for i in asked if i.verdict == "not compute"]
    bytes_ = [i.e_bytes.median for i in yes if i.e_bytes]
    flops = [i.e_flops.median for i in yes or free if i.e_flops]
    return Evidence(
        yes=len(yes),
        no=len(no),
        undecided=sum(i.verdict == "neither" for i in asked),
        free=len(free),
        e_bytes=statistics.median(bytes_) if bytes_ else None,
        e_flops=statistics.median(flops) if flops else None,
    )


def table(view: View, *, leading_only: bool) -> Table:
    """One row per intervention, either the leading ones or all others. Columns for counters only if there are any."""
    first = leading(view)
    shown = first if leading_only else [i for i in view.interventions if i not in first]
    counted = {r.key: r for r in view.run.records if r.counters and r.seconds}
    rows: list[tuple[str, ...]] = []
    for i in shown:
        row = (i.op, i.impl, i.fixed, i.varied, exponent(i.e_bytes), exponent(i.e_flops), i.expected, WORDS[i.verdict])
        found = next((r for case_id in i.case_ids if (r := counted.get((i.op, i.impl, case_id)))), None)
        rows.append((*row, *(counters(view, i, found) if counted else ())))
    headers = [
        "op",
        "implementation",
        "smallest case",
        "what was varied",
        "e_bytes",
        "e_FLOPs",
        "predicted",
        "bound by",
    ]
    return Table(headers=headers + ["counters", "do they agree?"] * bool(counted), rows=rows, numeric=(4, 5))


def exponent(interval: Interval | None) -> str:
    return ratio(interval, 2) if interval else "held"


def counters(view: View, intervention: Intervention, record: Record | None) -> tuple[str, str]:
    """What the counters of one of the cases say, and whether the intervention says the same."""
    shares = busy(view, record) if record else None
    if shares is None:
        return "", ""
    dram, arithmetic = shares
    said = "neither" if max(shares) < BUSY else "memory" if dram >= arithmetic else "arithmetic"
    words = f"DRAM {percent(dram)} busy, arithmetic {percent(arithmetic)}: {said}"
    if intervention.verdict in MEMORY:
        shown = "memory"
    else:
        shown = "arithmetic" if intervention.verdict in ARITHMETIC else "neither"
    if said == shown:
        return words, "yes"
    return words, "undecided" if "neither" in (said, shown) else "no"


def busy(view: View, record: Record) -> tuple[float, float] | None:
    """The counted bytes' time at the read roof and the executed FLOPs' time at the peak, over the measured time."""
    found, ceilings, seconds = record.counters, view.run.ceilings, record.seconds
    if ceilings is None or not seconds or found["dram_read"] is None or found["intensity"] is None:
        return None
    moved = found["dram_read"] + (found["dram_written"] or 0.0)
    peaks = [ceilings.pipes[pipe] for pipe in record.work["flops"] if pipe in ceilings.pipes]
    if not peaks:
        return None
    return moved / ceilings.read_roof / seconds, found["intensity"] * moved / max(peaks) / seconds


def sentence(found: Evidence) -> str:
    """`by intervention, yes: 1% more bytes take 0.98% more time, 1% more FLOPs 0.02%`."""
    said = f"by intervention, {found.answer}"
    if found.answer == "probably":
        return f"{said}: 1% more FLOPs take {found.e_flops:z.2f}% more time, but bytes never varied alone"
    if found.answer in ("no", "undecided"):
        return f"{said}: {short(found)}"
    if found.answer == "in part":
        said += f": {found.yes} of {found.groups} groups say yes and {found.no} say no"
    if found.e_bytes is not None:
        said += f"{';' if found.answer == 'in part' else ':'} 1% more bytes take {found.e_bytes:z.2f}% more time"
        said += f", 1% more FLOPs {found.e_flops:z.2f}%" if found.e_flops is not None else ""
    return said


def short(found: Evidence) -> str:
    """The same in a few words, without numbers."""
    return {
        "yes": "time follows the bytes" + (", not the FLOPs" if found.e_flops is not None else ""),
        "no": "time follows the FLOPs, or it does not follow the bytes",
        "in part": "time follows the bytes in some tests alone",
        "undecided": "time clearly follows neither the bytes nor the FLOPs",
        "probably": "more FLOPs take no more time, but bytes never varied alone",
    }[found.answer]


def remarks(view: View) -> Sequence[str]:
    """What the reader must know before the table."""
    counted = any(r.counters for r in view.run.records)
    return (REMARK, *([COUNTED] if counted else []), *unused(view))


def unused(view: View) -> Sequence[str]:
    """How many times are in no intervention, and why; nothing where all of them are."""
    records = [p.record for p in view.points]
    reasons = left_out(records, view.interventions)
    if not reasons:
        return ()
    told = "; ".join(f"{count} because {reason}" for reason, count in reasons.items())
    return (f"Of {len(records)} times, {sum(reasons.values())} are in no group: {told}.",)
