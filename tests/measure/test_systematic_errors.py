"""Errors of all elements alike, and roundings too many, fail the gate in bf16 for 100 seeds of 100; right kernels pass.

Scales rounded to bf16, sums of splits kept in bf16, a softmax scale that is off by 0.1%, an output that is off by 0.2%
to 0.7%: none of them is larger than the rounding of a right result. Shapes have 512 outputs or more, fewer than the
smallest of the suites. Every run tries 6 seeds; `pytest -m exhaustive` tries 100.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kernels.attention_decode import op as attention
from kernels.attention_decode.op import AttentionCase
from kernels.common.compare import compare
from kernels.common.quantization import FORMATS
from kernels.common.random_inputs import writable
from kernels.ffn_block import op as ffn_block
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv import op as ffn_gemv
from kernels.ffn_gemv.op import GemvCase
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from kernels.moe_ffn import op as moe_ffn
from kernels.moe_ffn.op import MoeCase
from kernels.op import Inputs
from tests.support.planted_attention import Fault, all_heads, output
from tests.support.planted_products import changed, ffn, gemv, moe
from tests.support.quick_draws import quick_draws, seeds_or_100

OPS = {
    AttentionCase: attention.OP,
    MlaCase: mla.OP,
    GemvCase: ffn_gemv.OP,
    FfnCase: ffn_block.OP,
    MoeCase: moe_ffn.OP,
}

Kernel = Callable[[Any, Inputs], torch.Tensor]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_draws():
        yield


def failures(case: Any, right: Kernel, wrong: dict[str, Kernel], seeds: int) -> Counter[str]:
    """For how many seeds the gate fails each kernel."""
    op: Any = OPS[type(case)]
    found: Counter[str] = Counter({"right": 0})
    for seed in range(seeds):
        inputs = op.inputs(case, "cpu", seed)
        expected, tolerance = op.reference(case, inputs), op.tolerance(case)
        for name, kernel in {"right": right, **wrong}.items():
            found[name] += not compare(kernel(case, inputs), expected, tolerance).passed
    return found


def all_caught(case: Any, right: Kernel, wrong: dict[str, Kernel], seeds: int) -> None:
    found = failures(case, right, wrong, seeds)
    assert found.pop("right") == 0
    assert set(found.values()) == {seeds}, found


def to_bf16(values: torch.Tensor) -> torch.Tensor:
    return values.copy_(values.bfloat16())


def rounded(*names: str) -> Callable[[Inputs], Inputs]:
    """The inputs with these scales rounded to bf16."""

    def change(inputs: Inputs) -> Inputs:
        for name in names:
            inputs = changed(inputs, name, to_bf16)
        return inputs

    return change


def attend(fault: Fault | None = None, change: Callable[[Inputs], Inputs] = lambda inputs: inputs) -> Kernel:
    return lambda case, inputs: output(case, all_heads(case, change(inputs)), fault)


def attention_faults(gain: float, *scales: str) -> dict[str, Kernel]:
    faults = {
        "gain": Fault(gain=gain),
        "loss": Fault(gain=2 - gain),
        "offset": Fault(offset=0.002),
        "softmax scale": Fault(softmax_scale=1.001),
        "softmax scale too small": Fault(softmax_scale=0.999),
        "partial sums": Fault(partial=torch.bfloat16),
    }
    wrong = {name: attend(fault) for name, fault in faults.items()}
    return wrong | {f"{name} in bf16": attend(change=rounded(name)) for name in scales}


def heads(T: int, **more: Any) -> AttentionCase:
    """2,048 outputs per sequence: the heads of half of Llama-3.1-8B."""
    return AttentionCase(**({"B": 1, "H_q": 16, "H_kv": 2, "D": 128, "T": T} | more))


@seeds_or_100(6)
@pytest.mark.parametrize(
    "case", [heads(1024), heads(4096, page=16), heads(512, B=8, lengths="ragged", page=16)], ids=lambda case: case.id
)
def test_attention(case: AttentionCase, seeds: int) -> None:
    all_caught(case, attend(), attention_faults(1.002), seeds)


@seeds_or_100(6)
@pytest.mark.parametrize("case", [heads(4096, kv="fp8"), heads(2048, kv="int8")], ids=lambda case: case.id)
def test_attention_over_8_bit_caches(case: AttentionCase, seeds: int) -> None:
    all_caught(case, attend(), attention_faults(1.002, "k_scale", "v_scale"), seeds)


@seeds_or_100(6)
@pytest.mark.parametrize(
    "case", [MlaCase(B=1, H=16, T=1024, L=512), MlaCase(B=1, H=16, T=1024, L=512, kv="fp8")], ids=lambda case: case.id
)
def test_latent_attention(case: MlaCase, seeds: int) -> None:
    all_caught(case, attend(), attention_faults(1.007, *(["latent_scale"] if case.kv else [])), seeds)


def missed_in_one_of(batch: int, case: Any, wrong: dict[str, Kernel], seeds: int) -> Counter[str]:
    """For how many seeds a fault in a single sequence is not seen; the other sequences are right, and all alike."""
    op: Any = OPS[type(case)]
    found: Counter[str] = Counter()
    for seed in range(seeds):
        inputs = op.inputs(case, "cpu", seed)
        expected, tolerance = op.reference(case, inputs).expand(batch, -1, -1, -1), op.tolerance(case)
        y = attend()(case, inputs).repeat(batch, 1, 1, 1)
        found["right"] += not compare(y, expected, tolerance).passed
        for name, kernel in wrong.items():
            y[batch // 3] = kernel(case, inputs)[0]
            found[name] += compare(y, expected, tolerance).passed
    return +found


@pytest.mark.parametrize(
    ("batch", "seeds"),
    [
        pytest.param(16, 2, marks=pytest.mark.slow),
        *(pytest.param(batch, 100, marks=pytest.mark.exhaustive) for batch in (16, 256)),
    ],
)
@pytest.mark.parametrize(
    ("case", "gain", "scales"),
    [
        (heads(4096, page=16), 1.002, ()),
        (heads(4096, kv="fp8"), 1.002, ("k_scale", "v_scale")),
        (MlaCase(B=1, H=16, T=2048, L=512), 1.007, ()),
    ],
    ids=lambda value: getattr(value, "id", None),
)
def test_one_sequence_of_a_batch(case: Any, gain: float, scales: tuple[str, ...], batch: int, seeds: int) -> None:
    assert missed_in_one_of(batch, case, attention_faults(gain, *scales), seeds) == {}


SHORT = [
    heads(2, B=2),
    heads(16, B=4, kv="int8"),
    heads(64, B=16, page=16, lengths="ragged"),
    MlaCase(B=8, H=16, T=32, L=512, lengths="ragged"),
    MlaCase(B=8, H=16, T=32, L=512, kv="fp8", lengths="ragged"),
]


@seeds_or_100(6)
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.id)
def test_an_offset_in_one_short_sequence(case: Any, seeds: int) -> None:
    """0.1% of its rms is added to one sequence before it is rounded, half of what one rounding leaves."""
    op: Any = OPS[type(case)]
    for seed in range(seeds):
        inputs = op.inputs(case, "cpu", seed)
        expected, tolerance, found = op.reference(case, inputs), op.tolerance(case), all_heads(case, inputs)
        y, b = output(case, found), seed % case.B
        assert compare(y, expected, tolerance).passed
        for offset in (0.001, -0.001):
            wrong = y.clone()
            wrong[b] = output(case, [found[b]], Fault(offset=offset))[0]
            assert not compare(wrong, expected, tolerance).passed, (seed, offset)


def in_bf16(y: torch.Tensor, gain: float) -> torch.Tensor:
    return (y.float() * gain).bfloat16()


def gemv_faults(case: GemvCase) -> dict[str, Kernel]:
    """The last column is one of the outliers; the last row takes the scales of the row before it."""
    wrong: dict[str, Kernel] = {
        "gain": lambda case, inputs: in_bf16(gemv(case, inputs), 1.005),
        "last column lost": lambda case, inputs: gemv(
            case, changed(inputs, "x", lambda x: writable(x)[:, -1:].zero_())
        ),
    }
    if case.activations == case.dtype:
        wrong |= {f"{n} partial sums": lambda case, inputs, n=n: gemv(case, inputs, n, torch.bfloat16) for n in (2, 8)}
    else:
        wrong["x_scale in bf16"] = lambda case, inputs: gemv(case, rounded("x_scale")(inputs))
    if case.weights in ("int8", "fp8", "fp8_block"):
        wrong["w_scale in bf16"] = lambda case, inputs: gemv(case, rounded("w_scale")(inputs))
    if case.quantized:
        wrong["scale of the row before"] = lambda case, inputs: gemv(
            case, changed(inputs, "w_scale", lambda scale: scale[-1].copy_(scale[-2].clone()))
        )
    if case.weights in ("int4", "int4_zp", "mxfp4", "nvfp4", "fp8_block"):
        wrong["scale of the group before"] = lambda case, inputs: gemv(
            case, changed(inputs, "w_scale", lambda scale: scale[:, -1].copy_(scale[:, -2].clone()))
        )
    return wrong


GEMVS = [
    GemvCase(B=1, N=1024, K=4096),
    GemvCase(B=16, N=512, K=1024),
    GemvCase(B=1, N=1024, K=2048, weights="int8"),
    GemvCase(B=4, N=512, K=2048, weights="fp8", activations="fp8"),
    GemvCase(B=1, N=1024, K=2048, weights="fp8_block"),
    GemvCase(B=1, N=1024, K=2048, weights="int4"),
    GemvCase(B=1, N=1024, K=2048, weights="int4_zp"),
    GemvCase(B=1, N=1024, K=2048, weights="mxfp4"),
    GemvCase(B=1, N=1024, K=2048, weights="nvfp4"),
]


@seeds_or_100(6)
@pytest.mark.parametrize("case", GEMVS, ids=lambda case: case.id)
def test_gemv(case: GemvCase, seeds: int) -> None:
    all_caught(case, gemv, gemv_faults(case), seeds)


def last_column(name: str) -> Callable[[Inputs], Inputs]:
    return lambda inputs: changed(inputs, name, lambda w: w[..., -1:].zero_())


FFN_FAULTS: dict[str, Kernel] = {
    "gain": lambda case, inputs: ffn(case, inputs, gain=1.007),
    "last column of x": lambda case, inputs: ffn(case, last_column("x")(inputs)),
    "last hidden value": lambda case, inputs: ffn(case, last_column("w_down")(inputs)),
}


@seeds_or_100(6)
@pytest.mark.parametrize(
    "case", [FfnCase(B=1, hidden=1024, ffn=2816), FfnCase(B=4, hidden=512, ffn=1024)], ids=lambda case: case.id
)
def test_ffn_block(case: FfnCase, seeds: int) -> None:
    all_caught(case, ffn, FFN_FAULTS, seeds)


def without_last_expert(case: MoeCase, inputs: Inputs) -> torch.Tensor:
    last = int(inputs["topk_ids"].max())
    return moe(case, inputs, pairs=lambda e, slot: e != last)


def scale_before(part: str, kind: str) -> Kernel:
    """The last row of `part`, or its last group of columns, takes the scale before it, in the last expert hit."""

    def kernel(case: MoeCase, inputs: Inputs) -> torch.Tensor:
        last = int(inputs["topk_ids"].max())

        def change(scale: torch.Tensor) -> None:
            mine = scale.unflatten(0, (case.experts, -1))[last]
            if part != "down":
                mine = mine.chunk(2)[part == "up"]
            to, source = (mine[-1], mine[-2]) if kind == "row" else (mine[:, -1], mine[:, -2])
            to.copy_(source.clone())

        return moe(case, changed(inputs, f"w_{'down' if part == 'down' else 'gate_up'}_scale", change))

    return kernel


def moe_faults(case: MoeCase) -> dict[str, Kernel]:
    wrong: dict[str, Kernel] = {
        "gain": lambda case, inputs: moe(case, inputs, gain=1.005),
        "last expert": without_last_expert,
        "last slot": lambda case, inputs: moe(case, inputs, pairs=lambda e, slot: slot != case.k - 1),
        "last column of x": lambda case, inputs: moe(case, last_column("x")(inputs)),
    }
    if case.weights == "fp8_block":
        scales = rounded("w_gate_up_scale", "w_down_scale")
        wrong["scales in bf16"] = lambda case, inputs: moe(case, scales(inputs))
    if case.quantized:
        for kind in ("row", "group") if FORMATS[case.weights].group_k else ("row",):
            for part in ("gate", "up", "down"):
                wrong[f"{part}, scale of the {kind} before"] = scale_before(part, kind)
    return wrong


EXPERTS = [
    MoeCase(B=1, E=8, k=4, H=1024, F=256),
    MoeCase(B=8, E=8, k=2, H=512, F=256),
    MoeCase(B=1, E=8, k=4, H=1024, F=256, weights="fp8_block"),
    MoeCase(B=2, E=4, k=2, H=1024, F=256, weights="mxfp4"),
    MoeCase(B=2, E=4, k=2, H=1024, F=256, weights="nvfp4"),
    MoeCase(B=2, E=4, k=2, H=1024, F=256, weights="int8"),
]


@seeds_or_100(6)
@pytest.mark.parametrize("case", EXPERTS, ids=lambda case: case.id)
def test_experts(case: MoeCase, seeds: int) -> None:
    all_caught(case, moe, moe_faults(case), seeds)


def test_small_shapes_in_every_run() -> None:
    """Two seeds of each operation, so that a change of the gate or of the inputs is noticed at once."""
    all_caught(heads(512, kv="int8"), attend(), attention_faults(1.002, "k_scale", "v_scale"), seeds=2)
    all_caught(MlaCase(B=1, H=16, T=512, L=512), attend(), attention_faults(1.007), seeds=2)
    assert missed_in_one_of(64, heads(1024), {"gain": attend(Fault(gain=1.002))}, seeds=1) == {}
    for case in (GemvCase(B=2, N=512, K=512, weights="fp8_block"), GemvCase(B=2, N=512, K=512)):
        all_caught(case, gemv, gemv_faults(case), seeds=2)
    all_caught(FfnCase(B=4, hidden=512, ffn=512), ffn, FFN_FAULTS, seeds=2)
    experts = MoeCase(B=4, E=4, k=2, H=512, F=256)
    all_caught(experts, moe, moe_faults(experts), seeds=2)
