"""`report.html`: one interactive page that fetches nothing. Plotly, styles and data are inside.

The Python package brings Plotly as one bundle of 5 MB. The page holds it compressed (2 MB), and the browser unpacks it
with `DecompressionStream`, which every browser has since 2023.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bench.judge import boundness, goals, peers
from bench.judge.claims import Verdict
from bench.judge.view import PREDICTION_BAND, Peer, Point, Table, View, batches
from bench.report import drawing, tables, text
from bench.units import percent

TEMPLATES = Path(__file__).parent / "templates"


def render(view: View, verdicts: Sequence[Verdict]) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    header = view.run.header
    cases = [tables.cases(view, op) for op in view.ops]
    judged = goals.judged(view)
    return environment.get_template("report.html.j2").render(
        device=view.run.device_name,
        subtitle=", ".join(str(header[k]) for k in ("suite", "started") if header.get(k)),
        notices=text.notices(view),
        contents=contents(view),
        verdict=text.verdict(view),
        scorecard=tables.scorecard(verdicts),
        tally=text.tally(verdicts),
        styles={op: drawing.style_numbers(op) for op in view.ops},
        impls=list(dict.fromkeys(p.record.impl for p in view.points)),
        any_ours=bool(view.ours),
        precisions=sorted({p.precision for p in view.points}),
        has_roofline=view.run.ceilings is not None and any(p.record.flops for p in view.points),
        has_predictions=any(p.predicted("measured") for p in view.points),
        has_roof=view.run.ceilings is not None and bool(view.points),
        has_peers=bool(view.peers),
        within=percent(PREDICTION_BAND),
        shapes=shapes(view),
        cards=[card(row) for row in tables.summary(view).rows],
        peer_summary=peers.by_peer(view),
        peers=peers.by_case(view),
        peers_height=f"{110 + 44 * len(peers.by_peer(view).rows)}px",
        text_peers=peers.REMARK,
        text_standing=peers.STANDING,
        interventions=boundness.table(view, leading_only=True),
        other_interventions=boundness.table(view, leading_only=False),
        text_interventions=(boundness.HEADING, *boundness.remarks(view)),
        goals=goals.table(judged),
        text_goals=goals.tally(judged),
        cases=Table(
            headers=("op", *cases[0].headers),
            rows=[(op, *row) for op, table in zip(view.ops, cases, strict=True) for row in table.rows],
            numeric=tuple(n + 1 for n in cases[0].numeric),
        )
        if cases
        else Table(headers=(), rows=()),
        text_cases=text.CASES,
        keys=["/".join((p.record.op, p.record.impl, p.record.case_id)) for op in view.ops for p in view.of(op)],
        ceilings=tables.ceilings(view),
        failed=tables.unmeasured(view, refused=False),
        refused=tables.unmeasured(view, refused=True),
        flags=tables.flags(view),
        counters=tables.counters(view),
        text_counters=text.COUNTERS,
        repetitions=tables.repetitions(view),
        text_repetitions=text.REPETITIONS,
        resolution=tables.same_against_same(view),
        text_resolution=text.RESOLUTION,
        notes=text.notes(view),
        environment=tables.environment(view),
        commands=text.reproduce(view),
        data=data(view),
        css=asset("report.css"),
        script=asset("report.js"),
        plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode(),
    )


def contents(view: View) -> list[tuple[str, str]]:
    """The anchors and names of those parts of the page that this run has."""
    parts = (
        ("claims", "Claims", True),
        ("measurements", "Measurements", True),
        ("interventions", "Is it memory?", bool(view.interventions)),
        ("goals", "Goals", view.run.on_gpu),
        ("ops", "By op", bool(view.points)),
        ("about-peers", "Peers", bool(view.peers)),
        ("environment", "Environment", bool(view.run.header)),
    )
    return [(anchor, name) for anchor, name, shown in parts if shown]


def asset(name: str) -> Markup:
    """One of our own files, which goes into the page as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def card(row: Sequence[str]) -> dict[str, str]:
    """An op's row of `tables.summary`, under the names that the template uses."""
    names = ("op", "cases", "best", "median", "worst", "why", "error", "peers", "worst_peer")
    found = dict(zip(names, row, strict=True))
    share, _, case = found["best"].partition(" ")
    return found | {"best_share": share, "best_case": case.strip("()")}


def shapes(view: View) -> list[str]:
    """The weights that were measured at several batches, the largest first."""
    found = {(n * k, f"{n} × {k}") for n, k, _, _ in batches(view.points)}
    return [name for _, name in sorted(found, reverse=True)]


def data(view: View) -> dict[str, Any]:
    """What the script of the page draws."""
    ceilings = view.run.ceilings
    series = {
        id(point): {"series": f"{kind} {impl}", "shape": f"{n} × {k}", "batch": batch}
        for (n, k, kind, impl), found in batches(view.points).items()
        for batch, point in found.items()
    }
    bandwidths = []
    for name, published in (("DRAM", "memory_bandwidth"), ("L2", "on_chip_bandwidth")):
        if sheet := view.run.published(published):
            bandwidths.append({"name": name, "kind": sheet.kind, "bandwidth": sheet.value})
    if ceilings:
        bandwidths.append({"name": "DRAM", "kind": "measured", "bandwidth": ceilings.read_roof})
        if ceilings.l2_bandwidth:
            bandwidths.append({"name": "L2", "kind": "measured", "bandwidth": ceilings.l2_bandwidth})
    pipes = {pipe for p in view.points for pipe in p.record.work["flops"]}
    return {
        "ops": {op: drawing.style_numbers(op) for op in view.ops},
        "within": PREDICTION_BAND,
        "points": [point(p) | series.get(id(p), {}) for p in view.points],
        "peers": [peer(p) for p in view.peers],
        "roofs": {
            "bandwidths": bandwidths,
            "pipes": {
                "measured": {k: v for k, v in ceilings.pipes.items() if k in pipes} if ceilings else {},
                "published": {pipe: peak.value for pipe in sorted(pipes) if (peak := view.run.published(pipe))},
            },
            "read": [[size, size / s / ceilings.read_roof] for size, s in ceilings.read_points] if ceilings else [],
        },
    }


def point(p: Point) -> dict[str, Any]:
    stages = p.record.stages
    return {
        "op": p.record.op,
        "impl": p.record.impl,
        "ours": p.record.ours,
        "id": p.record.case_id,
        "precision": p.precision,
        "bytes": p.record.bytes,
        "flops": p.record.flops,
        "seconds": p.seconds,
        "low": p.time.low or p.seconds,
        "high": finite(p.time.high, p.seconds),
        "share": p.share,
        "expected": p.predicted("measured"),
        "sheet": p.predicted("datasheet"),
        "bound": p.bound,
        "flags": p.record.flags,
        "moved": sum(s["work"]["bytes_read"] + s["work"]["bytes_written"] + s["l2_bytes"] for s in stages),
    }


def peer(p: Peer) -> dict[str, Any]:
    return {
        "op": p.ours.record.op,
        "id": p.ours.record.case_id,
        "ours": p.ours.record.impl,
        "peer": p.peer.record.impl,
        "ratio": p.ratio.median,
        "low": p.ratio.low,
        "high": finite(p.ratio.high, p.ratio.median),
        "flags": p.flags,
    }


def finite(value: float, otherwise: float) -> float:
    """The value, or `otherwise` for infinity, which JSON lacks: a single sample is drawn without a bar."""
    return otherwise if value == float("inf") else value
