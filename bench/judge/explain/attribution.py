"""Measured time per token beside its floor: its parts, where the rest most likely goes, what would help.

The floor's parts are arithmetic. The parts of the rest are those of `predict`'s expected step; they are scaled down
together where they add up to more than the rest, and what they leave is said to be left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.devices import DeviceSpec, find, identify
from bench.errors import BadRequest
from bench.judge.explain.formats import Given, Result, read
from bench.predict import expected
from bench.predict.command import check_split, load_shape
from bench.predict.step_expected import ExpectedStep, expect_step
from bench.predict.step_model import StepPrediction, step
from bench.units import brief, duration, percent
from kernels.models import MODELS, ModelShape

HELP = {
    "weights": "fewer bits per weight, more devices, or a larger batch that shares the read",
    "KV cache": "an 8-bit cache, a model with fewer KV heads or a latent, shorter contexts",
    "compute": "fewer bits per activation and weight; a larger batch does not help any more",
    "link": "fewer devices, or a faster link",
    "kernels below the roof": "faster kernels: at most this much is to be had from them",
    "latency of small kernels": "CUDA graphs, fused norms, RoPE and quantization, one kernel for several layers; a "
    "larger batch shares it",
    "all-reduce latency": "fewer devices, a one-shot or fused all-reduce, NVLink instead of PCIe",
    "prefill between steps": "smaller chunks of prefill, prefill on other devices, a prefix cache, fewer requests",
    "not explained": "look at the host (scheduler, sampling, detokenizing), clocks, other load, eager mode; measure "
    "the kernels with `decodebench run`",
}
"""What would help, by the part that it would shorten."""


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    seconds: float
    why: str

    @property
    def helps(self) -> str:
        return HELP[self.name]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One run of a benchmark, explained. Seconds per step; a step gives `result.tokens_per_step` tokens a sequence."""

    result: Result
    prediction: StepPrediction
    measured_s: float
    floor_s: float
    expected_s: float | None
    """None where a roof that the step needs is not published."""
    range_s: tuple[float, float] | None
    """10 to 90% of published servers lie within."""
    floor_parts: tuple[Part, ...]
    rest: tuple[Part, ...]
    """Largest first."""
    remarks: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.floor_s / self.measured_s

    def as_dict(self) -> dict[str, Any]:
        def parts(listed: Sequence[Part]) -> list[dict[str, Any]]:
            return [{"part": p.name, "seconds": p.seconds, "why": p.why, "helps": p.helps} for p in listed]

        asked = self.prediction
        return {
            "format": self.result.format,
            "model": asked.model,
            "part": asked.device,
            "devices": asked.devices,
            "weights": asked.weights,
            "kv": asked.kv,
            "batch": self.result.batch,
            "context": asked.context,
            "measured_tpot_seconds": self.measured_s / self.result.tokens_per_step,
            "tokens_per_step": self.result.tokens_per_step,
            "floor_seconds": self.floor_s,
            "expected_seconds": self.expected_s,
            "expected_range_seconds": self.range_s,
            "share_of_floor": self.share,
            "floor": parts(self.floor_parts),
            "rest": parts(self.rest),
            "remarks": list(self.remarks),
        }

    @property
    def _expected(self) -> str:
        if self.expected_s is None or self.range_s is None:
            return ", no expected time"
        low, high = map(duration, self.range_s)
        return f", expected {duration(self.expected_s)} ({low} to {high} for 10 to 90% of published servers)"

    def lines(self) -> list[str]:
        asked, measured = self.prediction, self.measured_s
        where = f"{asked.devices} x {asked.device}" if asked.devices > 1 else asked.device
        lines = [
            f"{self.result.format}: {asked.model} on {where}, weights {asked.weights}, KV {asked.kv}, batch "
            f"{brief(self.result.batch)}, {asked.context:,} tokens of context",
            f"measured {duration(measured)} a step, floor {duration(self.floor_s)}{self._expected}: "
            f"{percent(self.share)} of the floor's speed is reached",
        ]
        for title, listed in (("the floor", self.floor_parts), ("the rest, most likely", self.rest)):
            lines += [f"{title}:"] if listed else []
            lines += [f"  {duration(p.seconds)} ({percent(p.seconds / measured)}) {p.name}: {p.why}" for p in listed]
        helping = sorted((*self.floor_parts, *self.rest), key=lambda part: -part.seconds)[:3]
        lines += ["what would help most:", *(f"  {p.name}: {p.helps}" for p in helping)]
        return lines + [f"note: {remark}" for remark in self.remarks]


def explain(
    path: Path,
    *,
    model: str | None = None,
    config: Path | None = None,
    part: str | None = None,
    weights: str | None = None,
    kv: str | None = None,
    devices: int | None = None,
    given: Given | None = None,
) -> list[Explanation]:
    """Every decode run of a result file. The file says what is not given. Raises `BadRequest`."""
    asked = find(part) if part else None
    found = []
    for result in read(path, given or Given()):
        shape = load_shape(model, config) if model or config else shape_of(result.model)
        spec = asked or identify(result.gpu)
        if spec is None:
            raise BadRequest(f"{path} names no known part ({result.gpu or 'none'}): give it with --part")
        found.append(explained(result, shape, spec, weights=weights, kv=kv, devices=devices))
    return found


def shape_of(name: str) -> ModelShape:
    """The known model that a path or repository's name contains: `meta-llama/Llama-3.1-70B-Instruct`."""
    text = name.lower().replace("meta-", "").replace("_", "-")
    fitting = [key for key in MODELS if key in text]
    if not fitting:
        raise BadRequest(f"the file names no known model ({name or 'none'}): give it with --model or --config")
    return MODELS[max(fitting, key=len)]


def explained(
    result: Result,
    shape: ModelShape,
    spec: DeviceSpec,
    *,
    weights: str | None = None,
    kv: str | None = None,
    devices: int | None = None,
) -> Explanation:
    count = devices or result.devices
    check_split(shape, count)
    remarks = list(result.notes)
    named = identify(result.gpu)
    if result.gpu and (named is None or named.key != spec.key):
        remarks.append(f"the file names {result.gpu}, it is held against {spec.name}")
    if weights is None and not result.weights:
        remarks.append("the file does not say the weights' precision: bf16 is taken (--weights)")
    prediction = step(
        shape,
        crossings=False,
        device=spec,
        weights=weights or result.weights or "bf16",
        kv=kv or result.kv or "bf16",
        batch=max(1, round(result.batch)),
        context=result.context,
        devices=count,
    )
    prompt = max(1, round(result.input_tokens))
    prefill = prefill_floor(shape, spec, prediction, prompt)
    if not result.tpot_s:
        decode = result.request_s - (prefill or 0.0) * max(1, round(result.batch))
        if decode <= 0:
            raise BadRequest(
                f"a request of {duration(result.request_s)} is shorter than the floor of its prefill: model, part, "
                "batch or lengths are wrong"
            )
        result = replace(result, tpot_s=decode / (result.output_tokens - 1 if result.output_tokens > 1 else 1))
        remarks.append("TPOT is a whole request less its prefill's floor, over its tokens: an upper bound")
    measured = result.tpot_s * result.tokens_per_step
    parts = floor_parts(prediction, spec, result)
    floor = sum(p.seconds for p in parts)
    known = not any(op.missing for op in prediction.ops)
    usual = expect_step(prediction, shape, spec) if known else None
    by_file = floor - prediction.seconds
    rest = where_the_rest_goes(measured - floor, floor, shape, prediction, usual, result, prefill)
    remarks += signs(result, prediction, measured, floor, prefill)
    return Explanation(
        result=result,
        prediction=prediction,
        measured_s=measured,
        floor_s=floor,
        expected_s=usual.seconds + by_file if usual else None,
        range_s=(usual.low + by_file, usual.high + by_file) if usual else None,
        floor_parts=parts,
        rest=rest,
        remarks=tuple(remarks),
    )


def prefill_floor(shape: ModelShape, spec: DeviceSpec, like: StepPrediction, prompt: int) -> float | None:
    """Seconds to read one prompt; None where a peak is not published."""
    asked = step(shape, device=spec, weights=like.weights, kv=like.kv, batch=1, context=prompt, devices=like.devices)
    return None if any(op.missing for op in asked.prefill_ops) else asked.prefill_seconds


def floor_parts(prediction: StepPrediction, spec: DeviceSpec, result: Result) -> tuple[Part, ...]:
    """What each roof takes of the floor. Activations count with the weights that they meet."""
    bandwidth = spec.memory_bandwidth.value if spec.memory_bandwidth else math.inf
    sums = {"weights": 0.0, "KV cache": 0.0, "compute": 0.0, "link": 0.0}
    for op in prediction.ops:
        if op.bound == "link":
            sums["link"] += op.seconds
            continue
        cache = min(op.seconds, op.kv_bytes / bandwidth)
        streamed = min(op.seconds, op.work.bytes / bandwidth)
        sums["KV cache"] += cache
        sums["weights"] += streamed - cache
        sums["compute"] += op.seconds - streamed
    why = {
        "weights": f"{brief(prediction.weight_bytes / 1e9)} GB at {bandwidth / 1e12:.3g} TB/s on each device",
        "KV cache": f"{prediction.kv_bytes_per_request / 1e9:.3g} GB a sequence",
        "compute": "where arithmetic takes longer than the bytes",
        "link": "bytes of all-reduces over the link",
    }
    if result.weight_bytes:
        sums["weights"] *= result.weight_bytes / prediction.weight_bytes
        why["weights"] = f"{brief(result.weight_bytes / 1e9)} GB, the file's size, at {bandwidth / 1e12:.3g} TB/s"
    return tuple(Part(name=name, seconds=s, why=why[name]) for name, s in sums.items() if s > 0)


def where_the_rest_goes(
    rest: float,
    floor: float,
    shape: ModelShape,
    prediction: StepPrediction,
    usual: ExpectedStep | None,
    result: Result,
    prefill: float | None,
) -> tuple[Part, ...]:
    """Estimates, largest first. Together they are the rest: scaled down where they exceed it, filled up where not."""
    if rest <= 0:
        return ()
    said = expected.servers()
    constants, found = said["constants"], []
    if usual is not None:
        link = sum(op.seconds for op in prediction.ops if op.bound == "link")
        kernels = constants["kernels"] * usual.kernel_seconds - (floor - link)
        why = "what published kernels of these shapes take beyond their floor, latencies included"
        found.append(Part(name="kernels below the roof", seconds=max(0.0, kernels), why=why))
        reduces = max(0.0, usual.reduces * constants["reduce"] - link)
        why = f"{usual.reduces} all-reduces at {duration(constants['reduce'])} each, as published servers show"
        found.append(Part(name="all-reduce latency", seconds=reduces, why=why))
        small = shape.layers * constants["layer"] + constants["step"]
        why = f"norms, RoPE, sampling, scheduling of {shape.layers} layers and a step, as published servers show"
        found.append(Part(name="latency of small kernels", seconds=small, why=why))
    if prefill and result.requests_per_s:
        busy = min(0.9, constants["prefill"] * result.requests_per_s * prefill)
        why = f"{brief(result.requests_per_s)} prompts a second of at least {duration(prefill)} each"
        found.append(Part(name="prefill between steps", seconds=busy * (floor + rest), why=why))
    known = sum(part.seconds for part in found)
    if known > rest:
        found = [replace(part, seconds=part.seconds * rest / known) for part in found]
    elif rest - known > 0.02 * (floor + rest):
        typical = said["out_of_sample"]["typical"]
        why = f"beyond what published servers take (the model is typically within a factor {typical:.2f})"
        found.append(Part(name="not explained", seconds=rest - known, why=why))
    return tuple(sorted((p for p in found if p.seconds > 0), key=lambda part: -part.seconds))


def signs(
    result: Result, prediction: StepPrediction, measured: float, floor: float, prefill: float | None
) -> list[str]:
    """What else the numbers show."""
    found = []
    if measured < floor:
        found.append(
            "faster than the floor: several tokens a step (speculative decoding), fewer bits per weight or cache, more "
            "devices or another part than said"
        )
    if prediction.fits is False:
        found.append(f"this batch does not fit: at most {prediction.max_batch:,} sequences of this context do")
    if result.ttft_s and prefill and result.ttft_s > 5 * prefill:
        found.append(
            f"the first token takes {duration(result.ttft_s)}, {result.ttft_s / prefill:,.0f} times the floor of its "
            "prefill: requests queue before they start"
        )
    if result.tpot_p99_s and result.tpot_p99_s > 2 * result.tpot_s:
        found.append(
            f"the slowest percent takes {duration(result.tpot_p99_s)} a token, {result.tpot_p99_s / result.tpot_s:.1f} "
            "times the median: steps wait for prefills or for preempted requests"
        )
    if result.tokens_per_step > 1:
        found.append(f"speculative decoding: a step gives {result.tokens_per_step:.2f} tokens a sequence")
    return found
