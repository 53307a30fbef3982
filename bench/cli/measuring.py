"""Commands that measure, or make a machine ready for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.inspection.targets import compile_targets, emulate_targets
from bench.terminal.arguments import duration, seconds, shard_number
from bench.terminal.options import AsJson, Case, Device, Html, Impls, Ops, examples, names
from bench.terminal.screen import busy, complain, paragraphs, printable, say, show_json

app = typer.Typer()

ARCHITECTURES, EMULATED = (", ".join(map(str, known())) for known in (compile_targets, emulate_targets))


@app.command(epilog=examples("run --suite smoke --device cpu", "run --op attention_decode --budget 8m --counters"))
def run(
    suite: Annotated[
        str | None,
        typer.Option(help="smoke, quick, full, or sweeps: whole steps (default: quick on a GPU or smoke)"),
    ] = None,
    device: Device = "auto",
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    out: Annotated[Path, typer.Option(help="folder that holds the runs")] = Path("reports"),
    resume: Annotated[Path | None, typer.Option(help="continue the run in this directory")] = None,
    shard: Annotated[str, typer.Option(help="measure the i-th of n parts of the cases, e.g. 1/4")] = "1/1",
    repeat: Annotated[
        int, typer.Option(help="measure everything this many times, for run-to-run variation", min=1, max=1000)
    ] = 1,
    budget: Annotated[str | None, typer.Option(help="stop measuring after this long, e.g. 8m or 90s")] = None,
    cap: Annotated[float | None, typer.Option(help="sampling seconds per implementation and case")] = None,
    hang: Annotated[float, typer.Option(help="give up a case after this many seconds without progress")] = 180.0,
    counters: Annotated[bool, typer.Option(help="read hardware counters through ncu afterwards")] = False,
    html: Html = True,
    as_json: AsJson = False,
) -> None:
    """Measure the ceilings and the operations, write a report, and say in three lines what was found."""
    from bench import report
    from bench.measure import runner
    from bench.measure.counting import count_into
    from bench.predict.roofline import Expected
    from bench.terminal import listing
    from bench.terminal.progress import Live

    listing.check(op or [], suite, case)
    request = runner.Request(
        device=device,
        suite=suite,
        ops=tuple(op or ()),
        impls=tuple(impl or ()),
        case=case,
        shard=shard_number(shard),
        repeat=repeat,
        budget_s=None if budget is None else duration("--budget", budget),
        cap_s=cap if cap is None else seconds("--cap", cap),
        hang_s=seconds("--hang", hang),
        argv=tuple(sys.argv[1:]),
    )
    with Live.on(stderr=as_json, expected=Expected()) as live:
        outcome = runner.run(request, out, resume, live)
    if counters and not outcome.interrupted:
        found = count_into(outcome.directory, ops=request.ops, impls=request.impls, case=request.case)
        complain(*found.lines())
    written = report.write(outcome.directory, html=html)
    complain(*written.notes)
    if as_json:
        counts = {s: sum(r.status == s for r in outcome.records) for s in sorted({r.status for r in outcome.records})}
        where = {"directory": str(outcome.directory), "report": [str(p) for p in written]}
        show_json({**where, "records": counts, "answer": written.answer.as_dict()})
    else:
        paragraphs(*written.answer.lines())
        print(printable(f"report: {written.main}"))
    for record in outcome.faults:
        what = record.reason or ", ".join(record.flags)
        complain(f"{record.op} {record.case_id} {record.impl}: {record.status}: {what}")
    if outcome.interrupted:
        complain(f"interrupted; go on with: decodebench run --resume {outcome.directory}")
        raise typer.Exit(130)
    raise typer.Exit(1 if outcome.faults else 0)


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
        budget_s=None if budget is None else duration("--budget", budget),
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
    from bench.predict.roofline import Expected
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
    with Live.on(stderr=as_json or rehearse, expected=Expected()) as live:
        outcome = rehearsal.rehearse(request, live, lacks=lacks or ()) if rehearse else steps.run(request, out, live)
    say(outcome, as_json=as_json)
    raise typer.Exit(outcome.exit_code)


@app.command(epilog=examples("doctor", "doctor --fix-hints"))
def doctor(
    fix_hints: Annotated[bool, typer.Option(help="name the command that mends each lack on Debian or Ubuntu")] = False,
    as_json: AsJson = False,
) -> None:
    """Is this machine fit to measure, and is it what was rented? Exit code 0: fit, 1: warnings, 2: not fit."""
    from bench.operate import doctor as clinic

    diagnosis = clinic.diagnose(fix_hints=fix_hints)
    say(diagnosis, as_json=as_json)
    raise typer.Exit(diagnosis.exit_code)


@app.command(epilog=examples("selfcheck", "selfcheck --device cpu --json"))
def selfcheck(device: Device = "auto", as_json: AsJson = False) -> None:
    """Compare our clock with independent ones on a few kernels. Exit code 1: they disagree without a known reason."""
    from bench.operate import selfcheck as checking

    with busy("timing with each clock in turn"):
        found = checking.selfcheck(device)
    say(found, as_json=as_json)
    raise typer.Exit(found.exit_code)
