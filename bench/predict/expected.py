"""What a kernel is expected to take: the floor's terms at the shares that real kernels reach, and what no floor has.

    seconds = start + combine [units < SMs, steps > 1] + lone steps min(1, SMs / units)
              + sqrt(memory^2 + issue^2 + math^2)

    memory = bytes / (read x bandwidth)
    issue  = units (unit + steps step) / SMs
    math   = FLOPs / (math x peak)

A unit is what one CTA does without the others: a (sequence, KV head) of attention, a stripe of columns of a product. A
step is one tile of it. `start` is the launch with the dependent loads before the stream and after it, and the kernel
that quantizes activations where there is one. `combine` adds up the parts of sequences that were split. `lone` is what
a step costs where too few units hide its latency. `step` is SM time, with the conversion of 8-bit and 4-bit numbers.

The constants belong to an operation, a stored type and a generation of parts. They are fitted on declared rows of
published measurements (`bench/judge/published/fit.py`) and stored in `expected.json` with what they rest on, and with
the errors that they have on all other rows. Arrays in, arrays out; no torch, no pandas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.devices import DeviceSpec
from bench.errors import BadRequest

Array = np.ndarray[Any, np.dtype[Any]]
FILE = Path(__file__).with_name("expected.json")

GENERATIONS = {80: "ampere", 89: "ada", 90: "hopper", 100: "blackwell", 103: "blackwell"}
"""By compute capability times ten. Another part takes the constants of `DEFAULT`, and the prediction says so."""
DEFAULT = "hopper"
FITTED_ON = {"ampere": "a100-80", "ada": "l40s", "hopper": "h100-sxm", "blackwell": "b200"}
"""The part of each generation whose rows the constants are fitted on."""

SIZES = (16e6, 64e6, 256e6)
"""Bytes that part the size classes in which errors are stored."""
ROWS = 64
"""Query rows, or rows of x, that one step serves."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Seconds, and shares of the datasheet's numbers."""

    start: float
    combine: float = 0.0
    lone: float = 0.0
    unit: float = 0.0
    step: float = 0.0
    read: float
    math: float = 0.7
    kept: float = 0.4
    """If a buffer is read again and again, the share exp(-bytes / (kept x size of the L2)) still comes from the L2."""
    l2: float = 2.5
    """Bandwidth of the L2 over that of the memory."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Launches as arrays of one length: what is moved and computed, and how it is cut into units."""

    bytes: Array
    flops: Array
    units: Array
    steps: Array

    def __len__(self) -> int:
        return len(self.bytes)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The datasheet's numbers of a part, or of each row's part."""

    bandwidth: Any
    peak: Any
    sms: Any
    l2: Any

    @classmethod
    def of(cls, spec: DeviceSpec, pipe: str = "mma_bf16") -> Part:
        """Raises `BadRequest` for a part without a bandwidth. SMs or an L2 that are not known are its generation's."""
        if spec.memory_bandwidth is None:
            raise BadRequest(f"no memory bandwidth of {spec.name} is published")
        peak = spec.peaks.get(pipe) or spec.peaks.get("mma_bf16")
        usual = {"ampere": (108, 40), "ada": (142, 72), "hopper": (132, 50), "blackwell": (148, 126)}[generation(spec)]
        return cls(
            bandwidth=spec.memory_bandwidth.value,
            peak=peak.value if peak else np.inf,
            sms=spec.sm_count or usual[0],
            l2=spec.on_chip.value if spec.on_chip else usual[1] * 2.0**20,
        )


def generation(spec: DeviceSpec) -> str:
    """Whose constants a part takes."""
    return GENERATIONS.get(spec.sm, DEFAULT)


def terms(kernels: Kernels, constants: Constants, part: Part, *, warm: bool) -> dict[str, Array]:
    """Seconds by term: `start`, `memory`, `issue`, `math`. `warm`: one buffer is read again and again.

    Memory, issue and math overlap; `start` does not.
    """
    rate = part.bandwidth * constants.read
    kept = np.exp(-kernels.bytes / (constants.kept * part.l2)) if warm else np.zeros(len(kernels))
    memory = kernels.bytes * ((1 - kept) / rate + kept / (constants.l2 * part.bandwidth))
    few = kernels.units < part.sms
    start = constants.start + np.where(few & (kernels.steps > 1), constants.combine, 0.0)
    return {
        "start": start + constants.lone * kernels.steps * np.minimum(1.0, part.sms / kernels.units),
        "memory": memory,
        "issue": kernels.units * (constants.unit + kernels.steps * constants.step) / part.sms,
        "math": kernels.flops / (constants.math * part.peak),
    }


def total(found: Mapping[str, Array]) -> Array:
    """The seconds of these terms together."""
    return found["start"] + np.sqrt(found["memory"] ** 2 + found["issue"] ** 2 + found["math"] ** 2)


def attention(*, size: Array, flops: Array, B: Array, H_q: Array, H_kv: Array, D: Array, T: Array) -> Kernels:
    """Units are (sequence, KV head); a step is 128 tokens of 128 elements for up to `ROWS` query rows."""
    steps = np.ceil(T / 128) * np.maximum(D / 128, 0.5) * np.ceil(H_q / H_kv / ROWS)
    return Kernels(bytes=size, flops=flops, units=B * H_kv, steps=steps)


def latent_attention(*, size: Array, flops: Array, B: Array, H: Array, T: Array) -> Kernels:
    """Units are sequences, times the stripes of `ROWS` heads; a step is 64 tokens."""
    return Kernels(bytes=size, flops=flops, units=B * np.ceil(H / ROWS), steps=np.ceil(T / 64))


def product(*, size: Array, flops: Array, N: Array, K: Array) -> Kernels:
    """Units are stripes of 64 columns; a step is 64 elements of each."""
    return Kernels(bytes=size, flops=flops, units=np.ceil(N / 64), steps=np.ceil(K / 64))


def experts(*, size: Array, flops: Array, hit: Array, H: Array, F: Array) -> Kernels:
    """Units are stripes of 64 columns of gate and up, for each expert that is hit; a step is 64 elements of each."""
    return Kernels(bytes=size, flops=flops, units=np.maximum(1.0, hit * np.ceil(2 * F / 64)), steps=np.ceil(H / 64))


def states(*, size: Array, flops: Array, B: Array, H: Array) -> Kernels:
    """Units are (sequence, head): each reads its state, changes it and writes it."""
    return Kernels(bytes=size, flops=flops, units=B * H, steps=np.ones_like(size))


@dataclass(frozen=True, kw_only=True)
class Found:
    """An entry of `expected.json`: constants, what they rest on, and how wrong they are elsewhere."""

    constants: Constants
    rests_on: str
    rows: int
    spread: Mapping[str, tuple[float, float, float]]
    """By size class: 10th percentile, median and 90th of measured over expected, on rows that were not fitted."""


@cache
def _stored() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{FILE} holds no constants: {error}") from None
    return found


def entries() -> list[tuple[str, str, str]]:
    """Operation, stored type and generation of all constants."""
    return [(op, stored, gen) for key in _stored()["constants"] for op, stored, gen in [key.split()]]


def find(op: str, stored: str, gen: str, among: Mapping[str, Any] | None = None) -> Found | None:
    """The constants of an operation; of 16 bits where its stored type has none; of `DEFAULT` where a generation has
    none. None for an operation that nobody fitted. `among` holds other constants than the stored ones."""
    known_entries = _stored()["constants"] if among is None else among
    for key in (f"{op} {s} {g}" for s in (stored, "bf16", "fp32") for g in (gen, DEFAULT)):
        if said := known_entries.get(key):
            known = {f.name for f in fields(Constants)}
            return Found(
                constants=Constants(**{name: value for name, value in said.items() if name in known}),
                rests_on=said["rests_on"],
                rows=said["rows"],
                spread={name: tuple(values) for name, values in said["spread"].items()},
            )
    return None


def size_class(size: float) -> str:
    """The name of the size class in `Found.spread`."""
    return CLASSES[int(np.searchsorted(SIZES, size, side="right"))]


CLASSES = ("below 16 MB", "16 to 64 MB", "64 to 256 MB", "256 MB and more")


def all_reduces() -> dict[str, Any]:
    """The constants of all-reduces by `library generation` (`bench/predict/collectives.py`)."""
    found: dict[str, Any] = _stored().get("all_reduces", {})
    return found


def all_to_alls() -> dict[str, Any]:
    """The constants of all-to-alls by `library generation`."""
    found: dict[str, Any] = _stored().get("all_to_alls", {})
    return found


def exchanges(direction: str) -> dict[str, Any]:
    """The constants of experts' dispatches or combines by `library generation`."""
    found: dict[str, Any] = _stored().get("exchanges", {}).get(direction, {})
    return found


def servers() -> dict[str, Any]:
    """The constants of whole servers, and the errors with one software left out at a time."""
    found: dict[str, Any] = _stored()["servers"]
    return found
