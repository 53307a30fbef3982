"""What a whole decode step is expected to take on a server: its large kernels, and what runs between them.

    seconds = kernels x sum of expected times of the large kernels (`expected.py`)
              + layers x layer + all-reduces x reduce + step

The four constants are fitted on published runs of whole servers (`bench/judge/published/server_fit.py`). `layer` stands
for the small kernels that a server runs between the large ones (norms, RoPE, quantization, appends), `step` for
sampling and the scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.devices import DeviceSpec
from bench.predict import expected
from bench.predict.step_model import PredictedOp, StepPrediction
from bench.predict.step_work import cached_tokens, expected_experts, kv_share, query_share
from kernels.models import ModelShape

WEIGHT_TYPES = {"fp16": "bf16", "fp32": "bf16", "w8a16": "int8", "fp4": "nvfp4"}
"""The stored type in `expected.json` for a precision of the step, where it has another name."""


@dataclass(frozen=True, kw_only=True)
class ExpectedStep:
    """Seconds of a step with the range of 10 to 90% of published servers, and what they rest on."""

    seconds: float
    low: float
    high: float
    kernel_seconds: float
    """The large kernels alone, before the constants of servers."""
    reduces: int
    rests_on: tuple[str, ...]


def kernel_seconds(
    predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec, among: Mapping[str, Any] | None = None
) -> tuple[float, set[str]]:
    """The expected seconds of the large kernels of a step, one after the other, and what their constants rest on.

    A cold L2: between two reads of a weight a step reads all others. An operation without constants takes its floor.
    """
    gen, seconds, rests = expected.generation(spec), 0.0, set()
    for name, stored, calls, kernels, pipe, floor in _launches(predicted, shape):
        found = expected.find(name, stored, gen, among) if name else None
        if found is None or kernels is None:
            seconds += floor
            continue
        part = expected.Part.of(spec, pipe)
        each = float(expected.total(expected.terms(kernels, found.constants, part, warm=False))[0])
        seconds += max(calls * each, floor)
        rests.add(f"{name} {stored}: {found.rests_on}")
    return seconds, rests


def _launches(
    predicted: StepPrediction, shape: ModelShape
) -> Iterator[tuple[str, str, int, expected.Kernels | None, str, float]]:
    """Operation, stored type, calls, one launch, pipe and floor of all calls. The experts' two products are one."""
    joint = [op for op in predicted.ops if op.joint]
    for op in predicted.ops:
        if op.joint:
            if op is joint[0]:
                yield _routed(joint, predicted, shape)
        elif op.measured_as in ("attention_decode", "mla_decode", "ffn_gemv"):
            stored = predicted.weights if op.measured_as == "ffn_gemv" else predicted.kv
            kernels = (
                _product(op, shape, predicted.devices) if op.stored == "weights" else _attention(op, predicted, shape)
            )
            yield op.measured_as, WEIGHT_TYPES.get(stored, stored), op.calls, kernels, _pipe(op), op.seconds
        else:
            yield "", "", op.calls, None, "", op.seconds


def _pipe(op: PredictedOp) -> str:
    return next(iter(op.work.flops), "mma_bf16")


def _array(value: float) -> Any:
    return np.array([float(value)])


def _moved(size: float, flops: float, calls: int) -> dict[str, Any]:
    return {"size": _array(size / calls), "flops": _array(flops / calls)}


def _product(op: PredictedOp, shape: ModelShape, devices: int) -> expected.Kernels:
    inputs = {
        "o": shape.heads * (shape.v_head_dim or shape.head_dim) * query_share(shape, devices),
        "down": shape.ffn / devices,
        "shared_down": shape.shared_experts * shape.expert_ffn / devices,
        "q_b": shape.q_latent,
        "kv_b": shape.kv_latent,
    }
    K = inputs.get(op.name) or shape.hidden
    N = max(1.0, op.weight_bytes / op.calls / K / 2)
    return expected.product(**_moved(op.work.bytes, op.work.total_flops, op.calls), N=_array(N), K=_array(K))


def _attention(op: PredictedOp, predicted: StepPrediction, shape: ModelShape) -> expected.Kernels:
    moved = _moved(op.work.bytes, op.work.total_flops, op.calls)
    B, T = _array(predicted.batch), _array(cached_tokens(shape, predicted.context) / shape.layers)
    heads = _array(shape.heads * query_share(shape, predicted.devices))
    if shape.is_mla:
        return expected.latent_attention(**moved, B=B, H=heads, T=T)
    kv_heads = _array(shape.kv_heads * kv_share(shape, predicted.devices))
    return expected.attention(**moved, B=B, H_q=heads, H_kv=kv_heads, D=_array(shape.head_dim), T=T)


def _routed(
    ops: list[PredictedOp], predicted: StepPrediction, shape: ModelShape
) -> tuple[str, str, int, expected.Kernels, str, float]:
    calls = ops[0].calls
    moved = _moved(sum(op.work.bytes for op in ops), sum(op.work.total_flops for op in ops), calls)
    hit = _array(expected_experts(shape, predicted.batch))
    width = _array(shape.expert_ffn / predicted.devices)
    kernels = expected.experts(**moved, hit=hit, H=_array(shape.hidden), F=width)
    stored = WEIGHT_TYPES.get(predicted.weights, predicted.weights)
    return "moe_ffn", stored, calls, kernels, _pipe(ops[0]), sum(op.seconds for op in ops)


def expect(predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec) -> ExpectedStep:
    """The expected step of a server, never below the floor."""
    kernels, rests = kernel_seconds(predicted, shape, spec)
    reduces = sum(op.calls for op in predicted.ops if op.link_bytes)
    said = expected.servers()
    seconds = max(predicted.seconds, float(server_seconds(said["constants"], kernels, shape.layers, reduces)))
    low, _, high = said["spread"]
    gen = expected.generation(spec)
    other = [] if spec.sm in expected.GENERATIONS else [f"{spec.name} is of no fitted generation: constants of {gen}"]
    return ExpectedStep(
        seconds=seconds,
        low=max(predicted.seconds, low * seconds),
        high=high * seconds,
        kernel_seconds=kernels,
        reduces=reduces,
        rests_on=(*other, said["rests_on"], *sorted(rests)),
    )


def server_seconds(constants: dict[str, float], kernels: Any, layers: Any, reduces: Any, prefill: Any = 0.0) -> Any:
    """The formula above, for numbers or arrays. `prefill`: the floor of the prompts that a step's time also serves."""
    own = constants["step"] + layers * constants["layer"] + reduces * constants["reduce"]
    return constants["kernels"] * kernels + own + constants["prefill"] * prefill
