"""Commands that judge and show what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.terminal.options import AsJson, Html, RunDirectory, examples, names
from bench.terminal.screen import complain, read_run, show, show_json

app = typer.Typer()


@app.command("report", epilog=examples("report reports/h200/RUN", "report reports/h200/RUN --no-html"))
def report_command(run_dir: RunDirectory, html: Html = True) -> None:
    """Rebuild a run's report from its records."""
    from bench import report

    written = report.write(run_dir, html=html)
    print(*written, sep="\n")
    complain(*written.notes)


@app.command(epilog=examples("compare reports/h200/BEFORE reports/h200/AFTER", "compare H100_RUN H200_RUN --json"))
def compare(
    a: RunDirectory,
    b: Annotated[Path, typer.Argument(help="the directory of the run to compare with it")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs of one part (did anything get slower?) or of two parts. Exit code 1: slower, 2: incomparable."""
    from bench.judge import compare as compare_runs

    comparison = compare_runs.compare(a, b)
    if as_json:
        show_json(compare_runs.as_dict(comparison))
    else:
        print(*compare_runs.lines(comparison), sep="\n")
        show(*compare_runs.main_table(comparison))
    raise typer.Exit(comparison.exit_code)


@app.command(epilog=examples("claims reports/h200/RUN", "claims --explain I4"))
def claims(
    runs: Annotated[list[Path] | None, typer.Argument(help="runs to judge by; without one, the model judges")] = None,
    explain: Annotated[str | None, typer.Option(help="show one claim in full, e.g. I4")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge published claims by what is predicted and what was measured."""
    from bench.judge import claims as judgement

    loaded = [read_run(path) for path in runs or []]
    verdicts = [judgement.judge(explain, loaded)] if explain else judgement.scorecard(loaded)
    if as_json:
        found = [judgement.as_dict(verdict) for verdict in verdicts]
        show_json(found[0] if explain else found)
    elif explain:
        print(judgement.explain(verdicts[0]))
    else:
        show(*judgement.main_table(verdicts))


@app.command(epilog=examples("audit table.csv --part h100-sxm", "audit table.parquet --map time=lat:us,m=bs --json"))
def audit(
    file: Annotated[Path, typer.Argument(help="a benchmark table: CSV, JSON, JSON Lines or parquet")],
    part: Annotated[str | None, typer.Option(help="of `list devices` (default: the part that the table names)")] = None,
    mapping: Annotated[
        list[str] | None, names("--map", help="ROLE=COLUMN, ROLE=COLUMN:UNIT or ROLE=VALUE, as in time=lat:us,n=6144")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which rows of somebody's table can't be true, and why? Exit code 0: none, 1: some, 2: some rows are damaged."""
    from bench.judge import audit as auditing

    found = auditing.audit(file, part=part, mapping=mapping or ())
    if as_json:
        show_json(found.as_dict())
    else:
        print(*found.lines(), sep="\n")
        if len(found.table()[1]):
            show(*found.table())
    if found.damaged:
        complain(f"decodebench: {found.damaged}")
    raise typer.Exit(found.exit_code)
