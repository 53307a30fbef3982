"""bench/judge/compare.py on synthetic runs whose ratios are known."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.judge.compare import as_dict, compare, lines, main_table
from bench.judge.resolution import reach, side
from bench.records import Record
from bench.run import load_run
from bench.stats import Interval, ratio_interval
from bench.units import percent
from tests.support.synthetic_run import ceiling_records, header, pair, record, samples, write_run

MB = 10**6


def timed(case_id: str, seconds: float, spread: float = 0.002, **changes: object) -> Record:
    found = record("ffn_gemv", "triton_gemv", case_id, read=100 * MB)
    return dataclasses.replace(found, samples_s=samples(seconds, spread=spread), **changes)  # type: ignore[arg-type]


def two(tmp_path: Path, a: list[Record], b: list[Record], **changes: Any) -> tuple[Path, Path]:
    return write_run(tmp_path / "a", a), write_run(tmp_path / "b", b, **changes)


def test_verdicts(tmp_path: Path) -> None:
    steady = {"faster": 0.9e-4, "slower": 1.1e-4, "same": 1.001e-4}
    before = [timed(name, 1e-4) for name in steady] + [timed("undecided", 1e-4, spread=0.2)]
    after = [timed(name, t) for name, t in steady.items()] + [timed("undecided", 1.02e-4, spread=0.2)]
    comparison = compare(*two(tmp_path, before, after))
    assert {m.case_id: m.verdict for m in comparison.matches} == {name: name for name in (*steady, "undecided")}
    slower = next(m for m in comparison.matches if m.case_id == "slower")
    assert slower.ratio.median == pytest.approx(1.1)
    assert slower.ratio.low > 1.09
    assert comparison.exit_code == 1
    assert comparison.differences == ()
    assert lines(comparison)[-1] == "of 4 times: 1 slower, 1 undecided, 1 same, 1 faster"
    headers, rows = main_table(comparison)
    assert [row[headers.index("verdict")] for row in rows] == ["slower", "undecided", "same", "faster"]
    assert rows[0][headers.index("b / a")].startswith("1.100 [")


def verdicts(a: Path, b: Path) -> dict[str, str]:
    return {m.case_id: m.verdict for m in compare(a, b).matches}


@pytest.mark.parametrize(("sign", "word"), [(1, "slower"), (-1, "faster")])
def test_a_time_differs_only_if_its_whole_interval_is_beyond_one_percent(tmp_path: Path, sign: int, word: str) -> None:
    """`same` if the whole interval is within 1%. `undecided` if a part of it is: 1.02% may really be half a percent."""
    before = [timed(name, 1e-4, spread=0.0005) for name in ("near", "edge", "far")]
    after = [
        timed(name, (1 + sign * change) * 1e-4, spread=spread)
        for name, change, spread in (("near", 0.008, 0.0005), ("edge", 0.0102, 0.01), ("far", 0.012, 0.0005))
    ]
    a, b = two(tmp_path, before, after)
    edge = compare(a, b).matches[1].ratio
    assert (edge.low > 1) if sign > 0 else (edge.high < 1)
    assert verdicts(a, b) == {"near": "same", "edge": "undecided", "far": word}


def test_what_the_runs_cannot_resolve_is_undecided(tmp_path: Path) -> None:
    """ffn_gemv measured twice differed by 5%. So 4% more is no regression of it, but 6% is, and 4% of another op is."""
    steady = {"near": 1.04e-4, "far": 1.06e-4}
    before = [*(timed(name, 1e-4) for name in steady), dataclasses.replace(timed("other", 1e-4), op="moe_ffn")]
    after = [*(timed(name, t) for name, t in steady.items())]
    after.append(dataclasses.replace(timed("other", 1.04e-4), op="moe_ffn"))
    a, b = two(tmp_path, before, after, notes=[pair(samples(1e-4), samples(1.05e-4))])
    assert verdicts(a, b) == {"near": "undecided", "far": "slower", "other": "slower"}


def test_a_lucky_draw_of_a_noisy_pair_resolves_nothing(tmp_path: Path) -> None:
    """Both medians of the pair are equal, but its interval reaches to about 10%. So 4% mean nothing and 20% do."""
    noisy = pair(samples(1e-4, seed=1, spread=0.2), samples(1e-4, seed=2, spread=0.2))
    after = [timed("near", 1.04e-4), timed("far", 1.2e-4)]
    a, b = two(tmp_path, [timed("near", 1e-4), timed("far", 1e-4)], after, notes=[noisy])
    comparison = compare(a, b)
    assert 0.05 < comparison.resolutions["ffn_gemv"] < 0.19
    assert verdicts(a, b) == {"near": "undecided", "far": "slower"}


def test_the_pair_with_the_widest_interval_counts_and_one_sample_resolves_nothing(tmp_path: Path) -> None:
    narrow, wide = pair(samples(1e-4), samples(1e-4)), pair(samples(1e-4), samples(1.05e-4))
    a = write_run(tmp_path / "a", [timed("x", 1e-4)], notes=[wide])
    b = write_run(tmp_path / "b", [timed("x", 1.04e-4)], notes=[narrow])
    assert compare(a, b).resolutions["ffn_gemv"] == pytest.approx(0.05, abs=0.005)
    comparison = compare(a, write_run(tmp_path / "c", [timed("x", 1.04e-4)], notes=[narrow, pair([1e-4], [1e-4])]))
    assert comparison.matches[0].verdict == "undecided"
    assert as_dict(comparison)["resolutions"] == {"ffn_gemv": None}
    json.dumps(as_dict(comparison), allow_nan=False)


def test_a_run_is_the_same_as_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [timed("x", 1e-4), timed("y", 2e-4)])
    comparison = compare(run, run)
    assert [m.verdict for m in comparison.matches] == ["same", "same"]
    assert comparison.exit_code == 0


def test_differences_come_first_and_name_both_sides(tmp_path: Path) -> None:
    environment = header()["environment"] | {"packages": {"torch": "2.15.0", "triton": "3.6.0"}, "time": "later"}
    runs = two(tmp_path, [timed("x", 1e-4)], [timed("x", 1e-4)], suite="full", environment=environment)
    comparison = compare(*runs)
    said = [line for line in lines(comparison) if line.startswith("differs")]
    assert said == ["differs: suite: quick -> full", "differs: environment.packages.torch: 2.11.0 -> 2.15.0"]
    assert lines(comparison).index(said[0]) < len(lines(comparison)) - 1


def test_two_parts_are_compared_with_their_roofs(tmp_path: Path) -> None:
    """Reads take twice as long in b, so its roof is half of a's. A case should take twice as long there too."""
    a = [*ceiling_records(), timed("follows", 1e-4), timed("lags", 1e-4)]
    slow = [dataclasses.replace(r, samples_s=[2 * s for s in r.samples_s]) for r in ceiling_records()]
    b = [*slow, timed("follows", 2e-4), timed("lags", 2.4e-4)]
    comparison = compare(*two(tmp_path, a, b, device={"key": None, "name": "Another GPU"}))
    found = {m.case_id: m for m in comparison.matches if m.op == "ffn_gemv"}
    assert found["follows"].expected == pytest.approx(2.0)
    assert found["follows"].verdict == "same"
    assert found["lags"].verdict == "slower"
    lag = found["lags"]
    assert lag.relative.median == pytest.approx(1.2)
    assert (lag.relative.low, lag.relative.high) == pytest.approx((lag.ratio.low / 2, lag.ratio.high / 2))
    assert comparison.exit_code == 0
    headers, rows = main_table(comparison)
    lags = next(row for row in rows if row[1] == "lags")
    assert lags[headers.index("against the roofs")].startswith("+20.0%")
    said = lines(comparison)
    assert "differs: device.name: Synthetic GPU -> Another GPU" in said
    (parts,) = [line for line in said if line.startswith("two parts")]
    assert parts.endswith("a case that follows the roof takes 2.00 times as long on b")
    assert not any(line.startswith("two parts") for line in lines(compare(comparison.a, comparison.a)))


def test_two_parts_without_a_measured_roof_are_refused(tmp_path: Path) -> None:
    for name, a, b in (("a", [], ceiling_records()), ("b", ceiling_records(), []), ("a", [], [])):
        runs = two(tmp_path, [*a, timed("x", 1e-4)], [*b, timed("x", 1e-4)], device={"name": "Another GPU"})
        with pytest.raises(BadRequest, match=f"{tmp_path / name} holds no read of `stream`"):
            compare(*runs)
        for run in runs:
            shutil.rmtree(run)


def test_a_gpu_and_a_cpu_are_refused(tmp_path: Path) -> None:
    runs = two(tmp_path, [timed("x", 1e-4)], [timed("x", 1e-4)], target={"kind": "cpu", "name": "a CPU"})
    with pytest.raises(BadRequest, match=r"on a GPU and .* on a CPU"):
        compare(*runs)


def test_nothing_in_common_is_exit_code_2(tmp_path: Path) -> None:
    refused = record("ffn_gemv", "triton_gemv", "y", status="refused", reason="needs sm_90")
    wrong = timed("y", 1e-4, status="wrong", impl="torch")
    comparison = compare(*two(tmp_path, [timed("x", 1e-4), refused, wrong], [timed("y", 1e-4)]))
    assert comparison.exit_code == 2
    assert comparison.only_a == (("ffn_gemv", "triton_gemv", "x"),)
    assert comparison.only_b == (("ffn_gemv", "triton_gemv", "y"),)
    assert lines(comparison)[-1].startswith("cannot compare")


def test_a_redefined_case_is_left_out_and_named(tmp_path: Path) -> None:
    other = record("ffn_gemv", "triton_gemv", "x", read=200 * MB, seconds=2e-4)
    comparison = compare(*two(tmp_path, [timed("x", 1e-4), timed("y", 1e-4)], [other, timed("y", 1e-4)]))
    assert [m.case_id for m in comparison.matches] == ["y"]
    assert any("redefined" in line and "x" in line for line in lines(comparison))


def test_partial_runs_flags_and_the_resolution_are_named(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [timed("x", 1e-4, flags=["noisy"])])
    first, second = samples(1e-4), samples(1.03e-4)
    b = write_run(tmp_path / "b", [timed("x", 1e-4)], notes=[pair(first, second)], end=False)
    comparison = compare(a, b)
    found = ratio_interval(second, first)
    assert comparison.resolutions == {"ffn_gemv": found.high - 1}
    assert found.high > 1.03
    assert any("undecided" in line and f"ffn_gemv {percent(found.high - 1, 1)}" in line for line in lines(comparison))
    assert "b is a partial run" in lines(comparison)
    assert comparison.matches[0].flags == ("noisy",)


def test_repetitions_are_pooled(tmp_path: Path) -> None:
    """The medians of two repetitions are 1.0 and 1.2. The pooled interval covers both."""
    a = write_run(tmp_path / "a", [timed("x", 1.0e-4), timed("x", 1.2e-4, repeat=1)])
    b = write_run(tmp_path / "b", [timed("x", 1.1e-4)])
    match = compare(a, b).matches[0]
    assert match.a.low < 1.02e-4
    assert match.a.high > 1.18e-4
    assert match.verdict == "undecided"


def test_a_loaded_run_will_do(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "a", [timed("x", 1e-4)]))
    assert compare(run, run).exit_code == 0


def test_half_the_time_and_twice_the_time_are_equally_far() -> None:
    half, twice = (Interval(low=0.98 * at, median=at, high=1.02 * at) for at in (0.5, 2.0))
    assert reach(half) == pytest.approx(reach(twice), rel=0.01)
    assert (side(half, 0.6), side(twice, 0.6)) == ("below", "above")
    assert (side(half, 1.1), side(twice, 1.1)) == (None, None)
    assert reach(Interval(low=0.0, median=1.1, high=math.inf)) == math.inf
