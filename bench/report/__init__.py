"""Records -> figures, Markdown, HTML. Works from `records.jsonl` alone; never imports torch."""

from __future__ import annotations

from pathlib import Path


def write(run_dir: Path | str) -> list[Path]:
    """Rebuild `report.md`, `report.html` and `figures/*.png` of a run; returns what was written.

    Raises `bench.errors.BadRequest` where there is no run. Plotting libraries are imported here, for they are slow.
    """
    from bench.claims import scorecard
    from bench.records import load_run
    from bench.report import figures, html, markdown
    from bench.report.frame import View

    view = View(load_run(run_dir))
    verdicts = scorecard([view.run])
    directory = view.run.path
    drawn = figures.draw_all(view, directory / "figures")
    page, interactive = directory / "report.md", directory / "report.html"
    page.write_text(markdown.render(view, verdicts, drawn, directory), encoding="utf-8")
    interactive.write_text(html.render(view, verdicts), encoding="utf-8")
    return [page, interactive, *drawn.values()]
