"""Commands about many GPUs: the same run on each of them, and which one deviates from the others."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.terminal.arguments import duration, seconds
from bench.terminal.options import AsJson, Case, Device, Html, Impls, Ops, examples
from bench.terminal.screen import complain, printable, show_json

app = typer.Typer(
    help="Measure every GPU of a machine or of many machines, and name those that deviate from the others.",
    no_args_is_help=True,
)

Directory = Annotated[Path, typer.Argument(help="a fleet's directory")]
Threshold = Annotated[
    float | None,
    typer.Option(help="a share is an outlier if it is slower by more than this (default: 0.03 on GPUs)", min=0),
]
Suite = Annotated[str | None, typer.Option(help="smoke, quick or full (default: quick on GPUs, else smoke)")]
CpuShares = Annotated[int, typer.Option(help="without GPUs: equal parts of each machine's cores", min=1, max=1024)]
Cap = Annotated[float | None, typer.Option(help="sampling seconds per implementation and case")]


@app.command(
    "run", epilog=examples("fleet run --out box", "fleet run --engine ray --address auto --out cluster --suite quick")
)
def run(
    out: Annotated[Path, typer.Option(help="where everything goes; the same directory again continues")],
    engine: Annotated[str, typer.Option(help="local, ray or slurm")] = "local",
    suite: Suite = None,
    device: Device = "auto",
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    budget: Annotated[str | None, typer.Option(help="each share stops measuring after this long, e.g. 8m")] = None,
    cap: Cap = None,
    cpu_shares: CpuShares = 1,
    alone: Annotated[bool, typer.Option("--alone", help="afterwards measure the roof of each share alone")] = False,
    address: Annotated[str | None, typer.Option(help="ray: an existing cluster, e.g. auto")] = None,
    nodes: Annotated[int | None, typer.Option(help="slurm: how many nodes", min=1)] = None,
    partition: Annotated[str | None, typer.Option(help="slurm: the partition")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="slurm: GPUs of each node", min=1)] = None,
    start_within: Annotated[
        str | None,
        typer.Option(
            help="give up a node that has not started by then (default: 10m, on slurm 4h, as queues are long)"
        ),
    ] = None,
    threshold: Threshold = None,
    html: Html = True,
    as_json: AsJson = False,
) -> None:
    """Run a suite on every GPU. Exit code 0: all alike, 1: an outlier or a wrong result, 3: a share is missing."""
    from bench.measure.schedule import Request
    from bench.operate.fleet import engines, head
    from bench.terminal import listing
    from bench.terminal.progress import Fleet

    listing.check(op or [], suite, case)
    request = Request(
        device=device,
        suite=suite,
        ops=tuple(op or ()),
        impls=tuple(impl or ()),
        case=case,
        budget_s=None if budget is None else duration("--budget", budget),
        cap_s=cap if cap is None else seconds("--cap", cap),
        argv=tuple(sys.argv[1:]),
    )
    pinned = head.hosts(out) if engine == "slurm" else None
    reached = engines.engine(
        engine,
        out,
        address=address,
        count=nodes,
        partition=partition,
        gpus_per_node=gpus_per_node,
        pinned=pinned,
        start_within_s=None if start_within is None else duration("--start-within", start_within),
    )
    with Fleet() as display:
        whole = head.measure(out, request, engine, reached, display, cpu_shares=cpu_shares, alone=alone)
    if not whole:
        complain(f"interrupted; the same command goes on, and `decodebench fleet report {out}` shows what there is")
        raise typer.Exit(130)
    conclude(out, threshold, html=html, as_json=as_json)


@app.command("report", epilog=examples("fleet report box", "fleet report box --threshold 0.05 --json"))
def report(directory: Directory, threshold: Threshold = None, html: Html = True, as_json: AsJson = False) -> None:
    """Judge what a fleet has measured so far: deviations, outliers with their reasons, a table for a support ticket."""
    conclude(directory, threshold, html=html, as_json=as_json)


@app.command("node", epilog=examples("fleet node --suite quick > events.jsonl", "fleet node --op stream"))
def node(
    suite: Suite = None,
    device: Device = "auto",
    op: Ops = None,
    impl: Impls = None,
    case: Case = "",
    cap: Cap = None,
    cpu_shares: CpuShares = 1,
) -> None:
    """Measure the GPUs of this machine, and print what they report as lines of JSON, for `fleet collect`."""
    from bench.measure.schedule import Request
    from bench.operate.fleet.node import Task, measure
    from bench.terminal import listing

    name = platform.node() or "node"

    listing.check(op or [], suite, case)
    request = Request(device=device, suite=suite, ops=tuple(op or ()), impls=tuple(impl or ()), case=case, cap_s=cap)
    for event in measure(Task(request=request, cpu_shares=cpu_shares)):
        print(json.dumps({"node": name, "fleet": event}, separators=(",", ":")), flush=True)


@app.command("collect", epilog=examples("fleet collect logs/*.txt --out cluster", "fleet collect a.jsonl --out box"))
def collect(
    logs: Annotated[list[Path], typer.Argument(help="what `fleet node` printed, one file a machine")],
    out: Annotated[Path, typer.Option(help="the fleet's directory")],
    threshold: Threshold = None,
    html: Html = True,
    as_json: AsJson = False,
) -> None:
    """Make a fleet of the logs that machines left, e.g. of `kubectl logs` or `sky logs`. Prefixes of lines may stay."""
    from bench.operate.fleet.logs import collect as read

    complain(*read(logs, out))
    conclude(out, threshold, html=html, as_json=as_json)


@app.command("merge", epilog=examples("fleet merge A B --out whole", "fleet merge shards/* --out whole"))
def merge(
    shards: Annotated[list[Path], typer.Argument(help="the runs of `run --shard 1/n` to `run --shard n/n`")],
    out: Annotated[Path, typer.Option(help="the directory of the whole run")],
) -> None:
    """Make one run of its shards, which were measured on equal parts."""
    from bench.operate.fleet.merging import merge as merged

    print(merged(shards, out))


@app.command("render", epilog=examples("fleet render sky > fleet.yaml", "fleet render kubernetes --nodes 4"))
def render(
    form: Annotated[str, typer.Argument(help="sky or kubernetes")],
    nodes: Annotated[int, typer.Option(help="how many machines", min=1)] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each machine", min=0)] = 8,
    part: Annotated[str, typer.Option(help="sky: its name of the GPU")] = "H100",
    image: Annotated[str, typer.Option(help="kubernetes: the image, see bench/operate/box")] = "decodebench:latest",
    suite: Annotated[str, typer.Option(help="smoke, quick or full")] = "quick",
) -> None:
    """Print a file that makes every machine of a cloud or a cluster run `fleet node`."""
    from bench.operate.fleet.rendering import render as rendered

    print(rendered(form, nodes=nodes, gpus=gpus, part=part, image=image, suite=suite), end="")


def conclude(directory: Path, threshold: float | None, *, html: bool, as_json: bool) -> None:
    """Judge the fleet, write its page, and end with the exit code of the verdict."""
    from bench.operate.fleet.head import verdict as judged
    from bench.report import fleet as page

    verdict = judged(directory, threshold)
    notes: list[str] = []
    written = page.write(verdict, directory, notes, html=html)
    complain(*notes)
    if as_json:
        found: dict[str, Any] = {"directory": str(directory), "report": [str(path) for path in written]}
        show_json({**found, **verdict.as_dict()})
    else:
        print(*map(printable, verdict.lines()), *written, sep="\n")
    raise typer.Exit(verdict.exit_code)
