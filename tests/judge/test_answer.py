"""The three tiles of a run, worked by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.judge.answer import Answer, answer, share_text
from bench.records import Record
from tests.support.synthetic_run import ON_A_CPU, ROOF, gate, gemv, measured_view, record, view


def tiles_of(path: Path, *records: Record) -> Answer:
    return answer(measured_view(path, list(records)))


def test_the_share_of_the_arithmetic_and_the_free_batch_by_hand(tmp_path: Path) -> None:
    """2 FLOP for each 2-byte weight at 90% of 3 TB/s are 2.7 TFLOP/s, 0.4% of 700; batch 64 takes twice as long."""
    found = tiles_of(tmp_path, *(gate(0.9 if B < 64 else 0.45, B=B) for B in (1, 4, 16, 64)))
    assert found.amount.answer == "batch 1 uses 0.4% of the arithmetic; free up to batch 16"
    assert found.amount.because == "free means at most 10% slower than batch 1; bf16 weight of 28672 × 8192"
    assert share_text(0.9 * ROOF / 700e12) == "0.4%"
    assert share_text(0.42) == "42%"


def test_the_largest_batch_that_was_tried_is_not_called_a_limit(tmp_path: Path) -> None:
    all_free = tiles_of(tmp_path / "all", *(gate(0.9, B=B) for B in (1, 4, 16)))
    assert all_free.amount.answer.endswith("; free up to batch 16, the largest that was tried")
    none_free = tiles_of(tmp_path / "none", *(gate(0.9 / B, B=B) for B in (1, 4, 16)))
    assert none_free.amount.answer.endswith("; no batch above 1 is free")


def test_a_single_batch_still_tells_how_little_arithmetic_it_uses(tmp_path: Path) -> None:
    amount = tiles_of(tmp_path, gate(0.9)).amount
    assert amount.answer == "batch 1 uses 0.4% of the arithmetic"
    assert amount.because.endswith("no weight was timed at three batches")


def test_nothing_measured_gets_no_answer(tmp_path: Path) -> None:
    found = answer(view(tmp_path, []))
    assert [tile.answer for tile in found.tiles] == ["NOT MEASURED", "NOT MEASURED", "LOW"]
    assert found.trust.because == "nothing was timed"


def test_a_clean_run_is_trusted(tmp_path: Path) -> None:
    trust = tiles_of(tmp_path, gemv(4e-4, expected=4.2e-4)).trust
    assert (trust.answer, trust.tone) == ("HIGH", "good")
    assert "predictions made before measuring miss by 4.8% in the median; no time is noisy" in trust.because


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"flags": ["noisy"]}, "100% of the times are noisy"),
        ({"flags": ["disturbed"]}, "100% of the times were taken while others used the machine"),
        ({"flags": ["throttled"]}, "100% of the times were taken at lowered clocks"),
        ({"flags": ["impossible"]}, "1 time is impossibly fast"),
    ],
)
def test_what_speaks_against_a_run_lowers_the_trust(tmp_path: Path, changes: dict[str, list[str]], why: str) -> None:
    trust = tiles_of(tmp_path, gemv(4e-4, expected=4e-4, **changes)).trust
    assert (trust.answer, trust.tone) == ("LOW", "bad")
    assert why in trust.because


def test_a_wrong_result_and_a_missed_prediction_lower_the_trust(tmp_path: Path) -> None:
    wrong = dataclasses.replace(gemv(4e-4, case_id="w"), status="wrong", samples_s=[], reason="max_rel 3")
    assert tiles_of(tmp_path / "wrong", gemv(4e-4), wrong).trust.because == "1 case gave wrong results"
    missed = tiles_of(tmp_path / "missed", gemv(6e-4, expected=4e-4)).trust
    assert missed.because == "predictions miss by 50% in the median"


def test_a_busy_machine_is_said_first_and_lowers_the_trust(tmp_path: Path) -> None:
    host = {"duration_s": 1.0, "others": 0.4, "stolen": 0.2}
    busy = record("kv_append", "numba", "x", read=1 << 20, seconds=1e-3, telemetry={"host": host})
    found = answer(view(tmp_path, [busy], **ON_A_CPU))
    assert found.lines()[0].startswith("The machine was busy: 60% of the CPU was taken by others")
    assert found.trust.because.startswith("the machine was busy")
    assert len(found.lines()) == 4
