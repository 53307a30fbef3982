"""Expected times in the rows, the table and the remarks of `decodebench predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.devices import DeviceSpec
from bench.predict.step_model import StepPrediction
from bench.units import percent
from kernels.models import ModelShape

COLLECTIVES = {
    "expected_all_reduce_seconds": "all-reduces on {name}: {share} of the expected step",
    "expected_exchange_seconds": "were experts whole on {name}: dispatch and combine {share} of the expected step",
}
"""What is said of the collectives of a row, by its key."""

KEYS = ("expected_seconds", "expected_low", "expected_high", *COLLECTIVES, "expected_rests_on")
"""What a row has besides the floor: seconds, the range of 10 to 90% of published servers, what of it all-reduces take,
what dispatch and combine would take if each part had whole experts, and what they rest on."""

RESTS = (
    "expected: what a server takes, with its range of 10 to 90%; MBU and MFU are those of this time, rates, J and $ "
    "those of the floor. It rests on"
)


def as_reported(spec: DeviceSpec) -> DeviceSpec:
    """The part with the memory that its driver reports, where that is known: so much can be filled."""
    return replace(spec, memory_capacity=spec.driver_capacity or spec.memory_capacity)


def values(predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec, by_datasheet: bool) -> dict[str, Any]:
    """The values of `KEYS`; None for a prediction from a run, which has measured shares, and for lower bounds."""
    if not by_datasheet or any(op.missing for op in predicted.ops):
        return dict.fromkeys(KEYS)
    # numpy, which the floor does not need
    from bench.predict.collectives import whole_experts
    from bench.predict.step_expected import expect_step

    found = expect_step(predicted, shape, spec)
    ways = whole_experts(shape, spec, predicted.batch * predicted.q_len, predicted.devices)
    exchanged = shape.moe_layers * sum(ways) if ways else None
    said = (found.seconds, found.low, found.high, found.reduce_seconds, exchanged, list(found.rests_on))
    return dict(zip(KEYS, said, strict=True))


def cells(row: Mapping[str, Any], number: Callable[..., str]) -> dict[str, str]:
    """Floor, expected time and range of a row in milliseconds; nothing for a row without these keys."""
    if "expected_seconds" not in row:
        return {}
    low, high = (number(row[name], 1e3) for name in ("expected_low", "expected_high"))
    return {
        "floor ms/token": number(row["seconds"], 1e3),
        "expected": number(row["expected_seconds"], 1e3),
        "10-90%": f"{low} to {high}" if low else "",
    }


def remarks(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What expected times rest on, said once for all parts; nothing where there are none."""
    said = [text for row in predictions for text in row.get("expected_rests_on") or ()]
    return [RESTS, *(f"  {text}" for text in dict.fromkeys(said)), *communication(predictions)] if said else []


def communication(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which share of the expected steps collectives take, on several parts: from the smallest to the largest."""
    lines = []
    for key, line in COLLECTIVES.items():
        shares: dict[str, list[float]] = {}
        for row in predictions:
            if row.get(key):
                share = row[key] / row["expected_seconds"]
                shares.setdefault(f"{row['devices']} x {row['device']}", []).append(share)
        for name, each in shares.items():
            range_ = f" to {percent(max(each))}" if len(each) > 1 else ""
            lines.append(line.format(name=name, share=percent(min(each)) + range_))
    return lines
