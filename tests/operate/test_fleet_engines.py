"""Shards, shares and engines of a fleet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.measure.schedule import request_from, shard_of
from bench.operate.fleet import engines, head, merging, shares
from bench.records import Record
from bench.run import load_run
from kernels.op import discover
from tests.support import ROOT
from tests.support.fleets import PLANTED, PLANTED_KEYS, REQUEST, keys, measured
from tests.support.patience import patience
from tests.support.synthetic_run import gate, write_run

pytestmark = pytest.mark.usefixtures("importable")

RAY_S = 40.0
"""Ray starts in about 10 s on two quiet cores, and its nodes have measured after as long again."""


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


def measure_two_ray_nodes(out: Path) -> None:
    """A Ray cluster of two pretended nodes on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(**small)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    measured(out, engines.Ray(start_within_s=patience(RAY_S)), cpu_shares=1, request=PLANTED)
    os._exit(0)  # Ray's processes end with this one


@pytest.mark.slow
def test_two_nodes_of_a_ray_cluster_send_their_records_back(tmp_path: Path) -> None:
    """In a process of its own, since a Ray that does not start or end waits for ever."""
    pytest.importorskip("ray")
    code = f"import sys; from pathlib import Path; from {__name__} import *; measure_two_ray_nodes(Path(sys.argv[1]))"
    # the first as the engine has it before it imports Ray; the second since a busy machine starts Ray slowly
    start_s = f"{patience(RAY_S):.0f}"
    ray = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_raylet_start_wait_time_s": start_s}
    environment = {**os.environ, **ray}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "out")],
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            assert process.wait(patience(2 * RAY_S)) == 0, (tmp_path / "said").read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    verdict = head.verdict(tmp_path / "out")
    assert len({member.node for member in verdict.members}) == 2
    assert verdict.missing == ()
    assert keys(tmp_path / "out") == [PLANTED_KEYS, PLANTED_KEYS]


@pytest.mark.slow
def test_jobs_send_their_records_back(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    engine = engines.Slurm(folder=tmp_path, count=1, cluster="local")
    verdict, _ = measured(tmp_path, engine, cpu_shares=1, request=PLANTED)
    assert verdict.missing == ()
    assert keys(tmp_path) == [PLANTED_KEYS]


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


@pytest.mark.parametrize(("address", "asked"), [(None, "local"), ("auto", "auto")])
def test_without_an_address_ray_begins_a_cluster_of_its_own(
    address: str | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would look for one that began on this machine earlier, and wait for it if it is dead."""
    given: list[str] = []
    pretended = SimpleNamespace(is_initialized=lambda: False, init=lambda address, **_: given.append(address))
    monkeypatch.setattr(engines, "optional", lambda *_: pretended)
    engines.Ray(address=address)
    assert given == [asked]
