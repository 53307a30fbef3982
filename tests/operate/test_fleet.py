"""A fleet measures every share once, goes on after any process was lost, and needs no shared disk."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.machine import usable_cores
from bench.operate.fleet import engines, head, logs, node
from bench.operate.fleet.node import Event, Task
from bench.records import FILE
from bench.report import fleet as page
from bench.run import load, load_run
from tests.support import ROOT
from tests.support.fleets import KEYS, REQUEST, Heard, keys, measured, wait_for

pytestmark = pytest.mark.usefixtures("importable")

two_cores = pytest.mark.skipif(usable_cores() < 2, reason="two shares need two cores")


@two_cores
def test_every_share_is_measured_once_and_a_second_call_measures_nothing(faked: Path, tmp_path: Path) -> None:
    verdict, _ = measured(tmp_path)
    assert [len(verdict.members), verdict.missing] == [2, ()]
    assert keys(tmp_path) == [KEYS, KEYS]
    frame = load(sorted(tmp_path.glob("*/*")))
    counts = frame.groupby("path")["case_id"].nunique()
    assert dict(counts) == {str(path.parent): 3 for path in tmp_path.glob(f"*/*/{FILE}")}, "one frame of all shares"
    before = [path.read_bytes() for path in tmp_path.glob(f"*/*/{FILE}")]
    measured(tmp_path)
    assert [path.read_bytes() for path in tmp_path.glob(f"*/*/{FILE}")] == before


@two_cores
def test_a_slow_share_is_named_with_its_cores(faked: Path, tmp_path: Path) -> None:
    (faked / "slow-1").touch()
    verdict, _ = measured(tmp_path)
    assert {each.member.share for each in verdict.outliers} == {"cores1"}
    assert verdict.exit_code == 1
    (line,) = [line for line in verdict.lines() if "slower than the others" in line]
    assert "(cores 1) is slower than the others: ffn_gemv by 33%" in line
    page.write(verdict, tmp_path, [], html=False)
    with (tmp_path / page.TICKET).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["share"], row["slot"], row["slower by"]) == ("cores1", "cores 1", "ffn_gemv 33%")


@two_cores
def test_a_killed_head_takes_its_processes_along_and_the_next_call_goes_on(faked: Path, tmp_path: Path) -> None:
    (faked / "waits").touch()
    code = (
        "import sys; from bench.operate.fleet import node; from tests.support.fleets import *; "
        "node.SHARE_PROCESS = 'tests.support.fake_share'; measured(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: [len(each) for each in keys(tmp_path)] == [1, 1])
    process.kill()
    process.wait()
    wait_for(lambda: not fakes_alive(faked))
    (faked / "waits").unlink()
    verdict, _ = measured(tmp_path)
    assert verdict.missing == ()
    assert keys(tmp_path) == [KEYS, KEYS]  # nothing twice, nothing lost
    assert [load_run(path).warnings for path in tmp_path.glob(f"*/*/{FILE}")] == [[], []]


def fakes_alive(control: Path) -> bool:
    """Does a share run that this folder controls? Those of tests beside this one do not count."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended, or is another user's
            continue
        if b"tests.support.fake_share" in command and f"FAKE_SHARE={control}".encode() in variables:
            return True
    return False


class Process:
    """A node in a process of its own. In its first life it is killed after its first records."""

    start_within_s = 60.0

    def __init__(self) -> None:
        self.lives = 0

    def nodes(self) -> list[str]:
        return ["node-a"]

    def run(self, name: str, task: Task) -> Iterator[Event]:
        self.lives += 1
        code = (
            "import json, pickle, sys; from bench.operate.fleet import node; "
            "node.SHARE_PROCESS = 'tests.support.fake_share'\n"
            "for event in node.measure(pickle.load(sys.stdin.buffer)): print(json.dumps(event), flush=True)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin
        assert process.stdout
        with process, process.stdin:
            process.stdin.write(pickle.dumps(task))
            process.stdin.close()
            for line in process.stdout:
                event = json.loads(line)
                yield event
                if self.lives == 1 and event["kind"] == "records" and '"kind":"record"' in event["text"]:
                    process.kill()
                    raise RuntimeError(f"the node died: {process.wait()}")

    def close(self) -> None: ...


def test_a_killed_node_costs_what_it_had_not_sent_and_is_said(faked: Path, tmp_path: Path) -> None:
    engine = Process()
    (faked / "waits").touch()
    verdict, notes = measured(tmp_path, engine, cpu_shares=1)
    assert any("the node died: -9" in note for note in notes)
    assert any("node-a" in each for each in verdict.missing)
    assert verdict.exit_code == 3
    wait_for(lambda: not fakes_alive(faked))
    (faked / "waits").unlink()
    verdict, _ = measured(tmp_path, engine, cpu_shares=1)
    assert verdict.missing == ()
    assert keys(tmp_path) == [KEYS]


class Late:
    """Two nodes, of which one does not start until it is told to."""

    start_within_s = 0.3

    def __init__(self) -> None:
        self.free = threading.Event()

    def nodes(self) -> list[str]:
        return ["node-a", "node-b"]

    def run(self, name: str, task: Task) -> Iterator[Event]:
        if name == "node-b":
            self.free.wait(60)
        yield {"kind": "node", "host": name, "shares": [share("gpu0")]}
        time.sleep(1.0)  # a node that has started may take its time
        yield {"kind": "records", "share": "gpu0", "text": '{"kind":"run"}\n'}
        yield {"kind": "end", "share": "gpu0", "code": 0, "said": "", "summary": summary()}

    def close(self) -> None: ...


def test_a_node_that_does_not_start_is_given_up_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "WAIT_S", 0.05)
    engine = Late()
    verdict, notes = measured(tmp_path, engine, alone=True)
    assert [member.node for member in verdict.members] == ["node-a"]
    said = "it did not start within 300 ms (--start-within): the same command asks it again"
    assert verdict.missing == (f"node-b: {said}",)
    assert notes == [f"lost node-b: {said}"], "once, also where each share is measured alone afterwards"
    assert verdict.exit_code == 3
    engine.free.set()
    time.sleep(0.2)
    assert not (tmp_path / "node-b").exists(), "what comes later is not written"
    verdict, _ = measured(tmp_path, engine)
    assert [[member.node for member in verdict.members], verdict.missing] == [["node-a", "node-b"], ()]


@two_cores
def test_a_killed_share_costs_the_others_nothing(faked: Path, tmp_path: Path) -> None:
    (faked / "dies-1").touch()
    verdict, _ = measured(tmp_path)
    (said,) = verdict.missing
    assert "cores1: signal 9" in said
    assert keys(tmp_path) == [KEYS, KEYS[:1]]
    verdict, _ = measured(tmp_path)
    assert verdict.missing == ()
    assert keys(tmp_path) == [KEYS, KEYS]


def test_a_share_that_cannot_be_watched_ends_with_the_reason(
    faked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: Any, *, last: bool = False) -> None:
        raise ValueError("damaged progress")

    monkeypatch.setattr(node.Watch, "report", damaged)
    verdict, _ = measured(tmp_path, cpu_shares=1)
    assert "ValueError: damaged progress" in verdict.missing[0]
    wait_for(lambda: not fakes_alive(faked))


@two_cores
def test_alone_measures_each_share_again_by_itself(faked: Path, tmp_path: Path) -> None:
    verdict, _ = measured(tmp_path, alone=True)
    assert [len(verdict.members), len(verdict.alone)] == [2, 2]
    assert any("all at once against one alone" in line for line in verdict.lines())


def test_another_request_is_refused_where_a_fleet_lies(tmp_path: Path) -> None:
    (tmp_path / head.STATE).write_text(json.dumps({"engine": "local", "request": {"suite": "full"}}))
    with pytest.raises(BadRequest, match="another --"):
        head.measure(tmp_path, REQUEST, "local", engines.Local(), Heard())


def test_logs_with_prefixes_become_a_fleet(tmp_path: Path) -> None:
    lines = [
        {"kind": "node", "host": "h", "shares": [share("gpu0")]},
        {"kind": "records", "share": "gpu0", "text": '{"kind":"run"}\n'},
        {"kind": "end", "share": "gpu0", "code": 0, "said": "", "summary": summary()},
    ]
    log = tmp_path / "log.txt"
    marked = [
        "(head, pid=1) " + json.dumps({"node": name, "fleet": line}, separators=(",", ":"))
        for line in lines
        for name in ("a", "b")
    ]
    log.write_text("\n".join(["noise", *marked, marked[0][:40]]))
    logs.collect([log], tmp_path / "out")
    verdict = head.verdict(tmp_path / "out")
    assert [(m.node, m.share) for m in verdict.members] == [("a", "gpu0"), ("b", "gpu0")]
    with pytest.raises(BadRequest, match="fleet node"):
        logs.collect([ROOT / "README.md"], tmp_path / "out")


@pytest.mark.parametrize("name", ["", "..", "../kept", "/tmp", ".hidden"])
def test_a_log_cannot_name_a_folder_elsewhere(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    log, out = tmp_path / "log", tmp_path / "out"
    log.write_text(json.dumps({"node": name, "fleet": {"kind": "node"}}, separators=(",", ":")))
    with pytest.raises(BadRequest, match="no name of a machine"):
        logs.collect([log], out)
    assert kept.is_dir()
    lines = [
        {"kind": "node", "host": "h", "shares": [share(name)]},
        {"kind": "records", "share": name, "text": "x\n"},
    ]
    log.write_text("\n".join(json.dumps({"node": "a", "fleet": each}, separators=(",", ":")) for each in lines))
    said = logs.collect([log], out)
    assert "no name of a machine" in said[0]
    assert not list(tmp_path.rglob(FILE))


def test_a_job_goes_on_at_the_host_on_which_it_ran(tmp_path: Path) -> None:
    assert head.hosts(tmp_path) == {}
    nodes = {"job0": {"host": "node-7", "shares": {}}}
    (tmp_path / head.STATE).write_text(json.dumps({"engine": "slurm", "request": {}, "nodes": nodes}))
    assert head.hosts(tmp_path) == {"job0": "node-7"}


def share(name: str) -> dict[str, Any]:
    return {"name": name, "slot": "s", "serial": ""}


def summary() -> dict[str, Any]:
    return {"part": "P", "on_gpu": True, "complete": True, "times": {"stream read": {"c": [1.0, 1.0, 1.0]}}}
