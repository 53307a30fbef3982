"""The ceilings that records hold, worked by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench.ceilings import Ceilings, time_of
from bench.predict.roofline import predict_from_ceilings
from bench.records import MAY_BE_TOO_SHORT, Record
from bench.run import load_run
from kernels.op import Stage, Work, discover, implementations
from tests.support import ROOT
from tests.support.synthetic_run import TARGET, record


def timed(op: str, case: dict[str, Any], seconds: float, impl: str = "triton", **fields: Any) -> Record:
    """1 MB read in this time."""
    return record(op, impl, str(case), case=case, read=10**6, **{"samples_s": [seconds] * 3} | fields)


def test_beyond_the_measured_sizes() -> None:
    points = ((1000, 3e-6), (2000, 4e-6))
    assert time_of(points, 4000) == pytest.approx(8e-6)
    assert time_of(points, 500) == pytest.approx(2.5e-6)
    assert time_of(((1000, 3e-6),), 500) == pytest.approx(1.5e-6)


def test_the_links_rate_is_that_of_the_fastest_plain_copy() -> None:
    found = Ceilings.from_records(
        [
            timed("stream", {"kind": "read"}, 1e-6),
            timed("host_link", {"kind": "h2d"}, 25e-6),
            timed("host_link", {"kind": "d2h"}, 20e-6),
            timed("host_link", {"kind": "swap_out"}, 1e-6),
            timed("host_link", {"kind": "h2d"}, 1e-6, status="wrong"),
        ]
    )
    assert found is not None
    assert found.host_bandwidth == pytest.approx(5e10)


def test_ceilings_are_the_best_of_the_right_records() -> None:
    ceilings = Ceilings.from_records(
        [
            timed("stream", {"kind": "read"}, 2e-6),
            timed("stream", {"kind": "read"}, 1e-6, impl="torch", samples_s=[1.2e-6, 1e-6, 0.8e-6]),
            timed("stream", {"kind": "read"}, 1e-9, status="wrong"),
            timed("stream", {"kind": "read"}, 1e-9, flags=["impossible"]),
            timed("stream", {"kind": "launch"}, 4e-6, impl="torch"),
            timed("stream", {"kind": "launch"}, 3e-6),
            timed("gemm_peak", {}, 1e-3, flops={"mma_bf16": 10**9}),
            timed("ffn_gemv", {}, 1e-9),
        ]
    )
    assert ceilings is not None
    assert ceilings.read_points == ((10**6, 1e-6),)
    assert ceilings.best_read == pytest.approx(10**6 / 0.8e-6)
    assert ceilings.launch_s == 3e-6
    assert ceilings.pipes == {"mma_bf16": pytest.approx(1e12)}


@pytest.mark.parametrize("flag", sorted(MAY_BE_TOO_SHORT))
def test_a_time_that_may_be_too_short_makes_no_roof(flag: str) -> None:
    """3 TB/s as measured, 9 TB/s out of a warm cache."""
    doubtful = timed("stream", {"kind": "read"}, 1e6 / 9e12, flags=[flag, "noisy"])
    ceilings = Ceilings.from_records([timed("stream", {"kind": "read"}, 1e6 / 3e12, flags=["noisy"]), doubtful])
    assert ceilings is not None
    assert ceilings.read_roof == pytest.approx(3e12)
    assert ceilings.best_read == pytest.approx(3e12)
    assert Ceilings.from_records([doubtful]) is None


def test_a_read_of_the_l2_is_warm_by_intent() -> None:
    """4 MB in 1 us; the one that is faster than possible counts for nothing."""
    stages = [{"l2_bytes": 4 * 10**6}]
    ceilings = Ceilings.from_records(
        [
            timed("stream", {"kind": "read"}, 1e-6),
            timed("stream", {"kind": "l2_read"}, 2e-6, stages=stages, flags=["warm"], impl="torch"),
            timed("stream", {"kind": "l2_read"}, 1e-6, stages=stages, flags=["warm"]),
            timed("stream", {"kind": "l2_read"}, 1e-9, stages=stages, flags=["warm", "impossible"]),
        ]
    )
    assert ceilings is not None
    assert ceilings.l2_bandwidth == pytest.approx(4e12)


def test_a_stream_that_computes_is_told_by_its_share_of_the_read_and_by_how_much_longer_it_takes() -> None:
    """FLOPs for 0.5 us at 1 TFLOP/s; the read alone takes 1 us, and the stream 1.3 us. Without a peak there is none."""
    read, peak = timed("stream", {"kind": "read"}, 1e-6), timed("gemm_peak", {}, 1e-6, flops={"fma_fp32": 10**6})
    computing = timed("stream", {"kind": "fma_read"}, 1.3e-6, flops={"fma_fp32": 5 * 10**5})
    faster = timed("stream", {"kind": "fma_read"}, 0.9e-6, flops={"fma_fp32": 10**5})
    found = Ceilings.from_records([read, peak, computing, faster])
    assert found is not None
    assert found.fma_points == (pytest.approx((0.1, 1.0)), pytest.approx((0.5, 1.3)))
    without = Ceilings.from_records([read, computing])
    assert without is not None
    assert without.fma_points == ()


def test_no_ceilings_without_a_read() -> None:
    assert Ceilings.from_records([timed("ffn_gemv", {}, 1e-6)]) is None


# ---- the price of a load that waits for the load before it

READ = timed("stream", {"kind": "read"}, 1e-6)
LAUNCH = timed("stream", {"kind": "launch"}, 2e-6)


def chase(size: int, loads: int, met: int, seconds: float, *, l1: bool = False, **fields: Any) -> Record:
    """Two chains of `loads` loads, which meet `met` different lines each, 32 bytes a load."""
    case = {"kind": "chase", "size": size, "chains": 2, "loads": loads, "l1": l1}
    moved = {"read": 64 * met, "written": 8, "l2_bytes": 64 * (loads - met)}
    return record("stream", "triton", str(case), case=case, samples_s=[seconds] * 3, **moved, **fields)


def prices(*chases: Record) -> tuple[tuple[tuple[int, float], ...], tuple[tuple[int, float], ...]]:
    found = Ceilings.from_records([READ, LAUNCH, *chases])
    assert found is not None
    return found.memory_loads, found.cached_loads


def test_a_chase_that_meets_only_new_lines_gives_the_price_of_the_memory() -> None:
    """1,000 loads in 702 us, 2 us of which are the launch: 0.7 us each. The faster of two measurements counts."""
    far = chase(1 << 32, 1000, 1000, 702e-6)
    assert prices(far, chase(1 << 32, 1000, 1000, 802e-6)) == (((1 << 32, pytest.approx(0.7e-6)),), ())


def test_two_chases_over_one_array_give_the_price_of_a_cache() -> None:
    """The first meets 1,023 of a chain's 1,024 lines in 2 us + 1,023 x 0.6 us. The second has 4,096 loads more: one of
    them meets the last line, 4,095 find their line in the L2 in 0.25 us each."""
    once = chase(1 << 24, 1023, 1023, 2e-6 + 1023 * 0.6e-6)
    five = chase(1 << 24, 5119, 1024, 2e-6 + 1024 * 0.6e-6 + 4095 * 0.25e-6)
    memory, cached = prices(five, once)
    assert memory == ((1 << 24, pytest.approx(0.6e-6)),)
    assert cached == ((1 << 24, pytest.approx(0.25e-6)),)


def test_the_footprint_of_a_chain_that_an_l1_holds_is_its_share_of_the_array() -> None:
    once = chase(1 << 15, 127, 127, 2e-6 + 127 * 0.6e-6, l1=True)
    more = chase(1 << 15, 2175, 128, 2e-6 + 128 * 0.6e-6 + 2047 * 20e-9, l1=True)
    assert prices(once, more)[1] == ((1 << 14, pytest.approx(20e-9)),)


def test_passes_alone_give_no_price() -> None:
    """Nobody knows how long the first pass took."""
    five = chase(1 << 24, 5119, 1024, 2e-3)
    assert prices(five) == ((), ())
    # nor if the measurement without a second pass can't be trusted
    assert prices(five, chase(1 << 24, 1023, 1023, 1e-6, flags=["impossible"])) == ((), ())


def test_a_chase_that_takes_no_longer_than_a_launch_gives_no_price() -> None:
    assert prices(chase(1 << 24, 1023, 1023, 2e-6)) == ((), ())


def test_noise_that_would_make_a_cache_free_gives_no_price() -> None:
    once, five = chase(1 << 24, 1023, 1023, 2e-3), chase(1 << 24, 5119, 1024, 1.9e-3)
    assert prices(once, five)[1] == ()


def test_the_price_of_a_level_is_that_of_the_footprint_that_fits_it() -> None:
    """An L2 of 50 MB: 16 MiB take less than half of it, 32 MiB more. 16 KiB say nothing of an L2."""
    memory, cached = ((1 << 28, 0.6e-6), (1 << 32, 0.8e-6)), ((1 << 14, 2e-8), (1 << 21, 2e-7), (1 << 24, 2.5e-7))
    cached = (*cached, (1 << 25, 4e-7))
    found = Ceilings(read_points=((1, 1.0),), memory_loads=memory, cached_loads=cached)
    l2 = 50 << 20
    assert (found.load_seconds("l1", l2), found.load_seconds("l2", l2)) == (2e-8, 2.5e-7)
    assert found.load_seconds("dram", l2) == 0.8e-6
    assert found.load_seconds("l2", 6 << 20) == 2e-7
    assert found.load_seconds("l2", 1 << 20) is None
    unmeasured = Ceilings(read_points=((1, 1.0),))
    assert {unmeasured.load_seconds(level, l2) for level in ("l1", "l2", "dram")} == {None}


def test_a_chase_of_a_run_is_read_as_it_was_recorded() -> None:
    """Records of the operation's own cases and stages: 0.7 us in the memory, 0.2 us in the L2."""
    op = discover()["stream"]
    impl = next(impl for impl in implementations("stream")[0] if impl.name == "triton")
    found = [READ, LAUNCH]
    for case in (case for case in op.cases("quick") if case.kind == "chase"):
        (stage,) = impl.stages(case, TARGET)
        work = dataclasses.asdict(op.work(case))
        new = stage.work.bytes_read / 32 / case.chains
        again = stage.l2_bytes / 32 / case.chains
        assert new + again == case.loads
        made = record(
            "stream", "triton", case.id, case=case.as_dict(), samples_s=[2e-6 + new * 7e-7 + again * 2e-7] * 3
        )
        found.append(dataclasses.replace(made, work=work, stages=[dataclasses.asdict(stage)]))
    ceilings = Ceilings.from_records(found)
    assert ceilings is not None
    assert ceilings.load_seconds("dram", TARGET.l2_bytes) == pytest.approx(7e-7)
    assert ceilings.load_seconds("l2", TARGET.l2_bytes) == pytest.approx(2e-7)


def test_runs_from_before_there_were_chases_still_have_their_ceilings_and_predictions() -> None:
    """The committed runs: their stages know neither pieces nor chains, and their predictions keep what they said."""
    for path in sorted((ROOT / "reports").glob("*/*/records.jsonl")):
        run = load_run(path.parent)
        assert run.ceilings is not None
        said = [r for r in run.records if r.prediction.get("measured")]
        assert said, path
        for found in said:
            prediction = found.prediction["measured"]
            assert prediction["seconds"] > 0
            if "pieces" not in found.stages[0]:
                assert not {"chain", "issue"} & prediction["terms"].keys()
                stages = [Stage(**{**s, "work": Work(**s["work"])}) for s in found.stages]
                again = predict_from_ceilings(stages, run.ceilings, TARGET)
                assert not {"chain", "issue"} & again.terms.keys()
                assert not {"dependent_load", "issue_rate"} & set(again.missing)
