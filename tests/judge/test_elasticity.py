"""Elasticities of synthetic kernels whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.judge.elasticity import NotIdentified, Point, fit, of_records
from bench.records import Record
from tests.support.synthetic_run import record

GRID = [(size, flops) for size in (1e8, 2e8, 4e8) for flops in (1e9, 4e9, 1.6e10)]


def points(seconds, noise: float = 0.01) -> list[Point]:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    return [
        Point(
            bytes=int(size), flops=int(flops), samples_s=(seconds(size, flops) * rng.lognormal(0, noise, 30)).tolist()
        )
        for size, flops in GRID
    ]


def test_time_that_follows_bytes_is_memory_bound() -> None:
    result = fit(points(lambda size, flops: size / 3e12))
    assert result.bound == "memory"
    assert result.bytes.low < 1 < result.bytes.high
    assert abs(result.flops.median) < 0.01
    assert result.points == 9


def test_time_that_follows_flops_is_compute_bound() -> None:
    assert fit(points(lambda size, flops: flops / 7e14)).bound == "compute"


@pytest.mark.parametrize(
    "seconds",
    [
        lambda size, flops: 5e-6,
        lambda size, flops: (size * flops) ** 0.5 / 1e14,
        lambda size, flops: size / 3e12 + 1e-4,
        lambda size, flops: size / 3e12 + flops / 1e14,
    ],
    ids=["launch", "half and half", "large launch", "sum of both"],
)
def test_anything_else_is_neither(seconds) -> None:  # type: ignore[no-untyped-def]
    assert fit(points(seconds)).bound == "neither"


def test_noise_widens_the_interval_until_nothing_can_be_said() -> None:
    quiet = fit(points(lambda size, flops: size / 3e12))
    loud = fit(points(lambda size, flops: size / 3e12, noise=0.9))
    assert loud.bytes.high - loud.bytes.low > 10 * (quiet.bytes.high - quiet.bytes.low)
    assert loud.bound == "neither"


def test_the_exponents_are_those_of_a_power_law() -> None:
    result = fit(points(lambda size, flops: size**0.7 * flops**0.2 * 1e-12, noise=0.0))
    assert result.bytes.median == pytest.approx(0.7)
    assert result.flops.median == pytest.approx(0.2)
    assert result.residual < 1e-9


@pytest.mark.parametrize(("off", "bound"), [(0.14, "memory"), (0.16, "neither")])
@pytest.mark.parametrize("sign", [-1, 1])
def test_exponents_may_be_off_by_a_launch(off: float, bound: str, sign: int) -> None:
    by_bytes = fit(points(lambda size, flops: size ** (1 + sign * off) * 1e-13, noise=0.0))
    by_flops = fit(points(lambda size, flops: size * flops ** (sign * off) * 1e-13, noise=0.0))
    assert (by_bytes.bound, by_flops.bound) == (bound, bound)


def of(pairs: list[tuple[float, float]]) -> list[Point]:
    return [Point(bytes=int(b), flops=int(f), samples_s=[b / 3e12] * 2) for b, f in pairs]


def test_a_factor_of_one_and_a_half_is_enough_to_tell() -> None:
    assert fit(of([(1e8, 1e9), (1.6e8, 1e9), (1e8, 1.6e9)])).bound == "memory"
    with pytest.raises(NotIdentified, match="bytes vary by less"):
        fit(of([(1e8, 1e9), (1.4e8, 1e9), (1e8, 1.6e9)]))


def test_how_much_bytes_and_flops_vary_is_no_sign_of_varying_together() -> None:
    """Bytes vary by 2 and FLOPs by 2^10, each alone. Then both vary by much, but almost in proportion."""
    assert fit(of([(1e8, 1e9), (2e8, 1e9), (1e8, 1.024e12), (2e8, 1.024e12)])).bound == "memory"
    with pytest.raises(NotIdentified, match="vary together"):
        fit(of([(1e8, 1e9), (1e9, 1e10), (1e10, 1.1e11), (1e11, 1e12)]))


def test_cases_that_cannot_tell_bytes_from_flops_are_refused() -> None:
    with pytest.raises(NotIdentified, match="vary together"):
        fit(of([(1e8, 1e9), (2e8, 2e9), (4e8, 4e9)]))
    with pytest.raises(NotIdentified, match="FLOPs vary by less"):
        fit(of([(1e8, 1e9), (2e8, 1e9), (4e8, 1e9)]))
    with pytest.raises(NotIdentified, match="bytes vary by less"):
        fit(of([(1e8, 1e9), (1e8, 2e9), (1e8, 4e9)]))
    with pytest.raises(NotIdentified, match="two samples"):
        fit([Point(bytes=p.bytes, flops=p.flops, samples_s=p.samples_s[:1]) for p in points(lambda b, f: b)])
    with pytest.raises(NotIdentified, match="at least three"):
        fit(of([(1e8, 1e9), (2e8, 2e9)]))


def timed(impl: str, size: int, flops: int, status: str = "ok") -> Record:
    given = {"seconds": size / 3e12} if status == "ok" else {}
    return record("ffn_gemv", impl, f"{size}-{flops}", read=size, flops={"mma_bf16": flops}, status=status, **given)


def test_records_of_one_implementation_are_fitted_and_failed_ones_left_out() -> None:
    records = [timed("ours", int(size), int(flops)) for size, flops in GRID]
    result = of_records([*records, timed("ours", 10**8, 10**9, status="wrong")])
    assert result.points == len(GRID)
    assert result.bytes.median == pytest.approx(1)
    with pytest.raises(ValueError, match="several implementations"):
        of_records([*records, timed("torch", 10**8, 10**9)])
