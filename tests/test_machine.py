"""Environment, targets and telemetry, against fakes of the same shape as the real readers."""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_nvml import FakeNvml, fake_properties

from bench import machine, telemetry
from bench.errors import BadRequest
from kernels.op import Target

CPUINFO = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\n"


def fake_torch(cuda: str | None = "13.0", available: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="2.11.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(is_available=lambda: available),
    )


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


def test_a_host_that_does_not_tell_its_cache_is_swept_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_cache_bytes", lambda: 0)
    assert machine.cpu_target().l2_bytes == machine.ASSUMED_CACHE_BYTES
    assert machine.environment()["last_level_cache_bytes"] == 0, "what the system tells is kept"


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


def test_cuda_problem_names_the_one_thing_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    problem = telemetry.cuda_problem
    no_driver = FakeNvml(refuse={"nvmlInit": "NVML Shared Library Not Found"})
    assert problem(fake_torch(available=True), FakeNvml()) is None
    assert problem(fake_torch(cuda=None), FakeNvml()) == "torch 2.11.0 is built without CUDA"
    assert "no NVIDIA driver" in problem(fake_torch(), no_driver)
    assert "finds no GPU" in problem(fake_torch(), FakeNvml(count=0))
    assert "supports CUDA 12.4, torch 2.11.0 needs 13.0" in problem(fake_torch(), FakeNvml(cuda=12040))
    assert "but torch cannot use any" in problem(fake_torch(), FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in problem(fake_torch(), FakeNvml())


# ---- telemetry


def test_clock_reasons_are_named_and_idle_is_left_out() -> None:
    assert telemetry.clock_reasons(0x1) == []
    assert telemetry.clock_reasons(0x4 | 0x40 | 0x2) == [
        "applications_clocks_setting",
        "sw_power_cap",
        "hw_thermal_slowdown",
    ]
    assert telemetry.clock_reasons(1 << 20) == ["bit_0x100000"]


def test_the_device_is_found_by_uuid_then_by_pci_address() -> None:
    assert telemetry.open_gpu(FakeNvml(), fake_properties()).handle == "by uuid"
    assert telemetry.open_gpu(FakeNvml(uuid="GPU-other"), fake_properties()).handle == "by address"
    with pytest.raises(telemetry.NoTelemetry, match="Not Found"):
        telemetry.open_gpu(FakeNvml(uuid="GPU-other", address=""), fake_properties())


def sampled(nvml: FakeNvml, act: list[dict]) -> dict:
    """A sampler's summary while the part goes through the given states, each held until polled."""
    with telemetry.Sampler(telemetry.Gpu(nvml, "handle"), interval_s=0.001) as sampler:
        for state in act:
            for name, value in state.items():
                setattr(nvml, name, value)
            seen = len(sampler.samples)
            while len(sampler.samples) < seen + 2:
                time.sleep(0.001)
    return sampler.summary()


def test_sampler_summarises_what_happened() -> None:
    states = [
        {"clocks": {1: 1980, 2: 2619}, "reasons": 0x0, "celsius": 50},
        {"clocks": {1: 1200, 2: 2619}, "reasons": 0x4 | 0x20, "celsius": 61, "ecc_counts": {0: 5, 1: 0}},
        {"clocks": {1: 1980, 2: 2619}, "reasons": 0x1, "celsius": 58, "energy_mj": 1_250_000},
    ]
    before = {"clocks": {1: 1755, 2: 2619}, "power_mw": 412_500, "celsius": 50, "ecc_counts": {0: 3, 1: 0}}
    summary = sampled(FakeNvml(**before), states)
    assert summary["sm_clock_hz"]["min"] == 1200e6
    assert summary["sm_clock_hz"]["max"] == 1980e6
    assert summary["memory_clock_hz"] == {"min": 2619e6, "median": 2619e6, "max": 2619e6}
    assert summary["power_w"] == pytest.approx(412.5)
    assert summary["energy_j"] == 250.0
    assert summary["temperature_c"] == 61
    assert summary["clock_reasons"] == ["sw_power_cap", "sw_thermal_slowdown"]
    assert (summary["throttled"], summary["power_capped"]) == (True, True)
    assert (summary["ecc_corrected"], summary["ecc_uncorrected"]) == (2, 0)
    assert summary["unavailable"] == {}
    assert summary["samples"] >= 6
    json.dumps(summary)


def test_a_clock_that_someone_set_is_not_throttling() -> None:
    summary = sampled(FakeNvml(), [{"reasons": 0x2 | 0x1}])
    assert summary["clock_reasons"] == ["applications_clocks_setting"]
    assert summary["throttled"] is False


def test_the_power_cap_is_told_apart_from_throttling() -> None:
    summary = sampled(FakeNvml(), [{"reasons": 0x4}])
    assert (summary["throttled"], summary["power_capped"]) == (False, True)


def test_refused_readings_are_none_and_named() -> None:
    nvml = FakeNvml()
    nvml.refuse = {
        "nvmlDeviceGetTotalEnergyConsumption": "Not Supported",
        "nvmlDeviceGetTotalEccErrors": "Not Supported",
        "nvmlDeviceGetCurrentClocksEventReasons": "Insufficient Permissions",
        "nvmlDeviceGetPowerUsage": "GPU is lost",
    }
    summary = sampled(nvml, [{"celsius": 40}])
    for name in ("energy_j", "ecc_corrected", "clock_reasons", "throttled", "power_w"):
        assert summary[name] is None
    assert summary["unavailable"]["energy_j"] == "Not Supported"
    assert summary["unavailable"]["clock_reasons"] == "Insufficient Permissions"
    assert summary["sm_clock_hz"]["max"] == 345e6


def test_without_a_gpu_the_sampler_starts_nothing() -> None:
    before = threading.active_count()
    with telemetry.Sampler(None) as sampler:
        assert threading.active_count() == before
    assert sampler.summary() == {}


def test_the_thread_ends_with_the_block_even_if_the_case_raises() -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError), telemetry.Sampler(telemetry.Gpu(FakeNvml(), 0)) as sampler:
        raise RuntimeError("the case died")
    assert threading.active_count() == before
    assert sampler.summary()["samples"] >= 1


def test_facts_of_the_part() -> None:
    unavailable: dict[str, str] = {}
    facts = telemetry.Gpu(FakeNvml(pids=[17, 4242]), 0).read(telemetry.FACTS, unavailable)
    assert (facts["driver_cuda"], facts["power_cap_w"], facts["mig"], facts["ecc"]) == ("13.0", 700, False, True)
    assert facts["processes"] == 2
    assert unavailable == {}
