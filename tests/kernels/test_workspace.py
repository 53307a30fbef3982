"""What a launch writes for itself: which of its bytes reach DRAM, worked by hand for a part with an L2 of 64 MB."""

from __future__ import annotations

from typing import Any

import pytest

from bench.devices import DEVICES
from kernels.common.workspace import passing
from kernels.op import Stage, Target, Work, discover, implementations, total

PART = Target(kind="cuda", name="part", sm=90, sm_count=100, l2_bytes=64 * 10**6)
PLAIN = Stage(name="s", work=Work(bytes_read=1000, bytes_written=10), l2_bytes=7)
H100 = DEVICES["h100-sxm"].target()


@pytest.mark.parametrize(
    ("size", "dram_written", "dram_read"),
    [
        (2 * 10**6, 0, 0),  # a thirty-second of the L2: free
        (2 * 10**6 + 4, 2 * 10**6 + 4, 0),
        (32 * 10**6, 32 * 10**6, 0),  # half of it: still there when it is read
        (32 * 10**6 + 4, 32 * 10**6 + 4, 32 * 10**6 + 4),
    ],
)
def test_writes_reach_dram_in_full_and_reads_miss_beyond_half_the_l2(
    size: int, dram_written: int, dram_read: int
) -> None:
    both = passing(PLAIN, PART, size, written=size, read=size)
    assert both.work == Work(bytes_read=1000 + dram_read, bytes_written=10 + dram_written)
    assert both.l2_bytes == 7 + 2 * size - dram_written - dram_read


def test_one_stage_may_write_what_another_reads_several_times() -> None:
    size = 20 * 10**6
    writer = passing(PLAIN, PART, size, written=size)
    reader = passing(PLAIN, PART, size, read=3 * size)
    assert (writer.work.bytes_written, writer.l2_bytes) == (10 + size, 7)
    assert (reader.work.bytes_read, reader.l2_bytes) == (1000, 7 + 3 * size)


def stages(op: str, fields: dict[str, Any]) -> tuple[Stage, ...]:
    """Those of our implementation on an H100, whose L2 has 52 MB."""
    impl = next(i for i in implementations(op)[0] if i.name == "triton")
    return tuple(impl.stages(discover()[op].case_from_dict(fields), H100))


@pytest.mark.parametrize(
    ("op", "fields", "share"),
    [
        # 66 parts of 128 rows x 513 fp32 for 8,192 or 4 x 4,096 tokens of 1,152 bytes
        ("mla_decode", {"B": 1, "H": 128, "T": 8192}, 1.78),
        ("mla_decode", {"B": 4, "H": 128, "T": 4096, "page": 64}, 0.89),
        # 132 CTAs share tiles of 128 rows and 256 columns with their neighbours
        ("ffn_gemv", {"B": 256, "N": 28672, "K": 8192}, 0.07),
        # one row of 8,192 tokens: parts are small
        ("attention_decode", {"B": 16, "H_q": 32, "H_kv": 8, "D": 128, "T": 8192}, 0.0),
    ],
)
def test_dirty_parts_count_as_dram_writes(op: str, fields: dict[str, Any], share: float) -> None:
    """As a share of the compulsory bytes."""
    least = discover()[op].work(discover()[op].case_from_dict(fields))
    written = total(stages(op, fields)).bytes_written - least.bytes_written
    assert written / least.bytes == pytest.approx(share, abs=0.01)


def test_parts_beyond_half_the_l2_are_read_from_dram_again() -> None:
    """67 MB of a MoE's fp32 parts: 4 bytes x 2,048 tokens x 2 experts x 4,096."""
    *_, down, combine = stages("moe_ffn", {"B": 2048, "E": 8, "k": 2, "H": 4096, "F": 128})
    parts = 4 * 2048 * 2 * 4096
    assert down.work.bytes_written == parts
    assert combine.work.bytes_read >= parts
    assert combine.l2_bytes == 0
