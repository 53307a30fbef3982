"""The options that several commands share, and the examples under a command's help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.terminal.arguments import comma_separated


def split(param: typer.CallbackParam, values: list[str] | None) -> list[str]:
    """The names of an option that may be given several times, or once with commas between the names."""
    return [name for text in values or [] for name in comma_separated(text, str(param.name))]


def names(*flags: str, help: str) -> Any:
    """An option that takes names; `--op a --op b` is `--op a,b`."""
    return typer.Option(*flags, help=f"{help}; comma-separated, or given again", callback=split)


def examples(*commands: str) -> str:
    """An epilog that shows these commands. Typer keeps a line break only where a line is empty."""
    return "\n\n".join(["Examples:", *(f"decodebench {command}" for command in commands)])


AsCsv = Annotated[bool, typer.Option("--csv", help="print the table as CSV")]
AsMarkdown = Annotated[bool, typer.Option("--md", help="print the table as Markdown")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]
Case = Annotated[str, typer.Option(help="only cases whose id contains this")]
Device = Annotated[str, typer.Option(help="auto, cuda or cpu")]
Html = Annotated[bool, typer.Option(help="write report.html, 2 MB, beside report.md")]
Impls = Annotated[list[str] | None, names("--impl", help="only these implementations")]
Ops = Annotated[list[str] | None, names("--op", help="only these operations")]
RunDirectory = Annotated[Path, typer.Argument(help="a run's directory")]
Suite = Annotated[str, typer.Option(help="whose cases: smoke, quick or full")]
