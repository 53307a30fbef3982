"""The gate of a campaign: what hangs costs at most a third of its time, once, and hides nothing behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.measure.case import Settings
from bench.measure.worker import Job, Receiver, Worker
from bench.operate.campaign import gate
from bench.operate.campaign.steps import Request
from bench.records import Record, Status
from tests.support import ROOT
from tests.support.planted import ToyCase


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


ASKED = Request(device="cpu", suite="smoke", catalogue="tests.support.planted_hangs", hang_s=180.0)
"""It would let a kernel hang for longer than the gate has time."""


@pytest.mark.slow
def test_what_hangs_is_failed_once_and_hides_nothing(tmp_path: Path) -> None:
    """All three cases of `hangs` would hang. The first gets a third of the time, the others are not tried."""
    assert gate.check_all(tmp_path, ASKED, 60.0)
    found = {(v["impl"], v["case_id"]): v for v in gate.verdicts(tmp_path)}
    cases = ("B8-K4096", "B8-K8192", "B8-K16384")
    assert [found["steady", case]["status"] for case in cases] == ["ok"] * 3
    reasons = [found["hangs", case]["reason"] for case in cases]
    assert reasons[0] == "no progress for 20 s during check"
    assert reasons[1:] == ["not tried: it hung in the gate, in B8-K4096: no progress for 20 s during check"] * 2
    before = (tmp_path / gate.FILE).read_text()
    assert gate.check_all(tmp_path, ASKED, 60.0)
    assert (tmp_path / gate.FILE).read_text() == before
    assert list(gate.hanging(tmp_path)) == [("toy", "hangs")]


class Heard(Receiver):
    def __init__(self) -> None:
        self.lines: list[tuple[str, Status, str]] = []

    def record(self, job: Job, record: Record) -> None: ...

    def lost(self, job: Job, name: str, status: Status, reason: str) -> None:
        self.lines.append((name, status, reason))


@pytest.mark.parametrize("stalled_s", [0.5, 600.0])
def test_an_entry_that_stalls_when_the_time_is_up_is_failed(stalled_s: float) -> None:
    """One that has only just begun is left for another call."""
    worker = Worker(device="cpu", catalogue="tests.support.planted_hangs", hang_s=600.0)
    heard = Heard()
    try:
        assert worker.ready
        job = Job(op="toy", case=ToyCase(), impls=("hangs", "steady"), settings=Settings(timed=False))
        worker.begin(job, heard)
        while b"check" not in worker._marker.value:
            worker.step(0.1)
        for _ in range(8):
            worker.step(0.1)
        worker.give_up(stalled_s)
    finally:
        worker.kill()
    assert not worker.busy
    if stalled_s > 1:
        assert heard.lines == []
    else:
        ((name, status, reason),) = heard.lines
        assert (name, status) == ("hangs", "timeout")
        assert reason.endswith("s when the time was up during check")


def test_a_verdict_of_an_earlier_version_says_nothing_of_hangs(tmp_path: Path) -> None:
    line: dict[str, Any] = {"op": "toy", "impl": "x", "case_id": "c", "status": "failed", "reason": "no verdict"}
    (tmp_path / gate.FILE).write_text(json.dumps(line) + "\n")
    assert gate.hanging(tmp_path) == {}
