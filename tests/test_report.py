"""bench/report on synthetic runs, whose numbers can be computed by hand; the page also in a real browser."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import (
    LAUNCH,
    ROOF,
    case_record,
    ceiling_records,
    decode_records,
    extras,
    header,
    predicted,
    record,
    samples,
    write_run,
)

from bench import report
from bench.errors import BadRequest
from bench.records import Record, Writer, as_line, load_run
from bench.report import tables, text
from bench.report.frame import Accuracy, View, batches, free_batch, gap, precision
from bench.report.units import digits, duration, measured, percent, si, tick
from bench.roofline import Ceilings
from bench.stats import Interval

ROOT = Path(__file__).resolve().parent.parent
GB = 10**9


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic run of every kind of record, with its report."""
    run = write_run(tmp_path_factory.mktemp("synthetic"), [*ceiling_records(), *decode_records(), *extras()])
    report.write(run)
    return run


def view(tmp_path: Path, records: list[Record], **changes: Any) -> View:
    return View(load_run(write_run(tmp_path / "run", records, **changes)))


def gemv(
    seconds: float, *, read: int = GB, expected: float | None = None, bound: str = "memory", **changes: Any
) -> Record:
    """A case of 1 GB; at the synthetic roof of 3 TB/s it would take a third of a millisecond."""
    terms = {"memory": expected or 0.0}
    prediction = {"measured": {"seconds": expected, "terms": terms, "bound": bound}} if expected else {}
    impl, name = changes.pop("impl", "triton_gemv"), changes.pop("case_id", f"B1-{seconds}")
    fields = {"B": 1, "N": 1, "K": 1, "dtype": "bf16"}
    return record(
        "ffn_gemv", impl, name, case=fields, read=read, seconds=seconds, prediction=prediction, **changes
    )  # fmt: skip


# ---- numbers


@pytest.mark.parametrize(
    ("said", "want"),
    [
        (digits(3.0512), "3.05"),
        (digits(81.24), "81.2"),
        (digits(642.4), "642"),
        (digits(12345.0), "12345"),
        (digits(0.03124), "0.0312"),
        (si(3.35e12, "B/s"), "3.35 TB/s"),
        (si(989e12, "FLOP/s"), "989 TFLOP/s"),
        (duration(41.8e-3), "41.8 ms"),
        (duration(6.4e-7), "640 ns"),
        (tick(2e-5, "s"), "20 µs"),
        (percent(0.914), "91%"),
        (measured(Interval(low=0.99e-6, median=1e-6, high=1.01e-6)), "1.00 µs ±1.0%"),
        (measured(Interval(low=0.0, median=1e-6, high=float("inf"))), "1.00 µs (one sample)"),
    ],
)
def test_numbers_as_people_read_them(said: str, want: str) -> None:
    assert said == want


def test_share_of_the_roof_and_error_by_hand(tmp_path: Path) -> None:
    """1 GB in 400 µs is 2.5 TB/s; the largest read of the fixture reaches 2^32 B / (2 µs + 2^32 B / 3 TB/s)."""
    found = view(tmp_path, [*ceiling_records(), gemv(400e-6, expected=320e-6)])
    roof = 2**32 / (LAUNCH + 2**32 / ROOF)
    assert found.ceilings is not None
    assert found.ceilings.read_roof == pytest.approx(roof)
    point = found.points[0]
    assert point.rate == pytest.approx(2.5e12)
    assert point.share == pytest.approx(2.5e12 / roof)
    assert point.error("measured") == pytest.approx(0.25)
    row = tables.cases(found, "ffn_gemv").rows[0]
    assert row[2:7] == ("400 µs ±0.1%", "2500", "83%", "320 µs (+25.0%)", "")


def test_verdict_by_hand(tmp_path: Path) -> None:
    """Four cases: three bound by memory, two of them within 12%; errors 10%, 5%, 30%, 20%: median 15%, half within."""
    records = [
        gemv(110e-6, expected=100e-6),
        gemv(95e-6, expected=100e-6),
        gemv(130e-6, expected=100e-6),
        gemv(120e-6, expected=100e-6, bound="mma_bf16"),
    ]
    found = view(tmp_path, [*ceiling_records(), *records])
    lines = text.verdict(found)
    assert len(lines) == 3
    assert "Synthetic GPU reads at most 3.00 TB/s (89% of its datasheet's 3.35 TB/s)" in lines[0]
    assert "no large attention was measured" in lines[0]
    assert "3 of 4 cases (75%) are predicted to be bound by memory, and 2 of those (67%) ran within 12%" in lines[1]
    assert "miss by 15.0% in the median and lie within 12% for 50% of 4 times" in lines[2]


def test_only_the_fastest_of_ours_stands_for_a_case(tmp_path: Path) -> None:
    same = {"case_id": "one", "expected": 1e-4}
    records = [
        gemv(3e-4, impl="triton_a", **same),
        gemv(2e-4, impl="triton_b", **same),
        gemv(1e-4, impl="torch", **same),
    ]
    found = view(tmp_path, [*ceiling_records(), *records])
    assert [p.record.impl for p in found.best] == ["triton_b"]
    peer = found.peers[0]
    assert (peer.ours.record.impl, peer.peer.record.impl) == ("triton_b", "torch")
    assert peer.ratio.median == pytest.approx(0.5)
    assert tables.peers(found).rows[0][5] == "peer"


def test_headlines_leave_out_times_that_may_be_too_short(tmp_path: Path) -> None:
    found = view(tmp_path, [*ceiling_records(), gemv(200e-6, flags=["impossible"]), gemv(500e-6, read=GB)])
    assert max(p.share or 0 for p in found.points) > 1.6
    best = found.best_large("ffn_gemv")
    assert best is not None
    assert best.seconds == pytest.approx(500e-6)
    assert tables.summary(found).rows[0][2].startswith("67% ")


def test_small_cases_are_not_large(tmp_path: Path) -> None:
    """The fixture's cache holds 50 MB: a case of 99 MB may not stand for the roof, one of 100 MB may."""
    small, large = gemv(33e-6, read=99_000_000), gemv(50e-6, read=100_000_000)
    found = view(tmp_path, [*ceiling_records(), small, large])
    best = found.best_large("ffn_gemv")
    assert best is not None
    assert best.record.bytes == 100_000_000


@pytest.mark.parametrize(
    ("seconds", "expected", "terms", "extra", "want"),
    [
        (340e-6, 335e-6, {"memory": 335e-6}, 0, "within 5% of the roof"),
        (600e-6, 340e-6, {"memory": 340e-6}, 0, "the model does not explain it"),
        (700e-6, 690e-6, {"memory": 340e-6, "mma_bf16": 690e-6}, 0, "bound by mma_bf16"),
        (700e-6, 690e-6, {"memory": 690e-6}, GB, "it moves more than the compulsory bytes"),
        (700e-6, 690e-6, {"memory": 690e-6}, 0, "a stream of this size is itself below the roof"),
    ],
)
def test_the_reason_for_a_gap(
    tmp_path: Path, seconds: float, expected: float, terms: dict[str, float], extra: int, want: str
) -> None:
    bound = max(terms, key=terms.__getitem__)
    found = gemv(seconds)
    stage = {"name": "all", "work": {"flops": {}, "bytes_read": GB + extra, "bytes_written": 0}, "l2_bytes": 0}
    prediction = {"measured": {"seconds": expected, "terms": terms, "bound": bound}}
    shown = view(tmp_path, [dataclasses.replace(found, stages=[stage], prediction=prediction)])
    assert gap(shown.points[0], Ceilings(read_points=((GB, GB / ROOF),))).startswith(want)


def test_free_batch(tmp_path: Path) -> None:
    """Times 1.0, 1.05, 1.09, 1.2, 1.0: the run of batches within 10% ends at the third."""
    records = [
        dataclasses.replace(gemv(t * 1e-4, case_id=f"B{b}"), case={"B": b, "N": 8, "K": 8, "dtype": "bf16"})
        for b, t in ((1, 1.0), (2, 1.05), (4, 1.09), (8, 1.2), (16, 1.0))
    ]
    (series,) = batches(view(tmp_path, records).points).values()
    assert list(series) == [1, 2, 4, 8, 16]
    assert free_batch(series) == 4


def test_precision_names_every_type_once() -> None:
    assert precision({"dtype": "bf16", "kv": "fp8", "layout": "NHD", "B": 1}) == "bf16 fp8"
    assert precision({"dtype": "bf16", "weights": "int4-g128", "out": "bf16"}) == "bf16 int4-g128"
    assert precision({"B": 1}) == "other"


def test_accuracy_without_predictions_is_none() -> None:
    assert Accuracy.of([], "measured") is None


# ---- whole reports


def test_everything_is_written_and_linked(full: Path) -> None:
    page = (full / "report.md").read_text()
    linked = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert sorted(linked) == [f"figures/{name}.png" for name in ("batch", "efficiency", "prediction", "roofline")]
    for name in linked:
        assert (full / name).read_bytes().startswith(b"\x89PNG")
        assert (full / name).stat().st_size > 20_000


def test_every_record_is_in_the_report(full: Path) -> None:
    page = (full / "report.md").read_text()
    run = load_run(full)
    for found in run.records:
        if found.op not in ("stream", "gemm_peak") and found.status == "ok":
            assert f"| {found.case_id.replace('_', chr(92) + '_')} | {found.impl.replace('_', chr(92) + '_')}" in page
    for reason in ("needs sm\\_89 or later", "ImportError: \\<no module\\> \\| gemlite", "max\\_rel 3.1 over 0.016"):
        assert reason in page
    assert "uv run decodebench run --suite quick" in page
    assert "environment.packages.torch | 2.11.0" in page


def test_flags_are_shown_with_their_meaning(full: Path) -> None:
    page = (full / "report.md").read_text()
    assert "| warm | the rotating copies together are smaller than four times the cache" in page
    assert "| warm, noisy |" in page


def test_markdown_tables_keep_their_columns(full: Path) -> None:
    """A stray bar in a reason would shift every cell after it."""
    width = 0
    for line in (full / "report.md").read_text().splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("|"):
            width = 0
        else:
            assert bars == (width or bars), line
            width = bars


def test_regenerates_from_the_records_without_torch(full: Path, tmp_path: Path) -> None:
    """The same report byte for byte, in a process where torch and triton can't be imported."""
    shutil.copy(full / "records.jsonl", tmp_path)
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
from bench import compare_runs, report
report.write(sys.argv[1])
assert compare_runs.compare(sys.argv[1], sys.argv[1]).exit_code == 0
assert not {"torch", "triton"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").read_bytes() == (full / "report.md").read_bytes()
    assert (tmp_path / "report.html").read_bytes() == (full / "report.html").read_bytes()


def test_a_partial_run_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, [*ceiling_records(), gemv(4e-4)], end=False)
    report.write(run)
    for name in ("report.md", "report.html"):
        assert "Partial run: it stopped before its end, with" in (run / name).read_text()


def test_a_cpu_run_says_so_and_shows_its_numbers(tmp_path: Path) -> None:
    cpu = {"device": {"key": None, "name": "Some CPU"}, "target": {"kind": "cpu", "name": "Some CPU"}}
    roof = Ceilings(read_points=((1 << 28, (1 << 28) / 2e10),))
    read = record("stream", "torch", "read", case={"kind": "read"}, read=1 << 28, seconds=(1 << 28) / 2e10)
    torch = case_record("ffn_gemv", "torch", {"B": 1, "N": 4096, "K": 4096, "dtype": "fp32"}, seconds=5e-3, rotation={})
    refused = case_record("ffn_gemv", "triton_gemv", {"B": 1, "N": 64, "K": 64}, status="refused", reason="needs a GPU")
    run = write_run(tmp_path, [read, predicted(torch, roof), refused], **cpu)
    paths = report.write(run)
    page = (run / "report.md").read_text()
    assert "Measured on a CPU with the torch reference path; says nothing about GPUs." in page
    assert "Some CPU reads at most 20.0 GB/s; best large GEMV reaches 67%" in page
    assert "needs a GPU" in page
    assert {p.name for p in paths} >= {"report.md", "report.html", "roofline.png", "efficiency.png"}
    assert "## Peers" not in page


def test_a_run_of_refusals_alone(tmp_path: Path) -> None:
    refused = case_record("ffn_gemv", "triton_gemv", {"B": 1, "N": 64, "K": 64}, status="refused", reason="needs sm_90")
    run = write_run(tmp_path, [refused])
    assert [p.name for p in report.write(run)] == ["report.md", "report.html"]
    page = (run / "report.md").read_text()
    assert "No decode case has a time; the reasons are listed below." in page
    assert "needs sm\\_90" in page
    assert "no measured roof" in page


def test_an_empty_run(tmp_path: Path) -> None:
    assert [p.name for p in report.write(write_run(tmp_path, [], end=False))] == ["report.md", "report.html"]


def test_no_run_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        report.write(tmp_path)


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roofline.png").write_bytes(b"old")
    report.write(write_run(tmp_path, []))
    assert not (tmp_path / "figures" / "roofline.png").exists()


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, [*ceiling_records(), gemv(4e-4)])
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"kind": "record", "op": "ffn_\n')
    report.write(tmp_path)
    for name in ("report.md", "report.html"):
        assert "Damaged line: records.jsonl:" in (tmp_path / name).read_text()


def test_a_single_sample_has_no_interval(tmp_path: Path) -> None:
    once = dataclasses.replace(gemv(4e-4, expected=4e-4), samples_s=[4e-4])
    peer = dataclasses.replace(once, impl="torch", ours=False)
    report.write(write_run(tmp_path, [*ceiling_records(), once, peer]))
    assert "400 µs (one sample)" in (tmp_path / "report.md").read_text()
    assert "Infinity" not in page_data(tmp_path)


def test_the_resolution_is_shown(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append("run", header())
    writer.append("record", as_line(gemv(4e-4)))
    twice = {"op": "ffn_gemv", "impl": "triton_gemv", "case_id": "x", "samples_s": [samples(1e-4), samples(1.02e-4)]}
    writer.append("note", {"note": "aa", **twice})
    writer.append("note", {"note": "missing", "module": "gemlite", "reason": "not installed"})
    writer.close()
    report.write(tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert re.search(r"\| ffn\\_gemv \| triton\\_gemv \| x \| \+2\.0% ", page)
    assert "note: missing; module: gemlite; reason: not installed" in page


def test_counters_stand_beside_what_was_declared(tmp_path: Path) -> None:
    """1.1 GB read where 1 GB was declared: 10% more; nothing declared as written, so no share of it."""
    writer = Writer(tmp_path)
    writer.append("run", header())
    found = gemv(4e-4)
    writer.append("record", as_line(found))
    counters = {
        "op": found.op, "impl": found.impl, "case_id": found.case_id, "declared_read": GB, "declared_written": 0,
        "dram_read": 1.1e9, "dram_written": 5e4, "l2_hit_rate": 0.25, "occupancy": None, "intensity": 1.5,
    }  # fmt: skip
    writer.append("note", {"note": "counters", **counters})
    writer.close()
    report.write(tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "| 1.10 GB (+10.0%) | 50.0 kB | 25% |  | 1.50 |" in page
    assert "note: counters" not in page


def test_repetitions_and_telemetry_are_summed_up(tmp_path: Path) -> None:
    clock = {"min": 1.2e9, "median": 1.7e9, "max": 1.98e9}
    watched = {"sm_clock_hz": clock, "power_w": 512.0, "temperature_c": 61, "throttled": False, "power_capped": True}
    first = gemv(4e-4, case_id="one", telemetry=watched)
    again = dataclasses.replace(first, repeat=1, samples_s=samples(4.4e-4))
    report.write(write_run(tmp_path, [first, again]))
    page = (tmp_path / "report.md").read_text()
    assert "| ffn\\_gemv | 1 | 10.0% | 10.0% |" in page
    assert "| while measuring: SM clock | 1.20 GHz to 1.98 GHz |" in page
    assert "| while measuring: cases throttled | 0 of 1 |" in page
    assert "| while measuring: cases held back by the power cap | 1 of 1 |" in page


# ---- the page


def page_data(run: Path) -> str:
    page = (run / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return found[1]


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


class Browser:
    """A headless Chromium through chromedriver's WebDriver protocol, with nothing but the standard library."""

    def __init__(self, port: int, arguments: list[str]) -> None:
        self.root = f"http://127.0.0.1:{port}"
        options = {"args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = ""
        self.session = (
            f"/session/{self.call('POST', '/session', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        )

    def call(self, method: str, path: str, content: Any = None) -> Any:
        data = json.dumps(content or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.root + self.session + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        self.call("POST", "/url", {"url": page.as_uri()})
        for _ in range(200):
            if self.run("return document.documentElement.dataset.ready === '1'"):
                return
            time.sleep(0.05)
        pytest.fail(f"the page's script did not come to its end: {self.errors()}")

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def errors(self) -> list[str]:
        log = self.call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver on PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    profile = tmp_path_factory.mktemp("profile")
    arguments = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={profile}", "--window-size=1280,1000",
    ]  # fmt: skip
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.05)
        found = Browser(port, arguments)
        yield found
        found.call("DELETE", "")
    finally:
        process.terminate()
        process.wait(timeout=20)


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
    assert browser.run("return document.getElementById('count').textContent") == f"{timed - gemvs} of {timed} cases"
    browser.run(click)
    choose = "const s = document.querySelector('select[name=%s]'); s.value = '%s'; "
    choose += "s.dispatchEvent(new Event('change', {bubbles: true}));"
    ours = browser.run("return report.points.filter(p => p.ours).length")
    browser.run(choose % ("impl", "ours"))
    assert browser.run("return " + POINTS % "efficiency") == ours
    browser.run(choose % ("flagged", "some"))
    assert browser.run("return " + POINTS % "efficiency") == 1
    browser.run("document.querySelector('button[type=reset]').click()")
    browser.run("const s = document.getElementById('level'); s.value = 'l2'; s.dispatchEvent(new Event('change'));")
    assert "L2" in browser.run("return document.querySelector('#roofline .xtitle').textContent")
    assert browser.errors() == []


def test_no_part_is_wider_than_a_phone(browser: Browser, full: Path) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.call(
        "POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
    )  # fmt: skip
    browser.open(full / "report.html")
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    browser.call("POST", "/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})


def test_paper_is_light_and_narrow_even_from_a_dark_screen(browser: Browser, full: Path) -> None:
    def scheme(value: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": value}]
        browser.call(
            "POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        )

    page = "return getComputedStyle(document.documentElement).getPropertyValue('--page').trim()"
    width = "return document.querySelector('#efficiency .main-svg').getBoundingClientRect().width"
    scheme("dark")
    browser.open(full / "report.html")
    assert browser.run(page) == "#0d1117"
    on_screen = browser.run(width)
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run(page) == "#ffffff"
    assert browser.run(width) == 680
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run(page) == "#0d1117"
    assert browser.run(width) == pytest.approx(on_screen, abs=2)
    scheme("light")


def test_a_page_without_times_has_no_errors(browser: Browser, tmp_path: Path) -> None:
    report.write(write_run(tmp_path, []))
    browser.open(tmp_path / "report.html")
    assert browser.errors() == []
