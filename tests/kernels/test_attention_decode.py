"""Decode attention: the kernels and torch against the reference, and what each refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from bench.devices import DEVICES
from bench.measure.gate import check
from kernels.attention_decode import peers, triton_cascade, triton_split_kv
from kernels.attention_decode.op import OP, AttentionCase, lengths
from kernels.attention_decode.split_plan import plan
from kernels.common.compare import compare
from kernels.common.triton_kv import unpack, unpack_ptx, unpacked_exponent
from kernels.op import Impl, Target
from tests.support.attention_cases import CASCADES, COUNTED, SHAPES, TILED, VARIANTS, small
from tests.support.properties import given, settings, st
from tests.support.snippet import halves, run_ptx

TRITON = triton_split_kv.IMPLS[0]
CASCADE = triton_cascade.IMPLS[0]
TORCH = peers.IMPLS[0]
CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()


def passes(impl: Impl, case: AttentionCase, target: Target) -> None:
    assert impl.supports(case, target) is None
    errors = check(OP, impl, case, target)
    assert errors.passed, f"{case.id}: {errors.reason}"


def on(case: AttentionCase, half: str) -> AttentionCase:
    return replace(case, dtype=half)


@pytest.mark.parametrize("case", [*SHAPES, *VARIANTS, *TILED], ids=lambda case: case.id)
def test_triton_agrees_with_the_reference(case: AttentionCase, target: Target, half: str) -> None:
    passes(TRITON, on(case, half), target)


@settings(max_examples=4, deadline=None)
@given(
    B=st.integers(1, 3),
    H_kv=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4, 7]),
    T=st.integers(1, 150),
    page=st.sampled_from([0, 1, 5, 16, 64]),
    lengths=st.sampled_from(["uniform", "ragged", "longtail", "holes"]),
    layout=st.sampled_from(["NHD", "HND"]),
)
def test_triton_agrees_on_drawn_shapes(target: Target, half: str, H_kv: int, group: int, **fields: Any) -> None:
    passes(TRITON, small(H_q=group * H_kv, H_kv=H_kv, dtype=half, **fields), target)


@pytest.mark.parametrize("case", CASCADES, ids=lambda case: case.id)
def test_cascade_agrees_with_the_reference(case: AttentionCase, target: Target, half: str) -> None:
    passes(CASCADE, on(case, half), target)


@pytest.mark.parametrize("kv", ["", "fp8", "int8", "nvfp4"])
@settings(max_examples=2, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 100),
    page=st.sampled_from([0, 1, 16]),
    lengths=st.sampled_from(["uniform", "ragged", "holes"]),
    H_q=st.sampled_from([4, 16, 18]),
    q_len=st.integers(1, 8),
    window=st.sampled_from([0, 5, 40]),
    softcap=st.sampled_from([0.0, 1.0]),
)
def test_triton_agrees_on_drawn_variants(target: Target, half: str, kv: str, window: int, **fields: Any) -> None:
    passes(TRITON, small(kv=kv, window=window, sinks=3 if window else 0, dtype=half, **fields), target)


@triton.jit
def unpack_kernel(words, low, high, N: tl.constexpr, KV: tl.constexpr, TO: tl.constexpr, SM: tl.constexpr):
    offs = tl.arange(0, N)
    first, second = unpack(tl.load(words + offs), KV, TO, SM)
    tl.store(low + offs, first.to(tl.float32))
    tl.store(high + offs, second.to(tl.float32))


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_every_byte_unpacks_to_its_value(kv: str, to: str, target: Target) -> None:
    sm = target.sm if target.kind == "cuda" else 0
    every = torch.arange(256, dtype=torch.uint8, device=target.device)
    pairs = torch.stack([every, every.flip(0)], dim=1).contiguous()
    low, high = (torch.empty(256, dtype=torch.float32, device=target.device) for _ in range(2))
    unpack_kernel[(1,)](pairs.view(torch.int16).flatten(), low, high, N=256, KV=kv, TO=to, SM=sm)
    values = every.view(torch.float8_e4m3fn if kv == "fp8" else torch.int8).double()
    known = ~values.isnan()
    gain = 2.0 ** -unpacked_exponent(kv, to, sm)
    assert torch.equal((low.double() * gain)[known], values[known])
    assert torch.equal((high.double() * gain).flip(0)[known], values[known])


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_ptx_unpacks_every_byte_in_every_place(kv: str, to: str, sm: int) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = every.view(torch.float8_e4m3fn if kv == "fp8" else torch.int8).double()
    dtype = torch.float16 if to == "fp16" else torch.bfloat16
    known = ~values.isnan()
    for first in range(256):
        octets = [(first + 67 * place) % 256 for place in range(4)]
        low, high = run_ptx(unpack_ptx(kv, to, sm), 2, [int.from_bytes(bytes(octets), "little")])
        got = torch.stack([halves(low, dtype), halves(high, dtype)], dim=1).flatten()
        got *= 2.0 ** -unpacked_exponent(kv, to, sm)
        assert torch.equal(got[known[octets]], values[octets][known[octets]])


@pytest.mark.parametrize("page", [0, 16])
def test_one_token_too_many_or_too_few_is_caught(page: int, target: Target, half: str) -> None:
    case = small(T=60, page=page, dtype=half, lengths="ragged", B=2)
    shorter = min(lengths(case))
    inputs = OP.inputs(case, target.device, 0)
    expected, tolerance = OP.reference(case, inputs), OP.tolerance(case)

    def run(tokens: dict[int, int]) -> torch.Tensor:
        built = TRITON.build(case, inputs, target)  # type: ignore[misc]
        segments = built.launches[0].args["segments"]
        for row in segments:
            row[3] = tokens.get(int(row[3]), int(row[3]))
        return built()

    assert compare(run({}), expected, tolerance).passed
    assert not compare(run({shorter: shorter - 1}), expected, tolerance).passed
    assert run({shorter: shorter + 1}).isnan().any()


@pytest.mark.cuda
@pytest.mark.parametrize(
    "more",
    [{}, {"page": 16}, {"page": 64, "kv": "fp8"}, {"kv": "int8"}, {"q_len": 4, "page": 16}, {"q_len": 8, "H_q": 128}],
)
@pytest.mark.parametrize(("B", "T"), [(1, 20000), (16, 3000), (200, 700)])
def test_a_full_gpu_agrees(B: int, T: int, more: dict[str, Any], target: Target) -> None:
    """All SMs work at once: the parts of many CTAs are counted and merged."""
    passes(
        TRITON, AttentionCase(**({"B": B, "H_q": 32, "H_kv": 8, "D": 128, "T": T, "lengths": "ragged"} | more)), target
    )


@pytest.mark.cuda
@pytest.mark.parametrize("B", [2, 70])
def test_cascade_agrees_on_a_full_gpu(B: int, target: Target) -> None:
    passes(CASCADE, AttentionCase(B=B, H_q=32, H_kv=8, D=128, T=6000, prefix=4096, page=16, lengths="ragged"), target)


def test_an_empty_sequence_gives_zeros(target: Target, half: str) -> None:
    case = small(B=3, T=70, lengths="holes", dtype=half)
    inputs = OP.inputs(case, target.device, 0)
    output = TRITON.prepare(case, inputs, target)()
    empty = lengths(case).index(0)
    assert (output[empty] == 0).all()
    assert (output[[b for b in range(3) if b != empty]] != 0).any(dim=-1).all()


@pytest.mark.parametrize(("page", "D"), [(0, 64), (16, 64), (16, 96)])
def test_inputs_need_not_be_contiguous(page: int, D: int, target: Target, half: str) -> None:
    """What lies between heads and tokens is NaN: a head that is padded to a power of two must not read it."""
    case = small(B=2, H_q=8, H_kv=2, D=D, T=90, page=page, lengths="ragged", dtype=half)
    inputs = OP.inputs(case, target.device, 0)
    for name in ("q", "k", "v"):
        wide = torch.full((*inputs[name].shape[:2], 11, case.D + 16), float("nan"), dtype=inputs[name].dtype)
        view = wide.to(target.device)[:, :, 1 : 1 + inputs[name].shape[2], : case.D]
        inputs[name] = view.copy_(inputs[name])
        assert not view.is_contiguous()
    errors = compare(TRITON.prepare(case, inputs, target)(), OP.reference(case, inputs), OP.tolerance(case))
    assert errors.passed, errors.reason
    inputs["k"] = inputs["k"].transpose(-1, -2).contiguous().transpose(-1, -2)
    with pytest.raises(ValueError, match="stride"):
        TRITON.prepare(case, inputs, target)


@pytest.mark.parametrize("D", [128, 96, 512])
def test_many_parts_are_merged_by_a_second_kernel(D: int, target: Target, half: str) -> None:
    case = small(H_q=4, D=D, T=64 * 12, page=16, dtype=half)
    six = replace(target, sm_count=6)
    assert plan(case, six).merge == "kernel"
    assert [stage.name for stage in TRITON.stages(case, six)] == ["split_kv", "merge"]
    passes(TRITON, case, six)


@pytest.mark.parametrize("H_q", [4, 71])
def test_counters_are_left_at_zero(H_q: int, target: Target, half: str) -> None:
    case = small(B=2, H_q=H_q, T=200, dtype=half)
    assert plan(case, target).merge == "last"
    assert TRITON.build is not None
    built = TRITON.build(case, OP.inputs(case, target.device, 0), target)
    built()
    assert not built.launches[0].args["arrivals"].any()


@pytest.mark.parametrize("case", OP.cases("quick")[:4], ids=lambda case: case.id)
def test_builds_from_shapes_alone(case: AttentionCase) -> None:
    assert TRITON.build is not None
    built = TRITON.build(case, OP.inputs(case, "meta", 0), H100)
    assert built.output.shape == (case.B, case.q_len, case.H_q, case.D)
    for launch in built.launches:
        names = list(launch.kernel.arg_names)
        assert list(launch.args) == names[: len(launch.args)]
        assert list(launch.constexprs) == names[len(launch.args) :]


@pytest.mark.parametrize("case", [*SHAPES, *COUNTED], ids=lambda case: case.id)
def test_meta_inputs_have_the_shapes_of_real_ones(case: AttentionCase) -> None:
    real, meta = (OP.inputs(case, device, 0) for device in ("cpu", "meta"))
    assert {n: (t.shape, t.dtype, t.stride()) for n, t in real.items()} == {
        n: (t.shape, t.dtype, t.stride()) for n, t in meta.items()
    }
    again, other = OP.inputs(case, "cpu", 0), OP.inputs(case, "cpu", 1)
    assert all(
        torch.equal(real[n].float().nan_to_num(), again[n].float().nan_to_num()) for n in ("q", "k", "v", "block_table")
    )
    assert not torch.equal(real["q"], other["q"])


@pytest.mark.parametrize(
    "case",
    [
        small(B=3, H_q=8, H_kv=2, dtype="bf16"),
        small(B=2, H_q=4, H_kv=4, layout="HND", dtype="fp32"),
        small(B=2, H_q=4, H_kv=2, q_len=3, dtype="fp32"),
        small(window=20, dtype="fp32"),
        small(scale=0.3, T=40, dtype="fp32"),
    ],
    ids=lambda case: case.id,
)
def test_torch_agrees_with_the_reference(case: AttentionCase) -> None:
    passes(TORCH, case, CPU)


@pytest.mark.parametrize(
    ("impl", "case", "reason"),
    [
        (TORCH, small(page=16), "block table"),
        (TORCH, small(B=2, lengths="ragged"), "uniform"),
        (TORCH, small(kv="fp8"), "scales"),
        (TORCH, small(softcap=1.0), "soft cap"),
        (TORCH, small(sink_logits=True), "sinks"),
        (TORCH, small(window=9, sinks=1), "sinks"),
        (TRITON, small(dtype="fp32"), "tf32"),
        (CASCADE, small(), "prefix"),
        (CASCADE, small(page=16, prefix=32, dtype="fp32"), "tf32"),
        (TRITON, small(D=72), "multiple of 16 up to 512"),
        (TRITON, small(D=72, kv="fp8"), "multiple of 16 up to 512"),
        (TRITON, small(D=528), "528"),
        (CASCADE, small(H_q=65, page=16, prefix=32), "1 x 65"),
    ],
)
def test_refusals_say_why(impl: Impl, case: AttentionCase, reason: str) -> None:
    assert reason in (impl.supports(case, CPU if impl is TORCH else H100) or "")


@pytest.mark.parametrize(
    "fields",
    [
        {"H_q": 3, "H_kv": 2},
        {"layout": "HDN"},
        {"order": "random"},
        {"prefix": 16},
        {"sinks": 1},
        {"prefix": 24, "page": 16},
    ],
)
def test_impossible_cases_are_refused_when_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"multiple|layout|order|prefix|window"):
        small(**fields)


@pytest.mark.parametrize("merge", ["last", "kernel"])
def test_a_sink_counts_once_however_many_parts_there_are(merge: str, target: Target, half: str) -> None:
    """It takes half of the softmax: counted twice or not at all, o would be a third too small or twice as large."""
    case = small(H_q=4, D=128 if merge == "kernel" else 64, T=64 * 12, page=16, sink_logits=True, dtype=half)
    where = replace(target, sm_count=6)
    p = plan(case, where)
    assert max(s.parts for s in p.segments) > 2
    assert p.merge == merge
    passes(TRITON, case, where)
    without = OP.reference(replace(case, sink_logits=False), OP.inputs(case, "cpu", 0))
    ratio = OP.reference(case, OP.inputs(case, "cpu", 0)).norm() / without.norm()
    assert 0.2 < ratio < 0.8


def test_a_scale_is_that_of_the_case_and_scores_keep_their_spread() -> None:
    plain, other = small(T=64, dtype="fp32"), small(T=64, dtype="fp32", scale=0.5)
    assert (plain.softmax_scale, other.softmax_scale) == (0.125, 0.5)
    assert other.id == "B1-Hq4-Hkv1-D64-T64-scale0.5-fp32"
    for case in (plain, other):
        inputs = OP.inputs(case, "cpu", 0)
        scores = torch.einsum("hd,td->ht", inputs["q"][0, 0], inputs["k"][0, :, 0]) * case.softmax_scale
        assert 1.6 < float(scores.std()) < 2.4
