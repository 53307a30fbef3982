"""The numbers of one part, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.errors import BadRequest
from kernels.op import Target


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with its unit (SI: B, B/s, FLOP/s, W, s) and its source."""

    value: float
    unit: str
    kind: Literal["datasheet", "measured", "derived"]
    source: str


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One part. Where its vendor publishes nothing, a field is None and a pipe is absent.

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
    driver_capacity: Quantity | None = None
    """All memory as the driver reports it, in B: often more than the datasheet's round number."""
    on_chip: Quantity | None = None
    """L2 or on-chip SRAM, in B."""
    on_chip_bandwidth: Quantity | None = None
    link_bandwidth: Quantity | None = None
    """Bandwidth to other parts, B/s in one direction."""
    reduces_in_switch: bool = False
    """Whether the switch of its link adds up an all-reduce (NVLink SHARP), so that each part sends its numbers once."""
    host_bandwidth: Quantity | None = None
    """Bandwidth to the host's memory, B/s in one direction, as published: the link's own headers are not taken off."""
    power: Quantity | None = None
    """Rated power of the board or package in W: the most that it may draw for long."""
    sm: int = 0
    """Compute capability times ten; 0 for parts without one, and where it is not known."""
    sm_count: int = 0
    smem_per_sm: int = 0
    driver_names: tuple[str, ...] = ()
    note: str = ""
    """What a reader must know before a comparison, e.g. that the part is announced and not yet sold."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The fields that a prediction in 16 bits needs and that the vendor does not publish."""
        names = ("memory_bandwidth", "memory_capacity", "power")
        absent = [name for name in names if getattr(self, name) is None]
        return (*absent, *(() if "mma_bf16" in self.peaks else ("mma_bf16",)))

    def ridge(self, pipe: str) -> Quantity | None:
        """The ridge point: the intensity in FLOP/B at which `pipe` and the memory take equally long.

        It is peak / bandwidth, and None where one of them is not published.
        """
        peak = self.peaks.get(pipe)
        if peak is None or self.memory_bandwidth is None:
            return None
        return Quantity(
            value=peak.value / self.memory_bandwidth.value,
            unit="FLOP/B",
            kind="derived",
            source=f"{pipe} peak over memory bandwidth ({peak.source}; {self.memory_bandwidth.source})",
        )

    def target(self) -> Target:
        """The `Target` for which kernels are planned without the part. Raises `BadRequest` if none can be planned."""
        if not self.sm:
            raise BadRequest(f"{self.name} is not a CUDA part: no kernel here is compiled for it")
        if not self.sm_count:
            raise BadRequest(f"the number of SMs of {self.name} is not known: no kernel can be planned for it")
        return Target(
            kind="cuda",
            name=self.name,
            sm=self.sm,
            sm_count=self.sm_count,
            l2_bytes=int(self.on_chip.value) if self.on_chip else 0,
            smem_per_sm=self.smem_per_sm,
        )
