"""Stands for the module `pynvml`: the same names, arguments, units and errors, with the values of a recording.

A recording is the output of `nvidia-smi -q`, which asks NVML for each value. `data/README.md` says where it is from.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

from tests.support import DATA

H100 = DATA / "nvidia_smi_h100.txt"

REASONS = {
    "Idle": 0x001,
    "Applications Clocks Setting": 0x002,
    "SW Power Cap": 0x004,
    "HW Slowdown": 0x008,
    "Sync Boost": 0x010,
    "SW Thermal Slowdown": 0x020,
    "HW Thermal Slowdown": 0x040,
    "HW Power Brake Slowdown": 0x080,
    "Display Clock Setting": 0x100,
}
"""The bits `nvmlClocksEventReason*` of nvml.h, by what `nvidia-smi -q` calls them."""


def smi_values(text: str) -> dict[tuple[str, ...], str]:
    """The values that `nvidia-smi -q` printed for one GPU, by the less indented headings over them and their names."""
    values: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.fullmatch(r"( *)(\S.*?)(?: *: (.*))?", line.rstrip())
        if found is None or line.startswith("="):
            continue
        indent, name, value = len(found[1]), found[2], found[3]
        path = [(depth, heading) for depth, heading in path if depth < indent]
        path.append((indent, name))
        if value is not None:
            inside = path[1:] if path[0][1].startswith("GPU ") else path
            values[tuple(heading for _, heading in inside)] = value
    return values


def recorded_values(text: str) -> dict[str, Any]:
    """What NVML must have returned. None stands for `Not Supported`, which `nvidia-smi` prints as N/A."""
    values = smi_values(text)

    def first(*paths: tuple[str, ...]) -> str:
        return next(values[path] for path in paths if path in values)

    def number(*paths: tuple[str, ...]) -> float | None:
        found = re.match(r"(\d+(?:\.\d+)?)(?=x| |$)", first(*paths))
        return float(found[1]) if found else None

    def whole(*paths: tuple[str, ...], times: int = 1) -> int | None:
        found = number(*paths)
        return None if found is None else round(found * times)

    def switch(path: tuple[str, ...]) -> int | None:
        return {"Enabled": 1, "Disabled": 0}.get(values[path])

    def volatile(words: str) -> int | None:
        counts = [whole(path) for path in values if path[:2] == ("ECC Errors", "Volatile") and words in path[2]]
        return None if None in counts else sum(count for count in counts if count is not None)

    power = ("GPU Power Readings", "Power Readings")
    ceiling = ("GPU Power Readings", "GPU Ceiling Power Limit")
    link = ("PCI", "GPU Link Info")
    major, minor = first(("CUDA Version",)).split()[0].split(".")
    return {
        "name": values["Product Name",],
        "driver": values["Driver Version",].split()[0],
        "cuda": 1000 * int(major) + 10 * int(minor),
        "address": values["PCI", "Bus Id"],
        "mig": switch(("MIG Mode", "Current")),
        "ecc": switch(("ECC Mode", "Current")),
        "clocks": {1: whole(("Clocks", "SM")), 2: whole(("Clocks", "Memory"))},
        "max_clocks": {1: whole(("Max Clocks", "SM")), 2: whole(("Max Clocks", "Memory"))},
        "power_mw": whole(
            *((heading, kind) for heading in power for kind in ("Power Draw", "Average Power Draw")), times=1000
        ),
        "instant_mw": whole((power[0], "Instantaneous Power Draw"), times=1000)
        if (power[0], "Instantaneous Power Draw") in values
        else None,
        "cap_mw": whole((power[0], "Current Power Limit"), (*ceiling, "Current Power Limit"), times=1000),
        "default_mw": whole((power[0], "Default Power Limit"), (*ceiling, "Default Power Limit"), times=1000),
        "celsius": whole(("Temperature", "GPU Current Temp")),
        "reasons": sum(
            REASONS[path[-1]]
            for path, value in values.items()
            if path[0] == "Clocks Event Reasons" and value == "Active"
        ),
        "ecc_counts": {0: volatile(" Correctable"), 1: volatile(" Uncorrectable")},
        "memory": {
            name.lower(): whole(("FB Memory Usage", name), times=1 << 20)
            for name in ("Total", "Reserved", "Used", "Free")
        },
        "pcie": (whole((*link, "PCIe Generation", "Current")), whole((*link, "Link Width", "Current"))),
        "pcie_max": (whole((*link, "PCIe Generation", "Max")), whole((*link, "Link Width", "Max"))),
    }


class FakeNvml:
    """The recorded H100 with a driver that runs today's torch, at the PCI address that `fake_properties` has.

    Values are attributes that a test changes. None is refused as `Not Supported`. `refuse` maps a function's name to
    the error that it raises. The bus width, the energy, the NVLinks and the errors of links are made up, because these
    recordings do not have them.
    """

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlMemory_v2 = 0x2000028
    NVML_NVLINK_MAX_LINKS = pynvml.NVML_NVLINK_MAX_LINKS
    NVML_NVLINK_ERROR_DL_REPLAY, NVML_NVLINK_ERROR_DL_RECOVERY, NVML_NVLINK_ERROR_DL_CRC_FLIT = 0, 1, 2
    NVML_SUCCESS, NVML_ERROR_NOT_SUPPORTED, NVML_FI_DEV_POWER_INSTANT = 0, 3, 186
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 0

    def __init__(self, **values: Any) -> None:
        self.refuse: dict[str, str] = {}
        self.pids: list[int] = []
        self.energy_mj, self.bus_bits, self.count = 1_000_000, 5120, 1
        self.nvlinks, self.nvlink_errors, self.pcie_replays = [1] * 18, [0] * 18, 0
        today = {"driver": "580.159.04", "cuda": 13000, "uuid": "GPU-4f6a", "address": "00000000:0A:00.0"}
        for name, value in {**recorded_values(H100.read_text()), **today, **values}.items():
            setattr(self, name, value)

    @classmethod
    def recorded(cls, path: Path) -> FakeNvml:
        """Everything as recorded, also the driver."""
        return cls(**recorded_values(path.read_text()))

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml"):
            refused = object.__getattribute__(self, "refuse").get(name)
            if refused:
                return self._raise(refused)
        return object.__getattribute__(self, name)

    def _raise(self, words: str) -> Any:
        def call(*arguments: Any) -> None:
            raise self.NVMLError(words)

        return call

    def _given(self, value: Any) -> Any:
        if value is None:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return self.uuid

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.uuid:
            raise self.NVMLError("Not Found")
        return "by uuid"

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:
        if address != self.address:
            raise self.NVMLError("Not Found")
        return "by address"

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return self.name

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        return self._given(self.clocks[kind])

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:
        return self._given(self.max_clocks[kind])

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return self._given(self.power_mw)

    def nvmlDeviceGetFieldValues(self, handle: Any, fieldIds: list[int]) -> list[Any]:
        """Only the instant power. NVML refuses a field in the field's own return code, and raises nothing."""
        assert fieldIds == [self.NVML_FI_DEV_POWER_INSTANT]
        refused = self.instant_mw is None
        code = self.NVML_ERROR_NOT_SUPPORTED if refused else self.NVML_SUCCESS
        return [SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=0 if refused else self.instant_mw))]

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return self._given(self.celsius)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return self._given(self.energy_mj)

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: int, counter: int) -> int:
        return self._given(self.ecc_counts[kind])

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        """The second version is what `nvidia-smi` prints. In the first one, `used` is all that is not free."""
        memory = SimpleNamespace(**self.memory)
        if version == self.nvmlMemory_v2:
            return memory
        return SimpleNamespace(total=memory.total, used=memory.total - memory.free, free=memory.free)

    def nvmlDeviceGetMemoryBusWidth(self, handle: Any) -> int:
        return self.bus_bits

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        return [self._given(self.mig), self._given(self.mig)]

    def nvmlDeviceGetEccMode(self, handle: Any) -> list[int]:
        return [self._given(self.ecc), self._given(self.ecc)]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        return self._given(self.cap_mw)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: Any) -> int:
        return self._given(self.default_mw)

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: Any) -> int:
        return self._given(self.pcie[0])

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Any) -> int:
        return self._given(self.pcie[1])

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int:
        return self._given(self.pcie_max[0])

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> int:
        return self._given(self.pcie_max[1])

    def nvmlDeviceGetPcieReplayCounter(self, handle: Any) -> int:
        return self._given(self.pcie_replays)

    def nvmlDeviceGetNvLinkState(self, device: Any, link: int) -> int:
        return self._of_link(self.nvlinks, link)

    def nvmlDeviceGetNvLinkErrorCounter(self, device: Any, link: int, counter: int) -> int:
        """All errors are replays."""
        return self._of_link(self.nvlink_errors, link) if counter == self.NVML_NVLINK_ERROR_DL_REPLAY else 0

    def _of_link(self, values: list[int], link: int) -> int:
        if link >= len(values):
            raise self.NVMLError("Invalid Argument" if values else "Not Supported")
        return values[link]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=1 << 30) for pid in self.pids]


def fake_properties(**changes: Any) -> Any:
    """The shape of `torch.cuda.get_device_properties()`."""
    values = {
        "name": "NVIDIA H100 80GB HBM3",
        "major": 9,
        "minor": 0,
        "multi_processor_count": 132,
        "L2_cache_size": 50 << 20,
        "shared_memory_per_multiprocessor": 228 << 10,
        "total_memory": 79 << 30,
        "uuid": "4f6a",
        "pci_domain_id": 0,
        "pci_bus_id": 10,
        "pci_device_id": 0,
    }
    return SimpleNamespace(**{**values, **changes})
