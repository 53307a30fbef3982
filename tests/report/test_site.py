"""The static site: every run has its page, every link leads to a file, and what cannot be read is named."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from bench.errors import BadRequest
from bench.judge.answer import answer
from bench.report import calculator, site
from bench.report.badge import COLOURS, DOUBTED, badge
from tests.support.browser import Browser
from tests.support.synthetic_run import ceiling_records, gemv, view, write_run


def test_every_link_of_the_site_leads_to_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calculator, "MODELS", {"llama-2-7b": calculator.MODELS["llama-2-7b"]})
    for name in ("part one/a", "part-two/b"):
        device = {"key": None, "name": name.partition("/")[0]}
        write_run(tmp_path / "runs" / name, [*ceiling_records(), gemv(4e-4)], device=device)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "records.jsonl").write_text("")
    found = site.write(tmp_path / "runs", tmp_path / "out", draw=False)
    page = found.index.read_text()
    links = [unquote(link) for link in re.findall(r'href="([^"#][^"]*)"', page) if not link.startswith("data:")]
    pages = ["comparison.html", "part one/a/report.html", "part-two/b/report.html", "predict.html"]
    badges = ["part one/a/badge.svg", "part-two/b/badge.svg"]
    assert sorted(links) == sorted([*pages, *badges])
    assert all((tmp_path / "out" / link).is_file() for link in links)
    assert page.count('class="tiles"') == 2
    assert "arithmetic intensity" in page
    assert len(found.notes) == 1
    assert "broken" in found.notes[0]
    assert not (tmp_path / "runs" / "part one/a" / "report.html").exists()


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no run below"):
        site.write(tmp_path, tmp_path / "out")


def test_the_site_in_a_browser(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index on a phone: no part is too wide, the badge is shown, and the console stays silent."""
    monkeypatch.setattr(calculator, "MODELS", {"llama-2-7b": calculator.MODELS["llama-2-7b"]})
    write_run(tmp_path / "runs/a", [*ceiling_records(), gemv(4e-4)])
    found = site.write(tmp_path / "runs", tmp_path / "out", draw=False)
    with browser.screen(390, mobile=True):
        browser.open(found.index, waits=False)
        assert browser.comes("return document.querySelector('img.badge').naturalWidth > 100")
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        assert browser.run("return document.querySelectorAll('.tile').length") == 3
        assert browser.errors() == []


def test_a_badge_says_what_the_first_tile_says(tmp_path: Path) -> None:
    """A run that deserves no trust is grey, and what a part is called cannot become markup."""
    found = answer(view(tmp_path, [*ceiling_records(), gemv(4e-4)]))
    sure = replace(found, trust=replace(found.trust, tone="good"), memory=replace(found.memory, tone="good"))
    for shown, words, colour in (
        (sure, f"memory-bound? {found.memory.answer}</text>", COLOURS["good"]),
        (replace(sure, trust=replace(found.trust, tone="bad")), "; trust: low</text>", DOUBTED),
    ):
        said = badge("A <b>part</b>", shown)
        assert words in said
        assert f'fill="{colour}"' in said
        assert ElementTree.fromstring(said).find(".//{*}title") is not None
