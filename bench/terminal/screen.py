"""What commands print: tables, lines or JSON on stdout, warnings on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from bench.errors import BadRequest

if TYPE_CHECKING:
    from rich.status import Status

    from bench.run import Run


def show(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    as_json: bool = False,
    form: str = "",
    least_important: Sequence[str] = (),
) -> None:
    """Print a table for people, or for machines a list of objects, or in the form `csv` or `md`.

    `bench.terminal.tables` says how it is made to fit a terminal. Columns of `least_important` go first, the first of
    them first. Lines on stderr say what is left out.
    """
    if as_json:
        show_json([dict(zip(headers, row, strict=True)) for row in rows])
        return
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if form:
        print("\n".join(lines_of(form, headers, cells)))
        return
    from rich.console import Console

    from bench.terminal import tables

    # output into a pipe has no terminal whose width could cut it
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000)
    found = tables.fit(headers, cells, console.width, least_important)
    if found.gone:
        complain(f"left out at {console.width} columns: {', '.join(found.gone)}; --csv, --md and --json have all")
    if found.everywhere:
        complain(f"in every row: {', '.join(f'{name} {value}' for name, value in found.everywhere)}")
    header, lines = tables.lines(found, console.width)
    for line in header:
        console.print(line, style="" if os.environ.get("NO_COLOR") else "bold", soft_wrap=True)
    for line in lines:
        console.print(line, soft_wrap=True)


def show_lines(rows: Sequence[tuple[str, str, str]], *, colours: Mapping[str, str]) -> None:
    """Print one line a row: a key, a verdict, and a text that is cut at the terminal's width.

    The verdict's first word gives the colour. Output into a pipe has no colours and is not cut.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    widest = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, verdict, text in rows:
        line = Text.assemble(
            (f"{printable(key):<{widest[0]}}  ", "" if os.environ.get("NO_COLOR") else "bold"),
            (f"{printable(verdict):<{widest[1]}}  ", colours.get(verdict.split()[0], "")),
            printable(text),
        )
        line.truncate(console.width, overflow="ellipsis")
        console.print(line, soft_wrap=True)


def lines_of(form: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table as `csv` or `md`."""
    if form == "csv":
        import csv
        import io

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([headers, *rows])
        return text.getvalue().splitlines()
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (headers, *rows)]
    first, *others = [f"| {' | '.join(row)} |" for row in escaped]
    return [first, f"|{' --- |' * len(headers)}", *others]


def form_of(as_csv: bool, as_md: bool) -> str:
    """The form of a table that two options ask for. BadRequest if both do."""
    if as_csv and as_md:
        raise BadRequest("choose one of --csv and --md")
    return "csv" if as_csv else "md" if as_md else ""


def show_json(content: Any) -> None:
    """Strict JSON: a number that is not finite becomes null."""
    print(json.dumps(finite(content), indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """The value with None for every number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def printable(text: str) -> str:
    """The text without what could steer a terminal: escape codes, and other characters that are not printed."""
    return "".join(each if each.isprintable() or each in "\n\t" else "?" for each in text)


class Sayable(Protocol):
    """A result that can be printed for people and for machines."""

    def lines(self) -> list[str]: ...
    def as_dict(self) -> dict[str, Any]: ...


def say(found: Sayable, *, as_json: bool) -> None:
    """Print a result: its lines for people, or its fields for machines."""
    if as_json:
        show_json(found.as_dict())
    else:
        paragraphs(*found.lines())


def paragraphs(*lines: str) -> None:
    """Print lines of text on stdout. A terminal gets long ones wrapped between words."""
    _print(lines, sys.stdout)


def complain(*lines: str) -> None:
    """Print lines of text on stderr, likewise."""
    _print(lines, sys.stderr)


COMMAND = re.compile(r"^\s*\$ |: decodebench ")
"""Such a line ends with a command. It stays one line, so that the command can be copied."""


def _print(lines: Sequence[str], stream: TextIO) -> None:
    from bench.terminal import tables

    width = shutil.get_terminal_size().columns if stream.isatty() else 0
    for line in map(printable, lines):
        short = not width or COMMAND.search(line)
        print(line if short else "\n".join(tables.paragraph(line, width)), file=stream)


def busy(what: str) -> Status:
    """Show a line on stderr while the context is entered."""
    from rich.console import Console
    from rich.status import Status

    return Status(what, console=Console(stderr=True))


def read_run(path: Path) -> Run:
    """Load a run. Say on stderr which lines of its file were left out, and whether it was interrupted."""
    from bench.run import load_run

    run = load_run(path)
    partial = [] if run.complete else ["the run is partial: `decodebench run --resume` continues it"]
    complain(*(f"{run.path}: {said}" for said in (*run.warnings, *partial)))
    return run
