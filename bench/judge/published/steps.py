"""Whole decode steps that others published, outside of servers, beside the floor and the expected time of ours.

They are programs that decode for one user: gpt-fast, calm, yalm, and the megakernels, which run a step as one kernel.
What is expected of ours is what its large kernels take alone, one after the other, as in one graph: no scheduler, and
small kernels that the starts of the large ones pay for (`bench/predict/step_expected.py`).
"""

from __future__ import annotations

import re
from typing import Any

from bench.devices import DEVICES, find
from bench.errors import BadRequest
from bench.judge.published.facts import facts, settings
from bench.predict.step_expected import kernel_seconds
from bench.predict.step_model import step
from bench.predict.weights import recipe
from kernels.models import MODELS

PROGRAMS = ("calm", "gpt-fast", "yalm", "HazyResearch megakernel", "MPK megakernel", "MPK without megakernel")
WEIGHTS = {"bf16": "bf16", "fp16": "bf16", "fp8": "w8a16", "int8-weight-only": "w8a16", "int4": "int4"}
"""By the word of a figure. calm multiplies fp8 in 16 bits. Types without one here (gf4) are left out: no floor of ours
is theirs."""
CACHE = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8"}

Row = dict[str, Any]


def model_of(name: str) -> str | None:
    """`Llama2 7B` -> `llama-2-7b`, if the table of models has it."""
    words = re.sub(r"^llama(?=\d)", "llama-", name.lower()).replace(" ", "-")
    return next((key for key in MODELS if words == key or words.startswith(f"{key}-")), None)


def rows() -> list[Row]:
    """One row for each figure whose model, part and precisions are known here, in the order of the file. Seconds."""
    found = []
    for fact in facts("token"):
        said, shape = settings(fact), MODELS.get(model_of(fact["model_or_op"]) or "")
        weights, kv = WEIGHTS.get(said.get("weights", "")), CACHE.get(said.get("kv", ""))
        context = said.get("context") or said.get("context_avg")
        if (
            fact["software"] not in PROGRAMS
            or not (shape and weights and kv and context)
            or fact["device"] not in DEVICES
        ):
            continue
        spec, devices = find(fact["device"]), int(said.get("tp", 1))
        try:
            predicted = step(
                shape,
                device=spec,
                weights=recipe(shape, weights),
                kv=kv,
                batch=int(said["batch"]),
                context=int(context),
                devices=devices,
                crossings=False,
            )
        except BadRequest:
            continue
        seconds = theirs(fact, predicted.seconds)
        if seconds is not None:
            expected = max(predicted.seconds, kernel_seconds(predicted, shape, spec)[0])
            found.append(
                {
                    "id": fact["id"],
                    "software": fact["software"],
                    "model": shape.name,
                    "part": spec.key,
                    "devices": devices,
                    "weights": said["weights"],
                    "context": int(context),
                    "batch": int(said["batch"]),
                    "seconds": seconds,
                    "floor": predicted.seconds,
                    "expected": expected,
                    "source": fact["source"],
                    "caveat": fact["caveat"],
                }
            )
    return found


def theirs(fact: Row, floor: float) -> float | None:
    """Seconds of a token by a rate, a time, or a share of the bandwidth, which the floor turns into a time."""
    value = fact["value"]
    known = {"tok_s_per_user": 1 / value, "ms_per_token": value / 1e3, "fraction_of_bandwidth": floor / value}
    return known.get(fact["metric"])


def table(found: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells for the screen."""
    headers = ["program", "model", "weights", "part", "context", "theirs ms", "floor ms", "ours expected ms"]
    headers += ["theirs over floor", "over ours"]
    lines = []
    for row in found:
        part = row["part"] if row["devices"] == 1 else f"{row['devices']} x {row['part']}"
        times = [f"{row[name] * 1e3:.3g}" for name in ("seconds", "floor", "expected")]
        ratios = [f"{row['seconds'] / row[name]:.2f}" for name in ("floor", "expected")]
        lines.append([row["software"], row["model"], row["weights"], part, f"{row['context']:,}", *times, *ratios])
    return headers, lines
