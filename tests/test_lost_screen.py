"""The screen is lost: a pipe that is closed, ASCII, a full device, no stdout at all. Nothing that was measured is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PREDICT = ["predict", "--model", "llama-3.1-8b", "--batch", "1"]


def decodebench(arguments: list[str], **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    environ = {**os.environ, **how.pop("env", {})}  # type: ignore[dict-item]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, **how}
    return subprocess.run(command, env=environ, check=False, **given)  # type: ignore[call-overload]


def test_ascii_has_a_letter_for_every_sign() -> None:
    done = decodebench(["list", "ops"], env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_a_pipe_that_is_closed_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = decodebench(PREDICT, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_device_is_one_line_and_exit_code_2() -> None:
    with open("/dev/full", "w") as full:
        done = decodebench(PREDICT, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "decodebench: cannot write to stdout: No space left on device\n"


def test_no_stdout_at_all() -> None:
    done = decodebench(PREDICT, stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_working_directory_that_is_deleted_is_no_fault(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        f"import os, sys, runpy; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); sys.argv = ['b', 'list', 'models']"
    )
    command = [sys.executable, "-c", f"{code}; runpy.run_module('bench', run_name='__main__')"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "llama-3.1-8b" in done.stdout


def test_what_is_printed_cannot_steer_the_terminal(tmp_path: Path) -> None:
    from bench.terminal.screen import finite, printable

    assert printable("a\x1b[31mb\x07\n") == "a?[31mb?\n"
    assert finite({"a": float("inf"), "b": [1.0, float("nan")], "c": "x"}) == {"a": None, "b": [1.0, None], "c": "x"}
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama", "_name_or_path": "\\u001b[31mred"}')
    done = decodebench(["predict", "--config", str(path)])
    assert done.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--model", "llama-3.1-8b", "--batch", "9" * 300], "--batch: 999999999999... is too large"),
        (["predict", "--model", "llama-3.1-8b", "--price", "1e308"], "--price must be above 0 and at most 1,000,000"),
        (["predict", "--model", "llama-3.1-8b", "--price", "nan"], "--price must be above 0"),
        (["predict", "--model", "llama-3.1-8b", "--context", "9" * 30], "--context: 999999999999... is too large"),
        (["emulate", "--ctas", "99999999999999999999"], "65536"),
        (["run", "--budget", ""], "--budget: '' is no duration"),
        (["run", "--repeat", "0"], "Invalid value for '--repeat'"),
    ],
)
def test_numbers_at_the_edge_are_one_line(arguments: list[str], message: str) -> None:
    done = decodebench(arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr
