"""The sentences of a report, as plain strings that Markdown and HTML both show."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from bench.claims import Verdict
from bench.claims.base import Status as ClaimStatus
from bench.report.frame import WITHIN, Accuracy, View
from bench.report.tables import flatten
from bench.report.units import percent, si

COUNTERS = (
    "Read from the hardware during one cold launch, beside what the implementation declares that it moves: the "
    "prediction stands on the declared bytes."
)

REPETITIONS = "The same cases measured again in the same run: largest over smallest median, less one."

RESOLUTION = "The same thing measured twice at once: smaller differences than these mean nothing."


def notices(view: View) -> list[str]:
    """What a reader must know before any number: a run cut short, a run on a CPU, damaged lines."""
    run = view.run
    found = []
    if not run.on_gpu:
        found.append("Measured on a CPU with the torch reference path; says nothing about GPUs.")
    if not run.complete:
        found.append(f"Partial run: it stopped before its end, with {len(run.records)} records written.")
    if not view.points:
        found.append("No decode case has a time; the reasons are listed below.")
    if view.ceilings is None:
        found.append("No read was measured, so there is no measured roof and nothing can be compared with it.")
    found += [f"Damaged line: {warning}." for warning in run.warnings]
    return found


def verdict(view: View) -> list[str]:
    """The answer in three lines: the roof and who comes close, whether decode is memory-bound, the predictions."""
    return [_roof(view), _memory(view), _accuracy(view)]


def _roof(view: View) -> str:
    if view.ceilings is None:
        return f"{view.device_name}: no measured roof."
    line = f"{view.device_name} reads at most {si(view.ceilings.read_roof, 'B/s')}"
    if sheet := view.datasheet("memory_bandwidth"):
        line += f" ({percent(view.ceilings.read_roof / sheet)} of its datasheet's {si(sheet, 'B/s')})"
    whose = "our " if view.ours else ""
    parts = []
    for op, words in (("ffn_gemv", "large GEMV"), ("attention_decode", "large attention")):
        best = view.best_large(op)
        parts.append(
            f"{whose}best {words} reaches {percent(best.share or 0)} of that ({best.record.case_id})"
            if best
            else f"no {words} was measured"
        )
    return f"{line}; {' and '.join(parts)}."


def _memory(view: View) -> str:
    if not view.best:
        return "Is decode memory-bound here? Nothing was measured."
    bound, held, every = len(view.memory_bound), len(view.as_predicted), len(view.best)
    if not any(p.predicted("measured") for p in view.best):
        return "Is decode memory-bound here? No prediction was stored, so nothing was tested."
    share = percent(bound / every)
    line = f"Is decode memory-bound here? {bound} of {every} cases ({share}) are predicted to be bound by memory"
    if not bound:
        return f"{line}."
    return f"{line}, and {held} of those ({percent(held / bound)}) ran within {percent(WITHIN)} of that prediction."


def _accuracy(view: View) -> str:
    accuracy = Accuracy.of(view.ours or view.points, "measured")
    if accuracy is None:
        return "The predictions: none from measured ceilings."
    line = (
        f"The predictions, made before measuring, miss by {percent(accuracy.median, 1)} in the median and lie within "
        f"{percent(WITHIN)} for {percent(accuracy.within)} of {accuracy.cases} times"
    )
    sheet = Accuracy.of(view.ours or view.points, "datasheet")
    if sheet:
        line += f"; from the datasheet alone {percent(sheet.median, 1)} and {percent(sheet.within)}"
    return f"{line}."


def notes(view: View) -> list[str]:
    """What the run found out about itself, one line each; the A/A differences apart."""
    return [
        "; ".join(f"{name}: {said}" for name, said in flatten("", note))
        for note in view.run.notes
        if note.get("note") not in ("aa", "counters")  # both have a table of their own
    ]


def reproduce(view: View) -> list[str]:
    """The command lines that made the run, one per process that wrote to it."""
    commands = [header["argv"] for header in view.run.headers if header.get("argv")]
    return list(dict.fromkeys(shlex.join(["uv", "run", "decodebench", *arguments]) for arguments in commands))


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims got which verdict, and what the words mean."""
    counts = Counter(v.status for v in verdicts)
    parts = ", ".join(f"{counts[status]} {status}" for status in get_args(ClaimStatus) if counts[status])
    return (
        f"Of {len(verdicts)} published claims: {parts}. DEPENDS names the settings at which a claim holds; a claim "
        "that needs a measurement which this run does not have is NOT MEASURED, whatever is predicted."
    )
