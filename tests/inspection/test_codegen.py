"""Listings are read right (short snippets) and verdicts are right (made-up reports, toy kernels).

Kernels are interpreted in this process and so cannot be compiled in it: another process does that. That our own kernels
compile well is not repeated here: `decodebench codegen` compiles all of them, and .ci/run looks at its verdicts.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from bench.errors import BadRequest
from bench.inspection.codegen import KernelReport, build, disassemble, main_table, parse, problems, reports
from bench.inspection.codegen.build import BATCH, KILLED, Task, batched, compiled, described, reports_of
from bench.inspection.codegen.judge import Stream
from bench.inspection.emulator import ptx
from bench.inspection.targets import compile_targets
from kernels.ffn_gemv import op as ffn_gemv
from kernels.ffn_gemv import triton_gemv_quant
from kernels.ffn_gemv.op import GemvCase
from kernels.launch import KernelLaunch
from tests.support.uninterpreted import elsewhere

TTGIR = """
  tt.func public @f(%x_ptr: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("x_ptr"(#loc)), %w: !tt.tensordesc<tensor<64x128xbf16, #shared>> loc("w"(#loc)), %w_0: i32 loc("w"(#loc)), %tab: !tt.ptr<i32> loc("tab"(#loc)), %y: !tt.ptr<f32> loc("y"(#loc)), %K: i32 loc("K"(#loc))) attributes {noinline = false} {
    %a = tt.splat %x_ptr : !tt.ptr<bf16> -> tensor<128x16x!tt.ptr<bf16>, #b> loc(#loc1)
    %i = tt.load %tab : !tt.ptr<i32> loc(#loc1)
    %p = tt.addptr %a, %i : tensor<128x16x!tt.ptr<bf16>, #b>, tensor<128x16xi32, #b> loc(#loc1)
    %buf = ttg.local_alloc : () -> !ttg.memdesc<2x64x128xbf16, #shared, #smem, mutable> loc(#loc2)
    ttng.async_tma_copy_global_to_local %w[%c0, %c0] %buf_1, %bar, %t : !tt.tensordesc<tensor<64x128xbf16, #shared>>, !ttg.memdesc<1xi64, #s, #smem, mutable> -> !ttg.memdesc<64x128xbf16, #shared, #smem, mutable> loc(#loc3)
    ttng.async_tma_copy_global_to_local %w[%c0, %c128] %buf_2, %bar, %t : !tt.tensordesc<tensor<64x128xbf16, #shared>>, !ttg.memdesc<1xi64, #s, #smem, mutable> -> !ttg.memdesc<64x128xbf16, #shared, #smem, mutable> loc(#loc3)
    %r:2 = scf.for %k = %c0 to %K step %c128 iter_args(%acc = %cst, %q = %p) -> (tensor<64x16xf32, #mma>, tensor<128x16x!tt.ptr<bf16>, #b>)  : i32 {
      ttng.async_tma_copy_global_to_local %w[%c0, %k] %buf_3, %bar, %t : !tt.tensordesc<tensor<64x128xbf16, #shared>>, !ttg.memdesc<1xi64, #s, #smem, mutable> -> !ttg.memdesc<64x128xbf16, #shared, #smem, mutable> loc(#loc3)
      %v = ttg.async_copy_global_to_local %q, %buf_4 mask %m {contiguity = 8 : i32} : tensor<128x16x!tt.ptr<bf16>, #b> -> <128x16xbf16, #shared1, #smem, mutable> loc(#loc4)
      %n = tt.addptr %q, %cst_1 : tensor<128x16x!tt.ptr<bf16>, #b>, tensor<128x16xi32, #b> loc(#loc4)
      scf.yield %acc, %n : tensor<64x16xf32, #mma>, tensor<128x16x!tt.ptr<bf16>, #b> loc(#loc5)
    } loc(#loc5)
    %z = tt.splat %y : !tt.ptr<f32> -> tensor<64x16x!tt.ptr<f32>, #b> loc(#loc6)
    tt.store %z, %r#0 : tensor<64x16x!tt.ptr<f32>, #b> loc(#loc6)
    %last = tt.load %r#1 : tensor<128x16x!tt.ptr<bf16>, #b> loc(#loc6)
    tt.return loc(#loc7)
  } loc(#loc)
"""  # noqa: E501

PTX = """
.visible .entry f(
	.param .u64 .ptr .global .align 1 f_param_0,
	.param .align 64 .b8 f_param_1[128],
	.param .u64 .ptr .global .align 1 f_param_2,
	.param .u32 f_param_3
)
.reqntid 256
{
	ld.param.b64 	%rd1, [f_param_0];
	ld.param.b64 	%rd2, [f_param_2];
	mov.b32 	%r31, f_param_1;
	cvt.u64.u32 	%rd9, %r31;
	cvta.param.u64 	%rd31, %rd9;
	mad.wide.s32 	%rd10, %r35, 2, %rd1;
	@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd10 + 0 ];
	ld.global.L1::no_allocate.b32 { %r5 }, [ %rd2 + 4 ];
	mad.wide.s32 	%rd11, %r5, 2, %rd1;
	cp.async.cg.shared.global [ %r32 + 0 ], [ %rd11 + 0 ], 0x10, %r33;
	@%p8 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r27], [%rd31, {%r28, %r29}], [%r23];
	st.global.v2.b32 [ %rd10 + 0 ], { %r1, %r2 };
	st.shared.b64 	[%r40+512], %rd10;
	st.shared.b64 	[%r40+520], %rd11;
	bar.sync 	0;
	ld.shared.v2.b64 	{%rd20, %rd21}, [%r41+512];
	add.s64 	%rd22, %rd21, 16;
	cp.async.cg.shared.global [ %r42 + 0 ], [ %rd22 + 0 ], 0x10, %r33;
	bar.sync 	0;
	st.shared.b64 	[%r40+512], %rd2;
	bar.sync 	0;
	ld.shared.b64 	%rd23, [%r41+512];
	cp.async.ca.shared.global [ %r42 + 0 ], [ %rd23 + 0 ], 0x4, %r33;
}
"""

SASS = """
        /*0000*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0010*/              @!P0 LDG.E.128 R8, desc[UR6][R2.64+0x10] ;
        /*0020*/                   LDG.E.U16 R20, desc[UR6][R2.64+0x20] ;
        /*0030*/                   FADD R5, R5, R12 ;
        /*0040*/                   LDG.E.128 R12, desc[UR6][R2.64+0x30] ;
        /*0050*/                   LDG.E.128 R16, desc[UR6][R2.64+0x40] ;
        /*0060*/                   HGMMA.64x16x16.F32.BF16 R24, gdesc[UR16], R24 ;
        /*0070*/                   HFMA2.MMA R2, -RZ, RZ, 0, 0 ;
        /*0080*/              @P1  BRA 0x30 ;
        /*0090*/                   STL [R1], R3 ;
"""


def test_ttgir_follows_addresses_to_arguments() -> None:
    accesses = parse.ttgir_accesses(TTGIR)
    seen = [(sorted(a.args), a.how, a.tile_bytes) for a in accesses]
    tile = 64 * 128 * 2
    assert seen == [
        (["tab"], "load", 4),
        (["w"], "tma", tile),
        (["w"], "tma", tile),
        (["w"], "tma", tile),
        (["x_ptr"], "cp.async", 128 * 16 * 2),
        (["y"], "store", 64 * 16 * 4),
        (["x_ptr"], "load", 128 * 16 * 2),
    ]
    assert parse.pipelined_bytes(accesses, ["w"]) == 2 * tile, "two tiles in the prologue, one in the loop"
    assert parse.pipelined_bytes(accesses, ["x_ptr"]) == 128 * 16 * 2
    assert [name for _, _, name in parse.ttgir_arguments(TTGIR)] == ["x_ptr", "w", "w", "tab", "y", "K"]


def test_ptx_follows_registers_to_parameters() -> None:
    listing = ptx.parse(PTX)
    accesses = parse.ptx_accesses(listing, pointers=[0, 1, 2])
    assert [(sorted(a.parameters), a.how, a.width) for a in accesses] == [
        ([0], "load", 16),
        ([2], "load", 4),
        ([0], "cp.async", 16),
        ([1], "tma", 0),
        ([0], "store", 8),
        ([0], "cp.async", 16),
        ([2], "cp.async", 4),
    ], "the index loaded through parameter 2 does not make parameter 0's load its own"
    assert listing.threads == 256
    with pytest.raises(ValueError, match="no thread count"):
        ptx.parse(PTX.replace(".reqntid 256", ""))


def test_sass_counts_what_waits() -> None:
    sass = parse.sass_instructions(SASS)
    assert parse.sass_waiting_bytes(sass, 16) == 3 * 16, "the first load is used before the third is issued"
    assert parse.sass_waiting_bytes(sass, 2) == 2
    assert parse.sass_mma(sass) == "HGMMA.64x16x16.F32.BF16"
    assert parse.sass_mma(each for each in sass if "HGMMA" not in each.opcode) == "", "HFMA2.MMA is no such product"
    assert parse.sass_spills(sass) == 1
    usage = parse.resources(" Function f:\n  REG:72 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:408")
    assert (usage.registers, usage.stack, usage.shared, usage.local) == (72, 8, 1024, 0)


GOOD = KernelReport(
    op="toy",
    impl="triton",
    kernel="k",
    case_id="c",
    sm=90,
    part="H100",
    registers=64,
    threads=128,
    ctas_per_sm=4,
    streams=(Stream(name="w", how="cp.async", width=16),),
    mma="HGMMA.64x16x16.F32.BF16",
    wants_mma=True,
    bytes_in_flight=64 << 10,
    bytes_needed=32 << 10,
)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"spill_instructions": 2}, "spills"),
        ({"stack_bytes": 16}, "spills"),
        ({"ctas_per_sm": 0}, "does not fit"),
        ({"streams": (Stream(name="w", how="load", width=4),)}, "narrow"),
        ({"streams": (Stream(name="w", how=None, width=0),), "bytes_in_flight": 0}, "no access of w"),
        ({"bytes_in_flight": 8 << 10}, "few bytes in flight"),
        ({"mma": "HMMA.16816.F32.BF16"}, "no wgmma"),
        ({"mma": ""}, "no wgmma"),
        ({"sm": 100}, "no tcgen05"),
        ({"error": "does not compile: why"}, "does not compile"),
    ],
)
def test_each_problem_is_named(changes: dict[str, Any], word: str) -> None:
    assert problems(GOOD) == []
    found = problems(dataclasses.replace(GOOD, **changes))
    assert len(found) == 1
    assert word in found[0]


def test_reasons_excuse() -> None:
    narrow = dataclasses.replace(GOOD, streams=(Stream(name="w", how="load", width=2),), why_narrow="odd rows")
    few = dataclasses.replace(GOOD, bytes_in_flight=0, why_few_in_flight="a merge of 4 KB")
    assert problems(narrow) == problems(few) == []


def test_table_has_a_cell_for_every_header() -> None:
    headers, rows = main_table([GOOD, dataclasses.replace(GOOD, error="does not compile: why")])
    assert {len(row) for row in rows} == {len(headers)}
    assert [row[-1] for row in rows] == ["ok", "does not compile: why"]


def test_refuses_to_run_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BadRequest, match="TRITON_INTERPRET"):
        reports(["stream"])


@triton.jit
def toy_gemv(x, w, y, K, stride_w_n, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr):
    """y = W x, only for these tests."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        w_tile = tl.load(w + offs_n[:, None] * stride_w_n + k + offs_k[None, :])
        acc += w_tile.to(tl.float32) * tl.load(x + k + offs_k).to(tl.float32)[None, :]
    tl.store(y + offs_n, tl.sum(acc, axis=1).to(y.dtype.element_ty))


def toy_launch(stages: int, row: int, block_k: int = 256) -> KernelLaunch:
    K = N = 4096
    x, w, y = (torch.empty(n, dtype=torch.bfloat16, device="meta") for n in (K, N * row, N))
    return KernelLaunch(
        kernel=toy_gemv,
        grid=(N // 16,),
        args={"x": x, "w": w, "y": y, "K": K, "stride_w_n": row},
        constexprs={"BLOCK_N": 16, "BLOCK_K": block_k, "STAGES": stages},
        streams=("w",),
    )


def toy_reports() -> list[KernelReport]:
    """In the other process: good, too few stages, rows that are not aligned, a block that is no power of two."""
    toys = {
        "good": toy_launch(5, 4096),
        "shallow": toy_launch(1, 4096),
        "broken": toy_launch(5, 4096, block_k=100),
        "narrow": toy_launch(5, 4097),
    }
    found = []
    for part in compile_targets().values():
        asked = [(toy, described(toy, part, op="toy", impl="toy", case_id=name)) for name, toy in toys.items()]
        found += reports_of(asked, part)
    return found


def compile_elsewhere(expression: str) -> list[KernelReport]:
    """The reports that `expression` makes in the other process."""
    found = elsewhere("tests.inspection.test_codegen", f"[t.dataclasses.asdict(r) for r in {expression}]")
    return [KernelReport(**{**r, "streams": tuple(Stream(**s) for s in r["streams"])}) for r in found]


def instructions(assemble: bool) -> list[str]:
    """Each instruction of a toy kernel for sm_90; a branch with the place that it goes to."""
    text = compiled(toy_launch(5, 4096), 90, assemble=assemble).asm["ptx"]
    assert (".loc" in text) is assemble
    listing = ptx.parse(text)
    return [f"{ins.guard} {ins.opcode} {[listing.labels.get(str(o), o) for o in ins.operands]}" for ins in listing.code]


@pytest.mark.slow
def test_what_is_emulated_has_the_instructions_of_what_is_assembled() -> None:
    whole, emulated = elsewhere("tests.inspection.test_codegen", "[t.instructions(b) for b in (True, False)]")
    assert emulated == whole
    assert any(" bra " in line for line in whole)


def layouts_of_mxfp4(sm: int) -> list[str]:
    """The TTGIR layouts of the packed words, at each place where bf16 kernels unpack mxfp4."""
    case = GemvCase(N=256, K=1024, B=1, dtype="bf16", weights="mxfp4")
    part = compile_targets()[sm]
    (gemv,) = triton_gemv_quant.build(case, ffn_gemv.inputs(case, "meta", 0), part).launches
    text = compiled(gemv, sm, assemble=False).asm["ttgir"]
    named = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE))
    unpackers = re.findall(r"elementwise_inline_asm .*?: tensor<\w+, (#.*?)>, ", text)
    return [named.get(layout, layout) for layout in unpackers]


@pytest.mark.slow
def test_neighbouring_words_of_mxfp4_meet_in_one_thread() -> None:
    """`arranged` relies on it: the second word of each thread is the next one along a row."""
    for sm in compile_targets():
        found = elsewhere("tests.inspection.test_codegen", f"t.layouts_of_mxfp4({sm})")
        assert found, f"sm_{sm} unpacks nothing"
        for layout in found:
            assert "kWidth = 2" in layout or "register = [[0, 1]," in layout, f"sm_{sm}: {layout}"


def task(name: str, sm: int) -> Task:
    return Task(op="toy", impl="toy", case=SimpleNamespace(id=name), target=compile_targets()[sm], index=0)


def test_a_batch_is_for_one_part_and_no_worker_waits_for_a_long_one() -> None:
    tasks = [task(f"c{i}", sm) for i in range(40) for sm in (80, 90)]
    batches = batched(tasks, 2)
    assert {len({each.target.sm for each in batch}) for batch in batches} == {1}
    assert sorted(map(len, batches)) == [BATCH] * 10
    assert sorted(each.case.id for batch in batches for each in batch) == sorted(each.case.id for each in tasks)
    assert set(map(len, batched(tasks, 64))) == {1}
    assert batched([], 2) == []


def test_a_batch_whose_process_is_killed_is_compiled_again_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [task(f"c{i}", 90) for i in range(64)]
    asked: list[int] = []

    def each(work: Any, batches: list[tuple[Task, ...]], workers: int) -> Iterator[Any]:
        for batch in batches:
            asked.append(len(batch))
            ids = [one.case.id for one in batch]
            yield batch, None if "c9" in ids else [dataclasses.replace(GOOD, case_id=name) for name in ids]

    monkeypatch.setattr(build, "collect", lambda *_: (tasks, []))
    monkeypatch.setattr(build, "compile_each", each)
    monkeypatch.setattr(build, "usable_cores", lambda: 2)
    seen: list[tuple[int, int]] = []
    found = {r.case_id: r for r in reports(progress=lambda done, total, report: seen.append((done, total)))}
    assert asked == [BATCH] * 8 + [1] * BATCH
    assert {name for name, report in found.items() if report.error} == {"c9"}
    assert found["c9"].error == KILLED
    assert seen == [(done, 64) for done in range(1, 65)]


def elf(**sections: bytes) -> bytes:
    """A 64-bit ELF file of these sections, whose names come last."""
    names = b"".join(b"." + name.replace("_", ".", 1).encode() + b"\0" for name in (*sections, "names"))
    contents = [*sections.values(), names]
    headers, at, name_at = [], 64, 0
    for name, content in zip((*sections, "names"), contents, strict=True):
        headers.append(struct.pack("<IIQQQQIIQQ", name_at, 1, 0, 0, at, len(content), 0, 0, 1, 0))
        at, name_at = at + len(content), name_at + len(name) + 2
    start = b"\x7fELF\x02".ljust(0x28, b"\0") + struct.pack("<Q", at)
    end = struct.pack("<HHH", 64, len(headers), len(headers) - 1)
    return b"".join([start.ljust(0x3A, b"\0"), end, *contents, *headers])


def test_instructions_are_taken_from_the_sections_that_hold_code() -> None:
    assert disassemble.code_of(elf(nv_info=b"other", text_k=b"first.", debug_line=b"text", text_l=b"second")) == (
        b"first.second"
    )
    with pytest.raises(ValueError, match="64-bit ELF"):
        disassemble.code_of(b"")


@pytest.mark.slow
def test_toy_kernels_get_their_verdicts() -> None:
    found = {(r.case_id, r.sm): r for r in compile_elsewhere("t.toy_reports()")}
    for sm in compile_targets():
        good = found["good", sm]
        assert problems(good) == []
        assert (good.streams[0].how, good.streams[0].width) == ("cp.async", 16)
        assert good.bytes_in_flight % (4 * 16 * 256 * 2) == 0, "four tiles of 8 KiB a CTA"
        assert any("narrow" in p for p in problems(found["narrow", sm]))
        assert "does not compile" in problems(found["broken", sm])[0]
    assert any("few bytes" in p for p in problems(found["shallow", 100]))
