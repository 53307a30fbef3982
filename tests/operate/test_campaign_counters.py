"""Counters in a campaign: they go on in the next call where the time was up, and are not counted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.inspection import counters
from bench.inspection.counters import Choice, Counted, Counts
from bench.operate.campaign import steps
from bench.records import FILE
from tests.support.heard import Silent


def counted(case_id: str) -> Counted:
    names: dict[str, Any] = {"op": "stream", "impl": "triton", "case_id": case_id}
    numbers = {"declared_read": 1, "declared_written": 1, "kernels": ("k",)}
    optional = ("dram_read", "dram_written", "l2_hit_rate", "tensor_ops", "ffma", "fma_flops", "occupancy")
    return Counted(**names, **numbers, **dict.fromkeys((*optional, "seconds", "intensity")))


def test_counting_goes_on_after_a_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call sees nothing, the second one launch of two, the third the other."""
    records = tmp_path / "part" / "run" / FILE
    records.parent.mkdir(parents=True)
    records.write_text('{"kind": "run"}\n')
    left = {("stream", "triton", "read"): counters.NO_TIME}
    answers = [
        Counts(timed_out=True),
        Counts(counted=(counted("copy"),), failed=left),
        Counts(counted=(counted("read"),)),
    ]
    asked: list[Choice] = []

    def count(choice: Choice, timeout_s: float) -> Counts:
        asked.append(choice)
        return answers[len(asked) - 1]

    monkeypatch.setattr(counters, "count", count)
    campaign = steps.Campaign(steps.Request(root=tmp_path), tmp_path, Silent())
    progress = campaign.steps["counters"]
    states = []
    for _ in answers:
        campaign.counters(progress, 60.0)
        states.append((progress.state, progress.found[0]))
    assert states == [
        ("open", "0 launches counted, 0 not; the time was up"),
        ("open", "1 launches counted, 1 not; the time was up"),
        ("done", "2 launches counted, 0 not"),
    ]
    assert [choice.done for choice in asked] == [(), (), (("stream", "triton", "copy"),)]
    notes = [json.loads(line) for line in records.read_text().splitlines()[1:]]
    assert [note["case_id"] for note in notes] == ["copy", "read"]
