"""The banner over a run that was measured on a busy machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.judge.busyness import banner, taken_by_others
from bench.judge.compare import compare, lines
from bench.run import load_run
from tests.support.synthetic_run import record, write_run


def run_with(path: Path, *shares: float) -> Path:
    """A run whose records lasted 1, 2, ... seconds, in which others had these shares."""
    records = []
    for i, share in enumerate(shares):
        host = {"duration_s": i + 1.0, "others": share / 2, "stolen": share / 2}
        records.append(record("kv_append", "numba", f"case {i}", read=1 << 20, seconds=1e-3, telemetry={"host": host}))
    return write_run(path, records)


def test_shares_are_weighted_by_their_time(tmp_path: Path) -> None:
    run = load_run(run_with(tmp_path, 0.7, 0.4))
    assert taken_by_others(run) == pytest.approx(0.5)
    assert banner(run) == "The machine was busy: 50% of the CPU was taken by others; do not quote these numbers."


def test_a_quiet_machine_and_one_that_does_not_tell_have_no_banner(tmp_path: Path) -> None:
    assert banner(load_run(run_with(tmp_path / "quiet", 0.02))) == ""
    silent = load_run(write_run(tmp_path / "silent", [record("kv_append", "numba", "x", read=1 << 20, seconds=1e-3)]))
    assert taken_by_others(silent) is None
    assert banner(silent) == ""


def test_a_comparison_names_the_busy_run(tmp_path: Path) -> None:
    said = lines(compare(run_with(tmp_path / "a", 0.0), run_with(tmp_path / "b", 0.5)))
    assert [line for line in said if "busy" in line] == [
        "b: The machine was busy: 50% of the CPU was taken by others; do not quote these numbers."
    ]
