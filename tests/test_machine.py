"""The host, the checkout and the target, against fakes that look like the real ones."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import pytest

from bench import machine
from bench.errors import BadRequest
from kernels.op import Target
from tests.support.fake_nvml import fake_properties

CPUINFO = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\n"


# ---- the host


def test_cpu_model_is_read_from_cpuinfo_and_never_empty() -> None:
    assert machine.cpu_model(CPUINFO) == "Intel(R) Xeon(R) Platinum 8480+"
    assert machine.cpu_model("processor\t: 0\nCPU implementer\t: 0x41\n")


def write_cache(root: Path, cpu: int, index: int, **fields: str) -> None:
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, value in fields.items():
        (folder / name).write_text(value + "\n")


def test_last_level_cache_counts_each_instance_once(tmp_path: Path) -> None:
    for cpu, sharers in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        write_cache(tmp_path, cpu, 1, level="1", type="Instruction", size="64K", shared_cpu_list=str(cpu))
        write_cache(tmp_path, cpu, 2, level="2", type="Unified", size="2048K", shared_cpu_list=str(cpu))
        write_cache(tmp_path, cpu, 3, level="3", type="Unified", size="32M", shared_cpu_list=sharers)
    assert machine.last_level_cache_bytes({0, 1}, tmp_path) == 32 << 20
    assert machine.last_level_cache_bytes({0, 1, 2, 3}, tmp_path) == 64 << 20
    assert machine.last_level_cache_bytes({9}, tmp_path) == 0


def test_available_memory_is_what_linux_calls_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree:          500000 kB\nMemAvailable:    2000000 kB\n")
    assert machine.available_bytes(meminfo) == 2_000_000 << 10
    assert machine.available_bytes(tmp_path / "none") == machine.memory_bytes()


def test_a_host_that_does_not_tell_its_cache_is_swept_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_cache_bytes", lambda: 0)
    assert machine.cpu_target().l2_bytes == machine.ASSUMED_CACHE_BYTES
    assert machine.environment()["last_level_cache_bytes"] == 0, "what the system tells is kept"


def test_large_pages_are_asked_for_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    machine.want_large_pages()
    assert machine.recorded_variables()["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    machine.want_large_pages()
    assert machine.recorded_variables()["THP_MEM_ALLOC_ENABLE"] == "0"


def test_recorded_variables_tell_settings_but_neither_paths_nor_names() -> None:
    environ = {
        "TRITON_F32_DEFAULT": "ieee",
        "TRITON_CACHE_DIR": "/home/ada/.triton",
        "CUDA_VISIBLE_DEVICES": "GPU-8a1b2c3d-0000-1111-2222-333344445555,MIG-8a1b",
        "TORCH_LOGS": "node17:dynamo",
        "OMP_NUM_THREADS": "4",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "HOME": "/home/ada",
        "HF_TOKEN": "secret",
    }
    assert machine.recorded_variables(environ, host="node17") == {
        "CUDA_VISIBLE_DEVICES": "(a GPU uuid),(a MIG uuid)",
        "OMP_NUM_THREADS": "4",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_LOGS": "(hidden)",
        "TRITON_CACHE_DIR": "(a path)",
        "TRITON_F32_DEFAULT": "ieee",
    }


def test_driver_parameters(tmp_path: Path) -> None:
    path = tmp_path / "params"
    path.write_text('ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: 1\nRegistryDwords: ""\n')
    assert machine.driver_parameters(path)["RmProfilingAdminOnly"] == "1"
    assert machine.driver_parameters(tmp_path / "none") == {}


def test_find_program_takes_the_newest_that_can_be_run(tmp_path: Path) -> None:
    for version, mode in (("2024.3.2", 0o755), ("2025.3.1", 0o755), ("2026.1.0", 0o644)):
        program = tmp_path / version / "no-such-tool"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    found = machine.find_program("no-such-tool", (f"{tmp_path}/*/no-such-tool",))
    assert found == str(tmp_path / "2025.3.1" / "no-such-tool")
    assert machine.find_program("no-such-tool") is None


def test_environment_is_json_and_keeps_private_things_private() -> None:
    text = json.dumps(machine.environment())
    environment = json.loads(text)
    assert environment["packages"]["torch"]
    assert environment["cores"] >= 1
    assert re.fullmatch(r"[0-9a-f]{12}", environment["source_digest"])
    assert str(Path.home()) not in text
    assert str(machine.ROOT) not in text
    assert f'"{platform.node()}"' not in text
    assert not re.search(r"GPU-[0-9a-f]{4}", text)


# ---- the checkout


def test_git_state_outside_a_checkout(tmp_path: Path) -> None:
    assert machine.git_state(tmp_path) == {"sha": None, "dirty": None}


@pytest.mark.skipif(machine.find_program("git") is None, reason="needs git")
def test_git_state_is_dirty_only_for_code_that_measures(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        machine.subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = machine.git_state(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", clean["sha"])
    assert clean["dirty"] is False
    (tmp_path / "notes.md").write_text("a report\n")
    assert machine.git_state(tmp_path)["dirty"] is False
    (tmp_path / "kernels" / "b.py").write_text("b = 1\n")
    assert machine.git_state(tmp_path) == {"sha": clean["sha"], "dirty": True}


def test_source_digest_changes_with_code_and_with_nothing_else(tmp_path: Path) -> None:
    for part in ("kernels", "bench"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.py").write_text("a = 1\n")
    first = machine.source_digest(tmp_path)
    (tmp_path / "bench" / "a.txt").write_text("x")
    assert machine.source_digest(tmp_path) == first
    (tmp_path / "kernels" / "op").mkdir()
    (tmp_path / "kernels" / "op" / "tuned.json").write_text("{}")
    assert machine.source_digest(tmp_path) != first
    assert machine.source_digest(tmp_path, tuned=False) == first
    (tmp_path / "bench" / "a.py").write_text("a = 2\n")
    assert machine.source_digest(tmp_path, tuned=False) != first


# ---- targets


def test_gpu_target_from_torch_properties() -> None:
    assert machine.gpu_target(fake_properties()) == Target(
        kind="cuda",
        name="NVIDIA H100 80GB HBM3",
        sm=90,
        sm_count=132,
        l2_bytes=50 << 20,
        smem_per_sm=228 << 10,
    )


@pytest.mark.parametrize(
    ("kind", "name", "slug"),
    [
        ("cuda", "NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("cuda", "NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("cpu", "Intel(R) Xeon(R) Processor", "cpu-intel-xeon-processor"),
        ("cpu", "Intel(R) Xeon(R) CPU @ 2.20GHz", "cpu-intel-xeon"),
        ("cpu", "AMD EPYC 9654 96-Core Processor", "cpu-amd-epyc-9654-96-core-processor"),
        ("cpu", "", "cpu"),
    ],
)
def test_device_slug(kind: str, name: str, slug: str) -> None:
    assert machine.device_slug(Target(kind=kind, name=name)) == slug


def test_detect_takes_the_cpu_unless_cuda_is_insisted_on() -> None:
    def missing() -> str:
        return "no NVIDIA driver answers"

    assert machine.detect("auto", missing).kind == "cpu"
    assert machine.detect("cpu", missing).sm_count == len(os.sched_getaffinity(0))
    with pytest.raises(BadRequest, match=r"^no CUDA device: no NVIDIA driver answers$"):
        machine.detect("cuda", missing)
    with pytest.raises(BadRequest, match="'tpu'"):
        machine.detect("tpu", missing)
