"""Expected all-reduces: the formula, the fit, and the errors on published rows that were not fitted."""

from __future__ import annotations

import numpy as np
import pytest

from bench.devices import find
from bench.judge import published
from bench.judge.published import link_fit
from bench.judge.published.expectation import expectation
from bench.predict import collectives
from bench.predict.collectives import Algorithm, Library
from bench.predict.step_expected import expect_step
from bench.predict.step_model import step
from kernels.models import MODELS

LIBRARY = Library(
    one_shot=Algorithm(start=2e-6, rank=1e-6, rate=0.5), two_shot=Algorithm(start=10e-6, rank=2e-6, rate=0.8)
)


def test_small_messages_take_one_shot_and_large_ones_two() -> None:
    small = collectives.seconds(LIBRARY, size=8192, ranks=4, link=450e9)
    assert small == pytest.approx(2e-6 + 2 * 1e-6 + 3 * 8192 / (0.5 * 450e9))
    large = collectives.seconds(LIBRARY, size=16 << 20, ranks=4, link=450e9)
    assert large == pytest.approx(10e-6 + 2 * 2e-6 + 1.5 * (16 << 20) / (0.8 * 450e9))


def test_an_all_to_all_sends_all_but_what_stays() -> None:
    """16 MB on each of 4 parts: 12 MB of it leave."""
    found = collectives.exchange_seconds(LIBRARY.one_shot, size=16e6, ranks=4, link=450e9)
    assert found == pytest.approx(2e-6 + 2 * 1e-6 + 12e6 / (0.5 * 450e9))


@pytest.mark.parametrize(
    ("op", "software", "way"), [("all_reduce", "trtllm", LIBRARY), ("all_to_all", "nccl", LIBRARY.one_shot)]
)
def test_the_fit_finds_planted_constants(op: str, software: str, way: Library | Algorithm) -> None:
    rows = published.load().where(op=op, part="h100-sxm", software=software)
    rows = rows.take(np.flatnonzero(link_fit.in_graph(rows, op)))
    planted = published.Table(columns={**rows.columns, "seconds": link_fit.predicted(way, rows)}, names=rows.names)
    found = link_fit.known(link_fit.constants(planted, op))
    assert type(found) is type(way)
    assert link_fit.predicted(found, rows) == pytest.approx(planted["seconds"], rel=0.02)


@pytest.mark.parametrize("part", ["h100-sxm", "h200", "b200"])
@pytest.mark.parametrize(("op", "ranks"), [*(("all_reduce", n) for n in (2, 4, 8)), ("all_to_all", (2, 4, 8))])
def test_the_median_error_on_other_rows_is_below_a_fifth(part: str, op: str, ranks: int | tuple[int, ...]) -> None:
    rows = published.load().where(op=op, part=part, tp=ranks)
    fitted = np.zeros(len(rows), dtype=bool)
    for _, gen, index in link_fit.groups(rows, op):
        fitted[index] |= link_fit.declared(rows.take(index), gen)
    ratio = rows["seconds"] / expectation(rows)
    outside = np.isfinite(ratio) & ~fitted
    assert outside.sum() > 90
    assert np.median(np.abs(ratio[outside] - 1)) < 0.2


@pytest.mark.parametrize(("op", "factor", "least"), [("dispatch", 4.2, 54e-6), ("combine", 2.3, 20e-6)])
def test_what_is_said_of_deepep_is_so(op: str, factor: float, least: float) -> None:
    """`bench/judge/README.md`: its kernels take 4.2 and 2.3 times as long as NCCL would with as many bytes."""
    rows = published.load().where(op=op)
    assert np.median(rows["seconds"] / expectation(rows)) == pytest.approx(factor, abs=0.05)
    assert rows["seconds"].min() > least
    assert set(rows.text("software")) == {"trtllm"}


def test_an_exchange_rests_on_published_all_to_alls() -> None:
    spec = find("h200")
    found = collectives.exchange(spec, 1 << 20, 8)
    assert found is not None
    assert found.library == "nccl"
    assert found.rests_on == "36 all-to-alls of nccl 2.29.2 on h100-sxm (aiconfigurator-core)"
    published_s = published.load().where(op="all_to_all", part="h200", N=1 << 19, tp=8)["seconds"]
    assert 0.5 < np.median(published_s) / found.seconds < 1.5
    assert collectives.exchange(find("mi300x"), 1 << 20, 8) is None


def test_eager_launches_and_other_sizes_are_left_out() -> None:
    rows = published.load().where(op="all_reduce")
    kept = rows.take(np.flatnonzero(link_fit.in_graph(rows)))
    assert not [name for name in set(kept.text("kernel")) if "eager" in name]
    assert collectives.LEAST <= 2 * kept["N"].min() <= 2 * kept["N"].max() <= collectives.MOST


@pytest.mark.parametrize(("version", "numbers"), [("1.3.0rc20", (1, 3, 0, 20)), ("0.5.6.post2", (0, 5, 6, 2))])
def test_versions_are_compared_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert link_fit.as_numbers(version) == numbers


def test_a_step_on_several_parts_holds_its_all_reduces() -> None:
    """160 all-reduces of [1, 8192] in bf16 on 8 parts, by hand: each as the fastest library is expected to do it."""
    spec, shape = find("h100-sxm"), MODELS["llama-3.1-70b"]
    predicted = step(shape, device=spec, weights="bf16", kv="bf16", batch=1, context=4096, devices=8)
    found = expect_step(predicted, shape, spec)
    each = collectives.expect(spec, 2 * 8192, 8)
    assert each is not None
    assert found.reduce_seconds == pytest.approx(160 * each.seconds)
    assert f"all_reduce: {each.rests_on}" in found.rests_on
    assert 3e-6 < each.seconds < 8e-6
    assert found.kernel_seconds > 160 * each.seconds


def test_a_part_without_a_link_has_no_expected_all_reduce() -> None:
    assert collectives.expect(find("h100-sxm"), 1 << 20, 1) is None
    assert collectives.expect(find("rtx-4090"), 1 << 20, 2) is None
    assert collectives.expect(find("mi300x"), 1 << 20, 8) is None
