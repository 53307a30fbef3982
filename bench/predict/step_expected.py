"""What a whole decode step is expected to take on a server: its large kernels, and what runs between them.

    seconds = kernels x sum of expected times of the large kernels (`expected.py`, `collectives.py`)
              + layers x layer + all-reduces x reduce + step

The four constants are fitted on published runs of whole servers (`bench/judge/published/server_fit.py`). `layer` stands
for the small kernels that a server runs between the large ones (norms, RoPE, quantization, appends), `step` for
sampling and the scheduler.

What the constants mean, and what they don't: `layer` is nearly 0, although servers take 58 to 163 us a layer above the
floor at batch 1 to 8 (10 to 90% of 613 runs, median 89). The expected times of the large kernels bring 59 to 122 us of
these (median 81): each was measured as a launch of its own and holds 4 to 12 us of start, while a server's graph has
less between two kernels. So the starts already pay for the small kernels, and the fit leaves nothing for `layer`.
The runs don't tell the constants apart: with `layer` held at 10 us and the others fitted anew, the typical error stays
at a factor of 1.13, and `step` and `reduce` shrink by more than half; from 40 us on it grows. Only the sum is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.devices import DeviceSpec
from bench.predict import collectives, expected
from bench.predict.step_model import PredictedOp, StepPrediction
from bench.predict.step_work import cached_tokens, expected_experts, kv_share, query_share
from kernels.models import ModelShape


@dataclass(frozen=True, kw_only=True)
class ExpectedStep:
    """Seconds of a step with the range of 10 to 90% of published servers, and what they rest on."""

    seconds: float
    low: float
    high: float
    kernel_seconds: float
    """The large kernels alone, before the constants of servers."""
    reduces: int
    reduce_seconds: float | None
    """The all-reduces, a part of `kernel_seconds`; None without any, and where no such link was measured."""
    rests_on: tuple[str, ...]


def kernel_seconds(
    predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec, among: Mapping[str, Any] | None = None
) -> tuple[float, set[str]]:
    """The expected seconds of the large kernels of a step, one after the other, and what their constants rest on.

    A cold L2: between two reads of a weight a step reads all others. An operation without constants takes its floor.
    `among` holds other constants than the stored ones, as `expected.json` does.
    """
    alone = alone_seconds(predicted, shape, spec, among)
    return sum(each.seconds for each in alone), {each.rests_on for each in alone if each.rests_on}


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What the launches of some operations of a step are expected to take, one after the other, without any other."""

    names: tuple[str, ...]
    """The operations of the step; several where one launch is published for them."""
    seconds: float
    rests_on: str
    """Empty where nobody fitted constants: then `seconds` is the floor."""


def alone_seconds(
    predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec, among: Mapping[str, Any] | None = None
) -> list[Alone]:
    """`kernel_seconds` operation by operation, in the order of the step."""
    gen, alone = expected.generation(spec), []
    kernels, reduced = among["constants"] if among else None, reduce_seconds(predicted, spec, among)
    for launch in _launches(predicted, shape):
        found = expected.find(launch.op, launch.stored, gen, kernels) if launch.op else None
        if reduced and launch.reduces:
            said = f"all_reduce: {reduced[1]}"
            alone.append(Alone(names=launch.names, seconds=max(reduced[0], launch.floor), rests_on=said))
            continue
        if found is None or launch.kernels is None:
            alone.append(Alone(names=launch.names, seconds=launch.floor, rests_on=""))
            continue
        part = expected.Part.of(spec, launch.pipe)
        each = float(expected.total(expected.terms(launch.kernels, found.constants, part, warm=False))[0])
        seconds = max(launch.calls * each, launch.floor)
        alone.append(
            Alone(names=launch.names, seconds=seconds, rests_on=f"{launch.op} {launch.stored}: {found.rests_on}")
        )
    return alone


def reduce_seconds(
    predicted: StepPrediction, spec: DeviceSpec, among: Mapping[str, Any] | None = None
) -> tuple[float, str] | None:
    """The expected seconds of a step's all-reduces, and what they rest on; None where no such link was measured."""
    devices = predicted.devices
    for op in predicted.ops:
        if op.link_bytes:
            size = op.link_bytes / op.calls * devices / (2 * (devices - 1))  # `link_bytes` are those of a ring
            found = collectives.expect(spec, size, devices, among["all_reduces"] if among else None)
            return (op.calls * found.seconds, found.rests_on) if found else None
    return None


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """One of an operation's equal launches, and how many there are."""

    names: tuple[str, ...]
    """The operations of the step."""
    op: str = ""
    """The operation of `expected.json`; empty where nobody fitted any."""
    stored: str = ""
    kernels: expected.Kernels | None = None
    pipe: str = "mma_bf16"
    reduces: bool = False
    """Whether it is the all-reduces of the step."""
    calls: int
    floor: float
    """Seconds of all launches together."""


def _launches(predicted: StepPrediction, shape: ModelShape) -> Iterator[_Launch]:
    """The launches of a step. The two products of routed experts are one launch: so they are published."""
    kinds = dict(shape.attention_kinds())
    joint = [op for op in predicted.ops if op.joint]
    for op in predicted.ops:
        if op.joint:
            if op is joint[0]:
                yield _routed(joint, predicted, shape)
        elif op.stored == "weights":
            kernels = _product(op, shape, kinds, predicted)
            yield _Launch(
                names=(op.name,),
                op="ffn_gemv",
                stored=_stored(op),
                kernels=kernels,
                pipe=_pipe(op),
                calls=op.calls,
                floor=op.seconds,
            )
        elif op.measured_as in ("attention_decode", "mla_decode"):
            kind = kinds[op.name.removeprefix("attention")]
            cache = "fp8" if predicted.kv in ("fp8", "int8", "int4", "fp4") else "bf16"
            kernels = _attention(op, kind, predicted)
            name, seconds = op.measured_as, op.seconds
            yield _Launch(names=(op.name,), op=name, stored=cache, kernels=kernels, calls=op.calls, floor=seconds)
        else:
            yield _Launch(names=(op.name,), reduces=bool(op.link_bytes), calls=op.calls, floor=op.seconds)


def _pipe(op: PredictedOp) -> str:
    return next(iter(op.work.flops), "mma_bf16")


def _stored(op: PredictedOp) -> str:
    """The stored type of an operation's weights, as `expected.json` names it."""
    if op.weight_bits > 8:
        return "bf16"
    if op.weight_bits > 4:
        return "fp8" if _pipe(op) == "mma_fp8" else "int8"
    return "nvfp4" if _pipe(op) == "mma_fp4" else "mxfp4" if op.joint else "int4"


def _array(value: float) -> Any:
    return np.array([float(value)])


def _moved(size: float, flops: float, calls: int) -> dict[str, Any]:
    return {"size": _array(size / calls), "flops": _array(flops / calls)}


def _product(
    op: PredictedOp, shape: ModelShape, kinds: Mapping[str, ModelShape], predicted: StepPrediction
) -> expected.Kernels:
    """Its columns K follow from the operation's name, its rows N from the weights."""
    inputs: dict[str, float] = {f"down{suffix}": width for suffix, width, _ in shape.dense_ffns()}
    inputs["shared_down"] = shape.shared_width
    inputs |= {extra.name: extra.k * predicted.devices for extra in shape.extras}
    if shape.state_mixer:
        inputs["state_out"] = inputs["state_x"] = shape.state_mixer.output[1]
        inputs |= {
            name: k * predicted.devices for name in ("state_inner", "state_dt") for _, k in shape.state_mixer.inner
        }
    for suffix, kind in kinds.items():
        inputs[f"o{suffix}"] = kind.o_groups * kind.o_latent or kind.heads * kind.value_dim
        inputs[f"q_b{suffix}"] = kind.q_latent * predicted.devices
        inputs[f"kv_b{suffix}"] = kind.kv_latent * predicted.devices
    K = inputs.get(op.name, shape.hidden * predicted.devices) / predicted.devices
    N = max(1.0, op.weight_bytes * 8 / op.weight_bits / op.calls / max(K, 1.0))
    return expected.product(**_moved(op.work.bytes, op.work.total_flops, op.calls), N=_array(N), K=_array(K))


def _attention(op: PredictedOp, kind: ModelShape, predicted: StepPrediction) -> expected.Kernels:
    moved = _moved(op.work.bytes, op.work.total_flops, op.calls)
    B, T = _array(predicted.batch), _array(cached_tokens(kind, predicted.context) / kind.layers)
    heads = _array(kind.heads * query_share(kind, predicted.devices))
    if kind.is_mla:
        return expected.latent_attention(**moved, B=B, H=heads, T=T)
    kv_heads = _array(kind.kv_heads * kv_share(kind, predicted.devices))
    return expected.attention(**moved, B=B, H_q=heads, H_kv=kv_heads, D=_array(kind.head_dim), T=T)


def _routed(ops: list[PredictedOp], predicted: StepPrediction, shape: ModelShape) -> _Launch:
    calls = ops[0].calls
    kernels = expected.experts(
        **_moved(sum(op.work.bytes for op in ops), sum(op.work.total_flops for op in ops), calls),
        hit=_array(expected_experts(shape, predicted.batch)),
        H=_array(shape.expert_hidden or shape.hidden),
        F=_array(shape.expert_ffn / predicted.devices / (1 if shape.gated_ffn else 2)),  # stripes of up alone
    )
    return _Launch(
        names=tuple(op.name for op in ops),
        op="moe_ffn",
        stored=_stored(ops[0]),
        kernels=kernels,
        pipe=_pipe(ops[0]),
        calls=calls,
        floor=sum(op.seconds for op in ops),
    )


def expect_step(predicted: StepPrediction, shape: ModelShape, spec: DeviceSpec) -> ExpectedStep:
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
        reduce_seconds=reduced[0] if (reduced := reduce_seconds(predicted, spec)) else None,
        rests_on=(*other, said["rests_on"], *sorted(rests)),
    )


def server_seconds(constants: dict[str, float], kernels: Any, layers: Any, reduces: Any, prefill: Any = 0.0) -> Any:
    """The formula above, for numbers or arrays. `prefill`: the floor of the prompts that a step's time also serves."""
    own = constants["step"] + layers * constants["layer"] + reduces * constants["reduce"]
    return constants["kernels"] * kernels + own + constants["prefill"] * prefill
