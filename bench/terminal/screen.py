"""What commands print: a table or JSON on stdout, what is wrong with a run on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.status import Status

    from bench.records import Run


def show(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool = False) -> None:
    """A table for people, in a narrow terminal a block of lines for each row, or a list of objects for machines."""
    if as_json:
        show_json([dict(zip(headers, row, strict=True)) for row in rows])
        return
    from rich.console import Console
    from rich.table import Column, Table

    cells = [[str(cell) for cell in row] for row in rows]
    # piped output must not be cut to the width of a terminal that is not there
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000)
    if narrowest(headers, cells) <= console.width:
        table = Table(*headers, box=None, header_style="bold", pad_edge=False)
        for row in cells:
            table.add_row(*row)
        console.print(table)
        return
    for row in cells:
        block = Table.grid("", Column(overflow="fold"), padding=(0, 2))
        for header, cell in zip(headers, row, strict=True):
            block.add_row(header, cell)
        console.print(block, "")


def narrowest(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal in which no word of the table is cut. Below that each row becomes a block of lines."""
    columns = zip(headers, *rows, strict=True)
    longest = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    return sum(longest) + 2 * (len(longest) - 1)


def show_json(content: Any) -> None:
    print(json.dumps(content, indent=1))


def busy(what: str) -> Status:
    """A line on stderr for as long as it is entered."""
    from rich.console import Console
    from rich.status import Status

    return Status(what, console=Console(stderr=True))


def warn(run: Run) -> None:
    """That lines of its records were left out, or that it was not brought to its end."""
    partial = [] if run.complete else ["the run is partial: `decodebench run --resume` goes on with it"]
    for said in (*run.warnings, *partial):
        print(f"{run.path}: {said}", file=sys.stderr)
