"""The sentences of a report, as plain strings that Markdown and HTML both show."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from bench.judge.boundness import evidence, sentence
from bench.judge.claims import Verdict
from bench.judge.claims.base import Status as ClaimStatus
from bench.judge.view import WITHIN, Accuracy, View
from bench.run import flatten
from bench.units import percent, si

COUNTERS = (
    "Read from the hardware during one cold launch, beside what the implementation declares that it moves: the "
    "prediction stands on the declared bytes."
)

REPETITIONS = "The same cases measured again in the same run: largest over smallest median, less one."

RESOLUTION = (
    "One case of each op measured twice at once. As far as the interval of their difference reaches, that is the op's "
    "resolution: a smaller difference between two of its times means nothing."
)


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
    if view.run.ceilings is None:
        found.append("No read was measured, so there is no measured roof and nothing can be compared with it.")
    found += [f"Damaged line: {warning}." for warning in run.warnings]
    return found


def verdict(view: View) -> list[str]:
    """The answer in three lines: the roof and who comes close, whether decode is memory-bound, the predictions."""
    return [_roof(view), _memory(view), _accuracy(view)]


def _roof(view: View) -> str:
    if view.run.ceilings is None:
        return f"{view.run.device_name}: no measured roof."
    line = f"{view.run.device_name} reads at most {si(view.run.ceilings.read_roof, 'B/s')}"
    if sheet := view.run.published("memory_bandwidth"):
        whose = "its datasheet's" if sheet.kind == "datasheet" else f"the {sheet.kind}"
        line += f" ({percent(view.run.ceilings.read_roof / sheet.value)} of {whose} {si(sheet.value, 'B/s')})"
    size, whose = ("large " if view.run.on_gpu else "", "our " if view.ours else "")
    parts = []
    for op in view.leading_ops:
        if found := [p.share or 0.0 for p in view.large(op.name)]:
            middle = percent(statistics.median(found))
            parts.append(f"{whose}{size}{op.title} reaches at best {percent(found[-1])} of that (median {middle})")
        else:
            parts.append(f"no {size}{op.title} was measured")
    return f"{line}; {', '.join(parts)}." if parts else f"{line}."


def _memory(view: View) -> str:
    """Interventions where the run has any: they test what the predictions only say."""
    question = "Is decode memory-bound here?"
    if not view.decode:
        return f"{question} Nothing was measured."
    bound, held, every = len(view.memory_bound), len(view.as_predicted), len(view.decode)
    found = evidence(view)
    if not any(p.predicted("measured") for p in view.decode):
        predicted = "no prediction was stored" + ("" if found else ", so nothing was tested")
    else:
        predicted = f"{bound} of {every} cases ({percent(bound / every)}) are predicted to be by what they move"
        if bound:
            predicted += f", and {held} of those ({percent(held / bound)}) ran within {percent(WITHIN)} of it"
    answer = f"{sentence(found)}; {predicted}" if found else predicted
    return f"{question} {answer[0].upper()}{answer[1:]}."


def _accuracy(view: View) -> str:
    accuracy = Accuracy.of(view.ours or view.points, "measured")
    if accuracy is None:
        line = "The predictions: none from measured ceilings"
    else:
        line = (
            f"The predictions, made before measuring, miss by {percent(accuracy.median, 1)} in the median and lie "
            f"within {percent(WITHIN)} for {percent(accuracy.within)} of {accuracy.cases} times"
        )
    if view.noisy > 0.5:
        return f"{line}; but {percent(view.noisy)} of all times are noisy: measure again on an idle machine."
    sheet = Accuracy.of(view.ours or view.points, "datasheet")
    if accuracy and sheet:
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
