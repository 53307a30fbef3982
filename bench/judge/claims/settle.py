"""How a claim is judged: published numbers against predicted and measured ones, setting by setting.

A claim's text seldom names its whole setting (model, precision, batch, context ...). So a prediction is made at each
setting of a declared grid, and a published number fits at the settings where the predicted value is within its
tolerance. The verdict follows from the grid alone:

- `HOLDS`: every published number fits at every setting. `DEPENDS`: all numbers fit together at some settings, and these
  settings are the condition. `FAILS`: they fit together at no setting.
- Some numbers of one claim share no setting, such as the SRAM of one chip and the bandwidth of another. They get a
  factor that tells them apart (`the`, `phase`, `machine`), so that the claim holds for some of them. The condition of
  `DEPENDS` then ends with the numbers that fit at no setting.
- A value that is only a bound decides in two cases: the published number lies beyond it, or the published range is open
  at the other end. In all other cases it leaves the number open, and the setting neither fits nor fails.
- A measured value replaces the predicted one of the same setting. Settings that were not measured keep their
  prediction. If several devices measured something, each one is judged together with the remaining predictions.
- A claim that must be measured is `NOT MEASURED` until a device of the right kind measured it, whatever is predicted.
- A claim that names no GPU (`any_part`) is judged by a run on a CPU if no run on a GPU is given: "on this CPU". Its
  times are those at the usual speed of the memory in the run, and no prediction of a GPU stands beside them.
- Evidence is ranked: what our runs measured (MEASURED), else what others published (PUBLISHED), else, for claims that
  need no measurement, the model (PREDICTED). Published values replace predictions as measured ones do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

from bench.judge.claims.base import Claim, Comparison, NoPrediction, Status, Unmeasured, Verdict
from bench.judge.claims.others import Others
from bench.judge.claims.reading import MeasuredPart
from bench.judge.claims.settings import describe

DEVICE = "device"
"""The factor that tells apart the values that several devices measured."""

ONLY_PREDICTED = " (predicted; nothing measured fits)"
"""Added to a condition that no measurement supports."""


def judge_claim(claim: Claim, runs: Sequence[MeasuredPart], others: Others | None = None) -> Verdict:
    """Pure: the same runs and the same published rows give the same verdict."""
    predicted, gap = _predict(claim)
    predicted_status, predicted_condition = settle(predicted) if predicted else (None, "")
    measured, reason = _measure(claim, runs) if claim.needs_measurement else ([], "")
    on_this_cpu = claim.any_part and bool(measured) and not any(run.on_gpu for run in runs)
    evidence: Sequence[Comparison] = [c for c in measured if c.on_gpu or on_this_cpu]
    published: tuple[Comparison, ...] = ()
    if not evidence and others is not None and claim.by_others:
        published, absent = _published(claim, others)
        reason = "; ".join(filter(None, (reason, absent)))
    evidence = evidence or published
    judged: Sequence[Comparison] = ()
    if on_this_cpu:
        judged = evidence  # the predictions are of GPUs
    elif evidence:
        judged = [*evidence, *predictions_beside(predicted, evidence)]
    elif not claim.needs_measurement:
        judged, reason = predicted, f"no prediction: {gap}"
    status: Status = "NOT MEASURED"
    condition = ""
    if judged:
        decided, words = settle(judged)
        status, condition, reason = (decided, words, "") if decided else (status, "", words)
    return Verdict(
        claim=claim,
        status=status,
        condition=condition,
        reason=reason,
        predicted_status=predicted_status,
        predicted_condition=predicted_condition,
        predicted=predicted,
        measured=tuple(measured) or None,
        on_this_cpu=on_this_cpu,
        published=published,
        gap=gap,
    )


@cache
def _predict(claim: Claim) -> tuple[tuple[Comparison, ...], str]:
    """All predictions, and what could not be predicted. The same in every call: a claim depends on nothing else."""
    if claim.predict is None:
        return (), "the model does not cover this"
    try:
        given = claim.predict()
    except NoPrediction as error:
        given = [error]
    gaps = dict.fromkeys(str(g) for g in given if isinstance(g, NoPrediction))
    return tuple(c for c in given if isinstance(c, Comparison)), "; ".join(gaps)


@cache
def _published(claim: Claim, others: Others) -> tuple[tuple[Comparison, ...], str]:
    """What others' tables say, or the reason why they say nothing."""
    assert claim.by_others
    try:
        return tuple(claim.by_others(others)), ""
    except Unmeasured as error:
        return (), f"published tables: {error}"


def _measure(claim: Claim, runs: Sequence[MeasuredPart]) -> tuple[list[Comparison], str]:
    """The comparisons of all runs, and the reason if none of them counts.

    If several GPUs measured something, each value gets its device's name, unless all values name their part already.
    """
    if claim.never:
        return [], claim.never
    found: list[Comparison] = []
    reasons: list[str] = []
    if claim.measure is not None:
        of_runs: list[tuple[MeasuredPart, Comparison]] = []
        for run in runs:
            try:
                of_runs += [(run, replace(c, on_gpu=run.on_gpu)) for c in claim.measure(run)]
            except Unmeasured as error:
                reasons.append(str(error))
        several = len({run.device for run, _ in of_runs if run.on_gpu}) > 1
        if several and not all(run.name in c.setting.values() for run, c in of_runs):
            of_runs = [(run, replace(c, setting={DEVICE: run.device} | c.setting)) for run, c in of_runs]
        found += [c for _, c in of_runs]
    if claim.across is not None:
        gpus = {run.device: run for run in runs if run.on_gpu}
        if len(gpus) < 2:
            reasons.append(f"needs runs of two different GPUs, has {len(gpus) or 'none'}")
        else:
            try:
                found += claim.across(list(gpus.values()))
            except Unmeasured as error:
                reasons.append(str(error))
    if not runs:
        return found, "no run given"
    if not any(run.on_gpu for run in runs) and not claim.any_part:
        return found, "measured on a CPU only; the claim is about GPUs"
    return found, "; ".join(dict.fromkeys(reasons))


def predictions_beside(predicted: Sequence[Comparison], evidence: Sequence[Comparison]) -> list[Comparison]:
    """The predictions that the evidence does not replace. If devices are told apart, those of each device."""
    kept = []
    for device in dict.fromkeys(c.setting.get(DEVICE) for c in evidence):
        mine = [c for c in evidence if c.setting.get(DEVICE) == device]
        where = {DEVICE: device} if device else {}
        kept += [replace(c, setting=where | c.setting) for c in predicted if not c.replaced_by(mine)]
    return kept


def by_number(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons of each published number, in the order in which the numbers first appear."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.published.what, []).append(comparison)
    return groups


def settle(comparisons: Sequence[Comparison]) -> tuple[Status | None, str]:
    """The status that a non-empty set of comparisons gives, and its condition in words (empty for HOLDS).

    The status is None if nothing fits and bounds leave some setting open. The words then say which numbers are open.
    """
    settings: dict[frozenset[tuple[str, str]], list[Comparison]] = {}
    for comparison in comparisons:
        settings.setdefault(comparison.setting_key, []).append(comparison)
    good = [group for group in settings.values() if all(c.holds for c in group)]
    if len(good) == len(settings):
        return "HOLDS", ""
    numbers = by_number(comparisons)
    if good:
        where = describe([group[0].setting for group in good], [group[0].setting for group in settings.values()])
        if any(c.measured for c in comparisons) and not any(c.measured for group in good for c in group):
            where += ONLY_PREDICTED
        nowhere = [what for what, mine in numbers.items() if all(c.holds is False for c in mine)]
        words = [where, *_left_open(numbers)] + ([f"no setting fits {', '.join(nowhere)}"] if nowhere else [])
        return "DEPENDS", "; ".join(words)
    if not all(any(c.holds is False for c in group) for group in settings.values()):
        return None, "; ".join(_left_open(numbers))
    parts = []
    for what, mine in numbers.items():
        fitting = [c.setting for c in mine if c.holds]
        if fitting and len(fitting) < len(comparisons):
            where = describe(fitting, [c.setting for c in mine]) or "every setting"
            parts.append(f"taken alone, {what} fits: {where}")
    return "FAILS", "; ".join(parts)


def _left_open(numbers: dict[str, list[Comparison]]) -> list[str]:
    """`an upper bound leaves open: the speed (batch 1)`, and the same for lower bounds."""
    found = []
    for bound, name in (("upper", "an upper bound"), ("lower", "a lower bound")):
        left = []
        for what, mine in numbers.items():
            if some := [c.setting for c in mine if c.bound == bound and c.holds is None]:
                where = describe(some, [c.setting for c in mine])
                left.append(f"{what} ({where})" if where else what)
        if left:
            found.append(f"{name} leaves open: {', '.join(left)}")
    return found
