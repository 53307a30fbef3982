"""What is known of one part, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.errors import BadRequest
from kernels.op import Target


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
    host_bandwidth: Quantity | None = None
    """To the host's memory, B/s in one direction, as published: before the link's own headers."""
    power: Quantity | None = None
    """Rated board or package power, in W: the most it may draw for long."""
    sm: int = 0
    """Compute capability times ten, 0 for parts without one."""
    sm_count: int = 0
    smem_per_sm: int = 0
    driver_names: tuple[str, ...] = ()
    note: str = ""
    """What a reader must know before comparing, e.g. that the part is announced and not yet sold."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What a prediction in 16 bits wants and the vendor does not publish."""
        names = ("memory_bandwidth", "memory_capacity", "power")
        absent = [name for name in names if getattr(self, name) is None]
        return (*absent, *(() if "mma_bf16" in self.peaks else ("mma_bf16",)))

    def ridge(self, pipe: str) -> Quantity | None:
        """Intensity in FLOP/B at which `pipe` and the memory take equally long: peak / bandwidth.

        None where either is not published.
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
        """What a `plan` may look at, for code generation without the part. Raises `BadRequest` where it cannot be."""
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
