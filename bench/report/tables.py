"""The tables of a report, as plain strings for both Markdown and HTML."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO
from math import isfinite

from bench.judge import peers
from bench.judge.answer import Answer
from bench.judge.claims import Verdict, main_table
from bench.judge.resolution import pairs, reach
from bench.judge.view import Accuracy, Point, Table, View, gap, once, role
from bench.records import FLAGS
from bench.report.names import case_name
from bench.run import flatten
from bench.units import difference, digits, duration, measured, percent, si, signed


@once
def summary(view: View) -> Table:
    """One row per op: the best and the worst case by share of the read roof, and the fastest peers."""
    rows = []
    for op in view.ops:
        found = sorted(
            (p for p in view.best if p.record.op == op and p.share is not None and p.trusted),
            key=lambda p: p.share or 0,
        )
        if not found or view.run.ceilings is None:
            continue
        worst, best = found[0], found[-1]
        accuracy = Accuracy.of(found, "measured")
        rows.append(
            (
                op,
                str(len(found)),
                f"{share(best.share)} ({best.record.case_id})",
                share(statistics.median(p.share or 0.0 for p in found)),
                f"{share(worst.share)} ({worst.record.case_id})",
                gap(worst, view.run.ceilings, view.by_case[worst.case]),
                percent(accuracy.median, 1) if accuracy else "",
                *peers.standing(view, op),
            )
        )
    return Table(headers=SUMMARY, rows=rows, numeric=(1, 3, 6))


SUMMARY = (
    "op",
    "cases",
    "best of the read roof",
    "median",
    "worst of the read roof",
    "why the worst is there",
    "prediction's median error",
    "fastest peer's time / ours",
    "worst against a peer",
)


def share(of_roof: float | None) -> str:
    """A share of the read roof. Below 10% it has a decimal, so that a cache write's 0.3% does not become 0%."""
    return percent(of_roof or 0.0, 0 if (of_roof or 0.0) >= 0.1 else 1)


@once
def cases(view: View, op: str) -> Table:
    """Every case of an op with a time, of ours and of peers."""
    rows = []
    for p in view.of(op):
        rows.append(
            (
                case_name(op, p.record.case),
                p.record.case_id,
                p.record.impl + ("" if p.record.ours else " (peer)"),
                measured(p.time),
                ", ".join(p.record.flags),
                digits(p.rate / 1e9),
                share(p.share) if p.share is not None else "",
                p.bound,
                expected(p, "measured"),
                expected(p, "datasheet"),
            )
        )
    return Table(headers=CASES, rows=rows, numeric=(3, 5, 6, 8, 9))


CASES = (
    "what it is",
    "case",
    "implementation",
    "median time",
    "flags",
    "GB/s",
    "of read roof",
    "bound",
    "predicted from ceilings",
    "predicted from datasheet",
)
"""The flags stand beside the time that they qualify."""


def cases_csv(view: View) -> str:
    """Every case of every op as CSV, in SI units, in the order of the tables: a header, then one line for each time."""
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(CSV)
    for op in view.ops:
        for p in view.of(op):
            r = p.record
            high = p.time.high if isfinite(p.time.high) else ""
            found = (p.seconds, p.time.low, high, " ".join(r.flags), r.bytes, r.flops, p.rate, p.share, p.bound)
            predicted = (p.predicted("measured"), p.predicted("datasheet"))
            lines.writerow((op, r.case_id, case_name(op, r.case), r.impl, r.ours, *found, *predicted))
    return text.getvalue()


CSV = (
    "op",
    "case",
    "name",
    "impl",
    "ours",
    "median_s",
    "low_s",
    "high_s",
    "flags",
    "bytes",
    "flops",
    "bytes_per_s",
    "of_read_roof",
    "bound",
    "predicted_from_ceilings_s",
    "predicted_from_datasheet_s",
)


def expected(point: Point, basis: str) -> str:
    """A predicted time, and how far the measured time is from it."""
    seconds, error = point.predicted(basis), point.error(basis)
    return f"{duration(seconds)} ({signed(error)})" if seconds and error is not None else ""


def ceilings(view: View) -> Table:
    """The measured ceilings beside the published ones, with the flags of the records that they were read from."""
    found = view.run.ceilings
    if found is None:
        return Table(headers=(), rows=())
    rows = [_ceiling(view, "DRAM read", found.read_roof, "memory_bandwidth")]
    if found.copy_points:
        copy = max(map(rate, found.copy_points))
        rows.append(_ceiling(view, "DRAM copy", copy, "memory_bandwidth"))
    if found.l2_bandwidth:
        rows.append(_ceiling(view, "L2 read", found.l2_bandwidth, "on_chip_bandwidth"))
    if found.host_bandwidth:
        rows.append(_ceiling(view, "to or from the host", found.host_bandwidth, "host_bandwidth"))
    for pipe, flops in sorted(found.pipes.items()):
        rows.append(_ceiling(view, pipe, flops, pipe))
    if found.launch_s:
        said = flagged(view, found.launch_s)
        rows.append(("launch, one empty kernel to the next", duration(found.launch_s), "", "", said))
    for where, points in (("in a cache", found.cached_loads), ("in the memory", found.memory_loads)):
        for size, seconds in points:
            name = f"load that waits for the load before it, {where}, among {si(size, 'B')}"
            rows.append((name, duration(seconds), "", "", chased(view)))
    for point in found.read_points:
        size, seconds = point
        said = flagged(view, seconds)
        rows.append((f"read of {si(size, 'B')}", f"{si(rate(point), 'B/s')} ({duration(seconds)})", "", "", said))
    headers = ("ceiling", "measured", "datasheet", "measured of datasheet", "flags")
    return Table(headers=headers, rows=rows, numeric=(1, 2, 3))


def rate(point: tuple[int, float]) -> float:
    """B/s of bytes and seconds."""
    return point[0] / point[1]


def chased(view: View) -> str:
    """The flags of all chases: the price of a load comes from several of them."""
    found = [flag for r in view.run.timed if r.case.get("kind") == "chase" for flag in r.flags]
    return ", ".join(dict.fromkeys(found))


def flagged(view: View, ceiling: float) -> str:
    """The flags of the records that a ceiling was read from: seconds, B/s or FLOP/s."""
    return ", ".join(dict.fromkeys(flag for value, flag in flags_of_ceilings(view) if value == ceiling))


@once
def flags_of_ceilings(view: View) -> list[tuple[float, str]]:
    """Each number that a ceiling may have been read from, with each flag of its record."""
    found: list[tuple[float, str]] = []
    for r in view.run.timed:
        if r.flags and r.seconds and role(r.op) != "decode":
            amounts = (r.bytes, sum(s["l2_bytes"] for s in r.stages), *r.work["flops"].values())
            values = (r.seconds, *(amount / r.seconds for amount in amounts))
            found += [(value, flag) for value in values for flag in r.flags]
    return found


def _ceiling(view: View, name: str, value: float, published: str) -> tuple[str, ...]:
    said = flagged(view, value)
    unit = "B/s" if published.endswith("bandwidth") else "FLOP/s"
    sheet = view.run.published(published)
    if sheet is None:
        return (name, si(value, unit), "", "", said)
    kind = "" if sheet.kind == "datasheet" else f" ({sheet.kind})"
    return (name, si(value, unit), si(sheet.value, unit) + kind, percent(value / sheet.value), said)


def unmeasured(view: View, *, refused: bool) -> Table:
    """Cases without a time, grouped by reason: either those that an implementation refused, or all others."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for r in view.unmeasured:
        if (r.status == "refused") == refused:
            groups.setdefault((r.status, r.op, r.impl, r.reason or ""), []).append(r.case_id)
    rows = [
        (status, op, impl, str(len(ids)), reason, ids[0] + (" …" if len(ids) > 1 else ""))
        for (status, op, impl, reason), ids in sorted(groups.items())
    ]
    return Table(headers=("status", "op", "implementation", "cases", "reason", "first case"), rows=rows, numeric=(3,))


def flags(view: View) -> Table:
    """Every flag that occurs, with its meaning and where it occurs."""
    where: dict[str, list[str]] = {}
    for p in view.all_points:
        for flag in p.record.flags:
            where.setdefault(flag, []).append(f"{p.record.op} {p.record.impl} {p.record.case_id}")
    rows = [
        (flag, FLAGS.get(flag, ""), str(len(found)), "; ".join(found[:4]) + (" …" if len(found) > 4 else ""))
        for flag, found in where.items()
    ]
    return Table(headers=("flag", "meaning", "times", "where"), rows=rows, numeric=(2,))


OF_A_GPU = ("sm", "sm_count", "l2_bytes", "smem_per_sm")
"""Entries of a target that are only about GPUs. The cores and the cache of a CPU are in the environment."""


def environment(view: View) -> Table:
    """The header's device, target and environment, as names and values."""
    header = view.run.header
    rows: list[tuple[str, str]] = []
    for part in ("suite", "started", "decodebench", "device", "target", "environment"):
        found = header.get(part)
        if part == "target" and found and not view.run.on_gpu:
            found = {name: value for name, value in found.items() if name not in OF_A_GPU}
        rows += flatten(part, found)
    rows += while_measuring(view)
    return Table(headers=("", ""), rows=rows)


POWER_FROM = {
    "energy": "from the board's energy counter",
    "instant": "from readings of the power at a moment",
    "average": "from readings of the driver's average over a second",
    "not said": "the record does not say how it was read",
}


def while_measuring(view: View) -> Iterator[tuple[str, str]]:
    """The telemetry of all cases together: clocks, power, temperature, slowdowns."""
    seen = [r.telemetry for r in view.run.records if r.telemetry]
    for name, words in (("sm_clock_hz", "SM clock"), ("memory_clock_hz", "memory clock")):
        if clocks := [s[name] for s in seen if s.get(name)]:
            lowest, highest = min(c["min"] for c in clocks), max(c["max"] for c in clocks)
            yield f"while measuring: {words}", f"{si(lowest, 'Hz')} to {si(highest, 'Hz')}"
    if power := [s["power_w"] for s in seen if s.get("power_w")]:
        ways = Counter(str(s.get("power_from") or "not said") for s in seen if s.get("power_w"))
        read = ", ".join(
            f"{POWER_FROM.get(way, way)} in {count} case{'s' * (count != 1)}" for way, count in ways.most_common()
        )
        yield "while measuring: mean power of a case", f"{min(power):.0f} W to {max(power):.0f} W ({read})"
    if heat := [s["temperature_c"] for s in seen if s.get("temperature_c")]:
        yield "while measuring: highest temperature", f"{max(heat):.0f} °C"
    for name, words in (("throttled", "throttled"), ("power_capped", "held back by the power cap")):
        if told := [s[name] for s in seen if s.get(name) is not None]:
            yield f"while measuring: cases {words}", f"{sum(told)} of {len(told)}"


def counters(view: View) -> Table:
    """Counted DRAM bytes beside the declared ones, L2 hits, occupancy, executed intensity."""
    rows = []
    for r in view.run.records:
        if found := r.counters:
            rows.append(
                (
                    r.op,
                    r.case_id,
                    r.impl,
                    counted(found["dram_read"], found["declared_read"]),
                    counted(found["dram_written"], found["declared_written"]),
                    *("" if found[name] is None else percent(found[name]) for name in ("l2_hit_rate", "occupancy")),
                    "" if found["intensity"] is None else digits(found["intensity"]),
                )
            )
    return Table(
        headers=(
            "op",
            "case",
            "implementation",
            "DRAM read",
            "DRAM written",
            "L2 hits",
            "occupancy",
            "FLOP/B executed",
        ),
        rows=rows,
        numeric=(3, 4, 5, 6, 7),
    )


def counted(found: float | None, declared: float) -> str:
    """Counted bytes and how far they are from the declared ones."""
    if found is None:
        return ""
    return si(found, "B") + (f" ({signed(found / declared - 1)})" if declared else "")


def repetitions(view: View) -> Table:
    """How much repeated measurements differ, by op."""
    spreads: dict[str, list[float]] = {}
    for (op, _, _), records in view.run.repetitions().items():
        medians = [r.seconds for r in records if r.seconds]
        if len(medians) > 1:
            spreads.setdefault(op, []).append(max(medians) / min(medians) - 1)
    rows = [(op, str(len(s)), percent(statistics.median(s), 1), percent(max(s), 1)) for op, s in spreads.items()]
    return Table(headers=("op", "times", "median spread", "largest spread"), rows=rows, numeric=(1, 2, 3))


def ranks(view: View) -> Table:
    """For each time of several ranks: each rank's median, and how often which one was the slowest of a sample."""
    rows = []
    for r in view.run.timed:
        if r.ranks_s:
            medians = [statistics.median(rank) for rank in zip(*r.ranks_s, strict=True)]
            slowest = Counter(sample.index(max(sample)) for sample in r.ranks_s)
            rank, times = slowest.most_common(1)[0]
            often = f"rank {rank}, {percent(times / len(r.ranks_s))}"
            spread = percent(max(medians) / min(medians) - 1, 1) if min(medians) else ""
            rows.append((r.op, r.impl, r.case_id, ", ".join(map(duration, medians)), spread, often))
    headers = ("op", "implementation", "case", "median of each rank", "spread", "the slowest one most often")
    return Table(headers=headers, rows=rows, numeric=(4,))


def same_against_same(view: View) -> Table:
    """Every A/A pair: how much two measurements of the same thing differ, and so what this run can resolve."""
    rows = []
    for note, ratio in pairs(view.run):
        by = percent(reach(ratio), 1) if isfinite(reach(ratio)) else "unknown"
        rows.append((note["op"], note["impl"], note["case_id"], difference(ratio), by))
    headers = ("op", "implementation", "case", "second / first - 1", "resolution")
    return Table(headers=headers, rows=rows, numeric=(3, 4))


def scorecard(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts on published claims, one row each."""
    headers, rows = main_table(verdicts)
    return Table(headers=headers, rows=rows)


def tiles(found: Answer) -> Table:
    """The three tiles on top of a report: the questions as headers, and one row of answers."""
    cells = [f"{tile.answer}: {tile.because}" for tile in found.tiles]
    return Table(headers=[tile.question for tile in found.tiles], rows=[cells])
