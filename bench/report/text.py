"""The sentences of a report, as plain strings for both Markdown and HTML."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence

from bench.judge.boundness import evidence, sentence
from bench.judge.claims import Verdict
from bench.judge.claims import tally as count_verdicts
from bench.judge.view import PREDICTION_BAND, Accuracy, View
from bench.run import flatten
from bench.units import percent, si

CASES = (
    "Each time is the median of cold launches, with the half-width of its 95% interval. GB/s counts only the "
    "compulsory bytes (1 GB = 1e9 B). The percentage behind a prediction says how far the measured time is from it."
)

COUNTERS = (
    "The hardware counted these during one cold launch. In brackets is the difference from the bytes that the "
    "implementation declares, which the prediction is made from."
)

REPETITIONS = "The run measured these cases several times. The spread is the largest median over the smallest, minus 1."

RANKS = (
    "Each rank's seconds from the barrier to the end of its own part. A sample is the time of its slowest rank. The "
    "spread is the largest median over the smallest, minus 1."
)

RESOLUTION = (
    "The run measured one case of each op twice, interleaved. The resolution of the op is how far the interval of "
    "the difference reaches: a smaller difference between two times of the op means nothing."
)


FEW_LINES = 3
"""As many damaged lines are named above the answer. If there are more, all are named below it."""


def notices(view: View) -> list[str]:
    """What the reader must know before any number: that the run stopped early, was on a CPU, or has damaged lines."""
    run = view.run
    found = []
    if not run.on_gpu and not run.on_host:
        found.append("Where it was measured is not known: the line of the file that says so is missing or damaged.")
    elif not run.on_gpu:
        found.append("Measured on a CPU; says nothing about GPUs.")
    if not run.complete:
        found.append(f"Partial run: it stopped before its end, with {len(run.records)} records written.")
    if not view.points:
        found.append("No decode case has a time; the reasons are listed below.")
    if view.run.ceilings is None:
        found.append("No read was measured, so there is no measured roof to compare with.")
    if len(run.warnings) > FEW_LINES:
        return [*found, f"{len(run.warnings)} lines of the file are damaged and left out; they are named below."]
    return [*found, *map(damaged, run.warnings)]


def methods(view: View) -> list[str]:
    """What the reader must know after the answer: how a host's roof and predictions came about, and many damaged
    lines."""
    found = []
    if rates := view.paired:
        low, high = (si(rate, "B/s") for rate in rates)
        found.append(
            "The read roof was measured between the samples of each case, because the memory of a host is not always "
            f"equally fast: from case to case it read {low} to {high}. Each prediction and each share of the roof "
            "takes the roof of the same seconds. The formula, the bytes and the FLOPs were stored before."
        )
    if any(p.record.core_s for p in view.points):
        found.append(
            "Predictions also know how long the instructions of our kernels take (core): between the samples, the same "
            "kernel was timed over data that the caches of the cores hold. So a prediction says whether a kernel waits "
            "for the memory or for its own instructions."
        )
    return found + [damaged(each) for each in view.run.warnings if len(view.run.warnings) > FEW_LINES]


def damaged(warning: str) -> str:
    return f"Damaged line: {warning}."


def subtitle(view: View) -> str:
    """The suite, when the run began, and how many cases it timed: the one count that the first screen gives."""
    header, cases = view.run.header, len({p.case for p in view.points})
    said = [str(header[k]) for k in ("suite", "started") if header.get(k)]
    return ", ".join([*said, f"{cases} case{'s' * (cases != 1)} timed"])


def verdict(view: View) -> list[str]:
    """The answer in three lines: the roof and how close decode comes, whether it is memory-bound, the predictions."""
    return [_roof(view), _memory(view), _accuracy(view)]


def _roof(view: View) -> str:
    if view.run.ceilings is None:
        return f"{view.run.device_name}: no measured roof."
    line = f"{view.run.device_name} reads at most {si(view.run.ceilings.read_roof, 'B/s')}"
    if sheet := view.run.published("memory_bandwidth"):
        whose = "its datasheet's" if sheet.kind == "datasheet" else f"the {sheet.kind}"
        line += f" ({percent(view.run.ceilings.read_roof / sheet.value)} of {whose} {si(sheet.value, 'B/s')})"
    size = "large " if view.run.on_gpu else ""
    reached, absent = [], []
    for op in view.leading_ops:
        if found := [p.share or 0.0 for p in view.large(op.name)]:
            reached.append(f"{percent(found[-1])} in {op.title} (median {percent(statistics.median(found))})")
        else:
            absent.append(f"no {size}case of {op.title} was measured")
    if reached:
        whose = "our" if view.ours else "the"
        line += f"; of that, {whose} best {size}case reaches {' and '.join(reached)}"
    return "; ".join([line, *absent]) + "."


def _memory(view: View) -> str:
    """Interventions come first if the run has any, since they test what predictions only say."""
    question = "Is decode memory-bound here?"
    if not view.decode:
        return f"{question} Nothing was measured."
    bound, held, every = len(view.memory_bound), len(view.as_predicted), len(view.decode)
    found = evidence(view)
    if not any(p.predicted("measured") for p in view.decode):
        predicted = "no prediction was stored" + ("" if found else ", so nothing was tested")
    else:
        predicted = f"by prediction, {percent(bound / every)} of the cases are"
        if bound:
            near = f"within {percent(PREDICTION_BAND)} of the predicted time"
            predicted += f", and {percent(held / bound)} of those ran {near}"
    answer = f"{sentence(found)}; {predicted}" if found else predicted
    return f"{question} {answer[0].upper()}{answer[1:]}."


def _accuracy(view: View) -> str:
    accuracy = view.accuracy
    if accuracy is None:
        line = "The predictions: none from measured ceilings"
    else:
        made = "made before measuring"
        if view.paired:
            made = "by the formula that was stored before, with the read roof measured between the samples of each case"
        line = (
            f"The predictions, {made}, miss by {percent(accuracy.median, 1)} in the median{view.accuracy_of} "
            f"and lie within {percent(PREDICTION_BAND)} for {percent(accuracy.within)} of the times"
        )
    if count := len(view.slow):
        line += (
            f"; {count} of the misses {'is a slow kernel' if count == 1 else 'are slow kernels'} of ours, for another "
            "implementation took the predicted time"
        )
    if view.noisy > 0.5:
        return f"{line}; but {percent(view.noisy)} of all times are noisy: measure again on an idle machine."
    sheet = Accuracy.of(view.ours or view.points, "datasheet")
    if accuracy and sheet:
        line += f"; predictions from the datasheet alone: {percent(sheet.median, 1)} and {percent(sheet.within)}"
    return f"{line}."


def notes(view: View) -> list[str]:
    """What the run noted about itself, one line each. A/A pairs and counters have their own tables."""
    return [
        "; ".join(f"{name}: {said}" for name, said in flatten("", note))
        for note in view.run.notes
        if note.get("note") not in ("aa", "counters")
    ]


def reproduce(view: View) -> list[str]:
    """The commands that made the run, one per process that wrote to it."""
    commands = [header["argv"] for header in view.run.headers if header.get("argv")]
    return list(dict.fromkeys(shlex.join(["uv", "run", "decodebench", *arguments]) for arguments in commands))


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims got which verdict, and what the verdicts mean."""
    return (
        f"{count_verdicts(verdicts)} DEPENDS: the claim holds at the settings that are named. NOT MEASURED: the claim "
        "needs a measurement that this run does not have, whatever is predicted."
    )
