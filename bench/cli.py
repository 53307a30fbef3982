"""The command line: one function for each command. It imports what it needs when it is called, so help stays quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import __version__
from bench.errors import BadRequest, require
from bench.inspection.targets import compile_targets, emulate_targets
from bench.terminal.arguments import comma_separated, duration, seconds, whole_numbers
from bench.terminal.options import AsJson, Case, Device, Html, Impls, Ops, RunDirectory, Suite, examples, names
from bench.terminal.screen import busy, complain, read_run, say, show, show_json
from kernels.model_config import FAMILIES

app = typer.Typer(
    name="decodebench",
    help="How memory-bound is LLM decode? Predict first, measure, judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CONFIGS = f"a Hugging Face config.json with one of these as its model_type: {', '.join(FAMILIES)}"
ARCHITECTURES, EMULATED = (", ".join(map(str, known())) for known in (compile_targets, emulate_targets))
PRECISIONS = "fp32, bf16, fp16, fp8, int8, w8a16, int4 or fp4"


def print_version(asked: bool) -> None:
    if asked:
        print(f"decodebench {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version")]


@app.callback()
def decodebench(version: Version = False) -> None:
    """Options of the program itself."""


@app.command(epilog=examples("run --suite smoke --device cpu", "run --op attention_decode --budget 8m --counters"))
def run(
    suite: Annotated[str | None, typer.Option(help="smoke, quick or full (default: quick on a GPU or smoke)")] = None,
    device: Device = "auto",
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    out: Annotated[Path, typer.Option(help="folder that holds the runs")] = Path("reports"),
    resume: Annotated[Path | None, typer.Option(help="continue the run in this directory")] = None,
    repeat: Annotated[int, typer.Option(help="measure everything this many times, for run-to-run variation")] = 1,
    budget: Annotated[str | None, typer.Option(help="stop measuring after this long, e.g. 8m or 90s")] = None,
    cap: Annotated[float | None, typer.Option(help="sampling seconds per implementation and case")] = None,
    hang: Annotated[float, typer.Option(help="give up a case after this many seconds without progress")] = 180.0,
    counters: Annotated[bool, typer.Option(help="read hardware counters through ncu afterwards")] = False,
    html: Html = True,
    as_json: AsJson = False,
) -> None:
    """Measure the ceilings and the operations, and write a report."""
    from bench import report
    from bench.measure import runner
    from bench.measure.counting import count_into
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
    with Live.on(stderr=as_json) as live:
        outcome = runner.run(request, out, resume, live)
    if counters and not outcome.interrupted:
        found = count_into(outcome.directory, ops=request.ops, impls=request.impls, case=request.case)
        complain(*found.lines())
    written = report.write(outcome.directory, html=html)
    complain(*written.notes)
    if as_json:
        counts = {s: sum(r.status == s for r in outcome.records) for s in sorted({r.status for r in outcome.records})}
        show_json({"directory": str(outcome.directory), "records": counts, "report": [str(p) for p in written]})
    else:
        print(*written, sep="\n")
    for record in outcome.faults:
        what = record.reason or ", ".join(record.flags)
        complain(f"{record.op} {record.case_id} {record.impl}: {record.status}: {what}")
    if outcome.interrupted:
        complain(f"interrupted; go on with: decodebench run --resume {outcome.directory}")
        raise typer.Exit(130)
    raise typer.Exit(1 if outcome.faults else 0)


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


@app.command(
    epilog=examples("predict --model llama-3.1-8b --device h100-sxm,h200", "predict --config config.json --from RUN")
)
def predict(
    model: Annotated[str | None, typer.Option(help="one of `list models`; with --config, a name for it")] = None,
    config: Annotated[Path | None, typer.Option(help=CONFIGS)] = None,
    device: Annotated[str | None, typer.Option(help="of `list devices`, comma-separated (default: h100-sxm)")] = None,
    run_dir: Annotated[Path | None, typer.Option("--from", help="a run: its machine, as it was measured there")] = None,
    batch: Annotated[str, typer.Option(help="batch sizes, comma-separated")] = "1,8,64,256",
    context: Annotated[int, typer.Option(help="tokens that each request attends to")] = 4096,
    weights: Annotated[str, typer.Option(help=f"precision of the weights: {PRECISIONS}")] = "bf16",
    kv: Annotated[str, typer.Option(help="precision of the KV cache: the same ones without w8a16")] = "bf16",
    devices: Annotated[int, typer.Option(help="how many parts share the model (tensor-parallel)")] = 1,
    price: Annotated[float | None, typer.Option(help="dollars per hour for one part")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw latency against throughput into this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict time, memory and cost of a whole decode step, from datasheets or from what a run measured."""
    from bench.predict import command as prediction

    if run_dir and device:
        raise BadRequest("--from predicts for the machine of that run: leave out --device")
    measured = read_run(run_dir) if run_dir else None
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
        complain(str(plot))
    if as_json:
        show_json(found)
        return
    show(*prediction.table(found))
    for line in prediction.remarks(found):
        print(line)
    if run_dir:
        print()
        show(*prediction.measured_table(found))


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


@app.command(epilog=examples("codegen --op attention_decode --sm 90", "codegen --suite quick --json"))
def codegen(
    op: Ops = None,
    sm: Annotated[list[int] | None, typer.Option(help=f"{ARCHITECTURES}; may be given again (default: all)")] = None,
    suite: Annotated[str | None, typer.Option(help="only the configurations of this suite")] = None,
    as_json: AsJson = False,
) -> None:
    """Compile every kernel without a GPU: registers, spills, load widths, bytes in flight."""
    import dataclasses

    from bench.inspection import codegen as generation
    from bench.terminal import listing
    from bench.terminal.progress import counting
    from kernels.op import SUITES

    listing.check(op or [], suite)
    require("architecture", map(str, sm or []), [str(known) for known in compile_targets()])

    with counting("compiling", lambda report: f"{report.kernel} sm_{report.sm}") as advance:
        found = generation.reports(op or None, sm, [suite] if suite else SUITES, advance)
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
    suite: Suite = "quick",
    sm: Annotated[int, typer.Option(help=f"one of {EMULATED}")] = 90,
    ctas: Annotated[int, typer.Option(help="how many CTAs of each launch are executed", min=1)] = 4,
    as_json: AsJson = False,
) -> None:
    """Execute compiled kernels without a GPU: bytes they request, bank conflicts, what is slower than DRAM."""
    import dataclasses

    from bench.inspection import emulate as emulation
    from bench.terminal import listing

    listing.check(op or [], suite, case)
    with busy("executing") as status:
        rows = emulation.survey(op, impl or [], suite, case, sm, ctas, status.update)
    if as_json:
        show_json([dataclasses.asdict(row) for row in rows])
    else:
        show(*emulation.table(rows))
    raise typer.Exit(1 if any(row.error.startswith(("Fault", "NotEmulated")) for row in rows) else 0)


@app.command(epilog=examples("tune --op ffn_gemv --budget 5m", "tune --dry-run --sm 90"))
def tune(
    op: Ops = None,
    impl: Impls = None,
    suite: Annotated[str, typer.Option(help="whose cases are tuned: quick or full")] = "quick",
    device: Device = "auto",
    budget: Annotated[str | None, typer.Option(help="begin no new shape class after this long, e.g. 5m")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only compile and select candidates; no GPU")] = False,
    sm: Annotated[list[int] | None, typer.Option(help=f"with --dry-run: {ARCHITECTURES} (default: all)")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the best configurations for this part, and store them with their evidence for later runs."""
    from bench.operate.tune import search
    from bench.terminal import listing
    from bench.terminal.progress import Live

    listing.check(op or [], suite)
    request = search.Request(
        device=device,
        suite=suite,
        ops=tuple(op or ()),
        impls=tuple(impl or ()),
        budget_s=duration("--budget", budget) if budget else None,
        dry_run=dry_run,
        sms=tuple(sm or ()),
    )
    with Live.on(stderr=True) as live:
        found = search.tune(request, live)
    say(found, as_json=as_json)


@app.command(epilog=examples("campaign --out DIR --budget 9m", "campaign --out DIR --device cpu --suite smoke"))
def campaign(
    out: Annotated[Path | None, typer.Option(help="where everything goes; the same directory again continues")] = None,
    budget: Annotated[str, typer.Option(help="time that this call may take")] = "9m",
    suite: Annotated[str, typer.Option(help="what to measure: smoke, quick or full")] = "full",
    device: Device = "cuda",
    skip: Annotated[list[str] | None, names("--skip", help="leave out these steps")] = None,
    case: Case = "",
    rehearse: Annotated[bool, typer.Option("--rehearse", help="show the schedule on a pretended H200; no GPU")] = False,
    lacks: Annotated[list[str] | None, typer.Option(hidden=True, help="rehearse what is said of a lack")] = None,
    as_json: AsJson = False,
) -> None:
    """Do everything for a rented hour: doctor, gate, tuning, ceilings, suites, counters, selfcheck."""
    from bench.operate.campaign import rehearsal, steps
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
    outcome: steps.CampaignOutcome | rehearsal.Rehearsal
    with Live.on(stderr=as_json or rehearse) as live:
        outcome = rehearsal.rehearse(request, live, lacks=lacks or ()) if rehearse else steps.run(request, out, live)
    say(outcome, as_json=as_json)
    raise typer.Exit(outcome.exit_code)


@app.command()
def doctor(
    fix_hints: Annotated[bool, typer.Option(help="name the command that mends each lack on Debian or Ubuntu")] = False,
    as_json: AsJson = False,
) -> None:
    """Is this machine fit to measure, and is it what was rented? Exit code 0: fit, 1: warnings, 2: not fit."""
    from bench.operate import doctor as clinic

    diagnosis = clinic.diagnose(fix_hints=fix_hints)
    say(diagnosis, as_json=as_json)
    raise typer.Exit(diagnosis.exit_code)


@app.command(epilog=examples("counters --op attention_decode", "counters --suite smoke --impl triton --json"))
def counters(
    suite: Suite = "quick",
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    as_json: AsJson = False,
) -> None:
    """Read hardware counters through ncu, for one case per operation, implementation and precision."""
    from bench.inspection import counters as counting
    from bench.terminal import listing

    listing.check(op or [], suite, case)
    choice = counting.Choice(suite=suite, ops=tuple(op or ()), impls=tuple(impl or ()), case=case)
    counting.check(choice)
    found = counting.count(choice)
    denied = isinstance(found, counting.CountersDenied)
    if denied and not as_json:
        complain(*(f"decodebench: {line}" for line in found.lines()))
    else:
        say(found, as_json=as_json)
    raise typer.Exit(2 if denied else 0)


@app.command()
def selfcheck(device: Device = "auto", as_json: AsJson = False) -> None:
    """Compare our clock with independent ones on a few kernels. Exit code 1: they disagree without a known reason."""
    from bench.operate import selfcheck as checking

    with busy("timing with each clock in turn"):
        found = checking.selfcheck(device)
    say(found, as_json=as_json)
    raise typer.Exit(found.exit_code)


@app.command("list")
def list_command(
    what: Annotated[str, typer.Argument(help="ops, cases, impls, devices or models")] = "ops",
    suite: Annotated[str | None, typer.Option(help="with cases: smoke, quick or full (default: quick)")] = None,
    op: Annotated[list[str] | None, names("--op", help="only of these operations")] = None,
    as_json: AsJson = False,
) -> None:
    """List operations, cases, implementations, devices or models."""
    from bench.terminal import listing

    table = listing.table(what, suite, op or [])
    if what == "devices" and as_json:
        show_json(listing.device_numbers())
    else:
        show(*table, as_json=as_json)


def main() -> None:
    """Run the command line. An error that the user can mend becomes one line and exit code 2."""
    try:
        app()
    except BadRequest as error:
        message = str(error)
    except OSError as error:  # a file that cannot be read or written, or a full disk
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}"
    else:
        return
    complain(f"decodebench: {message}")
    sys.exit(2)
