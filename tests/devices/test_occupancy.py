"""How many CTAs an SM holds, and that a new compute capability is one row."""

from __future__ import annotations

import dataclasses

import pytest

from bench.devices import CAPABILITIES, Capability, bytes_in_flight_needed, derive
from bench.inspection.codegen import KernelReport, problems
from bench.inspection.targets import compile_targets, emulate_targets


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "tmem", "fits"),
    [
        (32, 128, 0, 0, 16),  # threads: 2048 / 128
        (128, 256, 0, 0, 2),  # registers: 128 x 256 = half a file
        (72, 128, 0, 0, 7),  # 9 x 256 registers a warp: 7 warps in each of four files
        (32, 32, 0, 0, 32),  # at most 32 CTAs
        (32, 128, 100 << 10, 0, 2),  # shared memory: 2 x 101 KiB of 228
        (32, 128, 114 << 10, 0, 1),  # the reserved KiB makes two too many
        (32, 128, 228 << 10, 0, 0),  # more than a CTA may have
        (32, 128, 0, 256, 2),  # tensor memory: 512 columns
    ],
)
def test_ctas_per_sm(registers: int, threads: int, shared: int, tmem: int, fits: int) -> None:
    found = CAPABILITIES[100].ctas_per_sm(registers=registers, threads=threads, shared=shared, tmem_columns=tmem)
    assert found == fits


def test_less_fits_on_a_smaller_part() -> None:
    """An L40S: 48 warps and 100 KiB of shared memory."""
    fits = CAPABILITIES[89].ctas_per_sm
    assert fits(registers=32, threads=128, shared=0) == 12
    assert fits(registers=32, threads=32, shared=0) == 24
    assert fits(registers=32, threads=128, shared=49 << 10) == 2
    assert fits(registers=32, threads=128, shared=100 << 10) == 0


def test_every_row_is_consistent() -> None:
    for row in CAPABILITIES.values():
        assert bool(row.part) == bool(row.bytes_in_flight)
        assert bool(row.tmem_columns) == (row.mma == "tcgen05")
    assert [(sm, target.sm) for sm, target in compile_targets().items()] == [(80, 80), (90, 90), (100, 100)]
    assert list(emulate_targets()) == [80, 90]


def test_the_hungriest_part_decides_how_many_bytes_must_be_in_flight() -> None:
    """Little's law by hand. CUB's 32 KiB on 132 SMs at 3.35 TB/s are a latency of 1.291 us."""
    latency = 132 * (32 << 10) / 3.35e12
    assert bytes_in_flight_needed(90) == pytest.approx(latency * 4.9e12 / 132, abs=1), "GH200 with HBM3e"
    assert bytes_in_flight_needed(90) > latency * 4.8e12 / 132 > 45 << 10, "H200"
    assert bytes_in_flight_needed(80) == 16 << 10, "the A100 with 80 GB has more bandwidth than that with 40 GB"
    assert bytes_in_flight_needed(100) == 64 << 10
    assert bytes_in_flight_needed(120) == 0


def test_a_new_capability_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Capability(
        ctas=8,
        warps=16,
        smem_per_sm=64 << 10,
        registers=32768,
        fp32_lanes=32,
        mma_flop={"mma_bf16": 512},
        mma="wgmma",
        bytes_in_flight=8 << 10,
        part="h100-sxm",
    )
    monkeypatch.setitem(CAPABILITIES, 77, row)
    found = derive(name="X", sm=77, sm_count=10, sm_clock_hz=1e9, memory_bus_bits=64, memory_clock_hz=1e9)
    assert {pipe: peak.value for pipe, peak in found.peaks.items()} == {"mma_bf16": 5.12e12, "fma_fp32": 0.64e12}
    assert row.ctas_per_sm(registers=32, threads=32, shared=0) == 8
    assert row.ctas_per_sm(registers=32, threads=128, shared=0) == 4
    assert row.ctas_per_sm(registers=128, threads=128, shared=0) == 2
    assert 77 in compile_targets()
    assert 77 in emulate_targets()
    report = KernelReport(op="o", impl="i", kernel="k", case_id="c", sm=77, part="X", ctas_per_sm=1, wants_mma=True)
    assert problems(report) == ["no wgmma: the tensor-core instruction is absent"]
    assert problems(dataclasses.replace(report, mma="HGMMA.64x16x16.F32.BF16")) == []
