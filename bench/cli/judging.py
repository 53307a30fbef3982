"""Commands that judge and show what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BadRequest
from bench.terminal.options import AsCsv, AsJson, AsMarkdown, Html, RunDirectory, examples, names
from bench.terminal.screen import complain, form_of, paragraphs, read_run, show, show_json, show_lines

app = typer.Typer()

COLOURS = {"HOLDS": "green", "DEPENDS": "yellow", "FAILS": "red", "NOT": "bright_black"}
"""By the first word of a verdict."""


@app.command("report", epilog=examples("report reports/h200/RUN", "report H100_RUN H200_RUN --out both"))
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="a run's directory; several are put side by side")],
    html: Html = True,
    out: Annotated[Path, typer.Option(help="with several runs: the directory for comparison.html and .md")] = Path(),
    threshold: Annotated[
        float, typer.Option(help="with several runs of a part: exit code 1 if a time grew by more, e.g. 0.05", min=0)
    ] = 0.05,
) -> None:
    """Rebuild a run's report from its records, or put several runs side by side, with a trend for each part."""
    from bench import report

    if len(runs) == 1:
        written = report.write(runs[0], html=html)
        print(*written, sep="\n")
        complain(*written.notes)
        return
    from bench.report import several

    found = several.write(runs, out, threshold)
    paragraphs(*found.lines())
    raise typer.Exit(found.exit_code)


@app.command(epilog=examples("site reports", "site reports --out public"))
def site(
    source: Annotated[Path, typer.Argument(help="a directory with runs somewhere below it")] = Path("reports"),
    out: Annotated[Path, typer.Option(help="where the site goes")] = Path("site"),
) -> None:
    """Write a static site for any web server: every run's report, an index, a comparison, the predictor, a glossary."""
    from bench.report import site as pages

    found = pages.write(source, out)
    complain(*found.notes)
    print(found.index)


@app.command(epilog=examples("share reports/h200/RUN", "share reports/h200/RUN --out community/h200-mine.jsonl"))
def share(
    run: RunDirectory,
    out: Annotated[
        Path | None, typer.Option(help="the new file, ending in .jsonl (default: the part and a digest, here)")
    ] = None,
) -> None:
    """Make one file of a run that names neither machine nor person; `report`, `claims`, `compare`, `site` read it."""
    from bench.report import share as sharing

    print(sharing.write(run, out))


@app.command(epilog=examples("compare reports/h200/BEFORE reports/h200/AFTER", "compare H100_RUN H200_RUN --json"))
def compare(
    a: RunDirectory,
    b: Annotated[Path, typer.Argument(help="the directory of the run to compare with it")],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_md: AsMarkdown = False,
) -> None:
    """Compare two runs of one part (did anything get slower?) or of two parts. Exit code 1: slower, 2: incomparable."""
    from bench.judge import compare as compare_runs

    comparison = compare_runs.compare(a, b)
    if as_json:
        show_json(compare_runs.as_dict(comparison))
    elif form := form_of(as_csv, as_md):
        show(*compare_runs.main_table(comparison), form=form)
    else:
        *before, tally = compare_runs.lines(comparison)
        paragraphs(*before)
        show(*compare_runs.main_table(comparison))
        paragraphs(tally)
    raise typer.Exit(comparison.exit_code)


@app.command(epilog=examples("claims reports/h200/RUN", "claims --explain I4"))
def claims(
    runs: Annotated[list[Path] | None, typer.Argument(help="runs to judge by; without one, the model judges")] = None,
    explain: Annotated[str | None, typer.Option(help="show one claim in full, e.g. I4")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_md: AsMarkdown = False,
) -> None:
    """Judge published claims by what runs measured, by what others published, or by the model."""
    from bench.judge import claims as judgement

    if explain and form_of(as_csv, as_md):
        raise BadRequest("--explain shows one claim, which is no table: choose --json, or leave out --csv and --md")
    loaded = [read_run(path) for path in runs or []]
    others = judgement.COMMITTED
    verdicts = [judgement.judge(explain, loaded, others)] if explain else judgement.scorecard(loaded, others)
    if as_json:
        found = [judgement.as_dict(verdict) for verdict in verdicts]
        show_json(found[0] if explain else found)
    elif explain:
        paragraphs(*judgement.explain(verdicts[0]).splitlines())
    elif form := form_of(as_csv, as_md):
        show(*judgement.main_table(verdicts), form=form)
    else:
        show_lines([judgement.line(v) for v in verdicts], colours=COLOURS)
        paragraphs(f"{judgement.tally(verdicts)} `claims --explain I4` shows one in full.")


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
        paragraphs(*found.lines())
        if len(found.table()[1]):
            show(*found.table())
    if found.damaged:
        complain(f"decodebench: {found.damaged}")
    raise typer.Exit(found.exit_code)


@app.command(
    "explain",
    epilog=examples("explain result.json --model llama-3.1-70b --part h200", "explain lat.json --batch 8"),
)
def explain_command(
    result: Annotated[Path, typer.Argument(help="of vLLM's, SGLang's, TensorRT-LLM's benchmarks, llama-bench, AIPerf")],
    model: Annotated[str | None, typer.Option(help="one of `list models` (default: the file's)")] = None,
    config: Annotated[Path | None, typer.Option(help="a Hugging Face config.json instead")] = None,
    part: Annotated[str | None, typer.Option(help="of `list devices` (default: the file's)")] = None,
    weights: Annotated[str | None, typer.Option(help="precision (default: the file's, or bf16)")] = None,
    kv: Annotated[str | None, typer.Option(help="the cache's precision (default: the file's, or bf16)")] = None,
    devices: Annotated[int | None, typer.Option(help="how many parts (default: the file's, or 1)", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="sequences in a batch, where the file lacks it", min=1)] = None,
    input_len: Annotated[int | None, typer.Option(help="prompt tokens, where the file lacks them", min=1)] = None,
    output_len: Annotated[int | None, typer.Option(help="output tokens, where the file lacks them", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Where does a server's time per token go? Beside floor and expected time, by cause, with what would help."""
    from bench.judge import explain as explaining
    from bench.judge.explain.formats import Given

    found = explaining.explain(
        result,
        model=model,
        config=config,
        part=part,
        weights=weights,
        kv=kv,
        devices=devices,
        given=Given(batch=batch, input_tokens=input_len, output_tokens=output_len),
    )
    if as_json:
        show_json([each.as_dict() for each in found])
    else:
        paragraphs(*"\n\n".join("\n".join(each.lines()) for each in found).splitlines())
