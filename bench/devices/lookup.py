"""Which part is this? Found by key or by the driver's name; a part that is not in the table is derived."""

from __future__ import annotations

from bench.devices.nvidia import NVIDIA
from bench.devices.occupancy import CAPABILITIES
from bench.devices.other_vendors import OTHER_VENDORS
from bench.devices.spec import DeviceSpec, Quantity
from bench.errors import unknown

DEVICES: dict[str, DeviceSpec] = {spec.key: spec for spec in (*NVIDIA, *OTHER_VENDORS)}
"""Every part whose numbers are published, by key."""


def find(key: str) -> DeviceSpec:
    """The part with this key, in upper or lower case. Raises `BadRequest`, which names the nearest keys."""
    spec = DEVICES.get(key.lower())
    if spec is None:
        raise unknown("device", key, DEVICES)
    return spec


def identify(driver_name: str) -> DeviceSpec | None:
    """The part that the driver reports under exactly this name, or None if it is not in the table."""
    matches = (spec for spec in DEVICES.values() if driver_name in spec.driver_names)
    return next(matches, None)


def bytes_in_flight_needed(sm: int) -> int:
    """Bytes that each SM must have under way on the hungriest part of this compute capability; 0 where not known.

    Little's law with one latency for all parts of a capability: the need grows with the bandwidth per SM. 32 KiB for
    the H100 (3.35 TB/s, 132 SMs) are 46 KiB for the H200 (4.8 TB/s, 132 SMs).
    """
    known = CAPABILITIES.get(sm)
    if known is None or not known.part:
        return 0
    hungriest = max(
        (rate for spec in DEVICES.values() if spec.sm == sm and (rate := bandwidth_per_sm(spec))), default=0
    )
    reference = bandwidth_per_sm(DEVICES[known.part])
    return max(known.bytes_in_flight, round(known.bytes_in_flight * hungriest / reference))


def bandwidth_per_sm(spec: DeviceSpec) -> float:
    """B/s; 0 where the bandwidth or the number of SMs is not known."""
    return spec.memory_bandwidth.value / spec.sm_count if spec.memory_bandwidth and spec.sm_count else 0


def derive(
    *,
    name: str,
    sm: int,
    sm_count: int,
    sm_clock_hz: float,
    memory_bus_bits: int = 0,
    memory_clock_hz: float = 0,
    memory_bytes: int = 0,
    l2_bytes: int = 0,
    smem_per_sm: int = 0,
    note: str = "not in the table: derived from the driver",
) -> DeviceSpec:
    """Describe a part that is not in the table by its driver's properties. Every number is `derived`.

    - bandwidth = bus bits / 8 x memory clock x 2 (double data rate)
    - fp32 peak = 2 x lanes per SM x SMs x SM clock
    - tensor peaks = FLOP per SM and clock x SMs x SM clock

    Clocks are the driver's maxima. Without a bus width there is no bandwidth. A pipe is left out where its
    rate does not follow from the compute capability.
    """

    def derived(value: float, unit: str, formula: str) -> Quantity:
        return Quantity(value=value, unit=unit, kind="derived", source=f"driver properties: {formula}")

    clock = f"{sm_count} SMs x {sm_clock_hz / 1e6:.0f} MHz"
    rates: dict[str, int] = {}
    if known := CAPABILITIES.get(sm):
        rates = {**known.mma_flop, "fma_fp32": 2 * known.fp32_lanes}
    return DeviceSpec(
        key=name.lower().replace(" ", "-"),
        name=name,
        vendor="NVIDIA",
        year=0,
        memory_bandwidth=derived(
            memory_bus_bits / 8 * memory_clock_hz * 2,
            "B/s",
            f"{memory_bus_bits} bits / 8 x {memory_clock_hz / 1e6:.0f} MHz x 2",
        )
        if memory_bus_bits
        else None,
        memory_capacity=derived(memory_bytes, "B", "total memory") if memory_bytes else None,
        peaks={
            pipe: derived(rate * sm_count * sm_clock_hz, "FLOP/s", f"{rate} FLOP per SM and clock x {clock}")
            for pipe, rate in rates.items()
        },
        on_chip=derived(l2_bytes, "B", "L2 size") if l2_bytes else None,
        sm=sm,
        sm_count=sm_count,
        smem_per_sm=smem_per_sm,
        driver_names=(name,),
        note=note,
    )
