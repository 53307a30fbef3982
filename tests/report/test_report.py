"""bench/report on synthetic runs, whose numbers can be computed by hand."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.ceilings import Ceilings
from bench.devices import DEVICES
from bench.errors import BadRequest
from bench.judge.view import View
from bench.records import Record
from bench.report import tables, text
from bench.run import load_run
from bench.units import si
from tests.support import ROOT
from tests.support.synthetic_run import (
    GB,
    MEASURED_ROOF,
    ON_A_CPU,
    SWEPT,
    case_record,
    ceiling_records,
    gemv,
    page_data,
    pair,
    predicted,
    record,
    samples,
    stream,
    view,
    write_run,
)

# ---- numbers


def test_share_of_the_roof_and_error_by_hand(tmp_path: Path) -> None:
    """1 GB in 400 µs is 2.5 TB/s; the largest read of the fixture reaches 2^32 B / (2 µs + 2^32 B / 3 TB/s)."""
    found = view(tmp_path, [*ceiling_records(), gemv(400e-6, expected=320e-6)])
    assert found.run.ceilings is not None
    assert found.run.ceilings.read_roof == pytest.approx(MEASURED_ROOF)
    point = found.points[0]
    assert point.rate == pytest.approx(2.5e12)
    assert point.share == pytest.approx(2.5e12 / MEASURED_ROOF)
    assert point.error("measured") == pytest.approx(0.25)
    row = tables.cases(found, "ffn_gemv").rows[0]
    assert row[2:] == ("triton_gemv", "400 µs ±0.1%", "", "2500", "83%", "memory", "320 µs (+25.0%)", "")


def test_verdict_by_hand(tmp_path: Path) -> None:
    """Three of four cases are memory-bound, two of them within 12%. Errors are 10%, 5%, 30%, 20%: the median is 15%."""
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
    assert "; of that, our best large case reaches 351% in GEMV (median 291%)." in lines[0]
    assert "attention" not in lines[0]
    assert text.subtitle(found).endswith(", 4 cases timed")
    predicted = "here? By prediction, 75% of the cases are, and 67% of those"
    assert f"{predicted} ran within 12% of the predicted time." in lines[1]
    assert "miss by 15.0% in the median and lie within 12% for 50% of the times" in lines[2]


def test_a_run_of_noisy_times_says_what_to_do(tmp_path: Path) -> None:
    loud = [gemv(4e-4, expected=4e-4, case_id=f"c{n}", flags=["noisy"] if n else []) for n in range(4)]
    line = text.verdict(view(tmp_path, [*ceiling_records(), *loud]))[2]
    assert line.endswith("; but 75% of all times are noisy: measure again on an idle machine.")
    quiet = text.verdict(view(tmp_path / "quiet", [*ceiling_records(), *loud[:2]]))[2]
    assert "noisy" not in quiet


def test_the_headline_fits_on_two_lines_each(full: Path) -> None:
    """GitHub shows about 120 characters on a line."""
    run = load_run(full)
    run.header["device"]["name"] = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    for line in text.verdict(View(run)):
        assert len(line) <= 240, line


def test_prefill_and_copies_to_the_host_say_nothing_about_decode(tmp_path: Path) -> None:
    prompt = dataclasses.replace(gemv(9e-4, expected=9e-4, bound="mma_bf16"), op="prefill")
    found = view(tmp_path, [*ceiling_records(), gemv(4e-4, expected=4e-4), prompt])
    assert found.ops == ["ffn_gemv", "prefill"]
    assert "By prediction, 100% of the cases are" in text.verdict(found)[1]


def test_the_link_to_the_host_is_a_ceiling(tmp_path: Path) -> None:
    """50 GB/s of the H100's published 64."""
    copy = record("host_link", "torch", "h2d", case={"kind": "h2d"}, written=GB, seconds=0.02)
    rows = {row[0]: row[1:3] for row in tables.ceilings(view(tmp_path, [*ceiling_records(), copy])).rows}
    assert rows["to or from the host"] == ("50.0 GB/s", si(DEVICES["h100-sxm"].host_bandwidth.value, "B/s"))


def test_the_price_of_a_dependent_load_is_a_ceiling(tmp_path: Path) -> None:
    """1,000 loads of the memory in 702 us, 2 us of which are the launch; 4,000 more of an L2 in 1 ms."""

    def chase(loads: int, seconds: float, **changes: Any) -> Record:
        case = {"kind": "chase", "size": 16 * 10**6, "chains": 1, "loads": loads, "l1": False}
        moved = {"read": 32 * 1000, "l2_bytes": 32 * (loads - 1000)}
        return stream(f"chase-{loads}", kind="chase", seconds=seconds, **moved, **{"case": case} | changes)

    records = [*ceiling_records(), chase(1000, 702e-6), chase(5000, 1702e-6, flags=["noisy"])]
    rows = {row[0]: row[1:] for row in tables.ceilings(view(tmp_path, records)).rows}
    name = "load that waits for the load before it, {}, among 16.0 MB"
    assert rows[name.format("in the memory")] == ("700 ns", "", "", "noisy")
    assert rows[name.format("in a cache")] == ("250 ns", "", "", "noisy")


def test_a_ceiling_carries_the_flags_of_the_time_it_was_read_from(tmp_path: Path) -> None:
    records = ceiling_records()
    largest = max((r for r in records if r.case.get("kind") == "read"), key=lambda r: r.bytes)
    records[records.index(largest)] = dataclasses.replace(largest, flags=["noisy"])
    rows = {row[0]: row[-1] for row in tables.ceilings(view(tmp_path, records)).rows}
    assert rows["DRAM read"] == rows[f"read of {si(largest.bytes, 'B')}"] == "noisy"
    assert [name for name, said in rows.items() if said] == ["DRAM read", f"read of {si(largest.bytes, 'B')}"]
    peak = next(r for r in ceiling_records() if r.op == "gemm_peak")
    hot = [*(r for r in ceiling_records() if r is not peak and r.key != peak.key)]
    hot.append(dataclasses.replace(peak, flags=["throttled"]))
    pipe = next(iter(peak.work["flops"]))
    assert {row[0]: row[-1] for row in tables.ceilings(view(tmp_path / "hot", hot)).rows}[pipe] == "throttled"


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


def test_sections_of_judgement_are_in_both_forms(full: Path) -> None:
    markdown, page = ((full / name).read_text() for name in ("report.md", "report.html"))
    for heading in ("Is it memory? Shown by intervention", "Goals"):
        assert f"## {heading}" in markdown
        assert re.search(rf"<h2 id=[^>]*>{re.escape(heading)}", page)
    assert "If memory is what a kernel waits for" in markdown
    assert "If memory is what a kernel waits for" in page
    assert "Of 15 goals: " in markdown
    assert "| ffn\\_gemv | triton\\_ours | B1-N28672-K8192-bf16 | B 1, 4, 16, 64 |" in markdown
    assert re.search(r"<dt>peers</dt><dd>1\.\d\d \[1\.\d\d, 1\.\d\d\] over 24 cases</dd>", page)


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
from bench import report; from bench.judge.compare import compare
report.write(sys.argv[1])
assert compare(sys.argv[1], sys.argv[1]).exit_code == 0
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
    roof = Ceilings(read_points=((1 << 28, (1 << 28) / 2e10),))
    read = record("stream", "torch", "read", case={"kind": "read"}, read=1 << 28, seconds=(1 << 28) / 2e10)
    torch = case_record(
        "ffn_gemv", "torch", {"B": 1, "N": 4096, "K": 4096, "dtype": "fp32"}, seconds=5e-3, rotation=SWEPT
    )
    refused = case_record("ffn_gemv", "triton_gemv", {"B": 1, "N": 64, "K": 64}, status="refused", reason="needs a GPU")
    run = write_run(tmp_path, [read, predicted(torch, roof), refused], **ON_A_CPU)
    paths = report.write(run)
    page = (run / "report.md").read_text()
    assert "Measured on a CPU; says nothing about GPUs." in page
    assert "Some CPU reads at most 20.0 GB/s; of that, the best case reaches 67% in GEMV (median 67%)." in page
    assert "needs a GPU" in page
    assert {p.name for p in paths} >= {"report.md", "report.html", "roofline.png", "efficiency.png"}
    assert "## Peers" not in page


def test_a_small_rate_keeps_its_digits_and_one_row_is_one(tmp_path: Path) -> None:
    """262 kB in 12.4 ms are 0.0212 GB/s."""
    append = record("kv_append", "triton", "x", read=262_400, seconds=12.4e-3)
    run = write_run(tmp_path, [*ceiling_records(), append])
    (row,) = tables.cases(View(load_run(run)), "kv_append").rows
    assert row[5] == "0.0212"
    report.write(run, html=False, draw=False)
    assert "kv_append (1 row)" in (run / "report.md").read_text()


def test_a_machine_without_plotting_libraries_still_gets_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes None in sys.modules for a module that is not there."""
    run = write_run(tmp_path, [*ceiling_records(), gemv(4e-4)])
    complete = report.write(run)
    assert complete.notes == ()
    assert (run / "report.html").is_file()
    monkeypatch.setitem(sys.modules, "plotly", None)
    without = report.write(run)
    assert [p.name for p in without] == ["report.md", "efficiency.png"]
    (note,) = without.notes
    assert note.startswith("report.html left out: plotly not installed here")
    assert not (run / "report.html").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    bare = report.write(run)
    assert [p.name for p in bare] == ["report.md"]
    assert [n.split(":")[0] for n in bare.notes] == ["the figures left out", "report.html left out"]
    assert "![" not in (run / "report.md").read_text()


def test_page_and_figures_can_be_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, [*ceiling_records(), gemv(4e-4)])
    report.write(run)
    short = report.write(run, html=False, draw=False)
    assert ([p.name for p in short], short.notes) == (["report.md"], ())
    assert sorted(p.name for p in run.rglob("*") if p.is_file()) == ["records.jsonl", "report.md"]


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


def test_the_environment_has_units_and_nothing_of_a_gpu_on_a_cpu(tmp_path: Path) -> None:
    found = {
        "cores": 2,
        "memory_bytes": 25_276_502_016,
        "gpu": {"sm_clock_max_hz": 1_980_000_000, "power_cap_w": 700.0},
    }
    target = {"kind": "cpu", "name": "CPU", "sm": 0, "sm_count": 2, "l2_bytes": 503_316_480, "smem_per_sm": 0}

    def rows(directory: str, kind: str) -> dict[str, str]:
        shown = view(tmp_path / directory, [], target={**target, "kind": kind}, environment=found)
        return {name: value for name, value in tables.environment(shown).rows if name.startswith(("target", "env"))}

    shared = {
        "target.name": "CPU",
        "environment.cores": "2",
        "environment.memory_bytes": "25.3 GB",
        "environment.gpu.sm_clock_max_hz": "1.98 GHz",
        "environment.gpu.power_cap_w": "700 W",
    }
    assert rows("cpu", "cpu") == {"target.kind": "cpu", **shared}
    of_a_gpu = {"target.sm": "0", "target.sm_count": "2", "target.l2_bytes": "503 MB", "target.smem_per_sm": "0 B"}
    assert rows("gpu", "cuda") == {"target.kind": "cuda", **shared, **of_a_gpu}


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
    missing = {"note": "missing", "module": "gemlite", "reason": "not installed"}
    report.write(write_run(tmp_path, [gemv(4e-4)], notes=[pair(samples(1e-4), samples(1.02e-4)), missing]))
    page = (tmp_path / "report.md").read_text()
    assert re.search(r"\| ffn\\_gemv \| triton\\_gemv \| x \| \+2\.0% ", page)
    assert "note: missing; module: gemlite; reason: not installed" in page


def test_counters_stand_beside_what_was_declared(tmp_path: Path) -> None:
    """1.1 GB were read and 1 GB was declared: 10% more. No written bytes were declared, so they have no percentage."""
    found = gemv(4e-4)
    counters = {"note": "counters", "op": found.op, "impl": found.impl, "case_id": found.case_id}
    counters |= {"declared_read": GB, "declared_written": 0, "dram_read": 1.1e9, "dram_written": 5e4}
    counters |= {"l2_hit_rate": 0.25, "occupancy": None, "intensity": 1.5}
    report.write(write_run(tmp_path, [found], notes=[counters]))
    page = (tmp_path / "report.md").read_text()
    assert "| 1.10 GB (+10.0%) | 50.0 kB | 25% |  | 1.50 |" in page
    assert "note: counters" not in page


def test_the_spread_of_ranks_is_shown(tmp_path: Path) -> None:
    each = [[1e-4, 1.2e-4], [1e-4, 1.2e-4], [1.3e-4, 1.2e-4]]
    report.write(write_run(tmp_path, [gemv(1.2e-4, samples_s=[max(s) for s in each], ranks_s=each)]))
    assert "| 100 µs, 120 µs | 20.0% | rank 1, 67% |" in (tmp_path / "report.md").read_text()
    assert "rank 1, 67%" in (tmp_path / "report.html").read_text()


def test_repetitions_and_telemetry_are_summed_up(tmp_path: Path) -> None:
    clock = {"min": 1.2e9, "median": 1.7e9, "max": 1.98e9}
    watched = {
        "sm_clock_hz": clock,
        "power_w": 512.0,
        "power_from": "energy",
        "temperature_c": 61,
        "throttled": False,
        "power_capped": True,
    }
    first = gemv(4e-4, case_id="one", telemetry=watched)
    again = dataclasses.replace(first, repeat=1, samples_s=samples(4.4e-4))
    report.write(write_run(tmp_path, [first, again]))
    page = (tmp_path / "report.md").read_text()
    assert "| ffn\\_gemv | 1 | 10.0% | 10.0% |" in page
    assert "| while measuring: SM clock | 1.20 GHz to 1.98 GHz |" in page
    assert "mean power of a case | 512 W to 512 W (from the board's energy counter in 1 case) |" in page
    assert "| while measuring: cases throttled | 0 of 1 |" in page
    assert "| while measuring: cases held back by the power cap | 1 of 1 |" in page
