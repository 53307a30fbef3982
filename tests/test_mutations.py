"""A run file that was damaged anywhere: no traceback, what is whole is used, and what is left out is said."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.files import write_text
from bench.judge import kin
from bench.judge.claims import scorecard
from bench.judge.compare import compare
from bench.judge.view import View
from bench.predict.calibration import Machine
from bench.records import FILE
from bench.report import html, markdown, several, share
from bench.run import load, load_run
from tests.support import ROOT

SEED = next((ROOT / "reports").glob(f"cpu-intel-*/*/{FILE}"))
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3.5, -3.5, 1e300, 10**40, float("nan"), float("inf"), -float("inf")),
    *("", "x", "\x1b[31m", "a" * 500, "é\n|", [], [[]], [None], [1, "a"], {}, {"a": 1}, {"": None}, {"value": "x"}),
    *(
        10**400,
        -(10**400),
        5e-324,
        "\ud800",
        "\x00",
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "../../etc",
        [1e308] * 3,
    ),
    functools.reduce(lambda inner, _: {"a": [inner]}, range(100), {}),
    functools.reduce(lambda inner, _: [inner], range(900), []),
]
"""What a field becomes: another type, no number or too large a one, a text that is code somewhere, a deep nest."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutated(lines: list[str], rng: random.Random) -> list[str]:
    """One line changed: a value replaced, a field deleted or renamed, the text cut, a byte changed, or lines that are
    there twice, missing, in another order, or joined."""
    lines, number = list(lines), rng.randrange(len(lines))
    text = lines[number]
    kind = rng.random()
    if kind < 0.1:
        lines[number] = text[: rng.randrange(len(text))]
    elif kind < 0.2:
        at = rng.randrange(len(text))
        lines[number] = text[:at] + rng.choice('{}[]",:0x\\ \x00') + text[at + 1 :]
    elif kind < 0.23:
        other = rng.randrange(len(lines))
        change = rng.randrange(4)
        if change == 0:
            lines.insert(other, text)
        elif change == 1:
            del lines[number]
        elif change == 2:
            lines[number], lines[other] = lines[other], text
        else:
            lines[number] = text + lines[other]
    elif kind < 0.28:
        lines[number] = rng.choice(
            ["", "null", "[]", "{}", '{"kind":"run"}', '{"kind":"note"}', "[" * 5000, "\ufeff" + text, '{"kind":1e999}']
        )
    else:
        line = json.loads(text)
        *parents, last = rng.choice(list(places(line)))
        inner = line
        for key in parents:
            inner = inner[key]
        if isinstance(inner, dict) and rng.random() < 0.2:
            del inner[last]
        elif isinstance(inner, dict) and rng.random() < 0.1:
            inner[f"{last} "] = inner.pop(last)
        else:
            inner[last] = rng.choice(VALUES)
        lines[number] = json.dumps(line)
    return lines


def one_line(ask: Callable[[], Any]) -> Any:
    """The answer, or None for a request that is refused in one line."""
    try:
        return ask()
    except BadRequest as error:
        said = str(error)
    assert "\n" not in said
    return None


def read_everything(directory: Path, *, judge: bool) -> None:
    """All that a user can ask of a run, each with a result or one line."""
    run = one_line(lambda: load_run(directory))
    if run is None:
        return
    assert all(each.startswith(f"{FILE}:") and each.endswith("the line is left out") for each in run.warnings)
    load(directory)
    one_line(lambda: Machine.of(run))
    shared = one_line(lambda: share.write(directory, directory / "shared.jsonl"))
    assert load_run(shared).warnings == []
    if judge:
        view, verdicts = View(run), scorecard([run])
        write_text(directory / "report.md", markdown.render(view, verdicts, {}, directory))
        write_text(directory / "report.html", html.render(view, verdicts))
        one_line(lambda: compare(run, load_run(SEED)))
        several.cases_table([view, View(load_run(SEED))])
        kin.table(kin.standings(run, [run, load_run(SEED)]))


def noted_lines() -> list[str]:
    """The committed run, and notes of each kind."""
    lines = SEED.read_text().splitlines()
    key = {"op": "stream", "impl": "torch", "case_id": "read-1MiB"}
    notes = [
        {"note": "aa", **key, "samples_s": [[1e-3, 2e-3], [1e-3, 1.1e-3]]},
        {"note": "counters", **key, "dram_read": 1.0, "dram_written": 0.0},
        {"note": "counters denied", "reason": "no"},
        {"note": "missing", "op": "stream", "module": "x", "reason": "y"},
        {"note": "interrupted", "at": "2026-11-21T11:21:28+00:00"},
    ]
    return [*lines, *(json.dumps({"kind": "note", **note}) for note in notes)]


@pytest.mark.parametrize("part", range(4))
def test_a_mutated_run_is_read_and_judged(tmp_path: Path, part: int) -> None:
    mutate(tmp_path, seed=part, loads=60, judged=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_mutations_of_a_run(tmp_path: Path, part: int) -> None:
    mutate(tmp_path, seed=100 + part, loads=1000, judged=60)


def mutate(directory: Path, *, seed: int, loads: int, judged: int) -> None:
    rng, lines = random.Random(seed), noted_lines()
    # most lines do not differ in what matters: the header, the notes, and every 20th record and prediction
    lines = [line for number, line in enumerate(lines) if number == 0 or '"note"' in line or number % 20 == 0]
    for turn in range(loads):
        (directory / FILE).write_text("\n".join(mutated(lines, rng)) + "\n", encoding="utf-8", errors="replace")
        read_everything(directory, judge=turn < judged)
