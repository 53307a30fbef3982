"""Terms of the model beyond bytes and FLOPs: chained loads, issue slots, uneven pieces. Worked by hand."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Mapping, Sequence

import pytest

from bench.ceilings import Ceilings
from bench.devices import DEVICES, DeviceSpec, Quantity
from bench.predict.roofline import (
    measured_terms,
    predict_from_ceilings,
    predict_from_datasheet,
    slot_sizes,
    sum_up,
    tail_seconds,
    with_core,
)
from kernels.mla_decode.op import MlaCase
from kernels.op import Stage, Target, Work, discover, implementations

GPU = Target(kind="cuda", name="a part of 100 SMs", sm=90, sm_count=100, l2_bytes=50 << 20)
H100 = DEVICES["h100-sxm"].target()
# 2 us launch, 1 TB/s read; at 1.5 GHz 100 SMs do 100 x 128 multiply-adds a clock
READ = tuple((size, 2e-6 + size / 1e12) for size in (1 << 20, 1 << 24, 1 << 28))
FMA = 100 * 128 * 2 * 1.5e9
CEILINGS = Ceilings(
    read_points=READ,
    launch_s=2e-6,
    l2_bandwidth=4e12,
    pipes={"mma_bf16": 0.8e14, "fma_fp32": FMA},
    memory_loads=((1 << 32, 0.7e-6),),
    cached_loads=((1 << 14, 0.02e-6), (1 << 24, 0.25e-6)),
)


def stage(read: int = 0, flops: int = 0, **more: object) -> Stage:
    work = Work(flops={"mma_bf16": flops} if flops else {}, bytes_read=read)
    return Stage(name="stage", work=work, **more)  # type: ignore[arg-type]


# ---- a host, whose cores do not hide all arithmetic behind their loads

HOST = Ceilings(
    read_points=((1 << 30, (1 << 30) / 1e10),),
    pipes={"fma_fp32": 1e11},
    fma_points=((0.25, 1.1), (1.0, 1.6)),
)


@pytest.mark.parametrize(
    ("flops", "bend"),
    [
        (0, 0.0),
        (25 * 10**9, 0.1),  # 0.25 s of arithmetic: the first stream that was measured
        (50 * 10**9, 1.1 + 0.5 / 3 - 1),  # a third of the way to the second
        (100 * 10**9, 0.6),
        (300 * 10**9, 0.6),  # all further FLOPs come on top of those of the last stream
    ],
)
def test_bytes_and_flops_together_take_as_long_as_a_stream_with_as_many(flops: int, bend: float) -> None:
    """10^10 bytes take a second alone, and 10^11 FLOPs too."""
    work = Work(flops={"fma_fp32": flops} if flops else {}, bytes_read=10**10)
    prediction = predict_from_ceilings([Stage(name="stage", work=work)], HOST, Target(kind="cpu", name="a host"))
    assert prediction.terms.get("bend", 0.0) == pytest.approx(bend, abs=1e-9)
    assert prediction.seconds == pytest.approx(max(1.0, flops / 1e11) + bend)
    assert prediction.bound == ("fma_fp32" if flops > 10**11 else "memory")


@pytest.mark.parametrize(
    ("core", "seconds", "bound"),
    [
        (0.25, 1.1, "memory"),  # as the first stream that was measured
        (1.0, 1.6, "memory"),
        (4.0, 4.6, "core"),  # all further instructions come on top
    ],
)
def test_instructions_timed_in_the_caches_stand_for_the_flops(core: float, seconds: float, bound: str) -> None:
    """10^10 bytes take a second. The FLOPs alone would take a millisecond at the peak."""
    work = Work(flops={"fma_fp32": 10**8}, bytes_read=10**10)
    terms = measured_terms(Stage(name="stage", work=work), HOST, Target(kind="cpu", name="a host"))
    found = with_core([terms], core, HOST)
    assert found.keys() == {"launch", "memory", "core", "bend"}
    together = sum_up([found], "")
    assert (together.seconds, together.bound) == (pytest.approx(seconds), bound)


# ---- loads that wait for each other

CHAINED = stage(read=8 * 10**6, loads_before={"dram": 3}, loads_after={"l2": 3})
"""A list, a query and a page id before the stream; a store, an arrival and a read of parts behind it."""


def test_chained_loads_add_to_the_stream() -> None:
    """8 MB: 10 us. Before it 3 x 0.7 us, behind it 3 x 0.25 us."""
    prediction = predict_from_ceilings([CHAINED], CEILINGS, GPU)
    assert prediction.terms["memory"] == pytest.approx(10e-6, rel=1e-6)
    assert prediction.terms["chain"] == pytest.approx(2.85e-6)
    assert prediction.seconds == pytest.approx(12.85e-6, rel=1e-6)
    assert (prediction.bound, prediction.missing) == ("memory", ())


def test_chained_loads_of_all_stages_count_and_can_be_what_takes_longest() -> None:
    """Two launches of 2 us that move 1 KB, with 10 loads of the L2 and 5 of the memory: 2 x 2.5 us and 2 x 3.5 us."""
    small = stage(read=1000, loads_before={"l2": 10, "dram": 5})
    prediction = predict_from_ceilings([small, small], CEILINGS, GPU)
    assert prediction.terms["chain"] == pytest.approx(12e-6)
    assert prediction.seconds == pytest.approx(16e-6, rel=1e-2)
    assert prediction.bound == "chain"


@pytest.mark.parametrize(
    "unmeasured",
    [{"memory_loads": ()}, {"cached_loads": ()}, {"cached_loads": ((1 << 14, 0.02e-6),)}],
    ids=["no memory", "no cache", "only an L1"],
)
def test_without_its_price_a_chain_is_left_out_and_the_prediction_says_so(unmeasured: Mapping[str, tuple]) -> None:
    prediction = predict_from_ceilings([CHAINED], dataclasses.replace(CEILINGS, **unmeasured), GPU)
    assert prediction.missing == ("dependent_load",)
    assert prediction.seconds == pytest.approx(10e-6, rel=1e-6)
    assert "chain" not in prediction.terms
    unchained = predict_from_ceilings([stage(read=8 * 10**6)], dataclasses.replace(CEILINGS, **unmeasured), GPU)
    assert unchained.missing == ()


# ---- issue slots


def test_instructions_take_issue_slots() -> None:
    """100 SMs start 128 instructions of threads a clock, 1.92e13 a second: 1.92e9 take 100 us behind a launch. The 50
    MB take 52 us meanwhile."""
    prediction = predict_from_ceilings([stage(read=50 * 10**6, instructions=1_920_000_000)], CEILINGS, GPU)
    assert prediction.seconds == prediction.terms["issue"] == pytest.approx(102e-6)
    assert prediction.terms["memory"] == pytest.approx(52e-6, rel=1e-6)
    assert prediction.bound == "issue"


def test_half_as_many_lanes_of_the_fp32_pipe_take_half_the_slots() -> None:
    """An A100's SM has 64 of them and starts as many instructions: for the same FLOP/s it has twice the clocks."""
    sm_80 = dataclasses.replace(GPU, sm=80)
    prediction = predict_from_ceilings([stage(instructions=1_920_000_000)], CEILINGS, sm_80)
    assert prediction.terms["issue"] == pytest.approx(52e-6)


def test_without_the_rate_instructions_are_left_out_and_the_prediction_says_so() -> None:
    busy = [stage(read=8 * 10**6, instructions=10**12)]
    unmeasured = dataclasses.replace(CEILINGS, pipes={})
    unknown = dataclasses.replace(GPU, sm=0)
    for prediction in (predict_from_ceilings(busy, unmeasured, GPU), predict_from_ceilings(busy, CEILINGS, unknown)):
        assert prediction.missing == ("issue_rate",)
        assert prediction.seconds == pytest.approx(10e-6, rel=1e-6)


def test_the_datasheet_has_issue_slots_too() -> None:
    """The same part on paper, where a launch and a chain cost nothing."""

    def quantity(value: float, unit: str) -> Quantity:
        return Quantity(value=value, unit=unit, kind="datasheet", source="test")

    spec = DeviceSpec(
        key="made-up",
        name="made up",
        vendor="test",
        year=2026,
        sm=90,
        memory_bandwidth=quantity(1e12, "B/s"),
        peaks={"fma_fp32": quantity(FMA, "FLOP/s")},
    )
    busy = dataclasses.replace(CHAINED, instructions=1_920_000_000)
    prediction = predict_from_datasheet([busy], spec)
    assert prediction.terms == pytest.approx({"memory": 8e-6, "issue": 100e-6})
    assert prediction.missing == ()
    no_peak = dataclasses.replace(spec, peaks={})
    assert predict_from_datasheet([busy], no_peak).missing == ("issue_rate",)


# ---- pieces of different sizes


def scheduled(sizes: Sequence[int], slots: int, sm_count: int, l2: float, roof: float) -> float:
    """Seconds for CTAs of so many bytes that start in this order, event by event: all that are resident move at the
    same rate, and the next starts where one ends."""
    waiting, running, now = deque(sizes), [], 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(float(waiting.popleft()))
        rate = min(roof, min(len(running), sm_count) * l2 / sm_count) / len(running)
        step = min(running)
        now += step / rate
        running = [left - step for left in running if left - step > 1e-6]
    return now


def test_list_scheduling_by_hand() -> None:
    """3 3 2 2 2 on two slots: 3 and 3, then 2 and 2, then the last 2: 7 and 5."""
    uneven = stage(ctas=5, pieces=((2, 3), (3, 2)))
    assert sorted(slot_sizes(uneven, 2)) == [5, 7]
    assert sorted(slot_sizes(uneven, 8)) == [2, 2, 2, 3, 3]
    assert slot_sizes(stage(ctas=5), 2) == [3, 2]
    assert slot_sizes(stage(ctas=1), 2) == [1]


def test_the_tail_of_uneven_pieces_by_hand() -> None:
    """7 and 5 MB on two SMs that share 1 TB/s and can draw 0.75 TB/s each from an L2: 10 MB at 1 TB/s, then 2 MB at
    0.75: 12.67 us, 0.67 us more than 12 MB take at the roof."""
    two = dataclasses.replace(GPU, sm_count=2)
    ceilings = Ceilings(read_points=((10**12, 1.0),), l2_bandwidth=1.5e12)
    uneven = stage(read=12 * 10**6, ctas=5, pieces=((2, 3), (3, 2)))
    assert tail_seconds(uneven, ceilings, two) == pytest.approx(2e6 / 0.75e12 - 2e6 / 1e12)
    # the old rule took them for three equal waves, the last of one CTA: 2.4 MB at 0.75 TB/s
    assert tail_seconds(dataclasses.replace(uneven, pieces=()), ceilings, two) > tail_seconds(uneven, ceilings, two)


@pytest.mark.parametrize("seed", range(6))
def test_the_tail_is_that_of_a_schedule_event_by_event(seed: int) -> None:
    rng = random.Random(seed)
    sm_count, per_sm = rng.choice([4, 7]), rng.choice([1, 3])
    part = dataclasses.replace(GPU, sm_count=sm_count)
    sizes = sorted((rng.randint(1, 50) for _ in range(rng.randint(1, 40))), reverse=rng.random() < 0.5)
    uneven = stage(
        read=1000 * sum(sizes), ctas=len(sizes), ctas_per_sm=per_sm, pieces=tuple((1, size) for size in sizes)
    )
    roof = CEILINGS.read_roof
    expected = scheduled([1000 * size for size in sizes], sm_count * per_sm, sm_count, 4e12, roof)
    assert 1000 * sum(sizes) / roof + tail_seconds(uneven, CEILINGS, part) == pytest.approx(expected)


MLA = next(impl for impl in implementations("mla_decode")[0] if impl.build)
SCHEDULED = [c for c in discover()["mla_decode"].cases("full") if c.B > 1 and MLA.supports(c, H100) is None]


@pytest.mark.parametrize("case", SCHEDULED, ids=lambda c: c.id)
def test_mla_is_as_long_as_its_schedule_and_no_longer(case: MlaCase) -> None:
    """Its pieces are cut from equal runs, one for each SM, and the longest start first. So the SMs end within a few
    percent of each other. Taken for equal waves they seemed to take up to 30% longer than the bytes."""
    main = MLA.stages(case, H100)[0]
    sizes = [size for count, size in main.pieces for _ in range(count)]
    assert len(sizes) == main.ctas
    assert sizes == sorted(sizes, reverse=True)
    read = {"read_points": ((1 << 30, (1 << 30) / 3e12),)}
    ceilings = Ceilings(**read, l2_bandwidth=5.5e12)  # type: ignore[arg-type]
    alone = main.work.bytes / 3e12
    unit = main.work.bytes / sum(sizes)
    expected = scheduled([round(size * unit) for size in sizes], 132, 132, 5.5e12, 3e12)
    assert alone + tail_seconds(main, ceilings, H100) == pytest.approx(expected, rel=1e-3)
    assert tail_seconds(main, ceilings, H100) < 0.08 * alone
