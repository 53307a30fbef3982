"""decodebench ...: a function for each command, which imports what it needs when it is called; exit codes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.errors import BadRequest, require, unknown
from bench.terminal.arguments import comma_separated, duration, names, seconds, whole_numbers
from bench.terminal.screen import busy, show, show_json, warn

app = typer.Typer(
    name="decodebench",
    help="How memory-bound is LLM decode? Predict first, measure, judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[str, typer.Option(help="auto, cuda or cpu")]
Suite = Annotated[str | None, typer.Option(help="smoke, quick or full (default: quick on a GPU, smoke on a CPU)")]
Case = Annotated[str, typer.Option(help="only cases whose id contains this")]
Ops = Annotated[list[str] | None, names("--op", help="only these operations")]
Impls = Annotated[list[str] | None, names("--impl", help="only these implementations")]
AsJson = Annotated[bool, typer.Option("--json", help="for machines")]
Reports = Path("reports")
CONFIGS = """a Hugging Face config.json of the Llama, Mistral, Mixtral, Qwen2, Qwen3, Qwen3 MoE, Gemma 3, gpt-oss or
DeepSeek V2 or V3 families"""
PRECISIONS = "fp32, bf16, fp16, fp8, int8, w8a16, int4 or fp4"
ARCHITECTURES = (80, 90, 100)


@app.command()
def run(
    suite: Suite = None,
    device: Device = "auto",
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    out: Annotated[Path, typer.Option(help="where runs are kept")] = Reports,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this directory")] = None,
    repeat: Annotated[int, typer.Option(help="measure everything this often, for run-to-run variation")] = 1,
    budget: Annotated[str | None, typer.Option(help="stop measuring after this long, e.g. 8m or 90s")] = None,
    cap: Annotated[float | None, typer.Option(help="sampling seconds per implementation and case")] = None,
    hang: Annotated[float, typer.Option(help="seconds without progress after which a case is given up")] = 180.0,
    counters: Annotated[bool, typer.Option(help="afterwards, read hardware counters through ncu")] = False,
    html: Annotated[bool, typer.Option(help="write report.html, 2 MB, beside report.md")] = True,
    as_json: AsJson = False,
) -> None:
    """Measure the ceilings and the operations, and write a report."""
    from rich.console import Console

    from bench import report
    from bench.measure import runner
    from bench.terminal import listing
    from bench.terminal.progress import Live

    listing.check(op or [], suite, case)
    request = runner.Request(
        device=device,
        suite=suite,
        ops=tuple(op or ()),
        impls=tuple(impl or ()),
        case=case,
        repeat=repeat,
        budget_s=duration("--budget", budget) if budget else None,
        cap_s=cap if cap is None else seconds("--cap", cap),
        hang_s=seconds("--hang", hang),
        argv=tuple(sys.argv[1:]),
    )
    with Live(Console(stderr=as_json)) as live:
        outcome = runner.run(request, out, resume, live)
    if counters and not outcome.interrupted:
        for line in runner.count_into(outcome.directory, request):
            print(line, file=sys.stderr)
    written = report.write(outcome.directory, html=html)
    for note in written.notes:
        print(note, file=sys.stderr)
    if as_json:
        counts = {s: sum(r.status == s for r in outcome.records) for s in sorted({r.status for r in outcome.records})}
        show_json({"directory": str(outcome.directory), "records": counts, "report": [str(p) for p in written]})
    else:
        for path in written:
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
    html: Annotated[bool, typer.Option(help="write report.html, 2 MB, beside report.md")] = True,
) -> None:
    """Rebuild a run's report from its records."""
    from bench import report

    written = report.write(run_dir, html=html)
    for path in written:
        print(path)
    for note in written.notes:
        print(note, file=sys.stderr)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="a run's directory")],
    b: Annotated[Path, typer.Argument(help="the run to be held against it")],
    as_json: AsJson = False,
) -> None:
    """Two runs of one part (did anything get slower?) or of two parts. Exit code 1: slower; 2: can't be compared."""
    from bench.judge import compare as compare_runs

    comparison = compare_runs.compare(a, b)
    if as_json:
        show_json(compare_runs.as_dict(comparison))
    else:
        for line in compare_runs.lines(comparison):
            print(line)
        show(*compare_runs.main_table(comparison))
    raise typer.Exit(comparison.exit_code)


@app.command()
def predict(
    model: Annotated[
        str | None, typer.Option(help="a model that `decodebench list models` knows; beside --config, a name for it")
    ] = None,
    config: Annotated[Path | None, typer.Option(help=CONFIGS)] = None,
    device: Annotated[
        str | None, typer.Option(help="parts, comma-separated; see `decodebench list devices` (default: h100-sxm)")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--from", help="a run's directory: its machine, at what was measured there")
    ] = None,
    batch: Annotated[str, typer.Option(help="batch sizes, comma-separated")] = "1,8,64,256",
    context: Annotated[int, typer.Option(help="tokens each request attends to")] = 4096,
    weights: Annotated[str, typer.Option(help=f"of the weights: {PRECISIONS}")] = "bf16",
    kv: Annotated[str, typer.Option(help=f"of the KV cache: {PRECISIONS}, but w8a16")] = "bf16",
    devices: Annotated[int, typer.Option(help="tensor-parallel parts")] = 1,
    price: Annotated[float | None, typer.Option(help="dollars an hour for one part")] = None,
    plot: Annotated[Path | None, typer.Option(help="also draw latency against throughput into this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Time, memory and cost of a whole decode step: from shapes and datasheets, or from what a run measured."""
    from bench.predict import command as prediction
    from bench.records import load_run

    if run_dir and device:
        raise BadRequest("--from predicts for the machine of that run: leave out --device")
    measured = load_run(run_dir) if run_dir else None
    if measured:
        warn(measured)
    found = prediction.rows(
        model=model,
        config=config,
        parts=comma_separated(device or "h100-sxm", "device"),
        batches=whole_numbers(batch, "batch"),
        context=context,
        weights=weights,
        kv=kv,
        devices=devices,
        dollars_per_hour=price,
        run=measured,
    )
    if plot:
        prediction.plot(plot, found)
        print(plot, file=sys.stderr)
    if as_json:
        show_json(found)
        return
    show(*prediction.table(found))
    for line in prediction.remarks(found):
        print(line)
    if run_dir:
        print()
        show(*prediction.measured_table(found))


@app.command()
def claims(
    runs: Annotated[list[Path] | None, typer.Argument(help="runs that measure; none: what the model says")] = None,
    explain: Annotated[str | None, typer.Option(help="one claim in full, e.g. I4")] = None,
    as_json: AsJson = False,
) -> None:
    """The scorecard: published claims beside what is predicted and what was measured."""
    from bench.judge import claims as judgement
    from bench.records import load_run

    loaded = [load_run(path) for path in runs or []]
    for run in loaded:
        warn(run)
    if explain:
        verdict = judgement.judge(explain, loaded)
        if as_json:
            show_json(judgement.as_dict(verdict))
        else:
            print(judgement.explain(verdict))
        return
    verdicts = judgement.scorecard(loaded)
    if as_json:
        show_json([judgement.as_dict(verdict) for verdict in verdicts])
    else:
        show(*judgement.main_table(verdicts))


@app.command()
def codegen(
    op: Ops = None,
    sm: Annotated[list[int] | None, typer.Option(help="80, 90 or 100; may be given again (default: all)")] = None,
    suite: Annotated[str | None, typer.Option(help="only the configurations of this suite")] = None,
    as_json: AsJson = False,
) -> None:
    """Compile every kernel without a GPU: registers, spills, load widths, bytes in flight."""
    import dataclasses

    from rich.console import Console
    from rich.progress import Progress

    from bench.inspection import codegen as generation
    from bench.terminal import listing
    from kernels.op import SUITES

    listing.check(op or [], suite)
    require("architecture", map(str, sm or []), [str(known) for known in ARCHITECTURES])

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compiling", total=None)

        def advance(done: int, total: int, report: Any) -> None:
            bar.update(task, completed=done, total=total, description=f"{report.kernel} sm_{report.sm}")

        found = generation.reports(op or None, sm or ARCHITECTURES, [suite] if suite else SUITES, advance)
    if as_json:
        show_json([{**dataclasses.asdict(r), "problems": generation.problems(r)} for r in found])
    else:
        show(*generation.main_table(found))
    raise typer.Exit(1 if any(generation.problems(r) for r in found) else 0)


@app.command()
def emulate(
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    suite: Annotated[str, typer.Option(help="whose cases")] = "quick",
    sm: Annotated[int, typer.Option(help="80 or 90")] = 90,
    ctas: Annotated[int, typer.Option(help="execute so many CTAs of each launch", min=1)] = 4,
    as_json: AsJson = False,
) -> None:
    """Execute compiled kernels without a GPU: bytes they ask for, bank conflicts, what is slower than DRAM."""
    import dataclasses

    from bench.inspection.emulator import survey

    with busy("executing") as status:
        rows = survey.survey(op, impl or [], suite, case, sm, ctas, status.update)
    if as_json:
        show_json([dataclasses.asdict(row) for row in rows])
    else:
        show(*survey.table(rows))
    raise typer.Exit(1 if any(row.error.startswith(("Fault", "NotEmulated")) for row in rows) else 0)


@app.command()
def tune(
    op: Ops = None,
    impl: Impls = None,
    suite: Annotated[str, typer.Option(help="whose cases are tuned: quick or full")] = "quick",
    device: Device = "auto",
    budget: Annotated[str | None, typer.Option(help="begin no further class after this long, e.g. 5m")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="compile and sift the candidates only; no GPU")] = False,
    sm: Annotated[list[int] | None, typer.Option(help="with --dry-run: 80, 90 or 100 (default: all)")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the best configurations of this part offline, and keep them with their evidence for plans to read."""
    from rich.console import Console

    from bench.operate.tune import race
    from bench.terminal import listing
    from bench.terminal.progress import Live

    listing.check(op or [], suite)
    request = race.Request(
        device=device,
        suite=suite,
        ops=tuple(op or ()),
        impls=tuple(impl or ()),
        budget_s=duration("--budget", budget) if budget else None,
        dry_run=dry_run,
        sms=tuple(sm or ARCHITECTURES),
    )
    with Live(Console(stderr=True)) as live:
        found = race.tune(request, live)
    if as_json:
        show_json(found.as_dict())
    else:
        for line in found.lines():
            print(line)


@app.command()
def campaign(
    out: Annotated[Path, typer.Option(help="where everything goes; the same again goes on")],
    budget: Annotated[str, typer.Option(help="time of this call")] = "9m",
    suite: Annotated[str, typer.Option(help="how far to measure: smoke, quick or full")] = "full",
    device: Device = "cuda",
    skip: Annotated[list[str] | None, names("--skip", help="leave out these steps")] = None,
    case: Case = "",
    as_json: AsJson = False,
) -> None:
    """Everything for a rented hour in one command: doctor, gate, tuning, ceilings, suites, counters, selfcheck."""
    from rich.console import Console

    from bench.operate.campaign import steps
    from bench.terminal import listing
    from bench.terminal.progress import Live

    listing.check([], suite, case)
    request = steps.Request(
        device=device,
        suite=suite,
        budget_s=duration("--budget", budget),
        skip=tuple(skip or ()),
        case=case,
        argv=tuple(sys.argv[1:]),
    )
    with Live(Console(stderr=as_json)) as live:
        outcome = steps.run(request, out, live)
    if as_json:
        show_json(outcome.as_dict())
    else:
        for line in outcome.lines():
            print(line)
    raise typer.Exit(outcome.exit_code)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Is this machine fit to measure, and is it what was rented? Exit code 0 fit, 1 warnings, 2 not fit."""
    from bench.operate import doctor as clinic

    diagnosis = clinic.diagnose()
    if as_json:
        show_json(diagnosis.as_dict())
    else:
        for line in diagnosis.lines():
            print(line)
    raise typer.Exit(diagnosis.exit_code)


@app.command()
def counters(
    suite: Annotated[str, typer.Option(help="smoke, quick or full")] = "quick",
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    as_json: AsJson = False,
) -> None:
    """Hardware counters of one case per operation, implementation and precision, through ncu."""
    from bench.inspection import counters as counting
    from bench.terminal import listing

    listing.check(op or [], suite, case)
    choice = counting.Choice(suite=suite, ops=tuple(op or ()), impls=tuple(impl or ()), case=case)
    counting.check(choice)
    found = counting.count(choice)
    denied = isinstance(found, counting.CountersDenied)
    if as_json:
        show_json(found.as_dict())
    else:
        for line in found.lines():
            print(f"decodebench: {line}" if denied else line, file=sys.stderr if denied else sys.stdout)
    raise typer.Exit(2 if denied else 0)


@app.command()
def selfcheck(device: Device = "auto", as_json: AsJson = False) -> None:
    """Our clock beside independent ones, on a few kernels. Exit code 1 where they disagree without a reason."""
    from bench.operate import selfcheck as checking

    with busy("timing with each clock in turn"):
        found = checking.selfcheck(device)
    if as_json:
        show_json(found.as_dict())
    else:
        for line in found.lines():
            print(line)
    raise typer.Exit(found.exit_code)


@app.command("list")
def list_command(
    what: Annotated[str, typer.Argument(help="ops, cases, impls, devices or models")] = "ops",
    suite: Annotated[str | None, typer.Option(help="of cases: smoke, quick or full (default: quick)")] = None,
    op: Annotated[list[str] | None, names("--op", help="of these operations")] = None,
    as_json: AsJson = False,
) -> None:
    """What there is: operations, cases, implementations, devices, models."""
    from bench.terminal import listing

    tables = {
        "ops": lambda: listing.ops(op or []),
        "cases": lambda: listing.cases(suite or "quick", op or []),
        "impls": lambda: listing.impls(op or []),
        "devices": listing.devices,
        "models": listing.models,
    }
    if what not in tables:
        raise unknown("list", what, tables)
    if suite and what != "cases":
        raise BadRequest(f"--suite chooses among cases; {what} belong to no suite")
    if op and what in ("devices", "models"):
        raise BadRequest(f"--op says nothing about {what}")
    if what == "devices" and as_json:
        show_json(listing.device_numbers())
    else:
        show(*tables[what](), as_json=as_json)


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
    except OSError as error:  # a file that may not be read or written, or a full disk
        if error.filename is None:
            raise
        print(f"decodebench: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
