"""How a case is measured, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bench.ceilings import Ceilings
from bench.devices import DeviceSpec
from bench.measure.roof import ReadRoof
from bench.measure.telemetry import Sampler
from bench.records import Record

THROTTLE_RETRIES = 2
"""A case in which the GPU throttled is measured again at once, at most so many times."""


class Listener(Protocol):
    """Hears what a measurement reports."""

    def entering(self, impl: str, phase: str) -> None: ...
    def prediction(self, line: dict[str, Any]) -> None: ...
    def record(self, record: Record) -> None: ...
    def note(self, line: dict[str, Any]) -> None: ...


def unwatched() -> Sampler:
    return Sampler(None)


def no_roof() -> ReadRoof | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a case is measured."""

    cap_s: float = 1.0
    """Sampling seconds per implementation."""
    seed: int = 0
    repeat: int = 0
    memory_bytes: int = 8 << 30
    """Free memory, of which rotating copies take a part."""
    run_id: str = ""
    aa: bool = False
    """Time the first implementation twice: the difference is the resolution of the run."""
    retries: int = THROTTLE_RETRIES
    spec: DeviceSpec | None = None
    ceilings: Ceilings | None = None
    timed: bool = True
    """False: only the gate. What passes it gets a record without times."""
    telemetry: Callable[[], Sampler] = unwatched
    """Watches while a case is sampled: all its implementations in turn, and the spin kernels between them."""
    roof: Callable[[], ReadRoof | None] = no_roof
    """On a host, the read that is timed between the samples."""
