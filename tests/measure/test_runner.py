"""A fault costs one implementation of one case. A run that is killed at any moment is resumed without loss."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.errors import BadRequest
from bench.measure import runner
from bench.measure.schedule import Request, halving, schedule_jobs
from bench.measure.worker import Job, Ready
from bench.records import FILE
from bench.run import load_run
from bench.terminal.progress import Live
from kernels.op import Target, discover
from tests.support import ROOT, planted_ceiling
from tests.support.heard import Silent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker process must find the planted catalogue too."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def planted(**fields: Any) -> Request:
    return Request(
        **{
            "device": "cpu",
            "suite": "smoke",
            "catalogue": "tests.support.planted",
            "cap_s": 0.01,
            "hang_s": 6.0,
            **fields,
        }
    )


def test_a_killed_and_a_hanging_worker_cost_one_record_each(tmp_path: Path) -> None:
    display = Silent()
    outcome = runner.run(planted(), tmp_path, None, display)
    run = load_run(outcome.directory)
    status = {(r.case_id, r.impl): r.status for r in run.records}
    expected = {(case, impl): "ok" for case in ("B8-K4096", "B8-K8192", "B8-K16384") for impl in ("honest", "steady")}
    expected |= {(case, "raises"): "failed" for case in ("B8-K4096", "B8-K8192", "B8-K16384")}
    expected |= {("B8-K4096", "killed"): "ok", ("B8-K16384", "killed"): "ok", ("B8-K8192", "killed"): "failed"}
    expected |= {(case, "hangs"): "refused" for case in ("B8-K4096", "B8-K8192")} | {("B8-K16384", "hangs"): "timeout"}
    assert status == expected
    reasons = {(r.case_id, r.impl): r.reason or "" for r in run.records}
    assert "signal 9 during gate" in reasons["B8-K8192", "killed"].replace("(", "").replace(")", "")
    assert "no progress for 6 s during gate" in reasons["B8-K16384", "hangs"]
    assert len(display.notes) == 2
    assert run.complete
    precision = run.header["environment"]["precision"]
    assert precision["allow_bf16_reduced_precision_reduction"] is False, "torch's default is True"
    assert precision["allow_fp16_reduced_precision_reduction"] is False
    assert {n["module"] for n in run.notes if n["note"] == "missing"} == {"absent"}
    assert len(outcome.faults) == 5
    # every measurement's prediction was on disk before its record
    kinds = [json.loads(line) for line in (outcome.directory / FILE).read_text().splitlines()]
    for index, line in enumerate(kinds):
        if line["kind"] == "record" and line["status"] == "ok":
            key = (line["impl"], line["case_id"])
            assert any(k["kind"] == "prediction" and (k["impl"], k["case_id"]) == key for k in kinds[:index])


def test_what_hung_is_not_tried_in_other_cases(tmp_path: Path) -> None:
    """Neither later in the run, nor when it is resumed, nor where the gate of a campaign saw it hang."""
    asked = {"catalogue": "tests.support.planted_hangs", "hang_s": 4.0, "impls": ("hangs",)}
    outcome = runner.run(planted(**asked), tmp_path / "run", None, Silent())
    first, *others = outcome.records
    assert (first.status, len(others)) == ("timeout", 2)
    why = f"not tried: it hung in {first.case_id}: no progress for 4 s during gate"
    assert [(r.status, r.reason) for r in others] == [("refused", why)] * 2
    assert outcome.faults == [first]
    asked["hanging"] = (("toy", "hangs", "not tried: because"),)  # type: ignore[assignment]
    known = runner.run(planted(**asked), tmp_path / "known", None, Silent())
    assert [(r.status, r.reason) for r in known.records] == [("refused", "not tried: because")] * 3


def test_a_worker_that_dies_while_it_waits_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed while kernels are compiled beside it; in real runs that may take all memory."""
    worker: list[int] = []

    def starve(*_: Any) -> None:
        (process,) = multiprocessing.active_children()
        worker.append(process.pid or 0)
        process.kill()
        process.join()

    monkeypatch.setattr(runner, "precompile", starve)
    display = Silent()
    outcome = runner.run(planted(impls=("honest",), case="K4096"), tmp_path, None, display)
    assert worker
    assert [r.status for r in outcome.records] == ["ok"]
    assert display.notes == ["the worker process died while it waited; going on with a fresh worker"]
    assert load_run(outcome.directory).complete


def test_one_case_of_each_op_is_entered_twice_a_ceilings_largest_too(tmp_path: Path) -> None:
    """Not in the ceiling's first case: in real ceilings that is an empty launch."""
    request = planted(catalogue="tests.support.planted_ceiling", repeat=2)
    outcome = runner.run(request, tmp_path, None, Silent())
    run = load_run(outcome.directory)
    twice = [(note["op"], note["case_id"]) for note in run.notes if note["note"] == "aa"]
    assert twice == [("roof", "B8-K16384"), ("toy", "B8-K16384")]
    assert len(run.records) == len({r.key for r in run.records}) == 6
    assert len(run.repeats) == 6


def job(op: str, K: int) -> Job:
    return Job(op=op, case=planted_ceiling.planted.ToyCase(K=K), impls=("honest",))


def test_where_the_largest_ceiling_failed_the_next_is_entered_twice(tmp_path: Path) -> None:
    """And a resumed run does not do it again for an op."""
    anything: Any = SimpleNamespace(path=tmp_path / FILE)
    begun: Any = SimpleNamespace(records=[], repeats=[], notes=[{"note": "aa", "op": "roof"}])
    resumed, session = (
        runner.Session(planted(), planted_ceiling.discover(), anything, anything, Silent(), earlier)
        for earlier in (begun, None)
    )
    assert not resumed.pairs(job("roof", 16384), [])
    small, middle, large = (job("roof", K) for K in (4096, 8192, 16384))
    assert not session.pairs(small, [large, middle])
    assert session.pairs(large, [middle])
    assert session.pairs(middle, [job("toy", 16384)]), "the largest made no note"
    assert session.pairs(job("toy", 4096), [job("toy", 16384)]), "no ceiling: the first tells most"


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.measure.test_runner import planted
from tests.support.heard import Silent
from bench.measure import runner
if __name__ == "__main__":
    resume = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    print(runner.run(planted({request}), Path(sys.argv[1]), resume, Silent()).directory)
"""


def run_script(directory: Path, request: str) -> Path:
    """A program that runs the planted request into the directory of its first argument, or resumes its second."""
    script = directory / "run.py"
    script.write_text(SCRIPT.format(root=str(ROOT), request=request))
    return script


def test_a_worker_that_hangs_ends_with_its_killed_parent(tmp_path: Path) -> None:
    """Else it would hold the GPU for ever. It shares its standard output with the parent, so that ends with both."""
    script = run_script(tmp_path, 'impls=("hangs",), hang_s=600.0')
    process = subprocess.Popen([sys.executable, script, tmp_path / "reports"], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any('"kind":"prediction"' in f.read_text() for f in (tmp_path / "reports").glob(f"*/*/{FILE}")):
        assert time.monotonic() < deadline, "the case is never reached"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


EXHAUSTIVE = pytest.param(20, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1500)])


@pytest.mark.slow
@pytest.mark.parametrize("moments", [4, EXHAUSTIVE])
def test_killed_at_random_moments_and_resumed(tmp_path: Path, moments: int) -> None:
    """Once while it starts, and then each time a moment after it has written some more lines."""
    script = run_script(tmp_path, 'impls=("honest", "steady"), repeat=4')
    out = tmp_path / "reports"
    cases = ("B8-K4096", "B8-K8192", "B8-K16384")
    expected = set(itertools.product(["toy"], ["honest", "steady"], cases, range(4)))
    whole = subprocess.run([sys.executable, script, tmp_path / "whole"], check=True, capture_output=True, text=True)
    assert keys(Path(whole.stdout.strip())) == expected
    rng = random.Random(20)
    kills = 0
    while True:
        before, more = lines_written(out), rng.randint(1, 5) if kills else 0
        process = subprocess.Popen([sys.executable, script, out, *out.glob("*/*")], stdout=subprocess.PIPE, text=True)
        if kills < moments:
            # wait for lines, not for seconds: how fast the machine is must not matter
            while more and process.poll() is None and lines_written(out) < before + more:
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.05 if more else 2.0))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
                process.wait()
                for file in out.glob(f"*/*/{FILE}"):
                    if b"\n" not in file.read_bytes():  # it died before its first line: there is no run to go on with
                        shutil.rmtree(file.parent)
                continue
        printed, _ = process.communicate()
        assert process.returncode == 0
        finished = Path(printed.strip())
        assert keys(finished) == expected
        if kills == moments:
            break
        shutil.rmtree(out)  # it finished before it could be killed, so begin again
    lines = [json.loads(line) for line in (finished / FILE).read_text().splitlines() if line.endswith("}")]
    records = [((r["op"], r["impl"], r["case_id"], r["repeat"]), r["flags"]) for r in lines if r["kind"] == "record"]
    done = Counter(key for key, _ in records)
    # what other programs disturbed is measured again at the end
    again = {key for key, flags in records if "disturbed" in flags}
    assert not [key for key, count in done.items() if count > 1 and key not in again], "something was measured twice"


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_two_runs_begun_at_once_are_two_whole_files(tmp_path: Path) -> None:
    """Whole runs, with workers and kernels. `tests/test_files.py` begins ten pairs of writers alone in a second."""
    turns = 10
    script, out = run_script(tmp_path, 'impls=("honest",)'), tmp_path / "reports"
    expected = {("toy", "honest", case, 0) for case in ("B8-K4096", "B8-K8192", "B8-K16384")}
    turns = 10
    for _ in range(turns):
        both = [subprocess.Popen([sys.executable, script, out], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        printed = {process.communicate()[0].strip() for process in both}
        assert [process.returncode for process in both] == [0, 0]
        assert len(printed) == 2
    files = list(out.glob(f"*/*/{FILE}"))
    assert len(files) == 2 * turns
    for file in files:
        run = load_run(file)
        assert (run.complete, run.warnings, len(run.headers)) == (True, [], 1)
        assert keys(file.parent) == expected
        assert run.header["run_id"] == file.parent.name
        assert file.read_text().count('"kind":"record"') == len(expected)


def lines_written(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in out.glob(f"*/*/{FILE}"))


def keys(directory: Path) -> set[tuple[str, str, str, int]]:
    run = load_run(directory)
    return {(*r.key, r.repeat) for r in (*run.records, *run.repeats) if r.status == "ok"}


def test_resume_refuses_another_environment_and_another_request(tmp_path: Path) -> None:
    outcome = runner.run(planted(impls=("honest",)), tmp_path, None, Silent())
    for changed, message in (
        ({"suite": "full"}, "the run began with --suite smoke: with --suite full it would be another run"),
        ({"impls": ("steady", "killed")}, "the run began with --impl honest: with --impl steady,killed it would"),
        ({"ops": ("toy",)}, "the run began without --op: with --op toy it would"),
    ):
        with pytest.raises(BadRequest, match=message):
            runner.run(planted(**changed), tmp_path, outcome.directory, Silent())
    file = outcome.directory / FILE
    header, *rest = file.read_text().splitlines(keepends=True)
    line = json.loads(header)
    line["environment"]["packages"]["torch"] = "1.0"
    file.write_text(json.dumps(line) + "\n" + "".join(rest))
    with pytest.raises(BadRequest, match=r"torch was '1\.0'"):
        runner.run(planted(suite=None), tmp_path, outcome.directory, Silent())


def test_a_budget_says_what_it_left_out(tmp_path: Path) -> None:
    """In one line, with the command that goes on. A resumed run counts its own records."""
    screen = Console(file=StringIO(), width=300)
    outcome = runner.run(planted(impls=("honest", "steady"), budget_s=1e-6), tmp_path, None, Live(screen))
    assert [r.status for r in outcome.records] == ["skipped"] * 6
    *_, last = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    how = f"go on with: decodebench run --resume {outcome.directory}"
    assert last == f"time was up: 3 cases are not measured; {how}"
    assert "skipped" not in screen.file.getvalue()  # type: ignore[attr-defined]
    again = runner.run(planted(suite=None), tmp_path, outcome.directory, Silent())
    assert {r.status for r in load_run(again.directory).records} == {"ok"}
    assert [r.status for r in again.records] == ["ok"] * 6


def test_left_stands_behind_the_time_that_is_left(tmp_path: Path) -> None:
    """It is not shown before the cases are counted, while no time is known."""
    screen = Console(file=StringIO(), width=200, force_terminal=True, color_system=None)
    with Live(screen) as live:
        live.working("toy", "B8")
        live._progress.refresh()
        before = screen.file.getvalue()  # type: ignore[attr-defined]
        live.begin(Target(kind="cpu", name="host"), tmp_path, 3, 1)
    assert "toy B8" in before
    assert "left" not in before
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"0:00:00 (-:--:--|0:00:0\d) left", shown), "the time gone, then the time left"


class Idle:
    """A worker that is ready and never gets a job."""

    ready = Ready(
        target=Target(kind="cpu", name="host"),
        environment={"gpu": None, "git": {"sha": None}, "source_digest": "feedbeef0000"},
        slug="host",
        impls={"toy": {"honest": False}},
        missing={},
    )

    def __init__(self, **_: Any) -> None: ...
    def kill(self) -> None: ...


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suite": "smok"}, "unknown suite 'smok'; did you mean smoke"),
        ({"ops": ("toi",)}, "unknown op 'toi'; did you mean toy"),
        ({"impls": ("honst",)}, "unknown implementation 'honst'; did you mean honest"),
        ({"case": "B9"}, "nothing to measure"),
        ({"repeat": 0}, "--repeat"),
    ],
)
def test_bad_requests_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(runner, "Worker", Idle)
    refused(tmp_path, fields, message)


def test_what_a_worker_refuses_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path, {"device": "tpu"}, "tpu")


def refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        runner.run(planted(**fields), tmp_path, None, Silent())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"case": "zzz"}, "suite smoke has no case with 'zzz' in its id"),
        ({"ops": ("ffn_gemv",), "case": "read"}, "no case with 'read' in its id"),
        ({"ops": ("ffn_gemv",), "impls": ("other",)}, "suite smoke has no case for other"),
    ],
)
def test_ceilings_alone_answer_no_question_about_something_else(fields: dict[str, Any], message: str) -> None:
    ops = discover()
    impls = {name: {"torch": False} for name in ops}
    with pytest.raises(BadRequest, match=message):
        schedule_jobs(Request(suite="smoke", **fields), ops, impls, None, "", None)
    jobs, _ = schedule_jobs(Request(suite="smoke", case="read"), ops, impls, None, "", None)
    assert {job.op for job in jobs} >= {"stream", "gemm_peak"}


def test_halving_covers_all_beginning_with_the_ends() -> None:
    assert halving(5) == [0, 4, 2, 1, 3]
    for count in range(20):
        assert sorted(halving(count)) == list(range(count))
