"""Decode attention: the kernels against the reference, the work list against every token, the bytes against tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from bench.devices import DEVICES
from bench.measure.gate import check
from kernels.attention_decode import peers, triton_cascade, triton_split_kv
from kernels.attention_decode.op import OP, AttentionCase, kv_tokens_bytes, lengths, live, table_bytes, visible, work
from kernels.attention_decode.split_plan import plan, prefix_plan, prefix_sequences, suffix_plan
from kernels.common.compare import compare
from kernels.common.integers import cdiv
from kernels.common.split_kv import LONG, split
from kernels.common.triton_kv import GAIN, unpack, unpack_ptx
from kernels.launch import registers
from kernels.op import Impl, Target, total
from tests.support.attention_cases import CASCADES, COUNTED, PLANNED, SHAPES, TILED, VARIANTS, small
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


@pytest.mark.parametrize("case", [*SHAPES, *VARIANTS, *TILED, *OP.cases("test")], ids=lambda case: case.id)
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


@settings(max_examples=4, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 100),
    page=st.sampled_from([0, 1, 16]),
    lengths=st.sampled_from(["uniform", "ragged", "holes"]),
    kv=st.sampled_from(["", "fp8", "int8"]),
    H_q=st.sampled_from([4, 16, 18]),
    q_len=st.integers(1, 8),
    window=st.sampled_from([0, 5, 40]),
    softcap=st.sampled_from([0.0, 1.0]),
)
def test_triton_agrees_on_drawn_variants(target: Target, half: str, window: int, **fields: Any) -> None:
    passes(TRITON, small(window=window, sinks=3 if window else 0, dtype=half, **fields), target)


@triton.jit
def unpack_kernel(words, low, high, N: tl.constexpr, KV: tl.constexpr, PTX: tl.constexpr):
    offs = tl.arange(0, N)
    first, second = unpack(tl.load(words + offs), KV, PTX)
    tl.store(low + offs, first)
    tl.store(high + offs, second)


@pytest.mark.parametrize("ptx", [False, True])
@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_every_byte_unpacks_to_its_value(kv: str, ptx: bool, target: Target) -> None:
    if ptx and (target.kind, target.sm) != ("cuda", 90):
        pytest.skip("PTX unpacks on sm_90 alone")
    every = torch.arange(256, dtype=torch.uint8, device=target.device)
    pairs = torch.stack([every, every.flip(0)], dim=1).contiguous()
    low, high = (torch.empty(256, dtype=torch.float16, device=target.device) for _ in range(2))
    unpack_kernel[(1,)](pairs.view(torch.int16).flatten(), low, high, N=256, KV=kv, PTX=ptx)
    values = every.view(torch.float8_e4m3fn if kv == "fp8" else torch.int8).float()
    known = ~values.isnan()
    gain = 1.0 if ptx else GAIN[kv]
    assert torch.equal((low.float() * gain)[known], values[known])
    assert torch.equal((high.float() * gain).flip(0)[known], values[known])


@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_ptx_unpacks_every_byte_in_every_place(kv: str) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = every.view(torch.float8_e4m3fn if kv == "fp8" else torch.int8).double()
    for first in range(256):
        octets = [(first + 67 * place) % 256 for place in range(4)]
        low, high = run_ptx(unpack_ptx(kv), 2, [int.from_bytes(bytes(octets), "little")])
        got = torch.stack([halves(low, torch.float16), halves(high, torch.float16)], dim=1).flatten()
        assert torch.equal(got.nan_to_num(7.5), values[octets].nan_to_num(7.5))


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
    """All SMs at once: parts of many CTAs, counted in and merged across them."""
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


@pytest.mark.parametrize("page", [0, 16])
def test_inputs_need_not_be_contiguous(page: int, target: Target, half: str) -> None:
    case = small(B=2, H_q=8, H_kv=2, T=90, page=page, lengths="ragged", dtype=half)
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


def test_many_parts_are_merged_by_a_second_kernel(target: Target, half: str) -> None:
    case = small(H_q=4, D=128, T=64 * 12, page=16, dtype=half)
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


def sees(case: AttentionCase, last: int, t: int) -> bool:
    return t <= last and (not case.window or t > last - case.window or t < case.sinks)


@pytest.mark.parametrize("sm_count", [1, 4, 132])
@pytest.mark.parametrize("case", PLANNED, ids=lambda case: case.id)
def test_work_list_covers_every_token_once_and_evenly(case: AttentionCase, sm_count: int) -> None:
    p = plan(case, replace(H100, sm_count=sm_count))
    tokens = Counter((s.b, s.h, t) for s in p.segments for t in range(s.t_begin, s.t_end))
    wanted = {
        (b, h, t)
        for b, length in enumerate(lengths(case))
        for h in range(case.H_kv)
        for start, end in live(case, length)
        for t in range(start, end)
    }
    assert set(tokens) == wanted
    assert set(tokens.values()) == {1}
    assert {(s.b, s.h) for s in p.segments} == {(b, h) for b in range(case.B) for h in range(case.H_kv)}
    assert p.starts[0] == 0
    assert p.starts[-1] == len(p.segments)
    assert len(p.starts) == p.runs + 1
    assert p.row_tiles * p.block_m >= case.rows > (p.row_tiles - 1) * p.block_m
    assert p.runs == 1 or p.runs * p.row_tiles <= p.ctas_per_sm * sm_count
    loads = [
        sum(cdiv(s.t_end, p.block_t) - s.t_begin // p.block_t for s in p.segments[a:z]) for a, z in pairwise(p.starts)
    ]
    assert max(loads) - min(loads) <= 1 or p.blocks >= LONG * p.runs
    assert sum(loads) == p.blocks
    cut = [s for s in p.segments if s.parts > 1]
    assert sorted(s.slot for s in cut) == list(range(p.slots))
    assert all(s.first_slot <= s.slot < s.first_slot + s.parts for s in cut)
    assert all(Counter(s.pair for s in p.segments)[s.pair] == s.parts for s in cut)


@pytest.mark.parametrize("case", CASCADES, ids=lambda case: case.id)
def test_cascade_reads_the_prefix_once_a_tile_and_the_rest_once(case: AttentionCase) -> None:
    target = replace(H100, sm_count=4)
    prefix, suffix = prefix_plan(case, target), suffix_plan(case, target)
    tiles = range(0, case.B, prefix_sequences(case, H100))
    assert prefix_sequences(case, H100) * case.rows <= prefix.block_m
    shared = Counter((s.b, s.h, t) for s in prefix.segments for t in range(s.t_begin, s.t_end))
    assert shared == Counter((b, h, t) for b in tiles for h in range(case.H_kv) for t in range(case.prefix))
    own = Counter((s.b, s.h, t) for s in suffix.segments for t in range(s.t_begin, s.t_end))
    assert own == Counter(
        (b, h, t) for b, n in enumerate(lengths(case)) for h in range(case.H_kv) for t in range(case.prefix, n)
    )
    assert sorted(s.slot for s in prefix.segments) == list(range(prefix.slots))
    first, *rest = CASCADE.stages(case, target)
    lists = sum(32 * len(p.segments) + 4 * len(p.starts) for p in (prefix, suffix))
    cut = sum(stage.name == "merge" for stage in rest) * 16 * sum(s.slot == s.first_slot for s in suffix.segments)
    assert total([first, *rest]).bytes_read == work(case).bytes_read + lists + cut
    assert total([first, *rest]).bytes_written == work(case).bytes_written


def test_a_prefix_that_outgrows_the_l2_is_read_from_memory() -> None:
    case = AttentionCase(B=64, H_q=64, H_kv=8, D=128, T=33000, prefix=32768, page=16)
    once = 2 * 32768 * 8 * 128 * 2
    assert once > H100.l2_bytes
    tiles = cdiv(64, prefix_sequences(case, H100))
    first = CASCADE.stages(case, H100)[0]
    assert once * tiles < first.work.bytes_read < once * tiles * 1.01
    assert total(TRITON.stages(case, H100)).bytes_read > 63 * once
    assert (
        total(CASCADE.stages(replace(case, prefix=8192), H100)).bytes_read
        < 1.01 * work(replace(case, prefix=8192)).bytes
    )


def test_a_run_of_many_short_sequences_has_fewer_blocks() -> None:
    """79 blocks in one sequence, or 40 in as many: with a block for each beginning, 80 both."""
    pairs = [(0, 0, [(0, 79 * 64)]), *((b, 0, [(0, 64)]) for b in range(1, 41))]
    _, starts, slots = split(pairs, 64, 2, start_blocks=1)
    assert (starts, slots) == ([0, 1, 41], 0)
    _, starts, slots = split(pairs, 64, 2)
    assert (starts, slots) == ([0, 1, 42], 2)


def test_nothing_to_read_still_writes_zeros() -> None:
    segments, starts, slots = split([(0, 0, [(0, 0)]), (1, 0, [(0, 0)])], 64, 1)
    assert [(s.t_begin, s.t_end, s.parts) for s in segments] == [(0, 0, 1)] * 2
    assert (starts, slots) == ([0, 2], 0)


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: case.id)
def test_work_is_what_the_tensors_hold(case: AttentionCase) -> None:
    inputs = OP.inputs(case, "cpu", 0)
    read = inputs["q"].nbytes + inputs["lengths"].nbytes
    for name in ("k", "v"):
        dead = inputs[name] == -128 if case.kv == "int8" else inputs[name].float().isnan()
        read += int((~dead).sum()) * inputs[name].element_size()
        read += 4 * int((~inputs[f"{name}_scale"].isnan()).sum())
    table = inputs["block_table"]
    alive = (table >= 0) & (table < 2**31 - 1)
    read += 4 * int(alive.sum())
    if case.prefix:
        read -= 4 * (case.B - 1) * case.prefix // case.page  # the same entries in every row
    assert work(case).bytes_read == read
    assert work(case).bytes_written == inputs["q"].nbytes
    pairs = sum(sees(case, n - case.q_len + i, t) for n in lengths(case) for i in range(case.q_len) for t in range(n))
    assert work(case).total_flops == 4 * case.D * case.H_q * pairs
    assert pairs == sum(visible(case, n) for n in lengths(case))


@pytest.mark.parametrize("case", [*(case for case in COUNTED if not case.prefix), *PLANNED], ids=lambda case: case.id)
def test_stages_add_lists_padding_and_parts_to_the_work(case: AttentionCase) -> None:
    target = replace(H100, sm_count=4)
    p, least = plan(case, target), work(case)
    stages = TRITON.stages(case, target)
    done = total(stages)
    assert done.bytes_written == least.bytes_written
    lists = 32 * len(p.segments) + 4 * len(p.starts)
    cut = len({s.pair for s in p.segments if s.parts > 1}) if len(stages) > 1 else 0
    assert done.bytes_read == least.bytes_read + lists + 16 * cut
    rows = p.row_tiles * p.block_m
    assert done.flops["mma_bf16"] == 4 * p.blocks * p.block_t * rows * case.D >= least.flops["mma_bf16"]
    parts = 2 * p.slots * case.q_len * case.group * (case.D + 1) * 4
    tables = sum(table_bytes(case, live(case, length)) for length in lengths(case))
    again = lists + case.H_kv * tables + sum(kv_tokens_bytes(case, live(case, n)) for n in lengths(case))
    assert sum(stage.l2_bytes for stage in stages) == parts + (case.H_kv - 1) * tables + (p.row_tiles - 1) * again
    assert stages[0].ctas == p.runs * p.row_tiles


def test_plan_keeps_enough_bytes_on_their_way() -> None:
    """Little's law: 18 KB per SM of an H100 at the least, a third buffer or a second CTA above it."""
    for case in (*OP.cases("quick"), *OP.cases("full")):
        if TRITON.supports(case, H100) is None:
            p = plan(case, H100)
            block = 2 * p.block_t * case.D * case.kv_bytes
            assert p.ctas_per_sm * (p.buffers - 1) * block >= 32 << 10
            assert p.ctas_per_sm * p.buffers * block <= H100.smem_per_sm


@pytest.mark.parametrize("sm", [80, 100])
def test_threads_may_have_the_registers_that_planned_ctas_leave(sm: int) -> None:
    """So that the compiler spills none for CTAs that never come; the file of an SM has 65,536."""
    part = replace(H100, sm=sm)
    for case in OP.cases("full"):
        if TRITON.supports(case, part) is None:
            p = plan(case, part)
            launch = TRITON.build(case, OP.inputs(case, "meta", 0), part).launches[0]  # type: ignore[misc]
            per_thread = launch.options["maxnreg"]
            assert per_thread == launch.config["maxnreg"] == 255
            assert p.ctas_per_sm * p.num_warps * 32 * per_thread <= 65536
    assert registers(32) == 64, "four CTAs of 8 warps share them"


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
        (TORCH, small(window=9, sinks=1), "sinks"),
        (TRITON, small(dtype="fp32"), "tf32"),
        (CASCADE, small(), "prefix"),
        (CASCADE, small(page=16, prefix=32, dtype="fp32"), "tf32"),
        (TRITON, small(D=96), "96"),
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
    with pytest.raises(ValueError, match=r"multiple|layout|prefix|window"):
        small(**fields)


@pytest.mark.parametrize("suite", ["test", "smoke", "quick", "full"])
def test_case_ids_are_unique_and_cases_survive_a_record(suite: str) -> None:
    cases = OP.cases(suite)
    assert len({case.id for case in cases}) == len(cases)
    assert [OP.case_from_dict(case.as_dict()) for case in cases] == cases
