"""The emulator of PTX: instructions by the ISA's definitions; threads that part, meet and wait; faults."""

from __future__ import annotations

import math
import struct
from collections import Counter
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.inspection.emulate import row_of
from bench.inspection.emulator.execute import Counts, make_step
from bench.inspection.emulator.machine import Groups, Machine
from bench.inspection.emulator.memory import BASE, Fault, GlobalMemory, SharedMemory
from bench.inspection.emulator.ptx import Address, NotEmulated, parse
from tests.support.properties import given, st
from tests.support.snippet import MASK, halves, run_ptx

WORDS = st.integers(0, MASK)


def bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def number(word: int) -> float:
    return struct.unpack("<f", struct.pack("<I", word))[0]


def signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


@given(a=WORDS, b=WORDS, c=WORDS)
def test_integers_wrap_and_shift_as_in_c(a: int, b: int, c: int) -> None:
    text = """{ mad.lo.s32 $0, $7, $8, $9; mul.hi.u32 $1, $7, $8; shl.b32 $2, $7, 33; shr.s32 $3, $7, 40;
        shf.l.wrap.b32 $4, $7, $8, 5; bfe.s32 $5, $7, 4, 9; min.s32 $6, $7, $8; }"""
    field = (a >> 4) & 511
    assert run_ptx(text, 7, [a, b, c]) == [
        (a * b + c) & MASK,
        a * b >> 32,
        0,
        MASK if a >> 31 else 0,
        ((b << 32 | a) << 5 >> 32) & MASK,
        (field - 512 if field & 256 else field) & MASK,
        min(signed(a), signed(b)) & MASK,
    ]


@given(a=WORDS, b=WORDS, c=WORDS, table=st.integers(0, 255))
def test_logic_by_table(a: int, b: int, c: int, table: int) -> None:
    want = sum(((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1))) & 1) << i for i in range(32))
    assert run_ptx(f"lop3.b32 $0, $1, $2, $3, {table:#x};", 1, [a, b, c]) == [want]


def test_bytes_are_picked_and_their_signs_repeated() -> None:
    assert run_ptx("prmt.b32 $0, $1, $2, 0x7530;", 1, [0x44332211, 0x88776655]) == [0x88664411]
    assert run_ptx("prmt.b32 $0, $1, $2, 0x8F08;", 1, [0x44332281, 0x88776655]) == [0xFFFF81FF]


def test_division_goes_towards_zero() -> None:
    text = "{ div.s32 $0, $2, $3; rem.s32 $1, $2, $3; }"
    assert [signed(x) for x in run_ptx(text, 2, [-7 & MASK, 2])] == [-3, -1]


def test_a_fused_product_is_rounded_once() -> None:
    x = 1 + 2**-23
    (fused,) = run_ptx("fma.rn.f32 $0, $1, $1, $2;", 1, [bits(x), bits(-(1 + 2**-22))])
    assert number(fused) == 2**-46


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
@given(x=st.floats(width=32), y=st.floats(width=32))
def test_conversions_round_to_even_and_order_halves(dtype: torch.dtype, name: str, x: float, y: float) -> None:
    (word,) = run_ptx(f"cvt.rn.{name}x2.f32 $0, $1, $2;", 1, [bits(x), bits(y)])
    want = torch.tensor([y, x]).to(dtype).double()
    assert torch.equal(halves(word, dtype).nan_to_num(7.5), want.nan_to_num(7.5))


@pytest.mark.parametrize(
    ("how", "want"), [("lt", [1, 0, 0]), ("ltu", [1, 0, 1]), ("ne", [1, 0, 0]), ("num", [1, 1, 0]), ("nan", [0, 0, 1])]
)
def test_nan_compares_as_the_suffix_says(how: str, want: list[int]) -> None:
    text = f"{{ .reg .pred p; setp.{how}.f32 p, $1, $2; selp.b32 $0, 1, 0, p; }}"
    pairs = [(1.0, 2.0), (2.0, 2.0), (float("nan"), 2.0)]
    assert [run_ptx(text, 1, [bits(a), bits(b)])[0] for a, b in pairs] == want


@pytest.mark.parametrize(("how", "want"), [("lt", 1), ("gtu", 2), ("eq", 0), ("nan", 2)])
def test_two_small_floats_compare_into_two_predicates(how: str, want: int) -> None:
    """The low halves are 1 and 2, the high ones a NaN and 2."""
    text = f"{{ .reg .pred p, q; setp.{how}.bf16x2 p|q, $1, $2; selp.b32 $0, 1, 0, p; @q add.s32 $0, $0, 2; }}"
    left, right = (torch.tensor(pair).bfloat16().view(torch.int32).item() for pair in ([1.0, math.nan], [2.0, 2.0]))
    assert run_ptx(text, 1, [left & 0xFFFFFFFF, right & 0xFFFFFFFF])[0] == want


def machine(text: str, threads: int = 64, shared: int = 1024, data: torch.Tensor | None = None) -> Machine:
    """A machine that has not started, with registers `%r0` to `%r9` and the address of `data` in `%d`."""
    listing = parse(text, {**{f"%r{i}": "b32" for i in range(10)}, "%p": "pred", "%d": "b64", "%q": "b64"})
    listing.threads = threads
    memory = GlobalMemory([] if data is None else [data])
    made = Machine(listing, memory, {}, shared, [(0, 0, 0)], (1, 1, 1))
    if data is not None:
        made.registers["%d"][:] = memory.address(data)
    return made


def test_branches_meet_again_and_loops_end_by_thread() -> None:
    made = machine("""mov.u32 %r0, %tid.x; mov.u32 %r1, 0;
        again: add.s32 %r1, %r1, 2; sub.s32 %r0, %r0, 1; setp.ge.s32 %p, %r0, 0; @%p bra again;
        add.s32 %r2, %r1, 100;""")
    made.run(make_step)
    assert made.registers["%r2"].tolist() == [102 + 2 * i for i in range(64)]
    assert made.executed["add.s32"] == 32 + 64 + 2, "a warp goes on while one of its threads does; all leave together"


def test_lanes_exchange_within_their_segment() -> None:
    made = machine("""mov.u32 %r0, %tid.x; shfl.sync.bfly.b32 %r1, %r0, 3, 31, -1; shfl.sync.up.b32 %r2, %r0, 1, 0, -1;
        shfl.sync.idx.b32 %r3, %r0, 1, 0x1c1f, -1; setp.lt.u32 %p, %r0, 5; vote.sync.ballot.b32 %r4, %p, -1;
        redux.sync.add.s32 %r5, %r0, -1;""")
    made.run(make_step)
    got = {i: made.registers[f"%r{i}"].tolist() for i in range(1, 6)}
    assert got[1] == [i ^ 3 for i in range(64)]
    assert got[2] == [i if i % 32 == 0 else i - 1 for i in range(64)]
    assert got[3] == [i // 4 * 4 + 1 for i in range(64)]
    assert got[4] == [31] * 32 + [0] * 32
    assert got[5] == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


@pytest.mark.parametrize("barrier", ["bar.sync 0;", ""])
def test_only_a_barrier_makes_other_warps_stores_visible(barrier: str) -> None:
    text = f"""mov.u32 %r0, %tid.x; mov.u32 %r9, global_smem; shl.b32 %r1, %r0, 2; add.s32 %r1, %r1, %r9;
        st.shared.b32 [%r1], %r0; {barrier} xor.b32 %r2, %r1, 128; ld.shared.b32 %r3, [%r2];"""
    right = []
    for seed in range(8):
        made = machine(text)
        made.run(make_step, Random(seed))
        right.append(made.registers["%r3"].tolist() == [i ^ 32 for i in range(64)])
    assert all(right) if barrier else not any(right)


@pytest.mark.parametrize("waits", [True, False])
def test_a_copy_arrives_where_it_is_waited_for(waits: bool) -> None:
    data = torch.arange(64, dtype=torch.int32)
    made = machine(
        f"""mov.u32 %r0, %tid.x; mul.wide.u32 %q, %r0, 4; add.s64 %q, %q, %d; shl.b32 %r1, %r0, 2;
        add.s32 %r1, %r1, {SharedMemory.base}; cp.async.ca.shared.global [%r1], [%q], 4, 4; cp.async.commit_group;
        cp.async.wait_group {0 if waits else 1}; ld.shared.b32 %r2, [%r1];""",
        data=data,
    )
    made.run(make_step)
    assert (made.registers["%r2"].tolist() == data.tolist()) == waits
    assert made.memory.counts["load bytes"] == (256 if waits else 0)


COPY = f"""mov.u32 %r0, %tid.x; mul.wide.u32 %q, %r0, 4; add.s64 %q, %q, %d; shl.b32 %r1, %r0, 2;
    add.s32 %r1, %r1, {SharedMemory.base}; st.shared.b32 [%r1], -1;
    cp.async.ca.shared.global [%r1], [%q], 4, 4; cp.async.commit_group;"""


def read_while_a_copy_is_on_its_way(seed: int | None) -> list[int]:
    """What each thread finds in a buffer that is being filled, after some hundred instructions."""
    made = machine(
        COPY
        + """mov.u32 %r3, 0; again: add.s32 %r3, %r3, 1; setp.lt.s32 %p, %r3, 50; @%p bra again;
        ld.shared.b32 %r2, [%r1]; cp.async.wait_group 0; ld.shared.b32 %r4, [%r1];""",
        data=torch.arange(64, dtype=torch.int32),
    )
    made.run(make_step, None if seed is None else Random(seed))
    assert made.registers["%r4"].tolist() == list(range(64)), "after the wait it is there, and nothing comes twice"
    return [made.registers["%r2"][lane] for lane in (0, 32)]


def test_with_a_seed_a_copy_arrives_at_any_moment_before_the_wait() -> None:
    assert read_while_a_copy_is_on_its_way(None) == [MASK, MASK], "as late as possible"
    found = [read_while_a_copy_is_on_its_way(seed) for seed in range(20)]
    assert {tuple(each) for each in found} == {(MASK, MASK), (0, MASK), (MASK, 32), (0, 32)}


def test_what_begins_earlier_can_be_made_to_happen_earlier() -> None:
    groups = Groups(4)
    all_threads, done = np.ones(4, dtype=bool), list[str]()
    first, second, third = (
        groups.begin(all_threads, lambda ready, name=name: done.append(name)) for name in ("first", "second", "third")
    )
    groups.happen(second, in_order=True)
    groups.happen(first, in_order=True)
    assert done == ["first", "second"]
    groups.close(all_threads)
    groups.wait(all_threads, 0)
    groups.happen(third)
    assert done == ["first", "second", "third"]


@pytest.mark.parametrize("seed", [None, 1])
def test_turns_are_counted_from_the_entry_of_the_innermost_loop(seed: int | None) -> None:
    """A loop of five turns, entered three times. The second warp makes one turn less."""
    made = machine("""mov.u32 %r0, %tid.x; shr.u32 %r0, %r0, 5; mov.u32 %r1, 0;
        outer: mov.b32 %r2, %r0; inner: add.s32 %r2, %r2, 1; setp.lt.s32 %p, %r2, 5; @%p bra inner;
        add.s32 %r1, %r1, 1; sub.s32 %r3, %r1, 3; setp.ne.s32 %p, %r3, 0; @%p bra outer; xor.b32 %r4, %r4, %r4;""")
    made.run(make_step, None if seed is None else Random(seed))
    turns = made.loops.around()
    assert (turns["setp.lt.s32"], turns["sub.s32"], turns["xor.b32"]) == (5, 3, 0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ld.global.b32 %r0, [%d+64];", "outside"),
        ("ld.global.b32 %r0, [%d+2];", "misaligned"),
        ("ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%d+8];", "misaligned"),
        (f"ld.shared.b32 %r0, [{SharedMemory.base + 1024}];", "outside"),
        (
            "mov.u32 %r0, %laneid; setp.lt.u32 %p, %r0, 9; @%p bra on; redux.sync.add.s32 %r1, %r0, -1; on:",
            "part of one",
        ),
    ],
)
def test_what_a_gpu_faults_on(text: str, what: str) -> None:
    made = machine(text, data=torch.zeros(16, dtype=torch.int32))
    with pytest.raises(Fault, match=what):
        made.run(make_step)


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(NotEmulated, match="tex"):
        machine("tex.1d.v4.s32.s32 %r0, %r1;").run(make_step)


def test_sectors_and_bank_cycles_are_counted() -> None:
    data = torch.zeros(1024, dtype=torch.int32)
    made = machine(
        f"""mov.u32 %r0, %tid.x; mul.wide.u32 %q, %r0, 8; add.s64 %q, %q, %d; ld.global.b32 %r1, [%q];
        shl.b32 %r2, %r0, 3; add.s32 %r2, %r2, {SharedMemory.base}; st.shared.b32 [%r2], %r1;""",
        data=data,
    )
    made.run(make_step)
    assert made.memory.counts == {"load bytes": 256, "load sectors": 16}
    assert made.shared.counts == {"store cycles": 4, "store least cycles": 2, "store bytes": 256}


def test_listings_resolve_names_of_inner_scopes() -> None:
    text = """.visible .entry f(.param .u64 .ptr .global .align 1 f_param_0, .param .align 64 .b8 f_param_1[128])
        .reqntid 96 { .reg .b32 %r<3>; ld.global.b32 %r1, [ %r2 + -16 ]; { .reg .b32 %r1; loop: mov.b32 %r1, 0f3F800000;
        @!%p bra loop; } $L1: ret; }"""
    found = parse(text)
    assert (found.parameters, found.threads) == (["f_param_0", "f_param_1"], 96)
    assert found.code[0].operands == ("%r1", Address("%r2", -16))
    inner = found.code[1].operands
    assert inner[0] != "%r1"
    assert inner[1] == 0x3F800000
    assert found.code[2].guard == ("%p", False)
    assert found.labels == {str(found.code[2].operands[0]): 1, "$L1": 3}


def test_tensors_that_share_a_storage_share_their_place() -> None:
    data = torch.arange(8, dtype=torch.int16)
    memory = GlobalMemory([data, data[4:]])
    assert memory.address(data[4:]) == memory.address(data) + 8 > BASE
    offsets = memory.offsets(np.array([memory.address(data)]), 2)
    memory.bytes.view(np.int16)[offsets[0] // 2] = 77
    memory.write_back()
    assert data[0] == 77


def test_shares_are_of_the_time_that_dram_needs() -> None:
    """What an H100's SM does in one second: 1/132 of 3.35 TB and of 989.4 TFLOP, and 1.83e9 cycles of its banks."""
    counts = Counts(
        touched={"load": int(3.35e12 / 132), "store": 0},
        memory=Counter({"load sectors": int(3.35e12 / 132 / 16)}),
        shared=Counter({"load cycles": int(1.83e9), "load least cycles": int(0.915e9), "load bytes": 7}),
        flop=int(989.4e12 / 132),
    )
    launch: Any = SimpleNamespace(grid=(12,), kernel=SimpleNamespace(fn=SimpleNamespace(__name__="k")))
    row = row_of(counts, launch, 90, 4, op="o", impl="i", case_id="c")
    assert (row.ctas, row.grid, row.kernel) == (4, 12, "k")
    assert row.asked == pytest.approx(2 * row.touched)
    assert (row.shared, row.conflicts, row.tensor) == pytest.approx((1, 2, 1), rel=1e-3)
