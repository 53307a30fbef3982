"""A static site of all reports below a directory, for any web server: an index, a page for each run, the predictor.

The runs are those in directories and the files that `decodebench share` made. The site names no machine and no person,
whatever the runs say. Runs of the same part get a page that compares each with the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench import report
from bench.errors import BadRequest
from bench.files import write_text
from bench.judge import kin
from bench.judge.answer import Answer
from bench.records import FILE
from bench.report import calculator, several
from bench.report.badge import badge
from bench.report.share import public, shared_files
from bench.run import Run, load_run

INDEX = "index.html"
COMPARISON = "comparison.html"
KIN = "kin.html"
CALCULATOR = "predict.html"
BADGE = "badge.svg"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of the site."""

    label: str
    subtitle: str
    address: str
    """Relative to the index."""
    badge: str
    """The address of the run's badge."""
    answer: Answer
    standing: str
    """How the run compares with others of the same part, in one sentence; empty if there are none."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What `write` wrote."""

    index: Path
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    """Runs that were left out, and why; and what could not be made."""


def write(source: Path, out: Path, *, draw: bool = True) -> Site:
    """Write the reports of all runs below `source` into `out`, with an index, the predictor, and a comparison of runs.

    Each report has a badge beside it, for other pages to show.

    A run that cannot be read is left out with a note. Raises `BadRequest` where no run is left.
    """
    report.require_pages("the site")
    from bench.judge.view import View
    from bench.report import text
    from bench.report.html import glossary, kin_page, site

    views, notes, written = [], [], {}
    for path in [*sorted(path.parent for path in source.rglob(FILE)), *shared_files(source)]:
        try:
            run = load_run(path)
            place = out / run.path.relative_to(source)
            if run.path in written:
                raise BadRequest(f"{path}: its report would take the place of the one about {run.path}")
            run = public(run)
            found = report.write(run, out=place, draw=draw)
        except BadRequest as error:
            notes.append(f"left out: {error}")
            continue
        notes += [f"{path}: {note}" for note in found.notes]
        views.append(View(run))
        written[run.path] = found
        write_text(place / BADGE, badge(run.device_name, found.answer))
    if not views:
        raise BadRequest(f"no run below {source}")
    groups = beside_others([view.run for view in views])
    standings = {run.path: found for group in groups for run, found in group}
    entries = tuple(
        Entry(
            label=label,
            subtitle=text.subtitle(view),
            address=address(written[view.run.path].main, out),
            badge=address(written[view.run.path].main.with_name(BADGE), out),
            answer=written[view.run.path].answer,
            standing=kin.sentence(standings.get(view.run.path, ())),
        )
        for label, view in zip(several.labels(views), views, strict=True)
    )
    if len(views) > 1:
        several.write_views(views, out)
    if groups:
        names = {entry.address: entry.label for entry in entries}
        by_path = dict(zip((view.run.path for view in views), names.items(), strict=True))
        write_text(out / KIN, kin_page([[(*by_path[run.path], found) for run, found in group] for group in groups]))
    calculator.write(out / CALCULATOR)
    more = [(CALCULATOR, "Predict a decode step")]
    more += [(COMPARISON, "All runs side by side")] * (len(views) > 1)
    more += [(KIN, "Each part against others of its kind")] * bool(groups)
    write_text(out / INDEX, site(entries, more, glossary()))
    return Site(index=out / INDEX, entries=entries, notes=tuple(notes))


def address(file: Path, out: Path) -> str:
    """A file of the site as a link of the index."""
    return quote(file.relative_to(out).as_posix())


def beside_others(runs: Sequence[Run]) -> list[list[tuple[Run, list[kin.Standing]]]]:
    """By part, each run with its standing among the others; without runs and parts that have no others."""
    groups = []
    for group in kin.kinds(runs):
        if found := [(run, standing) for run in group if (standing := kin.standings(run, group))]:
            groups.append(found)
    return groups
