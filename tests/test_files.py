"""Files are whole or absent, and a directory is written by one process at a time, also where processes are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.errors import BadRequest
from bench.files import Lock, new_directory, replacing, write_text
from bench.records import FILE, Writer
from bench.run import load_run
from tests.support import ROOT


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


TWO_RUNS = """
import os, sys
from pathlib import Path
from bench.files import Lock, new_directory
from bench.records import Writer
print("ready", flush=True)
for turn in range(10):
    directory = new_directory(Path(sys.argv[1]) / f"run-{turn}")
    lock = Lock(directory)
    writer = Writer(directory)
    for line in range(20):
        writer.append("note", {"note": "turn", "process": os.getpid(), "line": line})
    writer.append("run", {"run_id": directory.name})
    writer.append("end", {})
    writer.close()
    lock.release()
"""


def test_two_runs_begun_at_once_ten_times_over_are_twenty_whole_files(tmp_path: Path) -> None:
    both = [python(TWO_RUNS, tmp_path) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    runs = [load_run(path) for path in tmp_path.iterdir()]
    assert len(runs) == 20
    for run in runs:
        assert run.complete
        assert run.warnings == []
        assert len({note["process"] for note in run.notes}) == 1
        assert [note["line"] for note in run.notes] == list(range(20))


def test_a_directory_is_held_until_its_process_ends_however_it_ends(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from bench.files import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
    other = python(code, tmp_path)
    assert line_of(other) == "held"
    with pytest.raises(BadRequest, match="another process is writing to"):
        Lock(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    lock = Lock(tmp_path)
    with pytest.raises(BadRequest, match="another process"):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_killed_in_the_middle_of_a_write_the_old_file_stays_whole(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from bench.files import replacing
with replacing(Path(sys.argv[1])) as fresh:
    with fresh.open("w") as file:
        file.write("new" * 1000)
        file.flush()
        print("half", flush=True)
        time.sleep(60)
"""
    path = tmp_path / "report.md"
    write_text(path, "old")
    for _ in range(3):
        other = python(code, path)
        assert line_of(other) == "half"
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert path.read_text() == "old"


def test_killed_while_it_appends_all_lines_but_the_last_are_whole(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from bench.records import Writer
writer = Writer(Path(sys.argv[1]))
writer.append("run", {"run_id": "x"})
print("begun", flush=True)
while True:
    writer.append("note", {"note": "much", "text": "x" * 20000})
"""
    for _ in range(3):
        other = python(code, tmp_path)
        assert line_of(other) == "begun"
        time.sleep(0.05)
        other.send_signal(signal.SIGKILL)
        other.wait()
    writer = Writer(tmp_path)
    writer.append("end", {})
    writer.close()
    run = load_run(tmp_path)
    assert run.complete
    assert len(run.warnings) <= 3
    assert len(run.headers) == 3


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "campaign.json"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space") as caught, replacing(path) as fresh:  # noqa: PT012
        fresh.write_text("half")
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["campaign.json"]
    assert path.read_text() == "old"


def test_a_directory_that_exists_is_never_taken(tmp_path: Path) -> None:
    made = [new_directory(tmp_path / "a" / "run") for _ in range(3)]
    assert [path.name for path in made] == ["run", "run-2", "run-3"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="cannot write to"):
        new_directory(tmp_path / "file" / "run")


def test_a_run_without_its_first_line_is_of_no_known_place(tmp_path: Path) -> None:
    from bench.judge.view import View
    from bench.report import text

    writer = Writer(tmp_path)
    writer.append("run", {"run_id": "x", "device": {"name": None, "peaks": 3}})
    work = {"flops": {}, "bytes_read": 1 << 20, "bytes_written": 0}
    case = {"model": "", "kind": "read", "size": 1 << 20}
    line = {"op": "stream", "impl": "torch", "ours": False, "case_id": "read-1MiB", "case": case, "status": "ok"}
    writer.append("record", {**line, "work": work, "samples_s": [1e-3, 1.1e-3]})
    writer.append("record", {**line, "impl": "negative", "work": work, "samples_s": [-1e-3, 1e-3]})
    writer.close()
    run = load_run(tmp_path / FILE)
    assert run.warnings == [
        f"{FILE}:1: field device.peaks is not an object; the line is left out",
        f"{FILE}:3: field samples_s[0] is not a time above 0 s; the line is left out",
    ]
    said = text.notices(View(run))[0]
    assert said == "Where it was measured is not known: the line of the file that says so is missing or damaged."
