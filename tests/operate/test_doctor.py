"""Each fault that a machine can have changes the verdict as it should, and nothing is raised."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import machine
from bench.devices import driver, identify
from bench.inspection.ncu import DENIED
from bench.measure import timing
from bench.operate import examination
from bench.operate.doctor import judge
from bench.operate.examination import Bandwidth, Facts
from tests.support.fake_nvml import FakeNvml, fake_properties

READING = {
    "sm_clock_hz": {"min": 1700e6, "median": 1980e6, "max": 1980e6},
    "memory_clock_hz": {"min": 2619e6, "median": 2619e6, "max": 2619e6},
    "temperature_c": 48,
    "clock_reasons": [],
    "throttled": False,
}


H100 = machine.gpu_target(fake_properties())


def facts(nvml: FakeNvml | None = None, **changes: Any) -> Facts:
    """A healthy H100 SXM, but for the changes."""
    gpu = driver.GpuSession(nvml or FakeNvml(pids=[1]), 0)
    failed: dict[str, str] = {}
    readings = {**driver.FACTS, **driver.LIVE, **driver.TOTALS}
    normal = Facts(
        problem=None,
        packages={"torch": "2.11.0", "triton": "3.6.0"},
        torch_cuda="13.0",
        torch_archs=("sm_80", "sm_90", "sm_100"),
        compiler="gcc",
        headers=True,
        host={"others": 0.02, "stolen": 0.0},
        target=H100,
        spec=identify(H100.name),
        gpu=gpu.read(readings, failed),
        bandwidth=Bandwidth(bytes_per_s=3.05e12, impl="triton (stream)", telemetry=READING),
        failed=failed,
    )
    return dataclasses.replace(normal, **changes)


def healthy_ecc(**values: Any) -> FakeNvml:
    return FakeNvml(**{"pids": [1], "ecc_counts": {0: 0, 1: 0}, **values})


def test_a_part_in_order_is_fit() -> None:
    found = judge(facts(healthy_ecc()))
    assert [check.name for check in found.checks if check.level != "ok"] == []
    assert found.exit_code == 0
    assert "FIT" in found.verdict
    assert found.part == identify("NVIDIA H100 80GB HBM3").name
    assert found.lines()[-1] == found.verdict
    assert len(found.lines()) == len(found.checks) + 1
    json.dumps(found.as_dict())


@pytest.mark.parametrize(
    ("nvml", "name", "level"),
    [
        ({"mig": 1}, "MIG", "warning"),
        ({"ecc": 0}, "ECC", "warning"),
        ({"ecc_counts": {0: 2, 1: 0}}, "ECC", "warning"),
        ({"ecc_counts": {0: 0, 1: 1}}, "ECC", "bad"),
        ({"pids": [1, 2]}, "sharing", "warning"),
        ({"cap_mw": 500_000}, "power", "warning"),
        ({"pcie": (5, 8)}, "PCIe", "warning"),
        ({"pcie": (1, 16)}, "PCIe", "ok"),
        ({"cuda": 12080}, "versions", "bad"),
        ({"cuda": 13020}, "versions", "ok"),
    ],
)
def test_what_the_driver_says(nvml: dict[str, Any], name: str, level: str) -> None:
    found = judge(facts(healthy_ecc(**nvml)))
    assert {check.name: check.level for check in found.checks}[name] == level
    assert found.exit_code == {"ok": 0, "warning": 1, "bad": 2}[level]
    if level != "ok":
        assert any(name in reason for reason in found.reasons)
        assert found.reasons[0] in found.verdict


@pytest.mark.parametrize(
    ("changes", "name", "level"),
    [
        ({"bandwidth": Bandwidth(bytes_per_s=2.0e12, impl="x", telemetry={})}, "bandwidth", "warning"),
        ({"bandwidth": None}, "bandwidth", "note"),
        ({"bandwidth": None, "failed": {"bandwidth": "OutOfMemoryError: full"}}, "bandwidth", "warning"),
        ({"bandwidth": None, "failed": {"bandwidth": "CompilationError: no gcc"}}, "bandwidth", "bad"),
        ({"compiler": None}, "compiler", "bad"),
        ({"compiler": "clang"}, "compiler", "ok"),
        ({"headers": False}, "headers", "bad"),
        ({"counters": "kept for administrators"}, "counters", "note"),
        ({"torch_archs": ("sm_70", "sm_80")}, "architecture", "bad"),
        ({"torch_archs": ("sm_80", "compute_80")}, "architecture", "ok"),
        ({"torch_archs": ("sm_90a",)}, "architecture", "ok"),
        ({"torch_archs": ("compute_90",)}, "architecture", "ok"),
        ({"torch_archs": ("sm_100", "compute_100")}, "architecture", "bad"),
        ({"target": dataclasses.replace(H100, sm=80)}, "triton", "ok"),
        ({"target": dataclasses.replace(H100, sm=75)}, "triton", "bad"),
        ({"packages": {"torch": "2.11.0", "triton": None}}, "triton", "bad"),
        ({"wanted_triton": "3.6.0"}, "triton", "ok"),
        ({"wanted_triton": "3.5.1"}, "triton", "note"),
        ({"clash": "another package"}, "package", "bad"),
        ({"spec": None}, "part", "warning"),
        (
            {"bandwidth": Bandwidth(bytes_per_s=3e12, impl="x", telemetry={**READING, "throttled": True})},
            "clocks",
            "warning",
        ),
    ],
)
def test_what_the_software_says(changes: dict[str, Any], name: str, level: str) -> None:
    found = judge(facts(healthy_ecc(), **changes))
    assert {check.name: check.level for check in found.checks}[name] == level
    assert found.exit_code == {"ok": 0, "note": 0, "warning": 1, "bad": 2}[level]


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"compiler": None}, "apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev"),
        ({"headers": False}, f"python{sys.version_info.major}.{sys.version_info.minor}-dev"),
        ({"packages": {"torch": "2.11.0", "triton": None}}, ".uv/bin/uv pip install triton"),
        ({"torch_archs": ("sm_80",)}, "--torch-backend=auto torch"),
        ({"gpu": {"power_cap_w": 500.0, "power_default_w": 700.0}}, "nvidia-smi -pl 700"),
        ({"gpu": {"mig": True}}, "nvidia-smi -mig 0"),
        ({"gpu": {"ecc": False}}, "nvidia-smi -e 1 && reboot"),
        ({"counters": DENIED}, "/etc/modprobe.d/counters.conf"),
        ({"counters": "ncu was not found"}, "nsight-compute"),
    ],
)
def test_each_lack_has_a_command_that_is_shown_if_asked_for(changes: dict[str, Any], command: str) -> None:
    found = judge(facts(healthy_ecc(), **changes))
    assert not any(command in line for line in found.lines())
    shown = dataclasses.replace(found, fix_hints=True).lines()
    (line,) = [line for line in shown if command in line]
    assert line.lstrip().startswith("$ ")
    assert shown[-1] == found.verdict
    assert command in json.dumps(found.as_dict())


def test_the_compiler_is_the_one_that_triton_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert machine.c_compiler() is None
    for name in ("clang", "gcc"):
        (tmp_path / name).touch(mode=0o755)
        assert machine.c_compiler() == name
    monkeypatch.setenv("CC", "no-such-compiler")
    assert machine.c_compiler() is None


def test_headers_are_those_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    assert machine.python_headers() is False
    (tmp_path / "Python.h").touch()
    assert machine.python_headers() is True


def found_of(name: str, **changes: Any) -> tuple[str, str]:
    (check,) = [check for check in judge(facts(healthy_ecc(), **changes)).checks if check.name == name]
    return check.level, check.found


def test_clocks_are_those_of_the_reading_or_of_now() -> None:
    assert found_of("clocks") == ("ok", "reading SM 1980 of 1980 MHz, memory 2619 of 2619 MHz, 48 C")
    slow = {"memory_clock_hz": {"min": 1e9, "median": 1.5e9, "max": 1.5e9}, "clock_reasons": ["hw_slowdown"]}
    reached = Bandwidth(bytes_per_s=3e12, impl="x", telemetry=READING | slow)
    told = "reading SM 1980 of 1980 MHz, memory 1500 of 2619 MHz, 48 C (hw_slowdown)"
    assert found_of("clocks", bandwidth=reached) == ("warning", told)
    now = facts(healthy_ecc()).gpu | {"sm_clock_hz": 345e6, "temperature_c": 30, "clock_reasons": 0x8}
    told = "now SM 345 of 1980 MHz, memory 2619 of 2619 MHz, 30 C (hw_slowdown)"
    assert found_of("clocks", bandwidth=None, gpu=now) == ("ok", told)
    assert found_of("clocks", bandwidth=None, gpu=now | {"temperature_c": None, "clock_reasons": None})[1] == (
        "now SM 345 of 1980 MHz, memory 2619 of 2619 MHz"
    )


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("clocks", "sm_clock_max_hz"),
        ("clocks", "memory_clock_max_hz"),
        ("power", "power_cap_w"),
        ("power", "power_default_w"),
        ("PCIe", "pcie_width"),
        ("PCIe", "pcie_width_max"),
    ],
)
def test_what_half_is_known_of_is_not_judged(name: str, reading: str) -> None:
    level, found = found_of(name, gpu=facts(healthy_ecc()).gpu | {reading: None})
    assert level == "note"
    assert found.startswith("the driver does not tell")


def test_the_quick_read_is_its_bytes_over_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "READ_BYTES", 1 << 20)
    sampled = timing.Sampling(samples_s=[1.0, 2e-3, 1e-9])
    monkeypatch.setattr(timing, "sample_interleaved", lambda timers, cap_s: dict.fromkeys(timers, sampled))
    host = machine.Target(kind="cpu", name="host")
    reached = examination.read_bandwidth(host, None)
    assert (reached.bytes_per_s, reached.impl, reached.telemetry) == ((1 << 20) / 2e-3, "numba (stream)", {})


def test_a_part_unknown_to_the_table_is_judged_by_its_driver() -> None:
    nvml = healthy_ecc(name="NVIDIA H999")
    readings = driver.GpuSession(nvml, 0).read(driver.FACTS, {})
    target = machine.gpu_target(fake_properties(name="NVIDIA H999"))
    spec = machine.device_spec(target, readings)
    assert spec is not None
    assert spec.memory_bandwidth is not None
    assert spec.memory_bandwidth.value == pytest.approx(2 * 2619e6 * 5120 / 8)
    found = judge(facts(nvml, target=target, spec=spec))
    levels = {check.name: check.level for check in found.checks}
    assert (levels["part"], levels["bandwidth"]) == ("warning", "ok")
    assert machine.device_spec(target, {"sm_clock_max_hz": None}) is None


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 MIG 3g.40gb"])
def test_a_mig_slice_gets_no_number_of_the_whole_board(name: str) -> None:
    nvml = healthy_ecc(mig=1)
    readings = driver.GpuSession(nvml, 0).read(driver.FACTS, {})
    target = machine.gpu_target(fake_properties(name=name, multi_processor_count=60))
    spec = machine.device_spec(target, readings)
    assert spec is not None
    assert (spec.memory_bandwidth, spec.memory_capacity, spec.power) == (None, None, None)
    assert spec.peaks["mma_bf16"].value == pytest.approx(4096 * 60 * 1980e6)
    found = {check.name: check for check in judge(facts(nvml, target=target, spec=spec)).checks}
    assert (found["part"].level, found["MIG"].level, found["bandwidth"].level) == ("warning", "warning", "note")
    assert "MIG slice" in found["part"].found
    assert machine.device_spec(target, {"mig": True}) is None


def test_a_driver_that_refuses_everything_still_gets_a_verdict() -> None:
    nvml = healthy_ecc()
    nvml.refuse = {name: "Not Supported" for name in dir(FakeNvml) if name.startswith("nvml")}
    found = judge(facts(nvml, bandwidth=None))
    assert found.exit_code == 0
    assert {check.name for check in found.checks if check.level == "note"} >= {"ECC", "power", "clocks", "PCIe"}


def test_without_a_gpu_it_says_what_is_missing_and_what_works() -> None:
    found = judge(Facts(problem="no NVIDIA driver answers", packages={"torch": "2.11.0", "triton": "3.6.0"}))
    text = "\n".join(found.lines())
    assert found.exit_code == 2
    assert "no NVIDIA driver answers" in found.verdict
    for word in ("CPU", "predict", "report", "codegen"):
        assert word in text
    bare = judge(Facts(problem="no NVIDIA driver answers", packages={"torch": None, "triton": None}))
    assert "codegen" not in "\n".join(bare.lines())
    assert "torch peers" not in "\n".join(bare.lines())
    some = "\n".join(judge(Facts(problem="no driver", packages={"torch": "2.11.0", "triton": None})).lines())
    assert "numba is not installed; torch peers" in some
    numba = {"torch": "2.11.0", "triton": None, "numba": "0.65.0"}
    assert "our kernels in Numba, torch peers" in "\n".join(judge(Facts(problem="no driver", packages=numba)).lines())
    assert "codegen" not in some


def test_a_busy_host_is_a_warning() -> None:
    busy = judge(facts(host={"others": 0.3, "stolen": 0.08}))
    assert busy.exit_code == 1
    assert busy.reasons == ("load: the machine is busy: others have 38% of the CPU",)
    quiet = judge(facts(host={"others": 0.03, "stolen": 0.0}))
    assert (quiet.exit_code, quiet.reasons) == (0, ())


def test_gathering_survives_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("broken\nin two lines")

    monkeypatch.setattr(examination, "package_clash", fail)
    monkeypatch.setattr(examination, "find_ncu", fail)
    monkeypatch.setattr(driver, "cuda_problem", lambda: None)
    monkeypatch.setattr(driver, "open_gpu", fail)
    monkeypatch.setattr(machine, "gpu_target", lambda: machine.Target(kind="cuda", name="x", sm=90))
    monkeypatch.setattr(examination, "read_bandwidth", fail)
    gathered = examination.gather()
    assert gathered.failed["bandwidth"] == "RuntimeError: broken"
    found = judge(gathered)
    assert found.exit_code in (1, 2)
    monkeypatch.setattr(driver, "cuda_problem", fail)
    assert judge(examination.gather()).exit_code == 2


def test_gathering_on_a_gpu_reads_all_that_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuda_problem", lambda: None)
    monkeypatch.setattr(machine, "gpu_target", lambda: H100)
    monkeypatch.setattr(driver, "open_gpu", lambda: driver.GpuSession(healthy_ecc(), 0))
    reached = Bandwidth(bytes_per_s=3.1e12, impl="triton (stream)", telemetry=READING)
    monkeypatch.setattr(examination, "read_bandwidth", lambda target, gpu: reached if gpu else None)
    gathered = examination.gather()
    assert gathered.failed == {}
    assert set(gathered.gpu) == {*driver.FACTS, *driver.LIVE, *driver.TOTALS}
    levels = {check.name: check.level for check in judge(gathered).checks}
    assert {levels[name] for name in ("part", "MIG", "ECC", "sharing", "power", "clocks", "bandwidth")} == {"ok"}


def test_the_package_kernels_is_ours() -> None:
    assert examination.package_clash() is None
    assert "another package" in (examination.package_clash("/site-packages/kernels/__init__.py") or "")


def test_this_machine_gets_a_diagnosis() -> None:
    found = judge(examination.gather(quick_read=False))
    assert found.exit_code in (0, 1, 2)
    assert str(machine.ROOT) not in json.dumps(found.as_dict())


@pytest.mark.cuda
def test_a_gpu_reaches_a_bandwidth() -> None:
    reached = examination.read_bandwidth(machine.gpu_target(), driver.open_gpu_or_none())
    assert reached.bytes_per_s > 1e11
