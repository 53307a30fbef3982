"""A part against others of its kind: is this board, or this machine, as fast as those that other people measured?

Runs are of one kind if they were made on the same part with as many SMs, or on the same processor with as many cores.
Each number of a run is compared with the median of the others, so one odd run among them decides nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.judge.view import Table
from bench.run import Run
from bench.units import duration, percent, si, signed
from kernels.op import discover

REMARK = (
    "Each row compares one run with the median of the other runs of the same part. A positive deviation means that the "
    "run is faster than this median. An operation has one rate for each case, that of its fastest implementation. Its "
    "deviation is the median over the cases that the runs share. The range shows how far the others lie from their own "
    "median."
)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One number of a run beside those of the others. Deviations are shares of the others' median, + is faster."""

    measure: str
    mine: str
    """With its unit; for an operation, the number of cases that were compared."""
    median: str
    deviation: float
    others: tuple[float, ...]
    """The deviation of each other run."""

    @property
    def outside(self) -> bool:
        """Whether this run lies outside the range of three or more others."""
        return len(self.others) > 2 and not min(self.others) <= self.deviation <= max(self.others)


def kind(run: Run) -> tuple[str, int]:
    """Runs with the same kind can be compared: the part's name and its SMs, or the processor's name and its cores."""
    target, environment = run.header.get("target") or {}, run.header.get("environment") or {}
    size = target.get("sm_count") if run.on_gpu else environment.get("cores")
    return run.device_name, int(size or 0)


def kinds(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by kind, without kinds that have a single run."""
    found: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        found.setdefault(kind(run), []).append(run)
    return [each for each in found.values() if len(each) > 1]


def is_other(run: Run, other: Run) -> bool:
    """Whether a run says something new: it is neither this run again, for example shared, nor of the same board."""
    boards = [((each.header.get("environment") or {}).get("gpu") or {}).get("board") for each in (run, other)]
    ids = [each.header.get("run_id") for each in (run, other)]
    return other is not run and not (boards[0] and boards[0] == boards[1]) and not (ids[0] and ids[0] == ids[1])


def standings(run: Run, runs: Sequence[Run]) -> list[Standing]:
    """The run beside the others among `runs`, number by number: ceilings first, then operations."""
    others = [other for other in runs if is_other(run, other)]
    found = [*_of_ceilings(run, others), *_of_operations(run, others)]
    return [standing for standing in found if standing.others]


def ceilings_of(run: Run) -> dict[str, tuple[float, str]]:
    """The measured roofs of a run with their units. The launch is a time, and so less is better."""
    if (found := run.ceilings) is None:
        return {}
    named = {"read roof": (found.read_roof, "B/s"), "launch": (found.launch_s, "s")}
    named |= {"L2 read": (found.l2_bandwidth or 0.0, "B/s")}
    named |= {f"peak of {pipe}": (rate, "FLOP/s") for pipe, rate in sorted(found.pipes.items())}
    return {name: each for name, each in named.items() if each[0]}


def _of_ceilings(run: Run, others: Sequence[Run]) -> list[Standing]:
    theirs = [ceilings_of(other) for other in others]
    found = []
    for name, (value, unit) in ceilings_of(run).items():
        if values := [each[name][0] for each in theirs if name in each]:
            middle = statistics.median(values)
            mine, *rest = [middle / each - 1 if unit == "s" else each / middle - 1 for each in (value, *values)]
            said = [duration(each) if unit == "s" else si(each, unit) for each in (value, middle)]
            found.append(Standing(measure=name, mine=said[0], median=said[1], deviation=mine, others=tuple(rest)))
    return found


def rates_of(run: Run) -> dict[str, dict[str, float]]:
    """By operation and case, launches per second of the fastest implementation whose time can be trusted."""
    found: dict[str, dict[str, float]] = {}
    for record in run.trusted:
        if record.seconds and (op := discover().get(record.op)) and op.role == "decode":
            rates = found.setdefault(record.op, {})
            rates[record.case_id] = max(rates.get(record.case_id, 0.0), 1 / record.seconds)
    return found


def _of_operations(run: Run, others: Sequence[Run]) -> list[Standing]:
    theirs = [rates_of(other) for other in others]
    found = []
    for op, mine in rates_of(run).items():
        with_op = [each[op] for each in theirs if op in each]
        middles = {
            case: statistics.median(values)
            for case in mine
            if (values := [each[case] for each in with_op if case in each])
        }
        if middles:
            found.append(
                Standing(
                    measure=discover()[op].title,
                    mine=f"{len(middles)} case{'s' * (len(middles) != 1)}",
                    median="",
                    deviation=_deviation(mine, middles),
                    others=tuple(_deviation(each, middles) for each in with_op if each.keys() & middles.keys()),
                )
            )
    return found


def _deviation(rates: Mapping[str, float], middles: Mapping[str, float]) -> float:
    return statistics.median(rates[case] / middle - 1 for case, middle in middles.items() if case in rates)


def table(found: Sequence[Standing]) -> Table:
    """One row for each number; `n` counts the other runs that have it."""
    rows = []
    for each in found:
        low, high = min(each.others), max(each.others)
        span = f"{signed(low)} to {signed(high)}" if len(each.others) > 1 else "one other run"
        said = "outside the others' range" if each.outside else ""
        rows.append((each.measure, each.mine, each.median, signed(each.deviation), span, str(len(each.others)), said))
    headers = ("measure", "this run", "median of the others", "deviation", "range of the others", "n", "")
    return Table(headers=headers, rows=rows, numeric=(1, 2, 3, 4, 5))


def sentence(found: Sequence[Standing]) -> str:
    """One line for an index: the read roof and the operation that deviates most."""
    named = {each.measure: each for each in found}
    said = [f"reads {_faster(named['read roof'])}"] if "read roof" in named else []
    ops = [each for each in found if not each.median]
    if ops:
        farthest = max(ops, key=lambda each: abs(each.deviation))
        said.append(f"is {_faster(farthest)} in {farthest.measure}")
    if not said:
        return ""
    count = max(len(each.others) for each in found)
    others = "the other run" if count == 1 else f"the median of {count} other runs"
    return f"This run {' and '.join(said)} than {others} of the same part."


def _faster(standing: Standing) -> str:
    return f"{percent(abs(standing.deviation), 1)} {'faster' if standing.deviation >= 0 else 'slower'}"
