"""What every reader asks of a run: times to trust, the fastest, the part and what its vendor publishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.judge.view import View
from bench.records import MAY_BE_TOO_SHORT
from bench.report import tables, text
from bench.run import Run, load_run
from tests.support.synthetic_run import ROOF, case_record, ceiling_records, write_run

QUANTITY = {"value": 4e12, "unit": "B/s", "kind": "derived", "source": "driver"}
GATE = {"B": 1, "N": 28672, "K": 8192}


def run_of(directory: Path, *records: object, **changes: object) -> Run:
    return load_run(write_run(directory, [*ceiling_records(), *records], **changes))  # type: ignore[list-item]


def test_what_is_timed_and_what_of_it_is_trusted(tmp_path: Path) -> None:
    flagged = [case_record("ffn_gemv", flag, GATE, seconds=1e-4, flags=[flag]) for flag in sorted(MAY_BE_TOO_SHORT)]
    noisy = case_record("ffn_gemv", "noisy", GATE, seconds=1e-4, flags=["noisy"])
    wrong = case_record("ffn_gemv", "wrong", GATE, seconds=1e-4, status="wrong")
    run = run_of(tmp_path, *flagged, noisy, wrong, case_record("ffn_gemv", "late", GATE, status="skipped"))
    assert [r.impl for r in run.timed if r.op == "ffn_gemv"] == [*sorted(MAY_BE_TOO_SHORT), "noisy"]
    assert [r.impl for r in run.find("ffn_gemv")] == ["noisy"]
    assert run.ceilings
    assert run.ceilings.read_roof == pytest.approx(ROOF, rel=0.01)


def test_the_fastest_of_each_case_in_the_order_of_the_cases(tmp_path: Path) -> None:
    """A field may have one value or any of several; a field that a case lacks fits no value."""
    times = {("a", 1): 3e-4, ("a", 4): 1e-4, ("b", 1): 2e-4, ("b", 4): 2e-4}
    run = run_of(tmp_path, *(case_record("ffn_gemv", i, {**GATE, "B": B}, seconds=s) for (i, B), s in times.items()))
    assert [(r.impl, r.case["B"]) for r in run.fastest("ffn_gemv")] == [("b", 1), ("a", 4)]
    assert [r.case["B"] for r in run.fastest("ffn_gemv", N=28672, B=(4, 8))] == [4]
    assert run.fastest("ffn_gemv", N=28672, T=1) == run.fastest("ffn_gemv", B=2) == run.fastest("moe_ffn") == []


def test_repetitions_stand_behind_the_first(tmp_path: Path) -> None:
    again = case_record("ffn_gemv", "a", GATE, seconds=2e-4, repeat=1)
    refused = case_record("ffn_gemv", "b", GATE, status="refused", reason="needs sm_90")
    run = run_of(tmp_path, again, case_record("ffn_gemv", "a", GATE, seconds=1e-4), refused)
    found = run.repetitions()[("ffn_gemv", "a", again.case_id)]
    assert [r.repeat for r in found] == [0, 1]
    assert not any(impl == "b" for _, impl, _ in run.repetitions())


def test_the_parts_name_is_the_drivers_or_else_the_targets(tmp_path: Path) -> None:
    target = {"kind": "cpu", "name": "Some CPU"}
    named = {"driver": {"key": "h200", "name": "NVIDIA H200"}, "host": {"key": None}, "old": {}}
    runs = {name: run_of(tmp_path / name, device=device, target=target) for name, device in named.items()}
    assert {name: run.device_name for name, run in runs.items()} == {
        "driver": "NVIDIA H200",
        "host": "Some CPU",
        "old": "Some CPU",
    }
    assert {name: run.part and run.part.key for name, run in runs.items()} == {
        "driver": "h200",
        "host": None,
        "old": None,
    }
    assert run_of(tmp_path / "bare", device={}, target={}).device_name == "an unnamed device"


def test_published_numbers_come_from_the_header_and_for_old_runs_from_the_table(tmp_path: Path) -> None:
    new = {
        "key": "unknown-part",
        "name": "P",
        "memory_bandwidth": QUANTITY,
        "peaks": {"mma_bf16": {**QUANTITY, "unit": "FLOP/s"}},
    }
    old = {"key": "h100-sxm", "name": "P"}
    none = {"key": None, "name": "P", "memory_bandwidth": None}
    found = {n: run_of(tmp_path / n, device=device) for n, device in (("new", new), ("old", old), ("none", none))}
    bandwidth, peak = found["new"].published("memory_bandwidth"), found["new"].published("mma_bf16")
    assert bandwidth
    assert peak
    assert (bandwidth.value, bandwidth.kind, peak.value) == (4e12, "derived", 4e12)
    assert found["new"].published("mma_fp8") is None
    known = found["old"].published("memory_bandwidth")
    assert known
    assert (known.value, known.kind) == (3.35e12, "datasheet")
    assert found["none"].published("memory_bandwidth") is None
    assert tables.ceilings(View(found["new"])).rows[0][1:4] == ("3.00 TB/s", "4.00 TB/s (derived)", "75%")
    assert tables.ceilings(View(found["old"])).rows[0][2] == "3.35 TB/s"
    assert "(75% of the derived 4.00 TB/s)" in text.verdict(View(found["new"]))[0]
