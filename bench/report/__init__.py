"""Records -> figures, Markdown, HTML. Works from `records.jsonl` alone; never imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DRAWS = ("matplotlib",)
PAGES = ("plotly", "jinja2")
"""What figures and the page are made with. A machine that only measures has neither."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write` wrote, and in `notes` what it could not write and why; iterates over the paths."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)


def write(run_dir: Path | str, *, html: bool = True, draw: bool = True) -> Written:
    """Rebuild `report.md` of a run; with `draw`, `figures/*.png`; with `html`, `report.html`.

    Nothing stays of an earlier report. Where a library is missing, what is made with it is left out and a note says
    so. Raises `bench.errors.BadRequest` where there is no run. Plotting libraries are imported here, for they are slow.
    """
    from bench.judge.claims import scorecard
    from bench.judge.view import View
    from bench.report import markdown
    from bench.run import load_run

    view = View(load_run(run_dir))
    verdicts = scorecard([view.run])
    directory = view.run.path
    notes: list[str] = []
    drawn: dict[str, Path] = {}
    folder, page, interactive = directory / "figures", directory / "report.md", directory / "report.html"
    for old in (*folder.glob("*.png"), interactive):
        old.unlink(missing_ok=True)
    if draw and there("the figures", DRAWS, notes):
        from bench.report import figures

        drawn = figures.draw_all(view, folder)
    page.write_text(markdown.render(view, verdicts, drawn, directory), encoding="utf-8")
    written = [page]
    if html and there(interactive.name, PAGES, notes):
        from bench.report import html as interactive_page

        interactive.write_text(interactive_page.render(view, verdicts), encoding="utf-8")
        written.append(interactive)
    return Written(paths=(*written, *drawn.values()), notes=tuple(notes))


def there(what: str, libraries: tuple[str, ...], notes: list[str]) -> bool:
    """Can it be made here? If not, a note says why and how to get it."""
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        notes.append(
            f"{what} left out: {' and '.join(missing)} not installed here; "
            "`decodebench report` on this directory makes up for it anywhere else"
        )
    return not missing
