"""`report.md`: the report in Markdown, as GitHub shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.judge import beside, boundness, goals, peers, steps
from bench.judge.answer import answer
from bench.judge.claims import Verdict
from bench.judge.view import Table, View
from bench.report import tables, text

CAPTIONS = {
    "roofline": "The cases of each op under the roofs. Solid lines were measured in this run, dashed lines are "
    "published. Ops that compute nothing (cache writes, copies) are left out.",
    "prediction": "Measured over predicted time. The prediction was on disk before the measurement began. A point with "
    "a dot inside carries a flag.",
    "efficiency": "Compulsory bytes over time, as a share of the measured read roof. The grey line is a plain read of "
    "as many bytes. The kernel loses the distance up to the line; at this size, everyone loses the rest.",
    "waterfall": "Above: the levels of the largest step that was measured. Below: its operations, all layers together.",
    "batch": "For each precision, the largest weight that was measured at three or more batches. Where a line is flat, "
    "a larger batch is free.",
}


ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_|[]<>"})


def render(view: View, verdicts: Sequence[Verdict], figures: Mapping[str, Path], directory: Path) -> str:
    """The whole report. Links to figures are relative to `directory`."""
    return "\n\n".join(part for part in _parts(view, verdicts, figures, directory) if part) + "\n"


def _parts(view: View, verdicts: Sequence[Verdict], figures: Mapping[str, Path], directory: Path) -> Iterator[str]:
    answered = answer(view)
    yield f"# decodebench on {escape(view.run.device_name)}"
    yield escape(text.subtitle(view))
    for notice in [answered.warning] * bool(answered.warning) + text.notices(view):
        yield f"> **{escape(notice)}**"
    yield markdown_table(tables.tiles(answered))
    yield "\n".join(f"{n}. {escape(line)}" for n, line in enumerate(text.verdict(view), start=1))
    yield from map(escape, text.methods(view))
    for name in ("batch", "roofline"):
        yield from _figure(name, figures, directory)
    yield from _section(boundness.HEADING, boundness.table(view, leading_only=True), *boundness.remarks(view))
    yield from _folded("Every other intervention", boundness.table(view, leading_only=False))
    yield from _steps(view, figures, directory)
    yield "## Published claims"
    yield escape(text.tally(verdicts))
    yield from _folded("Every claim", tables.scorecard(verdicts))
    if view.ops:
        yield "## Every case"
        yield text.CASES
    for op in view.ops:
        yield from _folded(op, tables.cases(view, op))
    for name in ("prediction", "efficiency"):
        yield from _figure(name, figures, directory)
    yield from _section("By op", tables.summary(view), *([peers.STANDING] if view.peers else []))
    if judged := goals.judged(view):
        yield from _section("Goals", goals.table(judged), goals.tally(judged))
    yield from _section("Peers", peers.by_peer(view), peers.REMARK)
    yield from _folded("Every peer, case by case", peers.by_case(view))
    yield from _section("Best published times", beside.table(view), beside.REMARK)
    yield from _section("Ceilings", tables.ceilings(view))
    if view.unmeasured:
        yield "## Not measured"
        if (failed := tables.unmeasured(view, refused=False)).rows:
            yield markdown_table(failed)
        yield from _folded(
            "Refused: the implementation does not support the case", tables.unmeasured(view, refused=True)
        )
    yield from _section("Flags", tables.flags(view))
    yield from _section("Hardware counters", tables.counters(view), text.COUNTERS)
    yield from _section("Repetitions", tables.repetitions(view), text.REPETITIONS)
    yield from _section("Ranks", tables.ranks(view), text.RANKS)
    yield from _section("Resolution", tables.same_against_same(view), text.RESOLUTION)
    if found := text.notes(view):
        yield "## Notes"
        yield "\n".join(f"- {escape(line)}" for line in found)
    yield from _folded("Environment", tables.environment(view))
    if commands := text.reproduce(view):
        yield "## Reproduce"
        yield "```\n" + "\n".join(commands) + "\n```"


def _steps(view: View, figures: Mapping[str, Path], directory: Path) -> Iterator[str]:
    found = steps.waterfalls(view)
    if not found:
        return
    yield f"## {steps.HEADING}"
    yield escape(steps.REMARK)
    yield from _figure("waterfall", figures, directory)
    for each in found:
        yield escape(f"{steps.sentence(each)}.")
        yield markdown_table(steps.levels(each[1]))
        yield from _folded("Its operations", steps.operations(each[1]))


def _figure(name: str, figures: Mapping[str, Path], directory: Path) -> Iterator[str]:
    if name in figures:
        yield f"![{name}]({figures[name].relative_to(directory).as_posix()})"
        yield CAPTIONS[name]


def _section(heading: str, table: Table, *remarks: str) -> Iterator[str]:
    if table.rows:
        yield f"## {heading}"
        yield from map(escape, remarks)
        yield markdown_table(table)


def _folded(heading: str, table: Table) -> Iterator[str]:
    if table.rows:
        yield f"<details><summary>{heading} ({len(table.rows)} row{'s' * (len(table.rows) != 1)})</summary>"
        yield markdown_table(table)
        yield "</details>"


def markdown_table(table: Table) -> str:
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.headers))]
    lines = [table.headers, rule, *([escape(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(value: str) -> str:
    """The text on one line, so that Markdown shows it as it is."""
    return " ".join(value.split()).translate(ESCAPED)
