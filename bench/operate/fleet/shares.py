"""The shares of one machine: its GPUs, or on a machine without one, equal parts of its cores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import machine
from bench.devices.driver import pynvml_module
from bench.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process measures."""

    name: str
    """The folder's name: `gpu3`, `cores0-1`."""
    slot: str
    """Where it sits: the PCI address of a GPU, or the numbers of the cores."""
    serial: str = ""
    """The board's serial number, which a support ticket needs. Empty where the driver does not tell."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that show the process its share alone."""
    cores: tuple[int, ...] = ()
    """The only cores that the process may use; empty for all."""

    @property
    def device(self) -> str:
        return "cpu" if self.cores else "cuda"


def find(device: str, cpu_shares: int = 1) -> list[Share]:
    """The shares of this machine. `auto` takes its GPUs if it has any, else its cores.

    BadRequest where `cuda` finds no GPU, and where there are fewer cores than shares.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise BadRequest(f"device {device!r} is unknown: choose auto, cuda or cpu")
    found = [] if device == "cpu" else gpus()
    if not found and device == "cuda":
        raise BadRequest("no GPU: NVML finds none that this process may use")
    return found or parts_of(sorted(machine.affinity()), cpu_shares)


def gpus(nvml: Any = None, environ: Mapping[str, str] | None = None) -> list[Share]:
    """A share for each GPU that NVML knows and that `CUDA_VISIBLE_DEVICES` does not hide. Empty without a driver.

    A process gets its GPU by UUID, because CUDA may number GPUs in another order than NVML.
    """
    nvml = nvml or pynvml_module()
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    asked = None if visible is None else [each.strip() for each in visible.split(",") if each.strip()]
    found = []
    for index, handle in enumerate(handles):
        uuid = text(nvml.nvmlDeviceGetUUID(handle))
        if asked is None or str(index) in asked or any(uuid.startswith(each) for each in asked if "-" in each):
            found.append(
                Share(
                    name=f"gpu{index}",
                    slot=text(nvml.nvmlDeviceGetPciInfo(handle).busId),
                    serial=serial_of(nvml, handle),
                    variables={"CUDA_VISIBLE_DEVICES": uuid},
                )
            )
    return found


def serial_of(nvml: Any, handle: Any) -> str:
    try:
        return text(nvml.nvmlDeviceGetSerial(handle))
    except nvml.NVMLError:
        return ""


def text(value: str | bytes) -> str:
    """Older versions of nvidia-ml-py give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def parts_of(cores: list[int], count: int) -> list[Share]:
    """`count` shares with as many cores each; cores that do not divide are left idle."""
    if not 1 <= count <= len(cores):
        raise BadRequest(f"--cpu-shares {count}: this machine has {len(cores)} usable cores")
    size = len(cores) // count
    found = []
    for i in range(count):
        mine = cores[i * size : (i + 1) * size]
        where = str(mine[0]) if size == 1 else f"{mine[0]}-{mine[-1]}"
        threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(size))
        found.append(
            Share(name=f"cores{where}", slot=f"cores {where}", variables=threads, cores=tuple(mine)),
        )
    return found
