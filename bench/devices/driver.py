"""What the driver says about a GPU: NVML, read through `pynvml`. torch is imported inside functions only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any


def device_properties() -> Any:
    """torch's properties of the current CUDA device. Their UUID and PCI address identify it."""
    cuda = torch_module().cuda
    return cuda.get_device_properties(cuda.current_device())


def pynvml_module() -> Any:
    import pynvml

    return pynvml


def torch_module() -> Any:
    import torch

    return torch


def cuda_problem(torch: Any = None, nvml: Any = None) -> str | None:
    """None if torch can use a GPU, else the one thing that is missing."""
    torch = torch or torch_module()
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if torch.cuda.is_available():
        return None
    nvml = nvml or pynvml_module()
    try:
        nvml.nvmlInit()
        driver, supported = nvml.nvmlSystemGetDriverVersion(), nvml.nvmlSystemGetCudaDriverVersion_v2()
        parts = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return f"no NVIDIA driver answers on this machine ({error})"
    if parts == 0:
        return f"driver {driver} is loaded, but finds no GPU"
    major, minor = supported // 1000, supported % 1000 // 10
    if major < int(torch.version.cuda.split(".")[0]):
        wanted = f"torch {torch.__version__} needs {torch.version.cuda}"
        return f"driver {driver} supports CUDA {major}.{minor}, {wanted}"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return "torch sees no GPU: CUDA_VISIBLE_DEVICES hides it or names none that exists"
    return f"driver {driver} lists {parts} GPU(s), but torch cannot use any"


POWER_CAP = 0x004
SLOWDOWNS = {
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Bits of nvml.h's `nvmlClocksEventReason*`: a fault or a neighbour holds the part below the clocks it was asked for.

The power cap is not among them: a part under full load runs at it, and measuring again changes nothing."""
SETTINGS = {0x002: "applications_clocks_setting", 0x100: "display_clock_setting"}
"""Bits that only say which setting chose the clock. Bit 0 means idle."""
KNOWN_REASONS = {**SLOWDOWNS, **SETTINGS, POWER_CAP: "sw_power_cap"}


def clock_reasons(mask: int) -> list[str]:
    """Names of the reasons in a bit mask, without idle. A bit that is unknown here is named by its value."""
    bits = [1 << i for i in range(1, mask.bit_length()) if mask >> i & 1]
    return [KNOWN_REASONS.get(bit, f"bit_{bit:#x}") for bit in bits]


Reading = Callable[[Any, Any], Any]


def _instant_power(nvml: Any, handle: Any) -> float | None:
    """Watts at this moment, None where the driver or the part does not offer the field."""
    try:
        (field,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
    except (nvml.NVMLError, AttributeError):
        return None
    return field.value.uiVal / 1e3 if field.nvmlReturn == nvml.NVML_SUCCESS else None


LIVE: dict[str, Reading] = {
    "sm_clock_hz": lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM) * 10**6,
    "memory_clock_hz": lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM) * 10**6,
    "power_w": lambda n, h: n.nvmlDeviceGetPowerUsage(h) / 1e3,
    "power_instant_w": _instant_power,
    "temperature_c": lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
    "clock_reasons": lambda n, h: n.nvmlDeviceGetCurrentClocksEventReasons(h),
}
"""Read again and again while a case runs. NVML gives MHz and mW.

`power_w` is the average of the last second on Ampere and later parts, except the A100 (nvml.h on
`nvmlDeviceGetPowerUsage`). A case is over sooner, so `power_instant_w` tells more where the driver offers it."""


def _ecc_errors(kind: str) -> Reading:
    return lambda n, h: n.nvmlDeviceGetTotalEccErrors(
        h, getattr(n, f"NVML_MEMORY_ERROR_TYPE_{kind}"), n.NVML_VOLATILE_ECC
    )


def _of_nvlinks(reading: Callable[[Any, Any, int], int]) -> Reading:
    """The sum over the NVLinks of a part. NVML refuses a number that the part has no link for."""

    def summed(nvml: Any, handle: Any) -> int:
        found = reading(nvml, handle, 0)
        for link in range(1, nvml.NVML_NVLINK_MAX_LINKS):
            try:
                found += reading(nvml, handle, link)
            except nvml.NVMLError:
                break
        return found

    return summed


def _nvlink_errors(nvml: Any, handle: Any, link: int) -> int:
    kinds = (nvml.NVML_NVLINK_ERROR_DL_REPLAY, nvml.NVML_NVLINK_ERROR_DL_RECOVERY, nvml.NVML_NVLINK_ERROR_DL_CRC_FLIT)
    return sum(nvml.nvmlDeviceGetNvLinkErrorCounter(handle, link, kind) for kind in kinds)


TOTALS: dict[str, Reading] = {
    "energy_j": lambda n, h: n.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3,
    "ecc_corrected": _ecc_errors("CORRECTED"),
    "ecc_uncorrected": _ecc_errors("UNCORRECTED"),
    "pcie_replays": lambda n, h: n.nvmlDeviceGetPcieReplayCounter(h),
    "nvlink_errors": _of_nvlinks(_nvlink_errors),
}
"""Counters since the driver was loaded, read before and after a case. NVML gives mJ."""


def board(uuid: str | bytes) -> str:
    """A name for one board, from which its UUID cannot be told: runs are published, serial numbers are not."""
    return hashlib.sha256(uuid.encode() if isinstance(uuid, str) else uuid).hexdigest()[:12]


FACTS: dict[str, Reading] = {
    "name": lambda n, h: n.nvmlDeviceGetName(h),
    "driver": lambda n, h: n.nvmlSystemGetDriverVersion(),
    "driver_cuda": lambda n, h: _cuda_version(n.nvmlSystemGetCudaDriverVersion_v2()),
    "board": lambda n, h: board(n.nvmlDeviceGetUUID(h)),
    "memory_bytes": lambda n, h: n.nvmlDeviceGetMemoryInfo(h).total,
    "memory_used_bytes": lambda n, h: n.nvmlDeviceGetMemoryInfo(h, n.nvmlMemory_v2).used,
    "memory_bus_bits": lambda n, h: n.nvmlDeviceGetMemoryBusWidth(h),
    "mig": lambda n, h: bool(n.nvmlDeviceGetMigMode(h)[0]),
    "ecc": lambda n, h: bool(n.nvmlDeviceGetEccMode(h)[0]),
    "power_cap_w": lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h) / 1e3,
    "power_default_w": lambda n, h: n.nvmlDeviceGetPowerManagementDefaultLimit(h) / 1e3,
    "sm_clock_max_hz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM) * 10**6,
    "memory_clock_max_hz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_MEM) * 10**6,
    "pcie_generation": lambda n, h: n.nvmlDeviceGetCurrPcieLinkGeneration(h),
    "pcie_generation_max": lambda n, h: n.nvmlDeviceGetMaxPcieLinkGeneration(h),
    "pcie_width": lambda n, h: n.nvmlDeviceGetCurrPcieLinkWidth(h),
    "pcie_width_max": lambda n, h: n.nvmlDeviceGetMaxPcieLinkWidth(h),
    "nvlinks": _of_nvlinks(lambda n, h, link: n.nvmlDeviceGetNvLinkState(h, link)),
    "processes": lambda n, h: len(n.nvmlDeviceGetComputeRunningProcesses(h)),
}
"""What does not change while we run. `nvlinks` are those that are up. `processes` counts our own process too: in a
container it has another number.

Version 1 of NVML's memory reading counts what the driver reserves as used, version 2 does not."""


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class NoTelemetry(RuntimeError):
    """NVML knows nothing about the current device; the message says why."""


class GpuSession:
    """One device as NVML sees it. `nvml` is the module `pynvml`, or an object with the same functions."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    def read(self, readings: Mapping[str, Reading], unavailable: dict[str, str]) -> dict[str, Any]:
        """Every reading. Where NVML refuses one, its value is None and NVML's words go into `unavailable`."""
        values: dict[str, Any] = {}
        for name, reading in readings.items():
            try:
                values[name] = reading(self.nvml, self.handle)
            except (self.nvml.NVMLError, AttributeError) as error:  # refused, or unknown to this nvidia-ml-py
                values[name] = None
                unavailable[name] = str(error)
        return values


def open_gpu(nvml: Any = None, properties: Any = None) -> GpuSession:
    """Open torch's current device in NVML by its UUID, or else by its PCI address.

    An index would be wrong: `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` renumber torch's devices, not NVML's. NVML
    does not know the UUID of a MIG slice; clocks and power are then those of the whole part at its PCI address.
    """
    nvml = nvml or pynvml_module()
    if properties is None:
        problem = cuda_problem(nvml=nvml)
        if problem:
            raise NoTelemetry(problem)
        properties = device_properties()
    pci = f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"
    try:
        nvml.nvmlInit()
        try:
            return GpuSession(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}"))
        except nvml.NVMLError:
            return GpuSession(nvml, nvml.nvmlDeviceGetHandleByPciBusId(pci))
    except nvml.NVMLError as error:
        raise NoTelemetry(f"NVML does not know torch's current device ({error})") from None


def open_gpu_or_none() -> GpuSession | None:
    """Like `open_gpu`, but None on failure: a run goes on without telemetry, and `decodebench doctor` says why."""
    try:
        return open_gpu()
    except NoTelemetry:
        return None
