"""Commands that look at kernels without timing them, and list what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from bench.errors import require
from bench.inspection.targets import compile_targets, emulate_targets
from bench.terminal.options import AsCsv, AsJson, AsMarkdown, Case, Impls, Ops, Suite, examples, names
from bench.terminal.screen import busy, complain, form_of, paragraphs, say, show, show_json

app = typer.Typer()

ARCHITECTURES, EMULATED = (", ".join(map(str, known())) for known in (compile_targets, emulate_targets))


def tally(what: str, count: int, bad: int, why: str, names: Sequence[str]) -> str:
    """`of 12 kernels: 11 ok, 1 have a problem (append_kernel)`, the last line of a table."""
    if not bad:
        return f"of {count:,} {what}: all ok"
    first = ", ".join(dict.fromkeys(names[:MOST_NAMED]))
    more = ", ..." if len(set(names)) > len(set(names[:MOST_NAMED])) else ""
    return f"of {count:,} {what}: {count - bad:,} ok, {bad:,} {why} ({first}{more})"


MOST_NAMED = 5
"""Of what is not ok, so many are named in the last line; the table has all."""


@app.command(epilog=examples("codegen --op attention_decode --sm 90", "codegen --suite quick --json"))
def codegen(
    op: Ops = None,
    sm: Annotated[list[int] | None, typer.Option(help=f"{ARCHITECTURES}; may be given again (default: all)")] = None,
    suite: Annotated[str | None, typer.Option(help="only the configurations of this suite")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_md: AsMarkdown = False,
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
        form = form_of(as_csv, as_md)
        show(*generation.main_table(found), form=form)
        if not form:
            bad = [r for r in found if generation.problems(r)]
            paragraphs(tally("kernels", len(found), len(bad), "have a problem", [r.kernel for r in bad]))
    raise typer.Exit(1 if any(generation.problems(r) for r in found) else 0)


@app.command(epilog=examples("emulate --op ffn_gemv --sm 90", "emulate --case B1- --csv"))
def emulate(
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    suite: Suite = "quick",
    sm: Annotated[int, typer.Option(help=f"one of {EMULATED}")] = 90,
    ctas: Annotated[int, typer.Option(help="how many CTAs of each launch are executed", min=1, max=65_536)] = 4,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_md: AsMarkdown = False,
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
        form = form_of(as_csv, as_md)
        show(*emulation.table(rows), form=form)
        if not form:
            bad = [row for row in rows if row.error]
            paragraphs(tally("launches", len(rows), len(bad), "were not executed", [row.case_id for row in bad]))
    raise typer.Exit(1 if any(row.error.startswith(("Fault", "NotEmulated")) for row in rows) else 0)


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


@app.command("list", epilog=examples("list cases --suite full --op ffn_gemv", "list devices --csv"))
def list_command(
    what: Annotated[str, typer.Argument(help="ops, cases, impls, devices or models")] = "ops",
    suite: Annotated[str | None, typer.Option(help="with cases: smoke, quick, full or sweeps (default: quick)")] = None,
    op: Annotated[list[str] | None, names("--op", help="only of these operations")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_md: AsMarkdown = False,
) -> None:
    """List operations, cases, implementations, devices or models."""
    from bench.terminal import listing

    table = listing.table(what, suite, op or [])
    if what == "devices" and as_json:
        show_json(listing.device_numbers())
    else:
        show(*table, as_json=as_json, form=form_of(as_csv, as_md))
