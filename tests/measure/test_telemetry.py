"""NVML's values arrive in our units. The fake replays what real machines printed, see `data/README.md`."""

from __future__ import annotations

import csv
import inspect
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from bench import machine
from bench.devices import driver
from bench.measure import cores, telemetry
from bench.measure.telemetry import HostSampler
from tests.support import DATA
from tests.support.fake_nvml import H100, REASONS, FakeNvml, fake_properties, recorded_values

RTX_4090 = DATA / "nvidia_smi_rtx4090.txt"


def read(nvml: FakeNvml, readings: dict[str, driver.Reading]) -> tuple[dict[str, Any], dict[str, str]]:
    unavailable: dict[str, str] = {}
    return driver.GpuSession(nvml, 0).read(readings, unavailable), unavailable


def test_the_fake_has_the_shape_of_the_module() -> None:
    """The same names, constants, numbers of arguments, and words of refusal."""
    for name in dir(FakeNvml):
        if name.startswith("nvml") and name != "nvmlMemory_v2":
            fake, real = (inspect.signature(getattr(owner, name)) for owner in (FakeNvml, pynvml))
            assert len(fake.parameters) - 1 == len(real.parameters), name
        elif name.startswith("NVML_") or name == "nvmlMemory_v2":
            assert getattr(FakeNvml, name) == getattr(pynvml, name), name
    bits = {value for name, value in vars(pynvml).items() if name.startswith("nvmlClocksEventReason")}
    assert set(REASONS.values()) <= bits
    assert str(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)) == "Not Supported"


def test_the_facts_of_a_recorded_h100() -> None:
    facts, unavailable = read(FakeNvml.recorded(H100), driver.FACTS)
    assert unavailable == {}
    assert facts == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "545.23.08",
        "driver_cuda": "12.3",
        "board": driver.board("GPU-4f6a"),
        "memory_bytes": 81_559 << 20,
        "memory_used_bytes": 2 << 20,
        "memory_bus_bits": 5120,
        "mig": False,
        "ecc": True,
        "power_cap_w": 700.0,
        "power_default_w": 700.0,
        "sm_clock_max_hz": 1_980_000_000,
        "memory_clock_max_hz": 2_619_000_000,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "nvlinks": 18,
        "processes": 0,
    }


@pytest.mark.parametrize(("links", "said"), [([1] * 18, 18), ([1, 0, 1], 2), ([], None)])
def test_nvlinks_that_are_up_are_counted(links: list[int], said: int | None) -> None:
    facts, unavailable = read(FakeNvml(nvlinks=links), driver.FACTS)
    assert facts["nvlinks"] == said
    assert unavailable.get("nvlinks") == (None if links else "Not Supported")


def test_the_live_values_of_a_recorded_h100_that_idles() -> None:
    live, unavailable = read(FakeNvml.recorded(H100), driver.LIVE)
    assert unavailable == {}
    assert live == {
        "sm_clock_hz": 345_000_000,
        "memory_clock_hz": 2_619_000_000,
        "power_w": pytest.approx(72.02),
        "power_instant_w": None,
        "temperature_c": 33,
        "clock_reasons": 1,
    }
    assert driver.clock_reasons(live["clock_reasons"]) == []
    totals, _ = read(FakeNvml.recorded(H100), driver.TOTALS)
    assert (totals["ecc_corrected"], totals["ecc_uncorrected"]) == (0, 0)


def test_what_a_recorded_geforce_refuses_is_none_and_named() -> None:
    """`nvidia-smi` prints N/A for MIG and for ECC counts."""
    nvml = FakeNvml.recorded(RTX_4090)
    facts, unavailable = read(nvml, driver.FACTS)
    assert unavailable == {"mig": "Not Supported"}
    assert facts["mig"] is None
    assert facts["ecc"] is False
    assert (facts["name"], facts["driver"]) == ("NVIDIA GeForce RTX 4090", "610.60")
    assert (facts["power_cap_w"], facts["power_default_w"]) == (450.0, 450.0)
    assert (facts["sm_clock_max_hz"], facts["memory_clock_max_hz"]) == (3_105_000_000, 10_501_000_000)
    assert (facts["pcie_generation"], facts["pcie_width"]) == nvml.pcie
    with telemetry.Sampler(driver.GpuSession(nvml, 0), interval_s=0.001) as sampler:
        while not sampler.samples:
            time.sleep(0.001)
    summary = sampler.summary()
    assert summary["unavailable"] == {"ecc_corrected": "Not Supported", "ecc_uncorrected": "Not Supported"}
    assert (summary["ecc_corrected"], summary["ecc_uncorrected"]) == (None, None)
    assert (summary["power_w"], summary["power_from"]) == (pytest.approx(5.20), "instant")
    assert (summary["sm_clock_hz"]["median"], summary["temperature_c"]) == (210e6, 34)


@pytest.mark.parametrize("line", REASONS)
def test_each_recorded_line_of_reasons_is_one_bit(line: str) -> None:
    """In the H100's recording only the line `Idle` says `Active`; here another line does instead."""
    text = H100.read_text()
    idle = next(recorded for recorded in text.splitlines() if recorded.strip().startswith("Idle "))
    swapped = text.replace(idle, idle.replace("Active", "Not Active"))
    (chosen,) = [recorded for recorded in swapped.splitlines() if recorded.strip().startswith(f"{line} ")]
    values = recorded_values(swapped.replace(chosen, chosen.replace("Not Active", "Active")))
    assert values["reasons"] == REASONS[line]
    expected = [] if line == "Idle" else [line.lower().replace(" ", "_")]
    assert driver.clock_reasons(values["reasons"]) == expected


def test_a_recorded_load_is_summarised() -> None:
    """`nvidia-smi` sampled an H200 while a server started on it and answered its first requests."""
    with (DATA / "nvidia_smi_samples_h200.csv").open(newline="") as file:
        rows = [{name.strip(): value.strip() for name, value in row.items()} for row in csv.DictReader(file)]
    nvml = FakeNvml()
    gpu = driver.GpuSession(nvml, 0)
    sampler = telemetry.Sampler(gpu, interval_s=3600)
    with sampler:
        while not sampler.samples:
            time.sleep(0.001)
        sampler.samples.clear()
        for row in rows:
            nvml.clocks = {1: int(row["clocks.current.sm"]), 2: int(row["clocks.current.memory"])}
            nvml.power_mw = round(1000 * float(row["power.draw"]))
            nvml.celsius = int(row["temperature.gpu"])
            sampler.samples.append(gpu.read(driver.LIVE, sampler.unavailable))
    summary = sampler.summary()
    assert summary["samples"] == 11
    assert summary["sm_clock_hz"] == {"min": 345e6, "median": 1980e6, "max": 1980e6}
    assert summary["memory_clock_hz"] == {"min": 3201e6, "median": 3201e6, "max": 3201e6}
    watts = 78.51 + 79.97 + 121.56 + 227.86 + 333.42 + 135.12 + 410.89 + 398.55 + 373.23 + 552.91 + 559.32
    assert summary["power_w"] == pytest.approx(watts / 11)
    assert summary["temperature_c"] == 56
    assert (summary["throttled"], summary["power_capped"], summary["unavailable"]) == (False, False, {})


# ---- which GPU, and what is missing where there is none


def fake_torch(cuda: str | None = "13.0", available: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="2.11.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(is_available=lambda: available),
    )


def test_cuda_problem_names_the_one_thing_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    problem = driver.cuda_problem
    no_driver = FakeNvml(refuse={"nvmlInit": "NVML Shared Library Not Found"})
    assert problem(fake_torch(available=True), FakeNvml()) is None
    assert problem(fake_torch(cuda=None), FakeNvml()) == "torch 2.11.0 is built without CUDA"
    assert "no NVIDIA driver" in problem(fake_torch(), no_driver)
    assert "finds no GPU" in problem(fake_torch(), FakeNvml(count=0))
    assert "supports CUDA 12.4, torch 2.11.0 needs 13.0" in problem(fake_torch(), FakeNvml(cuda=12040))
    assert "but torch cannot use any" in problem(fake_torch(), FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in problem(fake_torch(), FakeNvml())


# ---- readings while a case runs


def test_clock_reasons_are_named_and_idle_is_left_out() -> None:
    assert driver.clock_reasons(0x1) == []
    assert driver.clock_reasons(0x4 | 0x40 | 0x2) == [
        "applications_clocks_setting",
        "sw_power_cap",
        "hw_thermal_slowdown",
    ]
    assert driver.clock_reasons(1 << 20) == ["bit_0x100000"]


def test_the_device_is_found_by_uuid_then_by_pci_address() -> None:
    assert driver.open_gpu(FakeNvml(), fake_properties()).handle == "by uuid"
    assert driver.open_gpu(FakeNvml(uuid="GPU-other"), fake_properties()).handle == "by address"
    with pytest.raises(driver.NoTelemetry, match="Not Found"):
        driver.open_gpu(FakeNvml(uuid="GPU-other", address=""), fake_properties())


def sampled(nvml: FakeNvml, act: list[dict]) -> dict:
    """The summary of a sampler while the part goes through these states. Each is held until it was polled."""
    with telemetry.Sampler(driver.GpuSession(nvml, "handle"), interval_s=0.001) as sampler:
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
    states[1] |= {"pcie_replays": 7, "nvlink_errors": [2] * 18}
    before = {"clocks": {1: 1755, 2: 2619}, "power_mw": 412_500, "celsius": 50, "ecc_counts": {0: 3, 1: 0}}
    before |= {"pcie_replays": 4, "nvlink_errors": [1] * 18}
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
    assert (summary["pcie_replays"], summary["nvlink_errors"]) == (3, 18)
    assert summary["unavailable"] == {}
    assert summary["samples"] >= 6
    assert 0 < summary["duration_s"] < 60
    json.dumps(summary)


def test_a_clock_that_someone_set_is_not_throttling() -> None:
    summary = sampled(FakeNvml(), [{"reasons": 0x2 | 0x1}])
    assert summary["clock_reasons"] == ["applications_clocks_setting"]
    assert summary["throttled"] is False


def test_the_power_cap_is_told_apart_from_throttling() -> None:
    summary = sampled(FakeNvml(), [{"reasons": 0x4}])
    assert (summary["throttled"], summary["power_capped"]) == (False, True)


def test_power_is_the_instant_value_where_the_driver_offers_it() -> None:
    """On Hopper the other reading is the average of a second, which a short case leaves before it gets there."""
    nvml = FakeNvml(power_mw=180_000, instant_mw=640_000)
    summary = sampled(nvml, [{"celsius": 50}, {"celsius": 51}])
    assert (summary["power_w"], summary["power_from"]) == (pytest.approx(640.0), "instant")
    summary = sampled(FakeNvml(power_mw=180_000), [{"celsius": 50}])
    assert (summary["power_w"], summary["power_from"]) == (pytest.approx(180.0), "average")


@pytest.mark.parametrize("lacks", ["nvmlDeviceGetFieldValues", "NVML_FI_DEV_POWER_INSTANT"])
def test_without_the_instant_value_power_is_energy_over_the_window(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeNvml, lacks)
    monkeypatch.setattr(telemetry, "ENERGY_WINDOW_S", 0.0)
    nvml = FakeNvml(power_mw=180_000, instant_mw=640_000, energy_mj=1_000_000)
    summary = sampled(nvml, [{"celsius": 50}, {"energy_mj": 1_300_000}])
    assert summary["power_from"] == "energy"
    assert summary["power_w"] == pytest.approx(300.0 / summary["duration_s"])


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
    with pytest.raises(RuntimeError), telemetry.Sampler(driver.GpuSession(FakeNvml(), 0)) as sampler:
        raise RuntimeError("the case died")
    assert threading.active_count() == before
    assert sampler.summary()["samples"] >= 1


def test_facts_of_the_part() -> None:
    unavailable: dict[str, str] = {}
    facts = driver.GpuSession(FakeNvml(pids=[17, 4242]), 0).read(driver.FACTS, unavailable)
    assert (facts["driver_cuda"], facts["power_cap_w"], facts["mig"], facts["ecc"]) == ("13.0", 700, False, True)
    assert facts["processes"] == 2
    assert unavailable == {}


STAT = """cpu  9 9 9 9 9 9 9 9 9 9
cpu0 100 10 40 500 7 3 2 30 0 0
cpu1 200 0 50 400 0 0 0 10 0 0
cpu2 900 0 0 0 0 0 0 900 0 0
intr 1
"""


def test_cpu_times_of_the_usable_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sysconf", lambda name: 100)
    (tmp_path / "stat").write_text(STAT)
    times = cores.cpu_times(tmp_path / "stat", {0, 1})
    assert times
    assert times.busy_s == pytest.approx((100 + 10 + 40 + 3 + 2 + 200 + 50) / 100)
    assert times.stolen_s == pytest.approx(0.4)
    assert cores.cpu_times(tmp_path / "stat", {7}) is None
    assert cores.cpu_times(tmp_path / "none") is None


@pytest.mark.parametrize(("busy_s", "stolen_s", "disturbed"), [(2.0, 0.0, False), (2.2, 0.3, True), (3.4, 0.0, True)])
def test_what_others_had_while_a_host_measured(
    busy_s: float, stolen_s: float, disturbed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two seconds on two cores, of which this process had two seconds."""
    readings = [
        cores.CpuTimes(clock_s=10, busy_s=50, stolen_s=5, own_s=1),
        cores.CpuTimes(clock_s=12, busy_s=50 + busy_s, stolen_s=5 + stolen_s, own_s=3),
    ]
    monkeypatch.setattr(cores, "cpu_times", lambda: readings.pop(0))
    monkeypatch.setattr(cores, "cpu_clocks_hz", lambda: [2e9, 3e9])
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    with HostSampler() as sampler:
        pass
    found = sampler.summary()
    assert found["disturbed"] is disturbed
    assert found["host"]["others"] == pytest.approx((busy_s - 2) / 4)
    assert found["host"]["stolen"] == pytest.approx(stolen_s / 4)
    assert found["host"]["clock_hz"] == {"min": 2e9, "median": 2.5e9, "max": 3e9}


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cpu_times", lambda: None)
    with HostSampler() as sampler:
        pass
    assert sampler.summary() == {}
