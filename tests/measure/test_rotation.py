"""How many copies of the inputs take turns, and whether the caches are then called cold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.measure.timing import Rotation, plan_rotation
from kernels.op import Target

GPU = Target(kind="cuda", name="gpu", sm=90, sm_count=132, l2_bytes=50 << 20)
HOST = Target(kind="cpu", name="host", sm_count=2, l2_bytes=32 << 20)
PLENTY = 64 << 30


def test_copies_exceed_the_l2_four_times() -> None:
    rotation = plan_rotation(1 << 20, 1 << 20, GPU, PLENTY)
    assert rotation.copies == 200
    assert rotation.cold
    assert rotation.total_bytes >= 4 * GPU.l2_bytes


def test_a_large_case_still_takes_turns() -> None:
    assert plan_rotation(1 << 30, 1 << 30, GPU, PLENTY).copies == 2


def test_too_little_memory_for_a_cold_cache_is_told() -> None:
    rotation = plan_rotation(10 << 20, 10 << 20, GPU, 60 << 20)
    assert rotation.copies == 3
    assert not rotation.cold


def test_a_launch_that_moves_nothing_has_few_copies() -> None:
    """4,096 copies of four bytes were drawn for an empty kernel, whose time no cache changes."""
    assert plan_rotation(4, 8, GPU, PLENTY).copies == 16
    assert plan_rotation(4, 4096, GPU, PLENTY).copies == 4096


def test_what_no_launch_touches_keeps_nothing_cold() -> None:
    """A copy is 64 caches of 320 KiB, and 4 KiB are written to each. The touched bytes of 800 copies are four L2s."""
    rotation = plan_rotation(20 << 20, 256 << 10, GPU, PLENTY)
    assert rotation.copies == 800
    assert rotation.cold
    single = plan_rotation(320 << 10, 4 << 10, GPU, PLENTY)
    assert single.copies == 640
    assert single.total_bytes >= 4 * GPU.l2_bytes
    assert not single.cold
    assert plan_rotation(32 << 20, 1 << 20, HOST, PLENTY).flush_bytes == HOST.l2_bytes


def test_a_host_whose_copies_fit_its_cache_is_swept() -> None:
    small, large = (plan_rotation(size, size, HOST, PLENTY) for size in (1 << 20, 64 << 20))
    assert small.flush_bytes == HOST.l2_bytes
    assert large.flush_bytes == 0
    assert large.total_bytes >= 4 * HOST.l2_bytes
    assert (small.copies, large.copies) == (3, 2)


@pytest.mark.parametrize("memory", [PLENTY, 256 << 20], ids=["three copies", "two copies"])
def test_a_host_is_cold_whatever_the_size(memory: int) -> None:
    """Also near 4/3 of the cache and twice the cache, from where three copies or two suffice without a sweep."""
    for size in (1 << 20, 21 << 20, 24 << 20, 32 << 20, 42 << 20, 43 << 20, 63 << 20, 64 << 20, 65 << 20):
        rotation = plan_rotation(size, size, HOST, memory)
        assert rotation.cold, rotation
        enough = rotation.copies * size >= 4 * HOST.l2_bytes
        assert rotation.flush_bytes == (0 if enough else HOST.l2_bytes), rotation


def test_a_rotation_in_between_is_not_cold() -> None:
    assert not Rotation(copies=3, bytes_per_copy=100, touched_bytes=100, cache_bytes=100).cold


@pytest.mark.parametrize("target", [HOST, GPU], ids=["host", "gpu"])
def test_a_cache_of_unknown_size_is_not_cold(target: Target) -> None:
    assert not plan_rotation(1 << 20, 1 << 20, replace(target, l2_bytes=0), PLENTY).cold
