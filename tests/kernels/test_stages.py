"""What stages say beyond bytes and FLOPs: loads in a row, sizes of CTAs, instructions. By hand, on an H100."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.ceilings import Ceilings
from bench.devices import DEVICES
from bench.predict.roofline import predict_from_ceilings
from kernels.common.integers import counted
from kernels.op import SUITES, Impl, Op, Stage, discover, implementations

H100 = DEVICES["h100-sxm"].target()
OURS = [(op, impl) for op in discover().values() for impl in implementations(op.name)[0] if impl.ours]


def stages(op: str, impl_name: str = "triton", **fields: Any) -> tuple[Stage, ...]:
    impl = next(i for i in implementations(op)[0] if i.name == impl_name)
    return tuple(impl.stages(discover()[op].case_from_dict(fields), H100))


ATTENTION = {"H_q": 64, "H_kv": 8, "D": 128}


@pytest.mark.parametrize(
    ("op", "fields", "before", "after"),
    [
        # place of the run, segment, query, and with pages their ids; 32 sequences are cut in two at most: the last CTA
        # waits for its part's store, counts itself, and reads both parts at once
        ("attention_decode", {**ATTENTION, "B": 32, "T": 4096}, {"dram": 3}, {"l2": 3}),
        ("attention_decode", {**ATTENTION, "B": 32, "T": 4096, "page": 16}, {"dram": 4}, {"l2": 3}),
        # one sequence is cut in 33 for each head: a second kernel merges, its CTAs look up their rows first
        ("attention_decode", {**ATTENTION, "B": 1, "T": 32768}, {"dram": 4}, {}),
        # segment, queries, page ids; a second kernel merges
        ("mla_decode", {"B": 32, "H": 16, "T": 4096}, {"dram": 3}, {}),
        ("mla_decode", {"B": 32, "H": 16, "T": 4096, "page": 64}, {"dram": 4}, {}),
        # 448 tiles of 64 rows for 264 CTAs: a tile has at most two CTAs, whose shares the last one reads one by one
        ("ffn_gemv", {"B": 16, "N": 28672, "K": 8192}, {}, {"l2": 4}),
        # length, then page
        ("paged_read", {"B": 16, "H_kv": 8, "D": 128, "T": 8192}, {"dram": 1}, {}),
        ("paged_read", {"B": 16, "H_kv": 8, "D": 128, "T": 8192, "page": 16}, {"dram": 2}, {}),
    ],
)
def test_loads_that_wait_for_each_other(
    op: str, fields: dict[str, Any], before: dict[str, int], after: dict[str, int]
) -> None:
    """Summed over all kernels of a launch."""
    found = stages(op, **fields)
    assert sum(s.loads_before.get("dram", 0) for s in found) == before.get("dram", 0)
    assert sum(s.loads_after.get("l2", 0) for s in found) == after.get("l2", 0)


@pytest.mark.parametrize(("op", "impl"), OURS, ids=lambda x: x.name)
def test_pieces_are_the_grid(op: Op, impl: Impl) -> None:
    for suite in SUITES:
        for case in op.cases(suite):
            if impl.supports(case, H100) is None:
                for stage in impl.stages(case, H100):
                    assert not stage.pieces or sum(count for count, _ in stage.pieces) == stage.ctas, case.id
                    assert {*stage.loads_before, *stage.loads_after} <= {"dram", "l2", "l1"}


def test_sizes_of_ctas_are_blocks_or_units() -> None:
    """9 sequences x 8 heads of 1,024 tokens are 1,152 blocks of 64. 264 CTAs have 4 or 5 of them."""
    (main, *_) = stages("attention_decode", **ATTENTION, B=9, T=1024)
    assert sum(count * size for count, size in main.pieces) == 1152
    assert {size for _, size in main.pieces} == {4, 5}
    # 448 tiles of 64 units: 28,672 units on 264 CTAs are 108 each, and 160 more
    (gemv,) = stages("ffn_gemv", B=16, N=28672, K=8192)
    assert gemv.pieces == ((160, 109), (104, 108))
    assert counted([3, 3, 2, 3]) == ((2, 3), (1, 2), (1, 3))


@pytest.mark.parametrize(
    ("fields", "slots"),
    [
        ({"page": 0}, 1.7),
        ({"page": 16}, 2.5),
        ({"page": 64}, 1.75),
        ({"page": 1}, 1.9),
        ({"page": 0, "kv": "fp8"}, 4.1),
        ({"page": 16, "kv": "fp8"}, 5.2),
        ({"page": 16, "kv": "int8"}, 5.45),
        ({"page": 16, "q_len": 4}, 3.0),
    ],
)
def test_instructions_of_attention(fields: dict[str, Any], slots: float) -> None:
    """32 sequences x 8 heads x 4,096 tokens x 2 x 128 elements, in one tile of rows."""
    (main,) = stages("attention_decode", **ATTENTION, B=32, T=4096, **fields)
    streamed = 32 * 8 * 4096 * 256 * (1 if "kv" in fields else 2)
    assert main.instructions == pytest.approx(slots * streamed)


def test_instructions_are_those_of_every_tile_that_reads_the_stream() -> None:
    """128 heads are two tiles of rows: each reads 1,152 bytes of 32 x 4,096 tokens at 3.8 slots a byte."""
    main, _ = stages("mla_decode", B=32, H=128, T=4096)
    assert main.instructions == pytest.approx(2 * 32 * 4096 * 1152 * 3.8)
    (gemv,) = stages("ffn_gemv", B=256, N=28672, K=8192, weights="int4")
    assert gemv.instructions == pytest.approx(4 * 28672 * 8192 / 2 * 7.0), "four tiles of 64 columns"
    _, gate_up, down, _ = stages("moe_ffn", B=1, E=32, k=4, H=2880, F=2880, weights="mxfp4")
    words = 4 * 2880 * 3072 / 2
    # four experts, 3,072 padded columns; two matrices of gate and up, one of down
    assert gate_up.instructions == pytest.approx(2 * words * 5.2)
    assert down.instructions == pytest.approx(words * 6.0)


def test_only_sm_90_declares_instructions() -> None:
    for name, fields in (
        ("attention_decode", {**ATTENTION, "B": 32, "T": 4096}),
        ("mla_decode", {"B": 32, "H": 16, "T": 4096}),
        ("ffn_gemv", {"B": 1, "N": 4096, "K": 4096, "weights": "int4"}),
        ("moe_ffn", {"B": 1, "E": 8, "k": 2, "H": 1024, "F": 1024, "weights": "mxfp4"}),
    ):
        impl = next(i for i in implementations(name)[0] if i.name == "triton")
        case = discover()[name].case_from_dict(fields)
        assert sum(s.instructions for s in impl.stages(case, H100)) > 0
        for other in (replace(H100, sm=80), replace(H100, sm=100)):
            assert sum(s.instructions for s in impl.stages(case, other)) == 0


CEILINGS = Ceilings(
    read_points=tuple((size, 2e-6 + size / 4e12) for size in (1 << 20, 1 << 32)),
    copy_points=tuple((size, 2e-6 + size / 3.5e12) for size in (1 << 20, 1 << 32)),
    launch_s=2e-6,
    l2_bandwidth=6e12,
    pipes={"mma_bf16": 7e14, "fma_fp32": 132 * 256 * 1.5e9},
    memory_loads=((1 << 32, 0.7e-6),),
    cached_loads=((1 << 24, 0.25e-6),),
)
"""4 TB/s and 132 SMs at 1.5 GHz, which start 132 x 128 x 1.5e9 = 2.53e13 instructions of threads a second."""


def test_fp8_over_small_pages_at_4_tb_per_s_is_nearly_bound_by_its_conversions() -> None:
    """32 x 8 heads x 8,192 tokens x 256 bytes are 537 MB: 134 us at 4 TB/s. 5.2 slots for each are 2.79e9: 110 us. The
    list, the query and the pages come one after the other: 4 x 0.7 us; the merge takes 3 x 0.25 us."""
    case = discover()["attention_decode"].case_from_dict({**ATTENTION, "B": 32, "T": 8192, "page": 16, "kv": "fp8"})
    impl = next(i for i in implementations("attention_decode")[0] if i.name == "triton")
    found = predict_from_ceilings(impl.stages(case, H100), CEILINGS, H100)
    assert found.terms["issue"] == pytest.approx(2e-6 + 5.2 * 536.87e6 / 2.534e13, rel=1e-3)
    assert found.terms["memory"] == pytest.approx(2e-6 + 536.87e6 / 4e12, rel=0.05), "scales and lists beside it"
    assert found.terms["chain"] == pytest.approx(4 * 0.7e-6 + 3 * 0.25e-6)
    assert found.seconds == pytest.approx(found.terms["memory"] + found.terms["chain"])
    assert (found.bound, found.missing) == ("memory", ())


def test_int4_at_batch_256_is_bound_by_its_conversions() -> None:
    """28,672 x 8,192 weights of half a byte in four tiles of columns: 4 x 117 MB at 7.0 slots a byte are 3.29e9
    instructions, 130 us. The bytes of DRAM take a quarter of that."""
    case = discover()["ffn_gemv"].case_from_dict({"B": 256, "N": 28672, "K": 8192, "weights": "int4"})
    impl = next(i for i in implementations("ffn_gemv")[0] if i.name == "triton")
    found = predict_from_ceilings(impl.stages(case, H100), CEILINGS, H100)
    assert found.terms["issue"] == pytest.approx(2e-6 + 4 * 117.44e6 * 7.0 / 2.534e13, rel=1e-3)
    assert found.terms["issue"] > 3 * found.terms["memory"]
