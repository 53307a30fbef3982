"""Predictions worked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from bench.ceilings import Ceilings
from bench.devices import DeviceSpec, Quantity
from bench.measure.case import usable
from bench.predict.roofline import predict_from_ceilings, predict_from_datasheet
from kernels.op import Stage, Target, Work

GPU = Target(kind="cuda", name="a part of 100 SMs", sm=90, sm_count=100, l2_bytes=50 << 20)
SPEC = DeviceSpec(
    key="made-up",
    name="made up",
    vendor="test",
    year=2026,
    memory_bandwidth=Quantity(value=1e12, unit="B/s", kind="datasheet", source="test"),
    host_bandwidth=Quantity(value=5e10, unit="B/s", kind="datasheet", source="test"),
    peaks={"mma_bf16": Quantity(value=1e14, unit="FLOP/s", kind="datasheet", source="test")},
)
# 2 us launch, 1 TB/s read, 0.5 TB/s copy
READ = tuple((size, 2e-6 + size / 1e12) for size in (1 << 20, 1 << 24, 1 << 28))
COPY = tuple((size, 2e-6 + size / 0.5e12) for size in (1 << 20, 1 << 24, 1 << 28))
CEILINGS = Ceilings(read_points=READ, copy_points=COPY, launch_s=2e-6, l2_bandwidth=4e12, pipes={"mma_bf16": 0.8e14})


def stage(read: int = 0, written: int = 0, flops: int = 0, **more: int) -> Stage:
    work = Work(flops={"mma_bf16": flops}, bytes_read=read, bytes_written=written)
    return Stage(name="stage", work=work, **more)


def test_datasheet_memory_bound() -> None:
    """100 MB at 1 TB/s: 100 us; 1 GFLOP at 100 TFLOP/s: 10 us."""
    prediction = predict_from_datasheet([stage(read=10**8, flops=10**9)], SPEC)
    assert prediction.seconds == pytest.approx(100e-6)
    assert prediction.bound == "memory"
    assert prediction.terms == pytest.approx({"memory": 100e-6, "mma_bf16": 10e-6})


def test_datasheet_compute_bound_and_stages_add() -> None:
    """10 MB and 10 GFLOP: 100 us by the pipe; a second stage of 50 MB: 50 us."""
    prediction = predict_from_datasheet([stage(read=10**7, flops=10**10), stage(read=5 * 10**7)], SPEC)
    assert prediction.seconds == pytest.approx(150e-6)
    assert prediction.bound == "mma_bf16"


def test_the_bound_is_the_roof_under_which_most_time_is_spent() -> None:
    """Two stages take 100 us under their pipe, with 60 us of memory; a third takes 150 us of memory.

    The memory terms sum to 270 us, but 200 of the 350 us are spent under the pipe.
    """
    stages = [*[stage(read=60 * 10**6, flops=10**10)] * 2, stage(read=150 * 10**6)]
    by_datasheet = predict_from_datasheet(stages, SPEC)
    assert by_datasheet.seconds == pytest.approx(350e-6)
    assert by_datasheet.terms["memory"] > by_datasheet.terms["mma_bf16"]
    assert by_datasheet.bound == "mma_bf16"
    measured = predict_from_ceilings(stages, CEILINGS, GPU)
    assert measured.terms["memory"] > measured.terms["mma_bf16"]
    assert measured.bound == "mma_bf16"


def test_a_peak_that_nobody_published_is_named() -> None:
    work = Work(flops={"mma_fp4": 10**9}, bytes_read=10**6)
    prediction = predict_from_datasheet([Stage(name="s", work=work)], SPEC)
    assert prediction.missing == ("mma_fp4",)
    assert prediction.seconds == pytest.approx(1e-6)


def test_measured_memory_time_is_read_off_the_stream() -> None:
    """8 MB lie between measured sizes and take 2 us + 8 us, which includes the launch once."""
    prediction = predict_from_ceilings([stage(read=8 * 10**6)], CEILINGS, GPU)
    assert prediction.seconds == pytest.approx(10e-6, rel=1e-6)


def test_half_written_follows_the_copy() -> None:
    prediction = predict_from_ceilings([stage(read=4 * 10**6, written=4 * 10**6)], CEILINGS, GPU)
    assert prediction.seconds == pytest.approx(2e-6 + 8e6 / 0.5e12, rel=1e-6)


def test_a_quarter_written_lies_between() -> None:
    prediction = predict_from_ceilings([stage(read=6 * 10**6, written=2 * 10**6)], CEILINGS, GPU)
    assert prediction.seconds == pytest.approx((10e-6 + 18e-6) / 2, rel=1e-6)


def test_what_is_only_written_takes_as_long_as_a_copy() -> None:
    assert CEILINGS.memory_seconds(0, 8 * 10**6) == pytest.approx(CEILINGS.memory_seconds(4 * 10**6, 4 * 10**6))


def test_without_a_measured_copy_all_is_read_and_nothing_beats_an_empty_launch() -> None:
    one_read = Ceilings(read_points=((10**6, 4e-6),), launch_s=2e-6)
    assert one_read.memory_seconds(10**6, 10**6) == pytest.approx(8e-6)
    assert one_read.memory_seconds(1000, 0) == one_read.memory_seconds(0, 0) == 2e-6


def test_the_read_curve_as_a_bandwidth() -> None:
    """8 MB in 2 us + 8 us."""
    assert CEILINGS.read(8 * 10**6) == pytest.approx(0.8e12)
    assert CEILINGS.read(0) == CEILINGS.read_roof == pytest.approx(2**28 / (2e-6 + 2**28 / 1e12))


@pytest.mark.parametrize(("size", "bound"), [(1_900_000, "launch"), (2_100_000, "memory")])
def test_a_launch_bounds_what_it_takes_most_of(size: int, bound: str) -> None:
    """2 us of launch and 1.9 or 2.1 us for the bytes."""
    assert predict_from_ceilings([stage(read=size)], CEILINGS, GPU).bound == bound


@pytest.mark.parametrize("size", [1000, 1 << 20, 8 * 10**6, 1 << 24])
def test_a_copy_of_one_measured_size_still_pays_launch_and_ramp(size: int) -> None:
    """256 MiB copied: the line through that point and the origin is 0.5 TB/s without a launch."""
    reads = ((1 << 20, 4e-6), (1 << 24, 40e-6), (1 << 28, 2.7e-4))
    ceilings = dataclasses.replace(CEILINGS, read_points=reads, copy_points=COPY[-1:])
    half = predict_from_ceilings([stage(read=size // 2, written=size // 2)], ceilings, GPU).seconds
    assert half >= predict_from_ceilings([stage(read=size)], ceilings, GPU).seconds


def test_every_stage_pays_its_launch() -> None:
    prediction = predict_from_ceilings([stage(read=100), stage(read=100)], CEILINGS, GPU)
    assert prediction.seconds == pytest.approx(4e-6, rel=1e-2)
    assert prediction.bound == "launch"


def test_compute_bound_by_the_measured_pipe() -> None:
    prediction = predict_from_ceilings([stage(read=10**6, flops=8 * 10**9)], CEILINGS, GPU)
    assert prediction.seconds == pytest.approx(2e-6 + 8e9 / 0.8e14)
    assert prediction.bound == "mma_bf16"


def test_l2_bytes_are_moved_at_the_rate_of_the_l2() -> None:
    prediction = predict_from_ceilings([stage(read=10**6, l2_bytes=99 * 10**6)], CEILINGS, GPU)
    assert prediction.seconds == pytest.approx(2e-6 + 100e6 / 4e12)
    assert prediction.bound == "l2"


def test_the_link_to_the_host_by_the_datasheet() -> None:
    """100 MB read at 1 TB/s: 100 us; sent at 50 GB/s: 2 ms. A stage that sends nothing has no such term."""
    prediction = predict_from_datasheet([stage(read=10**8, link_bytes=10**8), stage(read=10**8)], SPEC)
    assert prediction.seconds == pytest.approx(2e-3 + 100e-6)
    assert prediction.terms == pytest.approx({"memory": 200e-6, "mma_bf16": 0, "link": 2e-3})
    assert prediction.bound == "link"
    assert not prediction.missing


def test_the_link_to_the_host_as_measured() -> None:
    """1 MB at 40 GB/s takes 25 us and a launch. The 1 us of its memory does not matter."""
    linked = dataclasses.replace(CEILINGS, host_bandwidth=4e10)
    prediction = predict_from_ceilings([stage(written=10**6, link_bytes=10**6)], linked, GPU)
    assert prediction.seconds == pytest.approx(2e-6 + 25e-6)
    assert prediction.bound == "link"
    assert not prediction.missing


def test_a_link_that_nobody_knows_is_named_and_the_prediction_not_used() -> None:
    sent = [stage(read=10**6, link_bytes=10**6)]
    unpublished = predict_from_datasheet(sent, dataclasses.replace(SPEC, host_bandwidth=None))
    unmeasured = predict_from_ceilings(sent, CEILINGS, GPU)
    assert unpublished.missing == unmeasured.missing == ("host_bandwidth",)
    assert usable(unpublished) is None
    assert usable(unmeasured) is None
    assert usable(None) is None
    assert (usable(predict_from_datasheet(sent, SPEC)) or {})["bound"] == "link"


def test_the_last_wave_of_one_cta_draws_one_sms_share() -> None:
    """101 CTAs on 100 SMs: the last holds 1 MB and moves it at 4 TB/s / 100 = 40 GB/s: 25 us instead of its 1 us.

    Two of half the size, after a wave of 200, at twice that rate.
    """
    size = 101 * 10**6
    full = predict_from_ceilings([stage(read=size)], CEILINGS, GPU).seconds
    tailed = predict_from_ceilings([stage(read=size, ctas=101)], CEILINGS, GPU).seconds
    roof = CEILINGS.read_roof
    assert tailed - full == pytest.approx(1e6 / 40e9 - 1e6 / roof, rel=1e-6)
    two = predict_from_ceilings([stage(read=size, ctas=202, ctas_per_sm=2)], CEILINGS, GPU).seconds
    assert two - full == pytest.approx(2 * 0.5e6 / 80e9 - 1e6 / roof, rel=1e-6)


def test_a_tail_is_not_known_without_the_rate_of_the_l2() -> None:
    unknown = dataclasses.replace(CEILINGS, l2_bandwidth=None)
    tailed = predict_from_ceilings([stage(read=10**8, ctas=101)], unknown, GPU)
    assert tailed == predict_from_ceilings([stage(read=10**8)], unknown, GPU)


def test_a_full_wave_and_a_half_wave_that_still_saturates_cost_nothing() -> None:
    full = predict_from_ceilings([stage(read=10**8)], CEILINGS, GPU).seconds
    assert predict_from_ceilings([stage(read=10**8, ctas=200)], CEILINGS, GPU).seconds == full
    assert predict_from_ceilings([stage(read=10**8, ctas=150)], CEILINGS, GPU).seconds == pytest.approx(full)
    two_an_sm = stage(read=10**8, ctas=301, ctas_per_sm=2)
    assert predict_from_ceilings([two_an_sm], CEILINGS, GPU).seconds == pytest.approx(full)
