"""decodebench ...: the only place that prints or exits. Each command imports what it needs when it is called."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.errors import BadRequest, unknown

app = typer.Typer(
    name="decodebench",
    help="How memory-bound is LLM decode? Predict first, measure, judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str, typer.Option(help="auto, cuda or cpu")]
Suite = Annotated[str | None, typer.Option(help="smoke, quick or full [default: quick on a GPU, smoke on a CPU]")]
Ops = Annotated[list[str] | None, typer.Option("--op", help="only this operation; may be given again")]
AsJson = Annotated[bool, typer.Option("--json", help="for machines")]
Reports = Path("reports")


@app.command()
def run(
    suite: Suite = None,
    device: Device = "auto",
    op: Ops = None,
    impl: Annotated[list[str] | None, typer.Option(help="only this implementation; may be given again")] = None,
    case: Annotated[str, typer.Option(help="only cases whose id contains this")] = "",
    out: Annotated[Path, typer.Option(help="where runs are kept")] = Reports,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this directory")] = None,
    repeat: Annotated[int, typer.Option(help="measure everything this often, for run-to-run variation")] = 1,
    budget: Annotated[str | None, typer.Option(help="stop measuring after this long, e.g. 8m or 90s")] = None,
    cap: Annotated[float | None, typer.Option(help="sampling seconds per implementation and case")] = None,
    hang: Annotated[float, typer.Option(help="seconds without progress after which a case is given up")] = 180.0,
    as_json: AsJson = False,
) -> None:
    """Measure the ceilings and the operations, and write a report."""
    from rich.console import Console

    from bench import report, runner
    from bench.live import Live

    request = runner.Request(
        device=device,
        suite=suite,
        ops=tuple(op or ()),
        impls=tuple(impl or ()),
        case=case,
        repeat=repeat,
        budget_s=duration(budget) if budget else None,
        cap_s=cap,
        hang_s=hang,
        argv=tuple(sys.argv[1:]),
    )
    with Live(Console(stderr=as_json)) as live:
        outcome = runner.run(request, out, resume, live)
    paths = report.write(outcome.directory)
    if as_json:
        counts = {s: sum(r.status == s for r in outcome.records) for s in sorted({r.status for r in outcome.records})}
        show_json({"directory": str(outcome.directory), "records": counts, "report": [str(p) for p in paths]})
    else:
        for path in paths:
            print(path)
    for record in outcome.faults:
        what = record.reason or ", ".join(record.flags)
        print(f"{record.op} {record.case_id} {record.impl}: {record.status}: {what}", file=sys.stderr)
    if outcome.interrupted:
        print(f"interrupted; go on with: decodebench run --resume {outcome.directory}", file=sys.stderr)
        raise typer.Exit(130)
    raise typer.Exit(1 if outcome.faults else 0)


@app.command("report")
def report_command(
    run_dir: Annotated[Path, typer.Argument(help="a run's directory")],
) -> None:
    """Rebuild a run's report from its records."""
    from bench import report

    for path in report.write(run_dir):
        print(path)


@app.command("list")
def list_command(
    what: Annotated[str, typer.Argument(help="ops, cases, impls, devices or models")] = "ops",
    suite: Suite = "quick",
    op: Ops = None,
    as_json: AsJson = False,
) -> None:
    """What there is: operations, cases, implementations, devices, models."""
    from bench import listing

    tables = {
        "ops": listing.ops,
        "cases": lambda: listing.cases(suite or "quick", op or []),
        "impls": listing.impls,
        "devices": listing.devices,
        "models": listing.models,
    }
    if what not in tables:
        raise unknown("list", what, tables)
    show(*tables[what](), as_json=as_json)


def show(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool = False) -> None:
    """A table for people, or a list of objects for machines."""
    if as_json:
        show_json([dict(zip(headers, row, strict=True)) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*headers, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    # piped output must not be cut to the width of a terminal that is not there
    width = None if sys.stdout.isatty() else 1000
    Console(highlight=False, markup=False, width=width).print(table)


def show_json(content: Any) -> None:
    print(json.dumps(content, indent=1))


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `8m` or `1h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise BadRequest(f"{text!r} is no duration; write 90s, 8m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def main() -> None:
    """Entry point: what the user can mend becomes one line and exit code 2."""
    try:
        if importlib.util.find_spec("kernels.op") is None:
            raise BadRequest(
                "the package `kernels` that Python finds is another one (Hugging Face has one of that name); "
                "run from decodebench's own environment: uv run decodebench"
            )
        app()
    except BadRequest as error:
        print(f"decodebench: {error}", file=sys.stderr)
        sys.exit(2)
