"""Commands about what others measured and published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import require
from bench.terminal.arguments import comma_separated
from bench.terminal.options import AsCsv, AsJson, AsMarkdown, Ops, Suite, examples, names
from bench.terminal.screen import complain, form_of, paragraphs, show, show_json

app = typer.Typer()

Action = Annotated[
    str, typer.Argument(help="show the committed table, fetch the package behind it, or distill it again")
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

    require("action", [action], ["show", "fetch", "distill"])
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
    for heading in ("rows", "left_out"):
        if heading in found:
            print()
            show([heading.replace("_", " "), "count"], [[key, f"{count:,}"] for key, count in found[heading].items()])


@app.command(epilog=examples("validate --part h100-sxm --op attention_decode", "validate --full --wheel downloads"))
def validate(
    part: Annotated[list[str] | None, names("--part", help="only these parts")] = None,
    op: Annotated[list[str] | None, names("--op", help="only these operations")] = None,
    software: Annotated[list[str] | None, names("--software", help="only these engines")] = None,
    full: Annotated[bool, typer.Option("--full", help="all rows of the package, not only the committed ones")] = False,
    wheel: Wheel = None,
    plot: Annotated[Path | None, typer.Option(help="draw figures into this directory")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold floors and expected times against times that others published, and explain impossible ones."""
    from bench.judge.published import steps
    from bench.judge.published import validate as validation

    table = validation.full(wheel) if full else None
    asked = {"part": part, "op": op, "software": software}
    wanted = {name: values for name, values in asked.items() if values}
    if plot:
        from bench.judge.published import figures

        complain(*map(str, figures.draw(plot, validation.chosen(table, **wanted))))
    found = validation.validate(table, **wanted)
    if as_json:
        show_json(found | {"steps": steps.rows()})
        return
    show(*validation.table_of(found["groups"]))
    print()
    show(*validation.error_table(found["errors"]))
    print()
    paragraphs(*validation.remarks(found))
    print("\nWhole steps outside of servers, and what is expected of ours:")
    show(*steps.table(steps.rows()))


@app.command(epilog=examples("elasticity --op attention_decode,mla_decode", "elasticity --software vllm --plot e.png"))
def elasticity(
    parts: Annotated[str, typer.Option(help="two parts with the same chip and different memory")] = "h100-sxm,h200",
    op: Annotated[list[str] | None, names("--op", help="only these operations")] = None,
    software: Annotated[list[str] | None, names("--software", help="only these engines")] = None,
    full: Annotated[bool, typer.Option("--full", help="all rows of the package, not only the committed ones")] = False,
    wheel: Wheel = None,
    plot: Annotated[Path | None, typer.Option(help="draw which operations follow the memory into this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Does time follow the memory? Published times of an H100 beside those of an H200, which has the same chip."""
    from bench.judge.published import elasticity as experiment
    from bench.judge.published import validate as validation

    wanted = {name: values for name, values in {"op": op, "software": software}.items() if values}
    table = validation.full(wheel) if full else None
    found = experiment.elasticity(table, comma_separated(parts, "parts"), **wanted)
    if plot:
        experiment.plot(plot, found)
        complain(str(plot))
    if as_json:
        show_json(found)
        return
    show(*experiment.table_of(found))
    print()
    show(*experiment.beside_table(found))
    print()
    paragraphs(*found["caveats"])


@app.command(epilog=examples("best --part h200 --suite quick", "best --part h100-sxm --op ffn_gemv --csv"))
def best(
    part: Annotated[str, typer.Option(help="one of `list devices`")] = "h100-sxm",
    suite: Suite = "quick",
    op: Ops = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_md: AsMarkdown = False,
) -> None:
    """Show the best time that anyone published for each case of a suite, or for the case nearest to it."""
    import dataclasses

    from bench.devices import find
    from bench.judge.published import best as records
    from bench.terminal import listing

    listing.check(op or [], suite)
    rows = records.of_suite(find(part).key, suite, op or ())
    if as_json:
        show_json([row | {"best": dataclasses.asdict(row["best"]) if row["best"] else None} for row in rows])
    else:
        show(*records.table_of(rows), form=form_of(as_csv, as_md))
