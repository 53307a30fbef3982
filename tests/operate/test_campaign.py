"""A campaign goes through its steps, says which did not fit, and goes on after a kill. What it brings home is small."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import machine
from bench.errors import BadRequest
from bench.operate.campaign import gate, steps, tuning
from bench.operate.campaign.outcome import MAX_FILES, Progress
from bench.operate.tune import search
from bench.records import FILE
from bench.run import load_run
from kernels.common import tuned
from kernels.op import Target
from tests.support import ROOT
from tests.support.heard import Silent

TESTS = ROOT / "tests"
WRONG = ("killed", "hangs", "raises")
ALL_BUT_MEASURE = tuple(name for name in steps.NAMES if name != "measure")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a campaign must find the planted catalogue, and must not interpret kernels."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def planted(**fields: Any) -> steps.Request:
    asked = {"device": "cpu", "suite": "smoke", "catalogue": "tests.support.planted", "skip": ("doctor", "selfcheck")}
    limits = {"cap_s": 0.01, "hang_s": 6.0, "budget_s": 300.0}
    return steps.Request(**{**asked, **limits, "root": TESTS, **fields})


def run_begun(out: Path, lines: int = 1) -> Path:
    """Put the records of a run into a campaign's directory."""
    records = out / "part" / "run" / FILE
    records.parent.mkdir(parents=True)
    records.write_text('{"kind": "run"}\n' * lines)
    return records


def keys(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["impl"], line["case_id"]) for line in lines]


SCRIPT = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it from the start
sys.path.insert(0, {root!r})
from tests.operate.test_campaign import planted
from tests.support.heard import Silent
from bench import machine
from bench.operate.campaign import steps
if __name__ == "__main__":
    machine.usable_cores = lambda: 4  # two workers check side by side
    print(steps.run(planted(), Path(sys.argv[1]), Silent()).exit_code)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_goes_through_every_step_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """It is killed once in the gate and once while measuring. Each entry is checked once, each case measured once."""
    script, out = tmp_path / "campaign.py", tmp_path / "out"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    for path in (gate.FILE, f"*/*/{FILE}"):
        process = subprocess.Popen([sys.executable, script, out], stdout=subprocess.DEVNULL)
        while not any(b"honest" in found.read_bytes() for found in out.glob(path)):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((out / steps.STATE).read_text())["steps"]["measure"]["state"] == "open"
    outcome = steps.run(planted(), out, Silent())
    states = {name: step.state for name, step in outcome.steps.items()}
    assert states == {
        "doctor": "skipped",
        "gate": "done",
        "tune": "skipped",
        "measure": "done",
        "selfcheck": "skipped",
        "counters": "done",
    }
    # the gate checked every implementation on every case that it supports, once, and names the one that killed or hung
    verdicts = gate.verdicts(out)
    assert len(verdicts) == len(set(keys(verdicts))) == 13
    wrong = {key: v["reason"] for key, v in zip(keys(verdicts), verdicts, strict=True) if v["status"] != "ok"}
    assert {impl for impl, _ in wrong} == set(WRONG)
    assert wrong["hangs", "B8-K16384"] == "no progress for 6 s during check"
    assert "signal 9" in wrong["killed", "B8-K8192"]
    # the measurement has the same, and what is refused
    run = load_run(outcome.run or out)
    written = map(json.loads, (run.path / FILE).read_text().splitlines())
    records = [line for line in written if line["kind"] == "record"]
    calm = keys([line for line in records if "disturbed" not in line["flags"]])  # the others are measured again
    assert (len(calm), len(set(keys(records)))) == (len(set(calm)), 15)
    assert run.complete
    assert any("denied" in note["note"] for note in run.notes)
    assert len(run.headers) == 2
    # what is said of it, and what is to be brought home
    assert outcome.exit_code == 1
    # on a busy machine there may be others: impossible times, or no progress for a while
    planted_faults = [fault for fault in outcome.faults if any(f" {impl}: " in fault for impl in WRONG)]
    # what hung in the gate is not tried in the run, so it is one fault and the others are two each
    assert len(planted_faults) == 9, "\n".join(outcome.faults)
    summary = (out / steps.SUMMARY).read_text()
    assert "| gate | done |" in summary
    assert all(f"- {line}\n" in summary for line in outcome.answer)
    assert [line.split()[0] for line in outcome.answer[-3:]] == ["Memory-bound?", "How", "Trust"]
    assert outcome.lines()[-3:] == list(outcome.answer[-3:])
    assert {Path(name).name for name in outcome.files} >= {steps.STATE, steps.SUMMARY, FILE, "report.md"}
    assert len(outcome.files) <= MAX_FILES
    assert all(name.count("/") <= 2 and size < steps.MAX_BYTES for name, size in outcome.files.items())
    assert not any(line.startswith("left for the next call") for line in outcome.lines())
    assert json.loads(json.dumps(outcome.as_dict()))["left"] == []
    # nothing is done twice
    again = steps.run(planted(), out, Silent())
    assert (again.run or out).joinpath(FILE).read_text().count('"kind":"run"') == 2
    assert len(again.steps) == len(outcome.steps)


@pytest.mark.slow
def test_an_interrupt_ends_its_children_and_is_said(tmp_path: Path) -> None:
    """It comes in the gate, while an implementation hangs that would hang for ten minutes more."""
    script, out = tmp_path / "campaign.py", tmp_path / "out"
    asked = SCRIPT.replace("planted()", "planted(hang_s=600.0)")
    script.write_text(asked.format(root=str(ROOT)))
    process = subprocess.Popen([sys.executable, script, out], stdout=subprocess.PIPE, text=True)
    while not (out / gate.FILE).is_file():
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate()
    assert printed.strip() == "130"
    assert time.monotonic() - began < 200
    assert json.loads((out / steps.STATE).read_text())["steps"]["gate"]["state"] == "open"
    before = (out / gate.FILE).read_text()
    time.sleep(1.0)
    assert (out / gate.FILE).read_text() == before


PARENT = """
import json, sys, time
from pathlib import Path
from bench.operate.campaign.child import Child
child = Child(Path(sys.argv[1]), json.loads(sys.argv[2]))
print(child._process.pid, flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it may vanish between the opening and the reading
        return False


def test_a_child_that_hangs_ends_with_its_killed_parent(tmp_path: Path) -> None:
    """Else it would hold the GPU beside the next call. This child hangs, because nobody reads its answer."""
    os.mkfifo(tmp_path / "answer")
    task = {"step": "doctor", "answer": str(tmp_path / "answer")}
    command = [sys.executable, "-c", PARENT, str(tmp_path), json.dumps(task)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child = int(process.stdout.readline())
    assert runs(child)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while runs(child):
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.05)


def test_what_does_not_fit_is_said_and_left(tmp_path: Path) -> None:
    outcome = steps.run(planted(device="cuda", budget_s=steps.FINISH_S + 15.0), tmp_path, Silent())
    assert outcome.left == ["gate", "tune", "measure", "counters"]
    assert outcome.exit_code == 3
    assert "not begun: 4 s were left for it, it takes 20 at the least" in (tmp_path / steps.SUMMARY).read_text()
    assert outcome.run is None


def test_a_measurement_cut_short_goes_on_in_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that say "skipped" keep the step open, and the next call measures these cases."""
    asked = {"skip": ALL_BUT_MEASURE, "case": "K4096"}

    def in_no_time(self: steps.Campaign, progress: Progress, limit_s: float) -> None:
        steps.Campaign.measure(self, progress, 1e-6)

    with monkeypatch.context() as patched:
        patched.setattr(steps, "MEASURE", steps.replace(steps.MEASURE, act=in_no_time))
        patched.setattr(steps, "STEPS", ())
        outcome = steps.run(planted(**asked), tmp_path, Silent())
    assert outcome.steps["measure"].state == "open"
    assert outcome.exit_code == 3
    run = outcome.run
    outcome = steps.run(planted(**asked), tmp_path, Silent())
    assert outcome.run == run
    assert outcome.steps["measure"].state == "done"


def test_measuring_goes_on_at_the_end_with_all_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First with all of 280 s, of which it uses 100 s, then with the rest."""
    now = [0.0]
    limits: list[float] = []

    def act(self: steps.Campaign, progress: Progress, limit_s: float) -> None:
        limits.append(limit_s)
        now[0] += 100.0

    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(steps, "MEASURE", steps.replace(steps.MEASURE, act=act))
    monkeypatch.setattr(steps, "STEPS", (steps.MEASURE,))
    outcome = steps.run(planted(budget_s=steps.FINISH_S + 280.0), tmp_path, Silent())
    assert limits == [280.0, 180.0]
    assert outcome.steps["measure"].seconds == 200.0


def test_another_request_and_another_code_need_another_directory(tmp_path: Path) -> None:
    asked = {"budget_s": steps.FINISH_S, "skip": steps.NAMES}
    steps.run(planted(**asked), tmp_path, Silent())
    with pytest.raises(BadRequest, match="suite is 'smoke', not 'full'"):
        steps.run(planted(**asked, suite="full"), tmp_path, Silent())
    state = tmp_path / steps.STATE
    state.write_text(state.read_text().replace('"source_digest": "', '"source_digest": "0'))
    with pytest.raises(BadRequest, match="source digest"):
        steps.run(planted(**asked), tmp_path, Silent())
    with pytest.raises(BadRequest, match="unknown step 'selfchek'; did you mean selfcheck"):
        steps.run(planted(skip=("selfchek",)), tmp_path, Silent())
    with pytest.raises(BadRequest, match="unknown suite 'ful'; did you mean full"):
        steps.run(planted(suite="ful"), tmp_path, Silent())
    with pytest.raises(BadRequest, match="device 'tpu' is unknown"):
        steps.run(planted(device="tpu"), tmp_path, Silent())


def test_the_process_of_a_campaign_does_not_load_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['triton'] = None; import bench.operate.campaign.steps"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_unfit_machine_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's answer is pretended, so that it is the same with and without a GPU."""

    def unfit(self: steps.Campaign, step: str, limit_s: float) -> dict[str, Any]:
        return {"exit_code": 2, "verdict": "this machine: NOT FIT", "found": {}, "lines": []}

    monkeypatch.setattr(steps.Campaign, "ask", unfit)
    outcome = steps.run(planted(device="cuda", skip=()), tmp_path, Silent())
    assert (outcome.exit_code, outcome.run) == (2, None)
    assert "not fit to measure on" in outcome.lines()[-2]
    assert outcome.steps["gate"].state == "open"


ENTRY: dict[str, Any] = {
    "part": "NVIDIA H100 80GB HBM3",
    "impl": "triton",
    "shape_class": "read",
    "config": {"num_warps": 8},
    "evidence": dict.fromkeys(tuned.EVIDENCE, ""),
}


def test_configurations_travel_home_and_to_the_next_machine(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for root in (here, there):
        (root / "stream").mkdir(parents=True)
    steps.run(planted(skip=steps.NAMES, root=here), tmp_path / "out", Silent())
    assert not (tmp_path / "out" / tuning.FILE).exists()
    key = tuple(ENTRY[name] for name in tuned.KEY)
    tuned.write("stream", {key: ENTRY}, here)
    steps.run(planted(skip=steps.NAMES, root=here), tmp_path / "out", Silent())
    other = {**ENTRY, "config": {"num_warps": 4}, "shape_class": "copy"}
    tuned.write("stream", {(key[0], key[1], "copy"): other}, there)
    steps.run(planted(skip=steps.NAMES, root=there), tmp_path / "out", Silent())
    tuned.entries.cache_clear()
    assert {key[2]: entry["config"] for key, entry in tuned.entries("stream", there).items()} == {
        "read": {"num_warps": 8},
        "copy": {"num_warps": 4},
    }


def test_only_what_lacks_a_configuration_is_tuned_and_the_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one search, until the time is up. Operations that are not finished are named."""
    asked: list[search.Request] = []

    def fake(request: search.Request, display: search.Display) -> search.TuneReport:
        asked.append(request)
        return search.TuneReport(part="h100")

    monkeypatch.setattr(machine, "gpu_target", lambda: Target(kind="cuda", name=ENTRY["part"], sm=90, sm_count=132))
    monkeypatch.setattr(search, "tune", fake)
    task = {"step": "tune", "device": "cuda", "suite": "quick", "hang_s": 9.0, "budget_s": 60.0}
    lacking = tuning.lacking("quick")
    assert lacking
    task |= {"measured": "full", "settled": [["stream", "triton", "read"]]}
    assert tuning.tune_lacking(task) == {"left": [], "lines": [], "tuned": [], "settled": []}
    assert asked[0].without == (("stream", "triton", "read"),)
    assert [request.ops for request in asked] == [tuple(lacking)]
    assert all(0 < (request.budget_s or 0) <= 60 for request in asked)
    assert tuning.tune_lacking({**task, "budget_s": 0.0})["left"] == lacking
    monkeypatch.setattr(tuned, "lookup", lambda *key: {})
    assert tuning.lacking("quick") == []


def test_what_a_campaign_tunes_into_its_own_checkout_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the code decides whether the next call belongs to the campaign, and not `kernels/*/tuned.json`."""
    asked: list[bool] = []

    def digest(*, tuned: bool = True) -> str:
        asked.append(tuned)
        return "0123456789ab"

    monkeypatch.setattr(machine, "source_digest", digest)
    steps.Campaign(planted(), tmp_path, Silent())
    assert asked == [False]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"asked": {}, "calls": [], "steps": {"gate": {"stat": 1}}}', "[]"])
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / steps.STATE).write_text(text)
    with pytest.raises(BadRequest, match=r"campaign\.json is damaged .*choose another directory"):
        steps.Campaign(planted(), tmp_path, Silent())


def test_measuring_is_not_begun_where_it_would_have_no_time(tmp_path: Path) -> None:
    """A worker needs some of it to start. The campaign says what is left, and records no case as skipped."""
    outcome = steps.run(planted(budget_s=steps.FINISH_S + 12.0, skip=ALL_BUT_MEASURE), tmp_path, Silent())
    assert outcome.run is None
    assert outcome.steps["measure"].state == "open"
    assert "not begun" in outcome.steps["measure"].found[0]


@pytest.mark.parametrize(("ncu", "state"), [(None, "open"), ("/opt/ncu", "done")])
def test_counters_wait_for_ncu_and_not_for_a_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ncu: str | None, state: str
) -> None:
    from bench.inspection import counters

    denied = counters.CountersDenied(reason="because")
    monkeypatch.setattr(counters, "count", lambda choice, timeout_s: denied)
    monkeypatch.setattr(counters, "find_ncu", lambda: ncu)
    begun = steps.Campaign(planted(device="cuda"), tmp_path, Silent())
    records = run_begun(tmp_path)
    progress = begun.steps["counters"]
    begun.counters(progress, 60.0)
    begun.counters(progress, 60.0)
    assert (progress.state, progress.found) == (state, ["denied: because"])
    assert records.read_text().count("counters denied") == 1, "said once"


@pytest.mark.parametrize("step", ["doctor", "selfcheck"])
def test_what_a_child_finds_or_that_it_found_nothing(tmp_path: Path, step: str) -> None:
    """A child may find nothing, here for want of the device or of time. That is a line, and the campaign goes on."""
    begun = steps.Campaign(planted(device="tpu"), tmp_path, Silent())
    if step == "doctor":
        answer = begun.ask(step, 120.0)
        assert answer["verdict"] == answer["found"]["verdict"]
    else:
        with pytest.raises(BadRequest, match=r"selfcheck ended \(exit code 1: .*tpu"):
            begun.ask(step, 120.0)
    with pytest.raises(BadRequest, match=f"{step} was not done after its 0 s"):
        begun.ask(step, 0.01)


def test_records_that_outgrow_the_limit_are_packed_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = run_begun(tmp_path, lines=1000)
    steps.pack(records)
    assert list(records.parent.iterdir()) == [records]
    monkeypatch.setattr(steps, "MAX_BYTES", 2000)
    steps.pack(records)
    packed = records.with_name(steps.PACKED)
    assert gzip.decompress(packed.read_bytes()) == records.read_bytes()
    records.unlink()
    begun = steps.Campaign(planted(), tmp_path, Silent())
    assert begun.run_directory() == records.parent
    assert records.read_text() == '{"kind": "run"}\n' * 1000
