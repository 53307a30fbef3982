"""`report.html`: one interactive page that fetches nothing. Plotly, styles and data are inside.

The Python package brings Plotly as one bundle of 5 MB. The page holds it compressed (2 MB), and the browser unpacks it
with `DecompressionStream`, which every browser has since 2023.
"""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from bench.judge import beside, boundness, goals, kin, peers, steps
from bench.judge.answer import answer
from bench.judge.batches import all_batches
from bench.judge.claims import Verdict
from bench.judge.ridges import ridges
from bench.judge.view import PREDICTION_BAND, Peer, Point, Table, View
from bench.report import claims, drawing, tables, text
from bench.report import several as side_by_side
from bench.report.names import case_name
from bench.units import percent

if TYPE_CHECKING:
    from bench.report.site import Entry

TEMPLATES = Path(__file__).parent / "templates"


def render(view: View, verdicts: Sequence[Verdict], figures: Mapping[str, Path] | None = None) -> str:
    """The whole page. `figures` are PNG files, which stand in the page for a browser without JavaScript."""
    found = answer(view)
    judged = goals.judged(view)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            device=view.run.device_name,
            subtitle=text.subtitle(view),
            warning=found.warning,
            notices=text.notices(view),
            methods=text.methods(view),
            contents=contents(view),
            tiles=found.tiles,
            verdict=text.verdict(view),
            claims=claims.grouped(verdicts),
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
            stills={name: still(path) for name, path in (figures or {}).items()},
            ridges=ridges(view),
            cards=[card(row) for row in tables.summary(view).rows],
            peer_summary=peers.by_peer(view),
            peers=peers.by_case(view),
            peers_height=f"{110 + 44 * len(peers.by_peer(view).rows)}px",
            text_peers=peers.REMARK,
            text_standing=peers.STANDING,
            published=beside.table(view),
            text_published=beside.REMARK,
            interventions=boundness.table(view, leading_only=True),
            other_interventions=boundness.table(view, leading_only=False),
            steps=[(steps.sentence(f), steps.levels(f[1]), steps.operations(f[1])) for f in steps.waterfalls(view)],
            text_steps=(steps.HEADING, steps.REMARK),
            text_interventions=(boundness.HEADING, *boundness.remarks(view)),
            goals=goals.table(judged),
            text_goals=goals.tally(judged),
            cases=cases(view),
            case_headers=tables.CASES[2:],
            csv=base64.b64encode(tables.cases_csv(view).encode()).decode(),
            text_cases=text.CASES,
            names={p.record.case_id: case_name(p.record.op, p.record.case) for p in view.points},
            ceilings=tables.ceilings(view),
            failed=tables.unmeasured(view, refused=False),
            refused=tables.unmeasured(view, refused=True),
            flags=tables.flags(view),
            counters=tables.counters(view),
            text_counters=text.COUNTERS,
            repetitions=tables.repetitions(view),
            text_repetitions=text.REPETITIONS,
            ranks=tables.ranks(view),
            text_ranks=text.RANKS,
            resolution=tables.same_against_same(view),
            text_resolution=text.RESOLUTION,
            notes=text.notes(view),
            glossary=glossary(),
            environment=tables.environment(view),
            commands=text.reproduce(view),
            data=data(view),
            css=asset("report.css"),
            script=asset("report.js") + asset("cases.js"),
            plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode(),
        )
    )


def several(views: Sequence[View], trends: Sequence[side_by_side.Trend]) -> str:
    """The page about several runs."""
    found = []
    for trend in trends:
        lines, marks = side_by_side.drawn(trend)
        found.append(
            {
                "part": trend.part,
                "summary": trend.summary,
                "lines": lines,
                "marks": marks,
                "table": side_by_side.trend_table(trend),
                "slower": side_by_side.slower_table(trend),
            }
        )
    named = zip(side_by_side.labels(views), views, strict=True)
    return (
        environment()
        .get_template("several.html.j2")
        .render(
            runs=[(label, text.subtitle(view), answer(view).tiles) for label, view in named],
            warnings=side_by_side.warnings(views),
            trends=found,
            cases=side_by_side.cases_table(views),
            css=asset("report.css"),
        )
    )


def fleet(lines: Sequence[str], sections: Sequence[tuple[str, str, Table]]) -> str:
    """The page of `bench.report.fleet`."""
    page = environment().get_template("fleet.html.j2")
    return page.render(lines=lines, sections=sections, css=asset("report.css"))


def site(entries: Sequence[Entry], more: Sequence[tuple[str, str]], terms: Sequence[tuple[str, str]]) -> str:
    """The index of a site. `more`: addresses and names of its other pages."""
    return (
        environment()
        .get_template("site.html.j2")
        .render(entries=entries, more=more, glossary=terms, css=asset("report.css"))
    )


def kin_page(groups: Sequence[Sequence[tuple[str, str, Sequence[kin.Standing]]]]) -> str:
    """Each part against others of its kind: by part, the address and name of each run and its standing."""
    shown = [[(address, name, kin.table(found)) for address, name, found in group] for group in groups]
    page = environment().get_template("kin.html.j2")
    return page.render(groups=shown, remark=kin.REMARK, css=asset("report.css"))


def calculator(found: Mapping[str, Any]) -> str:
    """The page of `bench.report.calculator`."""
    page = environment().get_template("calculator.html.j2")
    return page.render(data=found, css=asset("report.css"), script=asset("calculator.js"))


def environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found.globals["rows"] = rows
    return found


def rows(found: Table, names: Mapping[str, str]) -> Markup:
    """The rows of a table's body, with a case's name beside its id. Written here since a template is slow at it."""
    heads = [
        f'<td data-label="{escape(header)}"' + (' class="number">' if column in found.numeric else ">")
        for column, header in enumerate(found.headers)
    ]
    flag = [header in ("flags", "flag") for header in found.headers]
    lines = []
    for row in found.rows:
        cells = []
        for cell, head, is_flag in zip(row, heads, flag, strict=True):
            shown = escape(cell)
            if cell and (is_flag or cell == "missed"):
                shown = f'<span class="flag">{shown}</span>'
            elif cell in names:
                shown = f"{shown}<small>{escape(names[cell])}</small>"
            cells.append(f"{head}{shown}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return Markup("\n".join(lines))


def contents(view: View) -> list[tuple[str, str]]:
    """The anchors and names of those parts of the page that this run has."""
    parts = (
        ("about-batch", "Batch", bool(shapes(view))),
        ("about-roofline", "Roofline", view.run.ceilings is not None and any(p.record.flops for p in view.points)),
        ("interventions", "Is it memory?", bool(view.interventions)),
        ("steps", "A decode step", any(p.record.parts for p in view.points)),
        ("claims", "Claims", True),
        ("cases", "Every case", bool(view.points)),
        ("ops", "By op", bool(view.points)),
        ("goals", "Goals", view.run.on_gpu),
        ("about-peers", "Peers", bool(view.peers)),
        ("glossary", "Glossary", True),
        ("environment", "Environment", bool(view.run.header)),
    )
    return [(anchor, name) for anchor, name, shown in parts if shown]


def cases(view: View) -> Markup:
    """The rows of the table of all cases: texts for the reader, and the numbers that columns are sorted by."""
    lines = []
    heads = [f'<td data-label="{escape(header)}"' for header in tables.CASES[2:]]
    for op in view.ops:
        for p, (name, case_id, *texts) in zip(view.of(op), tables.cases(view, op).rows, strict=True):
            numbers = (None, p.seconds, None, p.rate, p.share, None, p.predicted("measured"), p.predicted("datasheet"))
            cells = []
            for head, cell, number, column in zip(heads, texts, numbers, tables.CASES[2:], strict=True):
                shown = f'<span class="flag">{escape(cell)}</span>' if cell and column == "flags" else escape(cell)
                sorts = f' class="number" data-value="{"" if number is None else number}"' if column in NUMBERS else ""
                cells.append(f"{head}{sorts}>{shown}</td>")
            key, value = escape("/".join(p.record.key)), escape(f"{op} {case_id}")
            first = f'<span class="pale">{escape(op)}</span> {escape(case_id)}<small>{escape(name)}</small>'
            lines.append(
                f'<tr data-key="{key}"><th scope="row" data-value="{value}">{first}</th>\n{"".join(cells)}</tr>'
            )
    return Markup("\n".join(lines))


NUMBERS = frozenset(tables.CASES[column] for column in (3, 5, 6, 8, 9))
"""The columns that are sorted as numbers."""


def still(figure: Path) -> str:
    """A PNG of a figure as a `data:` address, half as wide and in 64 colours: a quarter of its bytes."""
    with Image.open(figure) as image:
        half = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    packed = BytesIO()
    half.quantize(64).save(packed, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"


@cache
def glossary() -> list[tuple[str, str]]:
    """The terms and their meanings, as the table in this room's README.md has them."""
    text = (TEMPLATES.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    return [(term.replace("`", ""), meaning.replace("`", "")) for term, meaning in rows if term not in ("term", "---")]


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
    found = {(n * k, f"{n} × {k}") for n, k, _, _ in all_batches(view)}
    return [name for _, name in sorted(found, reverse=True)]


def data(view: View) -> dict[str, Any]:
    """What the script of the page draws."""
    ceilings = view.run.ceilings
    series = {
        id(point): {"series": f"{kind} {impl}", "shape": f"{n} × {k}", "batch": batch}
        for (n, k, kind, impl), found in all_batches(view).items()
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
            "ridges": [{"pipe": r.pipe, "at": r.intensity, "text": r.text} for r in ridges(view)],
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
        "name": case_name(p.record.op, p.record.case),
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
