"""One page about a fleet: who is slow, by how much, and what its board says; and a table for a support ticket."""

from __future__ import annotations

import csv
from pathlib import Path

from bench.files import replacing, write_text
from bench.judge.fleet.verdict import SHOWN, Verdict
from bench.judge.view import Table
from bench.report import PAGES, can_make
from bench.report.markdown import escape, markdown_table

TICKET = "ticket.csv"

RULE = (
    "A number is the rate of a share beside the median of the other shares, over the cases that they have in common. "
    "`!` marks an outlier: it is slower than the margin, and so is its whole interval."
)


def write(verdict: Verdict, directory: Path, notes: list[str], *, html: bool = True) -> list[Path]:
    """`fleet.md` and `fleet.html`, and `ticket.csv` where there are outliers. Returns the paths."""
    written = [directory / "fleet.md"]
    write_text(written[0], markdown(verdict))
    page = directory / "fleet.html"
    if html and can_make(page.name, PAGES, notes):
        from bench.report.html import fleet

        write_text(page, fleet(verdict.lines(), sections(verdict)))
        written.append(page)
    ticket = directory / TICKET
    if verdict.outliers:
        table = verdict.ticket()
        with replacing(ticket) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([table.headers, *table.rows])
        written.append(ticket)
    else:
        ticket.unlink(missing_ok=True)
    return written


def sections(verdict: Verdict) -> list[tuple[str, str, Table]]:
    """Heading, text and table of each section that has something to say."""
    found = []
    if verdict.outliers:
        found.append(("For a support ticket", "Also in ticket.csv.", verdict.ticket()))
    shown = f" The {SHOWN} shares that are farthest from the others are shown." if len(verdict.members) > SHOWN else ""
    found.append(("Each share beside the others", RULE.replace("`", "") + shown, verdict.table()))
    if any(member.summary.get("on_gpu") for member in verdict.members):
        said = "Medians while cases ran; power and temperature are the highest of any case."
        found.append(("Boards", said, verdict.board_table()))
    return found


def markdown(verdict: Verdict) -> str:
    parts = ["# decodebench: a fleet", *(f"- {escape(line)}" for line in verdict.lines())]
    for heading, text, table in sections(verdict):
        parts += [f"\n## {heading}\n", escape(text), "", markdown_table(table)]
    return "\n".join(parts) + "\n"
