"""Issue slots of a main loop: read from short listings by hand, and held against what kernels declare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from bench.inspection.codegen import parse
from bench.inspection.codegen.build import collect, launches, run_tasks
from bench.inspection.codegen.issue import ptx_loop, sass_loop, slots_per_byte
from bench.inspection.codegen.judge import KernelReport, misdeclared
from bench.inspection.emulator import ptx
from bench.inspection.targets import compile_targets
from kernels.op import discover, implementations
from tests.support.uninterpreted import elsewhere

HEADER = """
.visible .entry f(
	.param .u64 .ptr .global .align 1 f_param_0,
	.param .u64 .ptr .global .align 1 f_param_1
)
.reqntid 128
{
	ld.param.b64 	%rd1, [f_param_0];
	ld.param.b64 	%rd2, [f_param_1];
"""

STREAM = (
    HEADER
    + """
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10;
$L__BB0_1:
	cp.async.ca.shared.global [ %r2 + 0 ], [ %rd2 + 0 ], 0x4;
$L__BB0_2:
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10;
	cp.async.cg.shared.global [ %r1 + 16 ], [ %rd1 + 16 ], 0x10;
	cp.async.ca.shared.global [ %r2 + 0 ], [ %rd2 + 0 ], 0x4;
	wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%r3}, %rd5, %rd6, 0, 1, 1, 0, 0;
	@%p1 bra 	$L__BB0_2;
	@%p2 bra 	$L__BB0_1;
$L__BB0_3:
	ld.global.b32 	{ %r9 }, [ %rd2 + 0 ];
	@%p3 bra 	$L__BB0_3;
}
"""
)

# Twice the loop of the products: 4 + 2 copies, 2 products, 8 others. An outer loop is around it, another behind it.
SASS = [
    "LDGSTS.E.BYPASS.128 [R1], desc[UR6][R2.64]",
    "LDGSTS.E [R3], desc[UR6][R4.64]",
    *["@!P0 LDGSTS.E.BYPASS.128 [R1], desc[UR6][R2.64]"] * 4,
    *["LDGSTS.E [R3], desc[UR6][R4.64]"] * 2,
    *["HGMMA.64x16x16.F32.BF16 R24, gdesc[UR16], R24"] * 2,
    *["FADD R5, R5, R12"] * 7,
    "@P1 BRA 0x20",
    "@P2 BRA 0x10",
    "LDG.E R5, desc[UR6][R4.64]",
    "@P3 BRA 0x130",
    "BRA 0x160",
]


def listed(code: Sequence[str]) -> list[parse.Instruction]:
    """Read instructions of 16 bytes as nvdisasm lists them."""
    return parse.sass_instructions("".join(f"        /*{16 * at:04x}*/ {text} ;\n" for at, text in enumerate(code)))


def slots(text: str, sass: Sequence[str], stream: int = 0, tma_bytes: int = 0) -> float:
    listing = ptx.parse(text)
    return slots_per_byte(listed(sass), listing, parse.ptx_accesses(listing, [0, 1]), frozenset({stream}), tma_bytes)


def test_the_main_loop_is_the_smallest_that_holds_the_products() -> None:
    assert sass_loop(listed(SASS), "LDGSTS") == ["LDGSTS"] * 6 + ["HGMMA"] * 2 + ["FADD"] * 7 + ["BRA"]
    listing = ptx.parse(STREAM)
    loop = ptx_loop(listing, [])
    assert [listing.code[at].opcode.split(".")[0] for at in loop] == ["cp", "cp", "cp", "wgmma", "bra"]


def test_slots_are_instructions_of_all_threads_over_bytes_of_the_stream() -> None:
    """16 instructions of 128 threads. PTX loads 2 x 16 B a thread of the stream; SASS holds six copies where PTX has
    three, so an iteration loads 2 x 128 x 32 B = 8,192: 2,048 / 8,192."""
    assert slots(STREAM, SASS) == pytest.approx(0.25)


def test_without_products_the_loop_is_that_of_the_streams_own_kind_of_load() -> None:
    """Not the shorter one, by which shares are added up."""
    no_products = STREAM.replace("wgmma", "nothing")
    without = [line.replace("HGMMA", "NOTHING") for line in SASS]
    assert sass_loop(listed(without), "LDGSTS") == ["LDGSTS"] * 6 + ["NOTHING"] * 2 + ["FADD"] * 7 + ["BRA"]
    assert slots(no_products, without) == pytest.approx(16 * 128 / 8192)
    assert sass_loop(listed(without), "LDG") == ["LDG", "BRA"]


def test_a_kernel_whose_streams_are_in_no_loop_has_no_slots() -> None:
    straight = HEADER + "	ld.global.v4.b32 	{ %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];\n}\n"
    assert slots(straight, ["LDG.E.128 R4, desc[UR6][R2.64]"]) == 0
    assert sass_loop([], "LDG") == []
    assert slots(STREAM, SASS, stream=2) == 0, "no such argument"


def test_a_load_by_tma_brings_a_tile_for_all_threads() -> None:
    """3 instructions of 128 threads for one tile of 4 KiB."""
    text = (
        HEADER
        + """
$L__BB0_1:
	cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r27], [%rd1, {%r28, %r29}], [%r23];
	@%p1 bra 	$L__BB0_1;
}
"""
    )
    sass = ["@P0 UTMALDG.2D [UR4], [UR6]", "FADD R5, R5, R12", "@P1 BRA 0x0"]
    assert slots(text, sass, tma_bytes=4096) == pytest.approx(3 * 128 / 4096)


@pytest.mark.parametrize(
    ("sm", "declared", "found", "wrong"),
    [
        (90, 4.0, 4.3, False),
        (90, 4.0, 4.5, True),
        (90, 5.0, 4.5, True),
        (90, 0.0, 4.5, False),
        (90, 4.0, 0.0, True),
        (80, 4.0, 9.0, False),
    ],
)
def test_declared_slots_are_wrong_beyond_a_tenth_of_those_counted_for_sm_90(
    sm: int, declared: float, found: float, wrong: bool
) -> None:
    report = KernelReport(
        op="o", impl="i", kernel="k", case_id="c", sm=sm, part="p", slots_per_byte=found, slots_declared=declared
    )
    said = misdeclared(report)
    assert (said is not None) is wrong
    if wrong:
        assert said == f"declares {declared:.2f} issue slots a byte, the main loop has {found:.2f}"


def declared(name: str, suites: Sequence[str]) -> list[dict[str, Any]]:
    """The reports of an op's kernels that declare slots, in the measured cases, compiled for sm_90."""
    tasks, _ = collect([name], [compile_targets()[90]], suites)
    op, impls = discover()[name], {impl.name: impl for impl in implementations(name)[0]}
    declaring = [t for t in tasks if launches(op, impls[t.impl], t.case, t.target)[t.index].slots_per_byte]
    return [dataclasses.asdict(report) for report in run_tasks(declaring)]


UNPACKS = {
    "attention_decode": {"split_kv_kernel"},
    "ffn_gemv": {"gemv_words"},
    "mla_decode": {"mla_kernel"},
    "moe_ffn": {"expert_words"},
}
"""The kernels that declare their slots."""


@pytest.mark.slow
@pytest.mark.parametrize("suites", [["quick"], pytest.param(["full"], marks=pytest.mark.exhaustive)], ids=str)
@pytest.mark.parametrize("op", UNPACKS)
def test_kernels_issue_what_their_stages_declare(op: str, suites: list[str]) -> None:
    """`.ci/run` sees those of all suites, because it compiles them."""
    found = [KernelReport(**r) for r in elsewhere("tests.inspection.test_issue", f"t.declared({op!r}, {suites})")]
    assert [f"{r.case_id}: {said}" for r in found if (said := misdeclared(r))] == []
    assert {r.kernel for r in found} == UNPACKS[op]
