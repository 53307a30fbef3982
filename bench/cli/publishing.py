"""Commands about what others measured and published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.terminal.options import AsJson, examples
from bench.terminal.screen import show, show_json

app = typer.Typer()

Action = Annotated[
    Literal["show", "fetch", "distill"],
    typer.Argument(help="show the committed table, fetch the package behind it, or distill it again"),
]
Wheel = Annotated[Path | None, typer.Option(help="a wheel, or its directory (default: what is installed)")]


@app.command(epilog=examples("published fetch --wheel downloads", "published distill --wheel downloads"))
def published(
    action: Action = "show",
    wheel: Wheel = None,
    out: Annotated[Path | None, typer.Option(help="write the table here (default: where the committed one is)")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the committed table of published measurements, or make it again from NVIDIA's aiconfigurator-core."""
    from bench.judge.published import command

    if action == "show":
        found = command.committed()
    elif action == "fetch":
        found = command.fetch(wheel)
    else:
        found = command.distill(wheel, out)
    if as_json:
        show_json(found)
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            print(f"{name}: {value}")
    for name in ("rows", "left_out"):
        if name in found:
            print()
            show([name.replace("_", " "), "count"], [[key, f"{count:,}"] for key, count in found[name].items()])
