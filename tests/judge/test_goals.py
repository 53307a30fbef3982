"""The project's own goals, worked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.judge import goals
from bench.judge.published.best import best
from bench.judge.view import View
from bench.records import Record
from tests.support.synthetic_run import KEY, MEASURED_ROOF, SHEET, at_share, gate, measured_view, record, timed


def judged(found: View, what: str) -> goals.Judged:
    """The verdict on the one goal that begins with these words."""
    (one,) = [j for j in goals.judged(found) if j.goal.what.startswith(what)]
    return one


def heads(share: float, *, impl: str = "triton", **fields: Any) -> Record:
    shape = {"B": 64, "T": 4096, "H_q": 32, "H_kv": 8, "D": 128, **fields}
    return timed("attention_decode", shape, at_share(share), impl)


def off(error: float, B: int = 1) -> Record:
    """A case that took longer than predicted, by this share of the prediction."""
    found = gate(0.9, B=B)
    assert found.seconds
    terms = {"memory": found.seconds / (1 + error)}
    prediction = {"measured": {"seconds": terms["memory"], "terms": terms, "bound": "memory"}}
    return dataclasses.replace(found, prediction=prediction)


def mla(share: float) -> Record:
    """With 256 heads, arithmetic takes longer than bytes. It reaches this share of its peak."""
    return timed("mla_decode", {"B": 128, "H": 256, "T": 4096}, lambda r: r.flops / 700e12 / share)


def over_published(speed: float) -> list[Record]:
    """A case at this speed over the nearest published one: this multiple of its share of the datasheet's floor."""
    published = best(KEY, "ffn_gemv", gate(1.0).case)
    assert published
    return [gate(speed * published.share * SHEET / MEASURED_ROOF)]


MEETING: dict[str, tuple[float, Callable[[float], list[Record]]]] = {
    "GEMV bf16, batch 1 to 64, 256 MB": (0.92, lambda x: [gate(x), gate(x, B=64)]),
    "GEMV bf16, batch 1 to 64, 20 to": (0.80, lambda x: [gate(x, N=8192, K=8192), gate(x, N=8192, K=1536, B=64)]),
    "GEMV int8": (0.85, lambda x: [gate(x, weights="int8", B=64), gate(x, weights="int4")]),
    "attention bf16, contiguous or pages of 16 and more, 256": (0.92, lambda x: [heads(x), heads(x, page=16)]),
    "attention bf16, contiguous or pages of 16 and more, 20": (0.80, lambda x: [heads(x, B=2), heads(x, B=2, page=64)]),
    "attention with an fp8": (0.90, lambda x: [heads(x, kv="fp8"), heads(x, kv="fp8", page=16)]),
    "MLA": (0.88, lambda x: [mla(x)]),
    "attention of one request": (0.97, lambda x: [heads(x * 0.9, B=1, T=T) for T in (32768, 131072)]),
    "attention in pages": (0.97, lambda x: [heads(x * 0.9, page=16)]),
    "fastest peer's time over ours, all": (1.05, lambda x: [gate(0.5), gate(0.5 / x, "torch")]),
    "fastest peer's time over ours, case": (0.97, lambda x: [gate(0.5), gate(0.5 / x, "torch")]),
    "speed over the best published": (1.0, over_published),
    "error of the predictions at 1 MB and more, median": (0.05, lambda x: [off(x)]),
    "error of the predictions at 1 MB and more, for": (0.12, lambda x: [off(x)]),
}
"""By the first words of each goal: the number that is wanted, and cases of the goal with the given number."""

AT_LARGE_BATCH = ("attention of one", "attention in pages")
"""Goals that compare with a contiguous cache at batch 16, whose share is 0.9."""


@pytest.mark.parametrize("what", MEETING)
def test_the_wanted_number_separates_reached_from_missed(tmp_path: Path, what: str) -> None:
    wanted, records = MEETING[what]
    yardstick = [heads(0.9, B=16)] if what.startswith(AT_LARGE_BATCH) else []
    for name, factor in {"over": 1.02, "under": 0.98}.items():
        one = judged(measured_view(tmp_path / name, [*records(wanted * factor), *yardstick]), what)
        reached = (factor > 1) != what.startswith("error")
        cases = sum(r.ours for r in records(1.0))
        assert (one.verdict, one.cases) == ("reached" if reached else "missed", cases)
        assert one.reaching == (cases if reached else 0)
        assert one.found == pytest.approx(wanted * factor, rel=1e-2)


def test_a_case_outside_every_goal_does_not_count(tmp_path: Path) -> None:
    """A batch of 65, fp16, other formats, pages of 8, and contexts of one token under 32K and one over 128K."""
    projections: list[dict[str, Any]] = [{"B": 65}, {"B": 65, "weights": "int8"}, {"dtype": "fp16"}, {"weights": "fp8"}]
    caches: list[dict[str, Any]] = [{"dtype": "fp16"}, {"page": 8}, {"kv": "fp8", "page": 8}, {"kv": "int8"}]
    caches += [{"B": 1, "T": T, "dtype": "fp16"} for T in (32767, 131073)]
    records = [*(gate(0.1, **fields) for fields in projections), *(heads(0.1, **fields) for fields in caches)]
    found = measured_view(tmp_path, [*records, heads(0.9, B=16, dtype="fp16")])
    counted = {j.goal.what for j in goals.judged(found) if j.cases}
    assert counted == {"stream read, of the datasheet's bandwidth", goals.PUBLISHED}


def test_a_run_of_ceilings_measures_only_the_goal_of_the_read(tmp_path: Path) -> None:
    verdicts = {j.goal.what: j.verdict for j in goals.judged(measured_view(tmp_path, []))}
    read = verdicts.pop("stream read, of the datasheet's bandwidth")
    assert read == "missed"
    assert set(verdicts.values()) == {"not measured"}


def test_the_read_is_compared_only_with_a_datasheet(tmp_path: Path) -> None:
    one = judged(measured_view(tmp_path, []), "stream read")
    assert one.found == pytest.approx(MEASURED_ROOF / SHEET)
    derived = {"value": SHEET, "unit": "B/s", "kind": "derived", "source": "driver"}
    device = {"key": "some-part", "name": "Some part", "memory_bandwidth": derived, "peaks": {}}
    other = measured_view(tmp_path / "other", [], device=device)
    assert judged(other, "stream read").verdict == "not measured"


def test_the_worst_case_decides_and_is_named(tmp_path: Path) -> None:
    records = [gate(0.95), gate(0.93, B=16), gate(0.90, B=64), gate(0.5, B=128), gate(0.99, "torch")]
    one = judged(measured_view(tmp_path, records), "GEMV bf16, batch 1 to 64, 256 MB")
    assert (one.verdict, one.reaching, one.cases) == ("missed", 2, 3)
    assert one.found == pytest.approx(0.90, rel=1e-3)
    assert one.worst == "B64-N28672-K8192-bf16"
    fine = judged(measured_view(tmp_path / "fine", records[:2]), "GEMV bf16, batch 1 to 64, 256 MB")
    assert (fine.verdict, fine.reaching) == ("reached", 2)


def test_sizes_and_types_go_to_their_own_goal(tmp_path: Path) -> None:
    """134 MB of bf16, 235 MB of int8 and 537 MB of an fp8 cache have a goal. 17 MB of bf16 and pages of 8 have none."""
    projections = [gate(0.81, N=8192, K=8192), gate(0.1, N=1024, K=8192), gate(0.86, weights="int8")]
    records = [*projections, heads(0.91, kv="fp8"), heads(0.1, page=8)]
    found = measured_view(tmp_path, records)
    shown = {j.goal.what: (j.verdict, j.cases) for j in goals.judged(found) if j.cases and "read roof" in j.goal.what}
    assert shown == {
        "GEMV bf16, batch 1 to 64, 20 to 256 MB, of the read roof": ("reached", 1),
        "GEMV int8 and int4, batch 1 to 64, 100 MB and more, of the read roof": ("reached", 1),
        "attention with an fp8 cache, 256 MB and more, of the read roof": ("reached", 1),
    }


def test_mla_is_compared_with_the_roof_that_binds(tmp_path: Path) -> None:
    arithmetic = mla(0.9)
    assert arithmetic.flops / 700e12 > arithmetic.bytes / MEASURED_ROOF
    one = judged(measured_view(tmp_path, [arithmetic]), "MLA")
    assert one.found == pytest.approx(0.9, rel=1e-3)
    assert one.verdict == "reached"


def test_one_long_request_and_pages_are_compared_with_a_contiguous_batch(tmp_path: Path) -> None:
    contiguous = [heads(0.96), heads(0.90, B=32), heads(0.92, B=1, T=131072), heads(0.5, B=1, T=4096)]
    paged = [heads(0.94, page=16), heads(0.80, page=1)]
    apart = [heads(0.1, page=16, window=1024), heads(0.5, page=16, H_kv=4)]
    found = measured_view(tmp_path, [*contiguous, *paged, *apart])
    pages = judged(found, "attention in pages of 16")
    assert (pages.verdict, pages.cases) == ("reached", 1)
    assert pages.found == pytest.approx(0.94 / 0.96, rel=1e-3)
    one = judged(found, "attention of one request")
    assert (one.verdict, one.cases) == ("missed", 1)
    assert one.found == pytest.approx(0.92 / 0.96, rel=1e-3)


def test_peers_by_mean_and_by_worst_case(tmp_path: Path) -> None:
    """Ratios 2 and 0.95: a mean of 1.38 reaches 1.05, the worst case misses 0.97."""
    records = [gate(0.8), gate(0.4, "torch"), gate(0.76, B=2), gate(0.8, "torch", B=2)]
    found = measured_view(tmp_path, records)
    together = judged(found, "fastest peer's time over ours, all")
    assert together.found == pytest.approx((2 * 0.95) ** 0.5, rel=1e-2)
    assert together.verdict == "reached"
    each = judged(found, "fastest peer's time over ours, case")
    assert (each.verdict, each.reaching, each.cases) == ("missed", 1, 2)
    assert each.worst == "ffn_gemv B2-N28672-K8192-bf16, torch"


def test_predictions_by_median_and_by_the_90th_percentile(tmp_path: Path) -> None:
    """Nine errors of 1% and one of 50%: the median is 1% and the 90th percentile is 5.9%, so both goals are reached."""
    found = measured_view(tmp_path, [*(off(0.01, B) for B in range(1, 10)), off(0.5, 10)])
    middle = judged(found, "error of the predictions at 1 MB and more, median")
    assert (middle.verdict, middle.reaching, middle.cases) == ("reached", 9, 10)
    assert middle.found == pytest.approx(0.01, rel=1e-3)
    assert middle.worst == "ffn_gemv triton B10-N28672-K8192-bf16"
    most = judged(found, "error of the predictions at 1 MB and more, for 90%")
    assert most.found == pytest.approx(0.01 + 0.1 * 0.49, rel=1e-2)
    assert most.verdict == "reached"
    worse = measured_view(tmp_path / "worse", [off(0.01, 1), off(0.5, 2)])
    assert judged(worse, "error of the predictions at 1 MB and more, for 90%").verdict == "missed"


def test_the_table_says_what_was_wanted_and_found(tmp_path: Path) -> None:
    found = goals.judged(measured_view(tmp_path, [gate(0.95), gate(0.9, B=2)]))
    rows = {row[0]: row[1:] for row in goals.table(found).rows}
    large = rows["GEMV bf16, batch 1 to 64, 256 MB and more, of the read roof"]
    assert large == ("at least 92.0%", "90.0%", "1 of 2", "missed", "B2-N28672-K8192-bf16")
    assert rows["error of the predictions at 1 MB and more, median"] == ("at most 5.0%", "", "", "not measured", "")
    assert goals.tally(found).startswith("Of 15 goals: 3 missed, 12 not measured.")


def test_a_host_has_no_goals(tmp_path: Path) -> None:
    torch = record("ffn_gemv", "torch", "x", read=10**6, seconds=1e-3)
    assert goals.judged(measured_view(tmp_path, [torch], target={"kind": "cpu", "name": "a CPU"})) == []
