"""One operation of a step, before any device is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kernels.op import Work

ACTIVATION_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class StepOp:
    """One operation of a step, all layers together, on one of the devices that share it."""

    name: str
    measured_as: str = ""
    """The operation of `kernels/` that measures this one; empty for none."""
    joint: bool = False
    """Whether one record measures all operations with this `measured_as` together, as `moe_ffn` does for experts."""
    stored: Literal["", "weights", "kv"] = ""
    """What it reads or writes in the step's precision: weights or KV cache. A case has the type in a field so named."""
    work: Work = field(default_factory=Work)
    weight_bytes: int = 0
    """Part of `work.bytes_read`, scales included."""
    weight_bits: float = 0.0
    """Bits of a stored weight, without scales; of most weights where they differ."""
    kv_bytes: int = 0
    """Part of `work.bytes_read`."""
    link_bytes: int = 0
    """Sent by each device, in one direction."""
    switched_bytes: int = 0
    """The same where a switch adds up what the devices send. 0 where a switch cannot help."""
    calls: int
    """How often a step runs it, over all layers."""
