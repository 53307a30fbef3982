"""`report.html`: nothing is fetched, nothing becomes markup, and it works in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.run import load_run
from tests.support.browser import Browser
from tests.support.synthetic_run import (
    GB,
    case_record,
    ceiling_records,
    gemv,
    page_data,
    write_run,
)


def test_the_page_fetches_nothing_and_holds_every_point(full: Path) -> None:
    page = (full / "report.html").read_text()
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*["']""", ours)
    assert "@import" not in ours
    assert "url(" not in ours
    data = json.loads(page_data(full))
    timed = [r for r in load_run(full).records if r.status == "ok" and r.op not in ("stream", "gemm_peak")]
    assert len(data["points"]) == len(timed)
    assert page.count("data-key=") == len(timed)
    flagged = next(p for p in data["points"] if p["flags"])
    assert flagged["flags"] == ["warm", "noisy"]


def test_reasons_cannot_become_markup(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script>"
    refused = case_record("ffn_gemv", "triton_gemv", {"B": 1, "N": 64, "K": 64}, status="failed", reason=nasty)
    timed = gemv(4e-4, case_id=nasty)
    report.write(write_run(tmp_path, [*ceiling_records(), refused, timed]))
    assert nasty not in (tmp_path / "report.html").read_text()


def test_an_op_of_another_version_has_a_colour_and_a_marker(tmp_path: Path) -> None:
    report.write(
        write_run(tmp_path, [*ceiling_records(), dataclasses.replace(gemv(4e-4), op="of_tomorrow")]), draw=False
    )
    colour, marker = json.loads(page_data(tmp_path))["ops"]["of_tomorrow"]
    assert f"--c{colour}:" in (tmp_path / "report.html").read_text()
    assert marker < len("●■▲◆▼✚✖◀★")


POINTS = "document.querySelectorAll('#%s .scatterlayer .point').length"


def test_the_page_in_a_browser(browser: Browser, full: Path) -> None:
    """It draws every figure, a filter removes exactly what it names, and the console stays silent."""
    browser.open(full / "report.html")
    timed = len(json.loads(page_data(full))["points"])
    assert browser.run("return " + POINTS % "efficiency") == timed
    for plot in ("roofline", "prediction", "batch", "peers"):
        assert browser.run("return " + POINTS % plot) > 10, plot
    gemvs = browser.run("return report.points.filter(p => p.op === 'ffn_gemv').length")
    click = "document.querySelector('input[value=ffn_gemv]').click();"
    browser.run(click)
    assert browser.run("return " + POINTS % "efficiency") == timed - gemvs
    assert browser.run("return document.getElementById('count').textContent") == f"{timed - gemvs} of {timed} times"
    browser.run(click)
    choose = "const s = document.querySelector('select[name=%s]'); s.value = '%s'; "
    choose += "s.dispatchEvent(new Event('change', {bubbles: true}));"
    ours = browser.run("return report.points.filter(p => p.ours).length")
    browser.run(choose % ("impl", "ours"))
    assert browser.run("return " + POINTS % "efficiency") == ours
    browser.run(choose % ("flagged", "some"))
    assert browser.run("return " + POINTS % "efficiency") == 1
    symbols = "return document.getElementById('efficiency').data.flatMap(t => t.marker ? t.marker.symbol : [])"
    assert [symbol.endswith("-dot") for symbol in browser.run(symbols)] == [True]
    browser.run(choose % ("flagged", "none"))
    assert not any(symbol.endswith("-dot") for symbol in browser.run(symbols))
    browser.run("document.querySelector('button[type=reset]').click()")
    browser.run("const s = document.getElementById('level'); s.value = 'l2'; s.dispatchEvent(new Event('change'));")
    assert "L2" in browser.run("return document.querySelector('#roofline .xtitle').textContent")
    assert browser.errors() == []


def test_no_part_is_wider_than_a_phone(browser: Browser, full: Path) -> None:
    with browser.screen(390, mobile=True):
        browser.open(full / "report.html")
        assert browser.run("return document.documentElement.scrollWidth") <= 390


def test_paper_is_light_and_narrow_even_from_a_dark_screen(browser: Browser, full: Path) -> None:
    page = "return getComputedStyle(document.documentElement).getPropertyValue('--page').trim()"
    width = "return document.querySelector('#efficiency .main-svg').getBoundingClientRect().width"
    with browser.media(scheme="dark"):
        browser.open(full / "report.html")
        assert browser.run(page) == "#0d1117"
        on_screen = browser.run(width)
        browser.run("window.dispatchEvent(new Event('beforeprint'))")
        assert browser.run(page) == "#ffffff"
        assert browser.run(width) == 680
        assert "mma_bf16 published" in browser.run("return document.querySelector('.roofs').textContent")
        browser.run("window.dispatchEvent(new Event('afterprint'))")
        assert browser.run(page) == "#0d1117"
        assert browser.run(width) == pytest.approx(on_screen, abs=2)
        assert browser.run("return document.querySelector('.roofs').textContent") == ""


def test_roofs_of_a_part_that_no_table_knows_are_drawn(browser: Browser, tmp_path: Path) -> None:
    def derived(value: float, unit: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "kind": "derived", "source": "driver"}

    peaks = {"mma_bf16": derived(9e14, "FLOP/s")}
    part = {"key": "no-such", "name": "No such", "memory_bandwidth": derived(4e12, "B/s"), "peaks": peaks}
    run = write_run(tmp_path, [*ceiling_records(), gemv(4e-4, flops={"mma_bf16": GB})], device=part)
    report.write(run, draw=False)
    browser.open(run / "report.html")
    names = browser.run("return document.getElementById('roofline').data.map(t => t.name)")
    assert {"DRAM derived 4 TB/s", "DRAM measured 3 TB/s", "mma_bf16 published 900 TFLOP/s"} <= set(names)
    assert browser.errors() == []


def test_a_page_without_times_has_no_errors(browser: Browser, tmp_path: Path) -> None:
    report.write(write_run(tmp_path, []))
    browser.open(tmp_path / "report.html")
    assert browser.errors() == []
