"""A fleet measures every share once, goes on after any process was lost, and needs no shared disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.judge.fleet.verdict import Verdict
from bench.measure.schedule import Request, request_from, shard_of
from bench.operate.fleet import engines, head, logs, merging, node, rendering, shares
from bench.operate.fleet.head import SUMMARY
from bench.operate.fleet.node import Event, Task
from bench.records import FILE, Record
from bench.run import load_run
from kernels.op import discover
from tests.support import ROOT, fake_share
from tests.support.synthetic_run import gate, write_run

REQUEST = Request(device="cpu", suite="smoke")
KEYS = sorted(gate(share, B=1 << n).key for n, share in enumerate(fake_share.SHARES))

PLANTED = Request(
    device="cpu", suite="smoke", impls=("honest",), catalogue="tests.support.planted", cap_s=0.01, hang_s=20.0
)
PLANTED_KEYS = [("toy", "honest", f"B8-K{k}") for k in (16384, 4096, 8192)]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shares are measured by `tests.support.fake_share`; the folder that controls it."""
    control = tmp_path / "control"
    control.mkdir()
    monkeypatch.setenv("FAKE_SHARE", str(control))
    monkeypatch.setattr(node, "SHARE_PROCESS", "tests.support.fake_share")
    monkeypatch.setattr(node, "POLL_S", 0.05)
    return control


class Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def at(self, name: str, done: int, total: int, what: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def measured(out: Path, engine: engines.Engine | None = None, **options: Any) -> tuple[Verdict, list[str]]:
    heard = Heard()
    engine = engine or engines.Local()
    request = options.pop("request", REQUEST)
    assert head.measure(out, request, "local", engine, heard, **{"cpu_shares": 2, **options})
    return head.verdict(out), heard.notes


def keys(out: Path) -> list[list[tuple[str, str, str]]]:
    """For each share, what its file holds a record of, in alphabetical order; what was disturbed may be there twice."""
    found = []
    for path in sorted(out.glob(f"*/*/{FILE}")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        records = [line for line in lines if line["kind"] == "record"]
        calm = [(line["op"], line["impl"], line["case_id"]) for line in records if "disturbed" not in line["flags"]]
        again = {(line["op"], line["impl"], line["case_id"]) for line in records if "disturbed" in line["flags"]}
        found.append(sorted([*calm, *(again - set(calm))]))
    return found


two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two shares need two cores")


@two_cores
def test_every_share_is_measured_once_and_a_second_call_measures_nothing(faked: Path, tmp_path: Path) -> None:
    verdict, _ = measured(tmp_path)
    assert [len(verdict.members), verdict.missing] == [2, ()]
    assert keys(tmp_path) == [KEYS, KEYS]
    before = [path.read_bytes() for path in tmp_path.glob(f"*/*/{FILE}")]
    measured(tmp_path)
    assert [path.read_bytes() for path in tmp_path.glob(f"*/*/{FILE}")] == before


@two_cores
def test_a_killed_head_takes_its_processes_along_and_the_next_call_goes_on(faked: Path, tmp_path: Path) -> None:
    (faked / "waits").touch()
    code = (
        "import sys; from pathlib import Path; from tests.operate.test_fleet import *; "
        "node.SHARE_PROCESS = 'tests.support.fake_share'; measured(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: [len(each) for each in keys(tmp_path)] == [1, 1])
    process.kill()
    process.wait()
    wait_for(lambda: not fakes_alive())
    (faked / "waits").unlink()
    verdict, _ = measured(tmp_path)
    assert verdict.missing == ()
    assert keys(tmp_path) == [KEYS, KEYS]  # nothing twice, nothing lost
    assert [load_run(path).warnings for path in tmp_path.glob(f"*/*/{FILE}")] == [[], []]


def fakes_alive() -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if "-m tests.support.fake_share" in line]


def wait_for(what: Callable[[], bool], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


class Dying:
    """A node that is lost after its first records, and in its second life is whole."""

    def __init__(self) -> None:
        self.lives = 0

    def nodes(self) -> list[str]:
        return ["node-a"]

    def run(self, name: str, task: Task) -> Iterator[Event]:
        self.lives += 1
        events = node.measure(task)
        for event in events:
            yield event
            if self.lives == 1 and event["kind"] == "records" and '"kind":"record"' in event["text"]:
                events.close()  # type: ignore[attr-defined]
                raise RuntimeError("the node died")

    def close(self) -> None: ...


def test_a_lost_node_costs_what_it_had_not_sent_and_is_said(faked: Path, tmp_path: Path) -> None:
    engine = Dying()
    (faked / "waits").touch()
    verdict, notes = measured(tmp_path, engine, cpu_shares=1)
    assert any("the node died" in note for note in notes)
    assert any("node-a" in each for each in verdict.missing)
    assert verdict.exit_code == 3
    (faked / "waits").unlink()
    verdict, _ = measured(tmp_path, engine, cpu_shares=1)
    assert verdict.missing == ()
    assert keys(tmp_path) == [KEYS]


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


@pytest.mark.slow
def test_ten_thousand_shares_are_judged_within_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    """The full suite's number of cases; each summary is a file, as a head has it."""
    kinds = {f"kind{k}": {f"case{c}": [1.0, 1.0, 1.0] for c in range(25)} for k in range(10)}
    text = json.dumps({**summary(), "times": kinds})
    nodes = {f"n{i}": {"host": f"n{i}", "shares": {f"gpu{g}": share(f"gpu{g}") for g in range(8)}} for i in range(1250)}
    (tmp_path / head.STATE).write_text(json.dumps({"engine": "ray", "request": {}, "nodes": nodes}))
    for name, each in nodes.items():
        for one in each["shares"]:
            (tmp_path / name / one).mkdir(parents=True)
            (tmp_path / name / one / SUMMARY).write_text(text)
    code = (
        "import resource, sys; from pathlib import Path; from bench.operate.fleet.head import verdict; "
        "v = verdict(Path(sys.argv[1])); assert not v.outliers; v.table(); "
        "print(len(v.members), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    began = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=180
    )
    count, kilobytes = map(int, done.stdout.split())
    assert count == 10_000
    assert kilobytes < 2_000_000
    assert time.process_time() - began < 60


# ---- shards, shares, engines


def test_shards_share_the_cases_and_each_has_all_ceilings() -> None:
    ops = list(discover().values())
    cases = [(op, case) for op in ops[:6] for case in op.cases("quick")]
    shards = [shard_of(cases, (i, 3)) for i in range(3)]
    ceilings = [(op.name, case.id) for op, case in cases if op.is_ceiling]
    for shard in shards:
        assert [(op.name, case.id) for op, case in shard if op.is_ceiling] == ceilings
    others = [(op.name, case.id) for shard in shards for op, case in shard if not op.is_ceiling]
    assert sorted(others) == sorted((op.name, case.id) for op, case in cases if not op.is_ceiling)


def test_a_request_travels_as_json() -> None:
    from dataclasses import asdict, replace

    request = replace(REQUEST, shard=(1, 4), ops=("a",))
    assert request_from(json.loads(json.dumps(asdict(request)))) == request


def test_cores_are_shared_equally() -> None:
    found = shares.parts_of([0, 1, 2, 3, 4], 2)
    assert [each.cores for each in found] == [(0, 1), (2, 3)]
    assert [each.name for each in found] == ["cores0-1", "cores2-3"]
    with pytest.raises(BadRequest, match="3 usable cores"):
        shares.parts_of([0, 1, 2], 4)


def test_gpus_are_taken_by_uuid_and_hidden_ones_are_left_alone() -> None:
    nvml = Box(8)
    everything = shares.gpus(nvml, {})
    assert [each.name for each in everything] == [f"gpu{i}" for i in range(8)]
    assert everything[3].variables == {"CUDA_VISIBLE_DEVICES": "GPU-3"}
    assert everything[3].slot == "0000:03:00.0"
    some = shares.gpus(nvml, {"CUDA_VISIBLE_DEVICES": "2,GPU-5"})
    assert [each.name for each in some] == ["gpu2", "gpu5"]
    assert shares.gpus(nvml, {"CUDA_VISIBLE_DEVICES": ""}) == []


class Box:
    """NVML of a box with several GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(self, count: int) -> None:
        self.count = count

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(busId=f"0000:{handle:02x}:00.0".encode())

    def nvmlDeviceGetSerial(self, handle: int) -> str:
        raise self.NVMLError("not supported")


def test_options_of_another_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="--partition is not for the engine local"):
        engines.engine("local", tmp_path, partition="gpu")
    with pytest.raises(BadRequest, match="unknown engine"):
        engines.engine("rya", tmp_path)


@pytest.mark.slow
def test_two_nodes_of_a_ray_cluster_send_their_records_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # as the engine does before it imports Ray
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        import ray

        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        verdict, _ = measured(tmp_path, engines.Ray(), cpu_shares=1, request=PLANTED)
    finally:
        cluster.shutdown()
    assert len({member.node for member in verdict.members}) == 2
    assert verdict.missing == ()
    assert keys(tmp_path) == [PLANTED_KEYS, PLANTED_KEYS]


@pytest.mark.slow
def test_jobs_send_their_records_back(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    engine = engines.Slurm(folder=tmp_path, count=1, cluster="local")
    verdict, _ = measured(tmp_path, engine, cpu_shares=1, request=PLANTED)
    assert verdict.missing == ()
    assert keys(tmp_path) == [PLANTED_KEYS]


@pytest.mark.parametrize("form", sorted(rendering.FORMS))
def test_rendered_files_parse(form: str) -> None:
    yaml = pytest.importorskip("yaml")
    text = rendering.render(form, nodes=4, gpus=8, part="H200", image="decodebench:1", suite="quick")
    found = yaml.safe_load(text)
    if form == "sky":
        assert found["num_nodes"] == 4
        assert found["resources"] == {"accelerators": "H200:8"}
        assert found["run"].split() == ["python3", "-m", "bench", "fleet", "node", "--suite", "quick"]
    else:
        assert found["spec"]["completions"] == 4
        assert found["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_shards_of_one_run_merge(tmp_path: Path) -> None:
    def shard(index: int, records: list[Record], suite: str = "quick") -> Path:
        folder = tmp_path / f"{suite}{index}"
        return write_run(folder, records, request={"shard": [index, 2]}, suite=suite)

    a, b = shard(0, [gate(0.9, B=1)]), shard(1, [gate(0.9, B=2)])
    merged = load_run(merging.merge([a, b], tmp_path / "whole"))
    assert [record.case["B"] for record in merged.records] == [1, 2]
    assert merged.complete
    assert not load_run(merging.merge([a], tmp_path / "half")).complete
    with pytest.raises(BadRequest, match="not parts of one run: 1/2, 1/2"):
        merging.merge([a, a], tmp_path / "twice")
    with pytest.raises(BadRequest, match="differ in suite"):
        merging.merge([a, shard(1, [], suite="full")], tmp_path / "other")
