"""`report.html` as it is read: what comes first, sorting, searching, links, paper, a phone, no JavaScript."""

from __future__ import annotations

import csv
import json
import re
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import pytest

from bench import report
from bench.judge.view import View
from bench.report import html, text
from bench.run import load_run
from tests.support import ROOT
from tests.support.browser import Browser
from tests.support.synthetic_run import ON_A_CPU, page_data, record, write_run

ROWS = "[...document.querySelectorAll('table.cases tbody tr')].filter(r => !r.hidden)"
VISIBLE = "const seen = e => e && e.checkVisibility({contentVisibilityAuto: true}) && e.offsetHeight > 0; "


@pytest.fixture
def page(browser: Browser, full: Path) -> Browser:
    browser.open(full / "report.html")
    return browser


def search(page: Browser, words: str) -> None:
    page.run(
        f"const s = document.querySelector('input[type=search]'); s.value = {json.dumps(words)}; "
        "s.dispatchEvent(new Event('input', {bubbles: true}));"
    )


def test_the_first_screen_answers(page: Browser) -> None:
    """The tiles lie within the first screen, and the sections follow in the order of a reader's questions."""
    questions = page.run("return [...document.querySelectorAll('.tile h2')].map(h => h.textContent)")
    assert questions == ["Memory-bound?", "How much?", "Trust"]
    bottoms = page.run("return [...document.querySelectorAll('.tile')].map(t => t.getBoundingClientRect().bottom)")
    assert max(bottoms) < 500
    ids = page.run("return [...document.querySelectorAll('h2[id]')].map(h => h.id)")
    assert ids[:5] == ["about-batch", "about-roofline", "interventions", "claims", "cases"]
    groups = page.run(
        "return [...document.querySelectorAll('.group')].map(g => g.textContent.trim().split(/[:\\s]/)[0])"
    )
    assert groups == sorted(groups, key=["FAILS", "DEPENDS", "HOLDS", "NOT"].index)
    assert page.run("return document.querySelectorAll('details.group[open]').length") == 0


def test_both_forms_and_the_terminal_say_the_same(full: Path, page: Browser) -> None:
    markdown = (full / "report.md").read_text()
    tiles = page.run("return [...document.querySelectorAll('.tile')].map(t => t.querySelector('.big').textContent)")
    for said in tiles:
        assert said in markdown
    assert len(re.findall(r"\d+ cases timed", markdown)) == 1


def test_a_busy_machine_is_the_first_thing_said(browser: Browser, tmp_path: Path) -> None:
    host = {"duration_s": 1.0, "others": 0.4, "stolen": 0.2}
    busy = record("kv_append", "numba", "x", read=1 << 20, seconds=1e-3, telemetry={"host": host})
    run = write_run(tmp_path, [busy], **ON_A_CPU)
    report.write(run, draw=False)
    browser.open(run / "report.html")
    assert browser.run("return document.querySelector('.notice').textContent").startswith("The machine was busy: 60%")
    top = "return document.querySelector('%s').getBoundingClientRect().top"
    assert browser.run(top % ".warning") < browser.run(top % ".tiles")
    assert (run / "report.md").read_text().count("The machine was busy") == 1


def test_on_a_phone_the_answer_comes_before_how_a_host_was_measured(browser: Browser, tmp_path: Path) -> None:
    """The first tile lies on the first screen, and the explanations of a host's numbers lie below the answer."""
    view = View(load_run(next((ROOT / "reports").glob("cpu-amd-*/*-32dc663"))))
    assert len(text.methods(view)) == 2
    (tmp_path / "report.html").write_text(html.render(view, []))
    top = "return document.querySelector('%s').getBoundingClientRect().top"
    with browser.screen(390, mobile=True):
        browser.open(tmp_path / "report.html")
        assert browser.run("return document.querySelector('.tile').getBoundingClientRect().bottom") < 844
        assert browser.run(top % ".verdict + p") > browser.run(top % ".verdict")
        assert browser.run("return document.querySelector('.verdict + p').textContent") == text.methods(view)[0]
    assert browser.errors() == []


def test_on_paper_a_verdict_keeps_its_colour_and_the_text_is_small(page: Browser) -> None:
    with page.media("print"):
        style = "return getComputedStyle(document.querySelector('.chip'))"
        assert page.run(f"{style}.printColorAdjust") == "exact"
        size = "return getComputedStyle(document.querySelector('%s')).fontSize"
        for what in (".claim", ".tile p:not(.big)", "td"):
            assert float(page.run(size % what).removesuffix("px")) <= 11


def test_a_click_sorts_the_cases_and_another_turns_them_round(page: Browser) -> None:
    click = "[...document.querySelectorAll('.cases thead th')].find(h => h.textContent === 'median time').click(); "
    times = f"return {ROWS}.map(r => Number(r.cells[2].dataset.value))"
    unsorted = page.run(times)
    assert page.run(click + times) == sorted(unsorted)
    assert page.run(click + times) == sorted(unsorted, reverse=True)
    assert page.run("return document.querySelectorAll('[aria-sort=descending]').length") == 1


def test_the_search_finds_words_in_any_order_and_the_csv_holds_what_is_shown(page: Browser, full: Path) -> None:
    address = "return document.getElementById('csv').href"
    search(page, "fp32 ffn_gemv")
    ids = page.run(f"return {ROWS}.map(r => r.dataset.key)")
    points = json.loads(page_data(full))["points"]
    assert len(ids) == sum(p["op"] == "ffn_gemv" and "fp32" in p["id"] for p in points) > 0
    rows = list(csv.DictReader(StringIO(unquote(page.run(address)).partition(",")[2])))
    assert sorted(f"{r['op']}/{r['impl']}/{r['case']}" for r in rows) == sorted(ids)
    wanted = {(p["op"], p["impl"], p["id"]): p["seconds"] for p in points}
    assert all(float(r["median_s"]) == wanted[r["op"], r["impl"], r["case"]] for r in rows)
    search(page, "")
    assert len(page.run(f"return {ROWS}.map(r => 1)")) == len(points)


def test_a_number_of_the_search_must_match_whole(page: Browser) -> None:
    """`batch 1` finds neither batch 16 nor batch 128; a flag is found too."""
    search(page, "gemv batch 1")
    assert {key.split("/")[2].split("-")[0] for key in page.run(f"return {ROWS}.map(r => r.dataset.key)")} == {"B1"}
    search(page, "warm")
    assert page.run(f"return {ROWS}.map(r => r.cells[3].textContent)") == ["warm, noisy"]


def test_the_first_column_stays_while_the_table_scrolls(browser: Browser, full: Path) -> None:
    with browser.screen(700, 900):
        browser.open(full / "report.html")
        left = "return document.querySelector('table.cases th[scope=row]').getBoundingClientRect().left"
        before = browser.run(left)
        browser.run("document.querySelector('.scroll.tall').scrollLeft = 300")
        assert browser.run(left) == before


def test_hover_tells_the_case_its_name_and_its_flags(page: Browser) -> None:
    texts = page.run("return document.getElementById('efficiency').data.flatMap(t => t.hovertemplate)")
    flagged = next(text for text in texts if "flags: warm, noisy" in text)
    assert "page reads, batch 1" in flagged
    assert "of the read roof" in flagged


def test_roofs_and_ridge_are_labelled(page: Browser) -> None:
    labels = " ".join(page.run("return document.getElementById('roofline').layout.annotations.map(a => a.text)"))
    for words in ("DRAM measured 3 TB/s", "mma_bf16 700 TFLOP/s", "ridge 234 FLOP/B = batch 234 in bf16"):
        assert words in labels


def test_the_glossary_explains_ids_pipes_and_bounds(page: Browser) -> None:
    pairs = "[...document.querySelectorAll('.glossary dt')].map(t => [t.innerText, t.nextSibling.innerText])"
    terms = dict(page.run("return " + pairs))
    assert {"ridge point", "read roof", "compulsory bytes", "pipe", "case id", "e_bytes, e_FLOPs"} <= terms.keys()
    assert "mma_bf16" in terms["pipe"]
    assert "page16" in terms["case id"]


def test_flags_stand_beside_the_time_on_the_screen(page: Browser) -> None:
    headings = page.run("return [...document.querySelectorAll('.cases thead th')].map(h => h.textContent)")
    assert headings.index("flags") == headings.index("median time") + 1
    page.run("document.getElementById('cases').scrollIntoView()")
    right = "return document.querySelectorAll('.cases thead th')[%d].getBoundingClientRect().right"
    assert page.run(right % headings.index("flags")) < 1280


@pytest.mark.parametrize("claim", ["T1", "I8"])
@pytest.mark.parametrize("scripts", [True, False])
def test_a_link_to_a_claim_opens_it(browser: Browser, full: Path, claim: str, scripts: bool) -> None:
    """Also one that is folded into the unmeasured, and without JavaScript."""
    browser.open(full / "report.html", at=f"#{claim}", scripts=scripts)
    told = f"document.getElementById('{claim}')"
    assert browser.comes(f"{VISIBLE} return seen({told})")
    place = f"const place = {told}.getBoundingClientRect().top; "
    bar = "const bar = document.querySelector('form.filters').getBoundingClientRect().bottom; "
    assert browser.comes(f"{place} {bar} return bar <= place && place < 1000")
    assert browser.run(f"return {told}.querySelectorAll('dt').length") >= 2


def test_a_phone_shows_cards_and_no_sideways_scroll(browser: Browser, full: Path) -> None:
    with browser.screen(390, mobile=True):
        browser.open(full / "report.html")
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        wide = "return [...document.querySelectorAll('td, th, dd, pre')].filter(e => e.offsetHeight > 0 && "
        wide += "e.getBoundingClientRect().right > 390.5).map(e => e.textContent.slice(0, 60))"
        assert browser.run(wide) == []
        assert browser.run("return document.querySelector('.cases thead').offsetHeight") == 0
        assert browser.errors() == []


def test_paper_has_every_claim_open_and_no_cut_column(browser: Browser, full: Path) -> None:
    """703 px are the 186 mm that an A4 page has within its margins."""
    with browser.screen(703):
        browser.open(full / "report.html")
        with browser.media("print"):
            browser.run("window.dispatchEvent(new Event('beforeprint'))")
            closed = f"{VISIBLE} return [...document.querySelectorAll('.told')].filter(e => !seen(e)).length"
            assert browser.run(closed) == 0
            cut = "return [...document.querySelectorAll('table')].filter(t => t.offsetHeight > 0 && "
            cut += "t.getBoundingClientRect().right > 704).length"
            assert browser.run(cut) == 0
            browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("return document.querySelectorAll('details.claim[open]').length") == 0
    pages = re.findall(rb"/Type\s*/Page\b", browser.pdf())
    assert len(pages) > 5


def test_without_javascript_everything_is_readable(browser: Browser, full: Path) -> None:
    browser.open(full / "report.html", scripts=False)
    hidden = (
        f"{VISIBLE} return ['.tiles', '.verdict', '.cases', '.glossary'].filter(s => !seen(document.querySelector(s)))"
    )
    assert browser.comes(hidden, [])
    pictures = "return [...document.querySelectorAll('img.still')].map(i => i.naturalWidth > 300)"
    assert browser.comes(pictures, [True] * 4)
    useless = f"{VISIBLE} return [...document.querySelectorAll('.plot, form.filters')].filter(seen).length"
    assert browser.comes(useless, 0)
    assert browser.comes(f"return {ROWS}.length", len(json.loads(page_data(full))["points"]))
    browser.command("Emulation.setScriptExecutionDisabled", {"value": False})
