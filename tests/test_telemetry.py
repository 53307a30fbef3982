"""NVML's values reach us in our units: the fake replays what real machines printed, see `data/README.md`."""

from __future__ import annotations

import csv
import inspect
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import H100, REASONS, FakeNvml, recorded_values

from bench import telemetry

DATA = Path(__file__).parent / "data"
RTX_4090 = DATA / "nvidia_smi_rtx4090.txt"


def read(nvml: FakeNvml, readings: dict[str, telemetry.Reading]) -> tuple[dict[str, Any], dict[str, str]]:
    unavailable: dict[str, str] = {}
    return telemetry.Gpu(nvml, 0).read(readings, unavailable), unavailable


def test_the_fake_has_the_shape_of_the_module() -> None:
    """Its names, its constants, as many arguments, and the words of its refusal."""
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
    facts, unavailable = read(FakeNvml.recorded(H100), telemetry.FACTS)
    assert unavailable == {}
    assert facts == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "545.23.08",
        "driver_cuda": "12.3",
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
        "processes": 0,
    }


def test_the_live_values_of_a_recorded_h100_that_idles() -> None:
    live, unavailable = read(FakeNvml.recorded(H100), telemetry.LIVE)
    assert unavailable == {}
    assert live == {
        "sm_clock_hz": 345_000_000,
        "memory_clock_hz": 2_619_000_000,
        "power_w": pytest.approx(72.02),
        "temperature_c": 33,
        "clock_reasons": 1,
    }
    assert telemetry.clock_reasons(live["clock_reasons"]) == []
    totals, _ = read(FakeNvml.recorded(H100), telemetry.TOTALS)
    assert (totals["ecc_corrected"], totals["ecc_uncorrected"]) == (0, 0)


def test_what_a_recorded_geforce_refuses_is_none_and_named() -> None:
    """`nvidia-smi` prints N/A for MIG and for ECC counts."""
    nvml = FakeNvml.recorded(RTX_4090)
    facts, unavailable = read(nvml, telemetry.FACTS)
    assert unavailable == {"mig": "Not Supported"}
    assert facts["mig"] is None
    assert facts["ecc"] is False
    assert (facts["name"], facts["driver"]) == ("NVIDIA GeForce RTX 4090", "610.60")
    assert (facts["power_cap_w"], facts["power_default_w"]) == (450.0, 450.0)
    assert (facts["sm_clock_max_hz"], facts["memory_clock_max_hz"]) == (3_105_000_000, 10_501_000_000)
    assert (facts["pcie_generation"], facts["pcie_width"]) == nvml.pcie
    with telemetry.Sampler(telemetry.Gpu(nvml, 0), interval_s=0.001) as sampler:
        while not sampler.samples:
            time.sleep(0.001)
    summary = sampler.summary()
    assert summary["unavailable"] == {"ecc_corrected": "Not Supported", "ecc_uncorrected": "Not Supported"}
    assert (summary["ecc_corrected"], summary["ecc_uncorrected"]) == (None, None)
    assert summary["power_w"] == pytest.approx(5.11)
    assert (summary["sm_clock_hz"]["median"], summary["temperature_c"]) == (210e6, 34)


@pytest.mark.parametrize("line", REASONS)
def test_each_recorded_line_of_reasons_is_one_bit(line: str) -> None:
    """The H100's recording says `Active` for idle alone; here another line does."""
    text = H100.read_text()
    idle = next(recorded for recorded in text.splitlines() if recorded.strip().startswith("Idle "))
    swapped = text.replace(idle, idle.replace("Active", "Not Active"))
    (chosen,) = [recorded for recorded in swapped.splitlines() if recorded.strip().startswith(f"{line} ")]
    values = recorded_values(swapped.replace(chosen, chosen.replace("Not Active", "Active")))
    assert values["reasons"] == REASONS[line]
    expected = [] if line == "Idle" else [line.lower().replace(" ", "_")]
    assert telemetry.clock_reasons(values["reasons"]) == expected


def test_a_recorded_load_is_summarised() -> None:
    """A server's start and first requests on an H200, as `nvidia-smi` sampled them."""
    with (DATA / "nvidia_smi_samples_h200.csv").open(newline="") as file:
        rows = [{name.strip(): value.strip() for name, value in row.items()} for row in csv.DictReader(file)]
    nvml = FakeNvml()
    gpu = telemetry.Gpu(nvml, 0)
    sampler = telemetry.Sampler(gpu, interval_s=3600)
    with sampler:
        while not sampler.samples:
            time.sleep(0.001)
        sampler.samples.clear()
        for row in rows:
            nvml.clocks = {1: int(row["clocks.current.sm"]), 2: int(row["clocks.current.memory"])}
            nvml.power_mw = round(1000 * float(row["power.draw"]))
            nvml.celsius = int(row["temperature.gpu"])
            sampler.samples.append(gpu.read(telemetry.LIVE, sampler.unavailable))
    summary = sampler.summary()
    assert summary["samples"] == 11
    assert summary["sm_clock_hz"] == {"min": 345e6, "median": 1980e6, "max": 1980e6}
    assert summary["memory_clock_hz"] == {"min": 3201e6, "median": 3201e6, "max": 3201e6}
    watts = 78.51 + 79.97 + 121.56 + 227.86 + 333.42 + 135.12 + 410.89 + 398.55 + 373.23 + 552.91 + 559.32
    assert summary["power_w"] == pytest.approx(watts / 11)
    assert summary["temperature_c"] == 56
    assert (summary["throttled"], summary["power_capped"], summary["unavailable"]) == (False, False, {})
