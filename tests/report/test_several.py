"""Several runs on one page: labels, trends, what is slower, and the page in a browser."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from bench.errors import BadRequest
from bench.judge.view import View
from bench.report import calculator, several, site
from bench.run import load_run
from tests.support.browser import Browser
from tests.support.synthetic_run import ceiling_records, gemv, write_run

PEER = {"device": {"key": None, "name": "Another GPU"}}


def run_of(path: Path, seconds: float, *, day: int = 1, **changes: object) -> Path:
    """A run of two cases, of which the second always takes 1 ms."""
    records = [*ceiling_records(), gemv(seconds, case_id="a"), gemv(1e-3, case_id="b")]
    return write_run(path, records, started=f"2026-01-{day:02}T00:00:00Z", **changes)


def test_a_slower_time_is_named_and_fails_a_build(tmp_path: Path) -> None:
    """`a` takes 10% longer in the last run; a threshold of 20% lets it pass."""
    runs = [
        run_of(tmp_path / "new", 1.1e-3, day=3),
        run_of(tmp_path / "old", 1e-3),
        run_of(tmp_path / "mid", 1e-3, day=2),
    ]
    found = several.write(runs, tmp_path)
    (trend,) = found.trends
    assert [view.run.path.name for view in trend.views] == ["old", "mid", "new"]
    assert [(m.case_id, round(m.ratio.median, 2)) for m in trend.slower] == [("a", 1.1)]
    assert several.trend_table(trend).rows == [("ffn_gemv", "2", "1.000x", "1.000x", "1.050x")]
    assert found.exit_code == 1
    assert found.lines()[0] == (
        "Synthetic GPU: 1 time is slower by more than 5% in the last run than in the first; the runs share 2 times."
    )
    assert several.write(runs, tmp_path, threshold=0.2).exit_code == 0


def test_two_parts_stand_side_by_side_without_a_trend(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "one", 1e-3), run_of(tmp_path / "two", 2e-3, **PEER)]
    found = several.write(runs, tmp_path)
    assert (found.trends, found.exit_code) == ((), 0)
    page = (tmp_path / "comparison.md").read_text()
    assert "| op | what it is | case | implementation | Another GPU | Synthetic GPU |" in page
    assert page.index("2.00 ms") < page.index("1.00 ms")


def test_runs_of_one_minute_are_told_apart(tmp_path: Path) -> None:
    views = [View(load_run(run_of(tmp_path / name, 1e-3))) for name in ("x", "y")]
    assert several.labels(views) == [f"Synthetic GPU, 2026-01-01T00:00, {name}" for name in ("x", "y")]


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "x", 1e-3)
    with pytest.raises(BadRequest, match="two or more different runs"):
        several.write([run, tmp_path / "." / "x"], tmp_path)
    with pytest.raises(BadRequest, match="--threshold: wants 0 or more, not nan"):
        several.write([run, run_of(tmp_path / "y", 1e-3)], tmp_path, threshold=float("nan"))


def test_the_page_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "old", 1e-3),
        run_of(tmp_path / "new", 1.1e-3, day=2),
        run_of(tmp_path / "p", 1e-3, **PEER),
    ]
    several.write(runs, tmp_path)
    with browser.screen(390, mobile=True):
        browser.open(tmp_path / "comparison.html", waits=False)
        assert browser.run("return document.querySelectorAll('.tile').length") == 9
        assert browser.run("return document.querySelectorAll('.trend circle').length") == 2
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        assert browser.errors() == []


def test_a_machine_without_the_libraries_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes None in sys.modules for a module that is not there."""
    runs = [run_of(tmp_path / name, 1e-3) for name in ("x", "y")]
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BadRequest, match=r"comparison\.html needs jinja2, not installed here"):
        several.write(runs, tmp_path)
    with pytest.raises(BadRequest, match="the site needs jinja2, not installed here"):
        site.write(tmp_path, tmp_path / "out")
    with pytest.raises(BadRequest, match=r"page\.html needs jinja2, not installed here"):
        calculator.write(tmp_path / "page.html", "llama-2-7b")


def test_no_mark_of_a_trend_covers_another(tmp_path: Path) -> None:
    """A part that became four times slower: its threshold lies 3 units above the first run, its texts 14 apart."""
    runs = [View(load_run(run_of(tmp_path / name, 1e-3 * factor, day=factor))) for name, factor in (("x", 1), ("y", 8))]
    _, marks = several.drawn(several.trends_of(runs, 0.05)[0])
    assert [text for text, *_ in marks] == ["as in the first run", "1.05 times as long", "4.50 times as long"]
    places = [place for *_, place in marks]
    assert all(lower - higher >= 14 for lower, higher in itertools.pairwise(places))
    assert marks[0][1] - marks[1][1] < 14
