"""The rehearsal of a lease: what fits into how many minutes, what a hang costs, and what a machine must not lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from bench import cli, machine
from bench.errors import BadRequest
from bench.operate.campaign import rehearsal
from bench.operate.campaign.rehearsal import Kernels, Rehearsal, by_minute, check_machine, rehearse
from bench.operate.campaign.steps import Request
from tests.support import ROOT
from tests.support.heard import Silent

QUICK, FULL = Kernels(count=80, seconds=1.0), Kernels(count=240, seconds=1.0)
"""A little more than there are."""


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine lacks nothing, whatever it is."""
    monkeypatch.setattr(machine, "c_compiler", lambda: "gcc")
    monkeypatch.setattr(machine, "python_headers", lambda: True)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1 << 40)
    monkeypatch.setattr(rehearsal, "DISK_BYTES", 0)


def rehearsed(suite: str, budget_s: float, **more: Any) -> Rehearsal:
    kernels = QUICK if suite == "quick" else FULL
    return rehearse(Request(suite=suite, budget_s=budget_s), Silent(), kernels=kernels, **more)


@cache
def quick() -> Rehearsal:
    return rehearsed("quick", 360.0, calls=1)


def test_quick_fits_in_six_minutes() -> None:
    found = quick()
    assert found.calls[0].steps["measure"].state == "done"
    assert found.calls[0].steps["gate"].state == "done"
    assert found.took_s[0] <= 360.0
    text = "\n".join(found.lines())
    assert "a rehearsal on a pretended H200" in text
    assert "  0:00  doctor 20 s" in text
    assert "left out: tune, selfcheck, counters" in text


def test_full_fits_in_two_calls_of_nine_minutes_and_tuning_in_three() -> None:
    """Each call goes on from the files of the one before, and brings home what fits through a narrow door."""
    found = rehearsed("full", 540.0)
    first, second, *_ = found.calls
    assert first.steps["measure"].state == "open"
    assert second.steps["measure"].state == "done"
    tuned = [outcome.steps["tune"].state for outcome in found.calls]
    assert tuned.index("done") < 3
    assert found.left == []
    assert all(took <= 540.0 for took in found.took_s)
    assert all(0 < len(outcome.files) <= 8 for outcome in found.calls)
    assert any(name.endswith("report.md") for name in second.files)
    assert json.loads(json.dumps(found.as_dict()))["left"] == []


def test_a_hanging_kernel_costs_a_minute_at_most() -> None:
    """In the gate, and nothing in the measurement, where it is not tried."""
    without, hangs = quick(), rehearsed("quick", 360.0, calls=1, hangs=("attention_decode", "triton"))
    steps = (without.calls[0].steps, hangs.calls[0].steps)
    plain, slow = (found["gate"].seconds for found in steps)
    assert 0.0 < slow - plain <= 60.0
    ok, fewer = (found["measure"].result["ok"] for found in steps)
    assert fewer < ok
    plain, slow = (found["measure"].seconds for found in steps)
    assert slow <= plain
    assert any("attention_decode" in fault and "no progress" in fault for fault in hangs.calls[0].faults)
    assert hangs.calls[0].steps["measure"].state == "done"


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        ("compiler", "no C compiler"),
        ("headers", "no Python.h"),
        ("memory", "0 GiB of memory"),
        ("disk", "0 GiB of free"),
    ],
)
def test_a_lack_is_one_line_and_exit_2(
    lack: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rehearsal, "DISK_BYTES", 1)
    monkeypatch.setattr(sys, "argv", ["decodebench", "campaign", "--rehearse", "--lacks", lack])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    *_, line = err.splitlines()
    assert line.startswith("decodebench: not fit to be rented for: ")
    assert words in line


def test_what_the_machine_itself_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_machine()
    with pytest.raises(BadRequest, match="unknown lack 'gpu'"):
        check_machine(["gpu"])
    for name, value, words in (
        ("memory_bytes", 1 << 30, "1 GiB of memory"),
        ("python_headers", False, r"Python\.h"),
        ("c_compiler", None, "C compiler"),
    ):
        monkeypatch.setattr(machine, name, lambda value=value: value)
        with pytest.raises(BadRequest, match=words):
            check_machine()


def test_a_minute_holds_its_part_of_what_lasts_longer() -> None:
    spent = [(100.0, 30.0, "gate"), (130.0, 45.0, "stream"), (175.0, 5.0, "stream")]
    assert by_minute(spent, 100.0) == ("  0:00  gate 30 s; stream 1 case 30 s", "  1:00  stream 1 case 20 s")


def test_a_campaign_that_is_no_rehearsal_needs_a_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["decodebench", "campaign"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--out names the directory" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_ends_in_three_minutes_with_a_schedule() -> None:
    """In a process that compiles; two kernels are really compiled for sm_90."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench", "campaign", "--rehearse", "--suite", "quick", "--budget", "6m", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kernels"]["count"] > 20
    assert found["kernels"]["seconds"] > 0
    assert found["calls"][0]["steps"]["measure"]["state"] == "done"
    assert found["ncu"].startswith("ncu --csv")
