"""A stand-in of the module `pynvml`: the same names, arguments, units and errors, for one H100 80GB HBM3."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """Values are attributes that a test changes; `refuse` maps a function's name to the error it raises."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 0

    def __init__(self, **values: Any) -> None:
        self.refuse: dict[str, str] = {}
        self.clocks = {1: 1755, 2: 2619}
        self.max_clocks = {1: 1980, 2: 2619}
        self.power_mw, self.energy_mj, self.celsius, self.reasons = 412_500, 1_000_000, 54, 0x1
        self.ecc_counts = {0: 3, 1: 0}
        self.name, self.driver, self.cuda = "NVIDIA H100 80GB HBM3", "580.159.04", 13000
        self.mig, self.ecc, self.cap_mw, self.default_mw = 0, 1, 700_000, 700_000
        self.pcie, self.pcie_max = (5, 16), (5, 16)
        self.pids: list[int] = []
        self.uuid, self.address, self.count = "GPU-4f6a", "00000000:0A:00.0", 1
        for name, value in values.items():
            setattr(self, name, value)

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

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

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
        return self.clocks[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:
        return self.max_clocks[kind]

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return self.power_mw

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return self.celsius

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return self.energy_mj

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: int, counter: int) -> int:
        return self.ecc_counts[kind]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(total=81559 << 20, used=600 << 20, free=80959 << 20)

    def nvmlDeviceGetMemoryBusWidth(self, handle: Any) -> int:
        return 5120

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        return [self.mig, self.mig]

    def nvmlDeviceGetEccMode(self, handle: Any) -> list[int]:
        return [self.ecc, self.ecc]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        return self.cap_mw

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: Any) -> int:
        return self.default_mw

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: Any) -> int:
        return self.pcie[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Any) -> int:
        return self.pcie[1]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int:
        return self.pcie_max[0]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> int:
        return self.pcie_max[1]

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
