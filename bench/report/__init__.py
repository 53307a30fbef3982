"""What does a person see? Records -> figures, Markdown, HTML, from `records.jsonl` alone. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BadRequest
from bench.run import without_collecting

if TYPE_CHECKING:
    from bench.judge.answer import Answer
    from bench.run import Run

DRAWS = ("matplotlib",)
PAGES = ("plotly", "jinja2", "PIL")
"""The libraries that draw the figures and make the page. A machine that only measures has neither."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write` wrote; iterates over the paths."""

    paths: tuple[Path, ...]
    answer: Answer
    notes: tuple[str, ...] = ()
    """What `write` could not make, and why."""

    @property
    def main(self) -> Path:
        """The file to open: the page, or `report.md` where there is no page."""
        return next((path for path in self.paths if path.suffix == ".html"), self.paths[0])

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)


@without_collecting()
def write(run: Path | str | Run, *, html: bool = True, draw: bool = True, out: Path | None = None) -> Written:
    """Rebuild `report.md` of a run, with `draw` also `figures/*.png`, and with `html` also `report.html`.

    The run is read from a path unless it is given. The files go into the run's directory, or into `out`.
    Each file takes the place of an earlier one when it is whole; the others of an earlier report are deleted at the
    end. If a library is missing, a note says what was left out. Plotting libraries are
    slow to import, so they are imported here. Raises `bench.errors.BadRequest` where there is no run.
    """
    from bench.files import write_text
    from bench.judge.answer import answer
    from bench.judge.claims import COMMITTED, scorecard
    from bench.judge.view import View
    from bench.report import markdown
    from bench.run import load_run

    view = View(load_run(run) if isinstance(run, Path | str) else run)
    verdicts = scorecard([view.run], COMMITTED)
    directory = out or view.run.path
    directory.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    drawn: dict[str, Path] = {}
    folder, page, interactive = directory / "figures", directory / "report.md", directory / "report.html"
    if draw and can_make("the figures", DRAWS, notes):
        from bench.report import figures

        drawn = figures.draw_all(view, folder)
    write_text(page, markdown.render(view, verdicts, drawn, directory))
    written = [page]
    if html and can_make(interactive.name, PAGES, notes):
        from bench.report.html import render

        write_text(interactive, render(view, verdicts, drawn))
        written.append(interactive)
    for old in (*folder.glob("*.png"), interactive):
        if old not in (*written, *drawn.values()):
            old.unlink(missing_ok=True)
    return Written(paths=(*written, *drawn.values()), answer=answer(view), notes=tuple(notes))


def can_make(what: str, libraries: tuple[str, ...], notes: list[str]) -> bool:
    """Whether the libraries are installed. If not, adds a note that says why and what to do."""
    if missing := absent(libraries):
        notes.append(
            f"{what} left out: {' and '.join(missing)} not installed here; "
            "run `decodebench report` on this directory where they are"
        )
        return False
    return True


def require_pages(what: str) -> None:
    """Raises `BadRequest` where a library that makes pages is not installed."""
    if missing := absent(PAGES):
        raise BadRequest(f"{what} needs {' and '.join(missing)}, not installed here")


def absent(libraries: tuple[str, ...]) -> list[str]:
    return [name for name in libraries if find_spec(name) is None]
