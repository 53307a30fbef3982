"""How a vendor's numbers become a `DeviceSpec`: each with the document that it was read in, nothing guessed.

- Capacities, bandwidths and powers are as published: decimal units unless the document says GiB. Caches printed in MB
  are MiB where the driver says so.
- Peaks are dense, in TFLOP/s in the lists of parts and in FLOP/s in the `DeviceSpec`. Where a document prints only a
  sparse figure, the dense one is half of it, and the source says so.
- A figure for a whole server is divided by its parts.
- `link` and `host` count one direction: half of a bidirectional figure.
- `others` names the document of a field that the main document leaves out. Where we read a document in someone's copy
  or quotation, the source names the copy.

The documents give the number of SMs too, except for the B200: NVIDIA does not publish it. Some fields are left empty:
Trainium's links, because AWS does not say whether it counts both directions; the B300's host link, because it goes
through a network card's PCIe switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.devices.occupancy import CAPABILITIES
from bench.devices.spec import DeviceSpec, Quantity

MB, GB, TB, PB = 1e6, 1e9, 1e12, 1e15
MIB, GIB = 2.0**20, 2.0**30

UNITS = {
    "bandwidth": ("memory_bandwidth", "B/s"),
    "capacity": ("memory_capacity", "B"),
    "on_chip": ("on_chip", "B"),
    "on_chip_bandwidth": ("on_chip_bandwidth", "B/s"),
    "link": ("link_bandwidth", "B/s"),
    "host": ("host_bandwidth", "B/s"),
    "power": ("power", "W"),
}


def tflops(**rates: float) -> dict[str, float]:
    """Peaks by pipe from peaks by element type: `bf16=312, fp32=19.5`. All but fp32 are of the tensor cores."""
    return {"fma_fp32" if kind == "fp32" else f"mma_{kind}": rate for kind, rate in rates.items()}


def part(
    key: str,
    name: str,
    year: int,
    source: str,
    *,
    memory: tuple[str, float | None, float],
    peaks: Mapping[str, float] | None = None,
    others: Mapping[str, str] | None = None,
    driver: str = "",
    driver_mib: tuple[int, str] | None = None,
    **fields: Any,
) -> DeviceSpec:
    """One part. Its name begins with the vendor; `memory` is kind, bandwidth, capacity; `peaks` are TFLOP/s by pipe.

    Each field of `UNITS` becomes a `Quantity` whose source is `source`, or `others[field]` where there is one.
    `driver_mib` is what the driver reports, with its source.
    """
    if driver_mib:
        reported, where = driver_mib
        fields["driver_capacity"] = Quantity(value=reported * MIB, unit="B", kind="measured", source=where)
    documents = others or {}
    kind, fields["bandwidth"], fields["capacity"] = memory
    given = {name: value for name in UNITS if (value := fields.pop(name, None)) is not None}
    quantities: dict[str, Any] = {
        UNITS[name][0]: Quantity(value=value, unit=UNITS[name][1], kind="datasheet", source=documents.get(name, source))
        for name, value in given.items()
    }
    rates = {
        pipe: Quantity(value=rate * 1e12, unit="FLOP/s", kind="datasheet", source=documents.get(pipe, source))
        for pipe, rate in (peaks or {}).items()
    }
    if "sm" in fields:
        fields["smem_per_sm"] = CAPABILITIES[fields["sm"]].smem_per_sm
    return DeviceSpec(
        key=key,
        name=name,
        vendor=name.split()[0],
        year=year,
        memory=kind,
        peaks=rates,
        driver_names=(driver,) if driver else (),
        **quantities,
        **fields,
    )


PCIE_GEN4, PCIE_GEN5 = 32 * GB, 64 * GB
"""One direction of 16 lanes, half of the 64 and 128 GB/s in the datasheets."""

BOOK = "{}; text in github.com/bojieli/ai-infra-book, references/text/{}.txt".format
STAS = "quoted in github.com/stas00/ml-engineering, compute/accelerator"
