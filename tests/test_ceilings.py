"""The ceilings that records hold, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.ceilings import Ceilings, time_of
from bench.records import MAY_BE_TOO_SHORT, Record
from tests.support.synthetic_run import record


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


def test_no_ceilings_without_a_read() -> None:
    assert Ceilings.from_records([timed("ffn_gemv", {}, 1e-6)]) is None
