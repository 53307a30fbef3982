"""The command line as a user meets it: one line and exit code 2 for what can be mended, JSON for machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import duration
from bench.errors import BadRequest

ROOT = Path(__file__).parents[1]


def decodebench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "smok"], "unknown suite 'smok'; did you mean smoke?"),
        (["run", "--op", "ffn_gem"], "unknown op 'ffn_gem'; did you mean ffn_gemv"),
        (["run", "--device", "tpu"], "tpu"),
        (["run", "--budget", "soon"], "'soon' is no duration"),
        (["run", "--resume", "/nowhere"], "no such run: /nowhere"),
        (["report", "/nowhere"], "no such run: /nowhere"),
        (["list", "cass"], "did you mean cases?"),
        (["list", "cases", "--op", "atention_decode"], "did you mean attention_decode"),
        (["codegen", "--op", "nothing-like-it"], "known: "),
        (["codegen", "--sm", "70"], "70"),
        (["predict", "--model", "lama-3.1-70b"], "did you mean llama-3.1-70b"),
        (["predict", "--model", "llama-3.1-70b", "--device", "h100"], "h100-sxm"),
        (["predict", "--model", "llama-2-7b", "--context", "999999"], "context"),
        (["predict", "--config", "/nowhere.json"], "cannot read"),
        (["claims", "--explain", "Z9"], "unknown claim 'Z9'"),
        (["compare", "/nowhere", "/nowhere"], "no such run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = decodebench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("decodebench: ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_an_option_that_does_not_exist() -> None:
    done = decodebench("run", "--siute", "smoke")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_predict_for_machines() -> None:
    rows = json.loads(decodebench("predict", "--model", "llama-3.1-70b", "--batch", "1", "--json").stdout)
    assert rows[0]["device"] == "h100-sxm"
    # 139 GB of weights over 3.35 TB/s
    assert rows[0]["weight_seconds"] == pytest.approx(41.5e-3, rel=0.01)


def test_claims_for_machines() -> None:
    verdicts = json.loads(decodebench("claims", "--json").stdout)
    assert len(verdicts) == 45


def test_durations() -> None:
    assert [duration(text) for text in ("90", "90s", "8m", "1.5h")] == [90, 90, 480, 5400]
    with pytest.raises(BadRequest):
        duration("8 parsecs")
