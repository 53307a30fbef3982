"""bench/units.py turns numbers into words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.judge.claims.words import amount
from bench.stats import Interval
from bench.units import brief, difference, digits, duration, measured, percent, ratio, si, signed, tick
from tests.support import ROOT


def around(value: float, by: float) -> Interval:
    return Interval(low=value - by, median=value, high=value + by)


ONE_SAMPLE = Interval(low=0.0, median=1e-6, high=float("inf"))


@pytest.mark.parametrize(
    ("said", "want"),
    [
        (digits(3.0012), "3.00"),
        (digits(81.24), "81.2"),
        (digits(642.4), "642"),
        (digits(12345.0), "12345"),
        (digits(0.03124), "0.0312"),
        (digits(0.0), "0"),
        (brief(3.0012), "3"),
        (brief(2.5), "2.5"),
        (brief(5498.2), "5,498"),
        (brief(1e-9), "0"),
        (si(3.35e12, "B/s"), "3.35 TB/s"),
        (si(989e12, "FLOP/s"), "989 TFLOP/s"),
        (si(999.9e6, "B"), "1.00 GB"),
        (si(0.0, "B"), "0 B"),
        (si(0.5, "B"), "0.500 B"),
        (duration(41.8e-3), "41.8 ms"),
        (duration(6.4e-7), "640 ns"),
        (duration(4.2e-11), "0.0420 ns"),
        (duration(7200.0), "7200 s"),
        (tick(2e-5, "s"), "20 µs"),
        (tick(1e12, ""), "1 T"),
        (percent(0.914), "91%"),
        (percent(0.003, 1), "0.3%"),
        (signed(-0.0001), "+0.0%"),
        (signed(0.031), "+3.1%"),
        (signed(54.317), "+5,432%"),
        (measured(around(1e-6, 1e-8)), "1.00 µs ±1.0%"),
        (measured(around(1e-6, 0.4e-6)), "1.00 µs [600 ns, 1.40 µs]"),
        (measured(ONE_SAMPLE), "1.00 µs (one sample)"),
        (ratio(around(1.342, 0.005)), "1.342 [1.337, 1.347]"),
        (ratio(around(-0.001, 0.02), 2), "0.00 [-0.02, 0.02]"),
        (difference(around(1.003, 0.004)), "+0.3% [-0.1%, +0.7%]"),
    ],
)
def test_numbers_as_people_read_them(said: str, want: str) -> None:
    assert said == want


@pytest.mark.parametrize(
    ("value", "unit", "want"),
    [
        (41.8e-3, "s", "41.8 ms"),
        (2.5e9, "B", "2.5 GB"),
        (0.45, "$", "$0.45"),
        (0.23, "", "23%"),
        (2.0, "x", "2x"),
        (295.0, "FLOP/B", "295 FLOP/B"),
        (float("inf"), "B", "∞"),
    ],
)
def test_claims_speak_the_same_units(value: float, unit: str, want: str) -> None:
    assert amount(value, unit) == want


def test_units_load_nothing_heavy() -> None:
    code = """
import sys
import bench.units
assert not {"torch", "triton", "matplotlib", "plotly", "pandas"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
