"""Plans of split-KV attention: the work list against every token, the bytes against tensors, the stages against
both."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from bench.devices import DEVICES
from kernels.attention_decode import triton_cascade, triton_split_kv
from kernels.attention_decode.op import OP, AttentionCase, kv_tokens_bytes, lengths, live, table_bytes, visible, work
from kernels.attention_decode.split_plan import plan, prefix_plan, prefix_sequences, suffix_plan
from kernels.common import nvfp4_cache
from kernels.common.integers import cdiv
from kernels.common.split_kv import LONG, split
from kernels.launch import registers
from kernels.op import total
from tests.support.attention_cases import CASCADES, COUNTED, PLANNED

TRITON = triton_split_kv.IMPLS[0]
CASCADE = triton_cascade.IMPLS[0]
H100 = DEVICES["h100-sxm"].target()


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
    """79 blocks in one sequence, or 40 in 40 sequences: with one block charged for each start, both runs count 80."""
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
        scale = inputs[f"{name}_scale"]
        scales = int((~scale.float().isnan()).sum())
        dead = inputs[name] == -128 if case.kv == "int8" else inputs[name].float().isnan()
        values = scales * nvfp4_cache.BLOCK // 2 if case.kv == "nvfp4" else int((~dead).sum())
        read += values * inputs[name].element_size()
        read += scales * scale.element_size() + inputs[f"{name}_global"].nbytes
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
    """Little's law asks for at least 18 KB per SM of an H100. A third buffer or a second CTA adds to that."""
    for case in (*OP.cases("quick"), *OP.cases("full")):
        if TRITON.supports(case, H100) is None:
            p = plan(case, H100)
            block = 2 * p.block_t * case.D * case.kv_bytes
            assert p.ctas_per_sm * (p.buffers - 1) * block >= 32 << 10
            assert p.ctas_per_sm * p.buffers * block <= H100.smem_per_sm


@pytest.mark.parametrize("sm", [80, 100])
def test_threads_may_have_the_registers_that_planned_ctas_leave(sm: int) -> None:
    """Then the compiler does not spill to make room for CTAs that never come. An SM has 65,536 registers."""
    part = replace(H100, sm=sm)
    for case in OP.cases("full"):
        if TRITON.supports(case, part) is None:
            p = plan(case, part)
            launch = TRITON.build(case, OP.inputs(case, "meta", 0), part).launches[0]  # type: ignore[misc]
            per_thread = launch.options["maxnreg"]
            assert per_thread == launch.config["maxnreg"] == 255
            assert p.ctas_per_sm * p.num_warps * 32 * per_thread <= 65536
    assert registers(32) == 64, "four CTAs of 8 warps share them"
