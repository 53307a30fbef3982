"""The parts that predictions know: every number with its unit, its kind and its public source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number that says what it is: SI units (B, B/s, FLOP/s, W, s), and where it comes from."""

    value: float
    unit: str
    kind: Literal["datasheet", "measured", "derived"]
    source: str


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One part. A field is None, or a pipe absent, where its vendor publishes nothing.

    `peaks` are dense (no sparsity) FLOP/s by pipe, named as in `kernels.op.Work`.
    `driver_names` are the exact names under which NVML reports the part.
    """

    key: str
    name: str
    vendor: str
    year: int
    memory: str = ""
    memory_bandwidth: Quantity | None = None
    memory_capacity: Quantity | None = None
    peaks: Mapping[str, Quantity] = field(default_factory=dict)
    on_chip: Quantity | None = None
    """L2 or on-chip SRAM, in B."""
    on_chip_bandwidth: Quantity | None = None
    link_bandwidth: Quantity | None = None
    """To other parts, B/s in one direction."""
    power: Quantity | None = None
    sm: int = 0
    sm_count: int = 0
    smem_per_sm: int = 0
    driver_names: tuple[str, ...] = ()
