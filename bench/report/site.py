"""A static site of all reports below a directory, for any web server: an index, a page for each run, the predictor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench import report
from bench.errors import BadRequest
from bench.files import write_text
from bench.judge.answer import Answer
from bench.records import FILE
from bench.report import calculator, several
from bench.run import load_run

INDEX = "index.html"
COMPARISON = "comparison.html"
CALCULATOR = "predict.html"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of the site."""

    label: str
    subtitle: str
    address: str
    """Relative to the index."""
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Site:
    """What `write` wrote."""

    index: Path
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    """Runs that were left out, and why; and what could not be made."""


def write(source: Path, out: Path, *, draw: bool = True) -> Site:
    """Write the reports of all runs below `source` into `out`, with an index, the predictor, and a comparison of runs.

    A run that cannot be read is left out with a note. Raises `BadRequest` where no run is left.
    """
    report.require_pages("the site")
    from bench.judge.view import View
    from bench.report import text
    from bench.report.html import glossary, site

    views, notes, written = [], [], {}
    for directory in sorted(path.parent for path in source.rglob(FILE)):
        place = out / directory.relative_to(source)
        try:
            view = View(load_run(directory))
            found = report.write(directory, out=place, draw=draw)
        except BadRequest as error:
            notes.append(f"left out: {error}")
            continue
        notes += [f"{directory}: {note}" for note in found.notes]
        views.append(view)
        written[view.run.path] = found
    if not views:
        raise BadRequest(f"no run below {source}")
    entries = tuple(
        Entry(
            label=label,
            subtitle=text.subtitle(view),
            address=quote(written[view.run.path].main.relative_to(out).as_posix()),
            answer=written[view.run.path].answer,
        )
        for label, view in zip(several.labels(views), views, strict=True)
    )
    if len(views) > 1:
        several.write([view.run.path for view in views], out)
    calculator.write(out / CALCULATOR)
    more = [(CALCULATOR, "Predict a decode step"), *[(COMPARISON, "All runs side by side")] * (len(views) > 1)]
    write_text(out / INDEX, site(entries, more, glossary()))
    return Site(index=out / INDEX, entries=entries, notes=tuple(notes))
