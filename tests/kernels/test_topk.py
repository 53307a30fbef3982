"""Top-k is exact, whatever the scores are: the reference against Python, adversarial rows, what is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.ceilings import Ceilings
from bench.devices import find
from bench.measure.gate import check
from bench.predict.roofline import predict_from_ceilings
from kernels.common.compare import compare
from kernels.op import Target, implementations, total
from kernels.topk.op import OP, SCORES, TopkCase, lengths, sparse, work
from kernels.topk.triton_topk import DIRECT, MOST_GROUPS, plan
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu", sm_count=2)
H200 = find("h200").target()
IMPLS = {impl.name: impl for impl in implementations("topk")[0]}
TINY = TopkCase(B=2, N=40, k=5)
LISTED = replace(TINY, N=DIRECT + 700, k=9)
"""Two launches; its groups have 32 scores."""


@pytest.mark.parametrize("case", [c for c in OP.cases("test") if c.N < 1000], ids=lambda case: case.id)
def test_the_reference_is_what_python_sorts(case: TopkCase) -> None:
    inputs = OP.inputs(case, "cpu", 3)
    found = OP.reference(case, inputs).view(case.B, -1, case.k)
    for b, length in enumerate(lengths(case)):
        row = inputs["scores"][b].tolist()
        assert not any(x != x for x in row[:length])
        best = sorted(range(length), key=lambda i, row=row: (-row[i], i))[: case.k]
        best = best if case.order == "value" else sorted(best)
        assert found[b, 0].tolist() == best + [-1] * (case.k - len(best))
        if case.values:
            bits = found[b, 1].int().view(torch.float32).tolist()
            assert bits == [row[i] for i in best] + [-float("inf")] * (case.k - len(best))


def test_scores_meet_the_edges() -> None:
    """Both zeros, denormals that are not flushed, infinities of both signs, NaN behind a row and nowhere else."""
    small = OP.inputs(replace(TINY, scores="small"), "cpu", 0)["scores"]
    assert {(-1.0, True), (0.0, False), (0.0, True)} <= {(x.sign().item(), x.signbit().item()) for x in small.flatten()}
    assert 0 < small.max() < torch.finfo(torch.float32).smallest_normal
    infinite = OP.inputs(replace(LISTED, scores="infinite"), "cpu", 0)["scores"]
    assert {-float("inf"), float("inf")} <= set(infinite.flatten().tolist())
    ragged = replace(TINY, lengths="holes", B=4)
    scores = OP.inputs(ragged, "cpu", 0)["scores"]
    assert scores.isnan().logical_not().sum(1).tolist() == list(lengths(ragged))
    normal = OP.inputs(replace(LISTED, B=1, N=1 << 18), "cpu", 0)["scores"]
    assert len(normal.unique()) == normal.numel(), "torch.topk needs scores that all differ"


@settings(max_examples=10, deadline=None)
@given(
    N=st.sampled_from([1, 63, 500, LISTED.N]),
    k=st.integers(1, 40),
    scores=st.sampled_from(SCORES),
    drawn=st.sampled_from(["uniform", "ragged", "holes"]),
    order=st.sampled_from(["position", "value"]),
    values=st.booleans(),
    dtype=st.sampled_from(["fp32", "bf16"]),
    seed=st.integers(0, 99),
)
def test_drawn_shapes_pass_the_gate(N, k, scores, drawn, order, values, dtype, seed, target) -> None:
    fields: dict[str, Any] = {"scores": scores, "lengths": drawn, "order": order, "values": values, "dtype": dtype}
    case = TopkCase(B=3, N=N, k=k, seed=seed, **fields)
    for name in ("numba", "torch-sort") if seed % 3 else ("triton",):
        where = target if name == "triton" else CPU
        if IMPLS[name].supports(case, where) is None:
            assert check(OP, IMPLS[name], case, where).reason is None, (name, case.id)


@pytest.mark.cuda(interpreted=True)
def test_a_short_row_has_fewer_groups_than_k(target: Target) -> None:
    """1,904 scores beside a long row, and k = 512: their 119 groups do not tell the 512th largest."""
    case = TopkCase(B=2, N=20000, k=512, lengths="longtail", seed=2)
    short = min(lengths(case))
    assert plan(case, target).group * case.k > short > 2 * case.k
    assert check(OP, IMPLS["triton"], case, target).reason is None


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("scores", ["equal", "descending", "two"])
def test_lists_longer_than_a_tile_are_gone_through(scores: str, target: Target) -> None:
    """With 32 scores a group, 260 hits may list 8,320 scores, and a tile has 1,024."""
    case = replace(LISTED, B=1, k=260, scores=scores)
    assert check(OP, IMPLS["triton"], case, target).reason is None


def test_a_launch_leaves_nothing_behind_for_the_next(target: Target) -> None:
    """Counters of arrivals are zero again, so the third launch is right too."""
    inputs = OP.inputs(LISTED, target.device, 0)
    launch = IMPLS["triton"].prepare(LISTED, inputs, target)
    for _ in range(3):
        OP.poison(LISTED, inputs, launch())
    assert compare(launch(), OP.reference(LISTED, inputs), OP.tolerance(LISTED)).passed


@pytest.mark.parametrize("wrong", ["a lower score", "another of two equal ones", "swapped", "unwritten"])
def test_what_is_wrong_shows(wrong: str) -> None:
    case = replace(TINY, B=1, order="value", scores="two" if "equal" in wrong else "normal")
    inputs = OP.inputs(case, "cpu", 0)
    expected = OP.reference(case, inputs)
    found = expected.int()
    row = inputs["scores"][0]
    if wrong == "swapped":
        found[0, [0, 1]] = found[0, [1, 0]]
    elif wrong == "unwritten":
        OP.poison(case, inputs, found[:, 2:3])
    elif wrong == "a lower score":
        found[0, -1] = int(row.argmin())
    else:
        found[0, -1] = int((row == row[found[0, -1]]).nonzero().max())
    assert not compare(found, expected, OP.tolerance(case)).passed


@pytest.mark.parametrize("suite", ["smoke", "quick", "full", "test"])
def test_plans_stages_and_launches_agree(suite: str) -> None:
    for case in OP.cases(suite):
        p, inputs = plan(case, H200), OP.inputs(case, "meta", 0)
        built, stages = IMPLS["triton"].build(case, inputs, H200), IMPLS["triton"].stages(case, H200)
        assert [launch.grid[0] * launch.grid[-1] // (1 if p.group else case.B) for launch in built.launches] == [
            stage.ctas for stage in stages
        ]
        assert total(stages).bytes >= work(case).bytes
        if p.group:
            assert p.tile <= MOST_GROUPS
            assert p.tile * p.group >= case.N
            assert case.k * p.group <= case.N // 2, "the second kernel reads a part of a row"


def test_work_by_hand() -> None:
    assert work(sparse(8, 131072)).bytes_read == 8 * 131072 * 4 + 32
    assert work(sparse(8, 131072)).bytes_written == 8 * 2048 * 4
    assert work(replace(TINY, dtype="bf16", values=True)).bytes == 2 * 40 * 2 + 8 + 2 * 2 * 5 * 4


CEILINGS = Ceilings(
    read_points=tuple((size, 2e-6 + size / 4.3e12) for size in (1 << 20, 1 << 32)),
    copy_points=tuple((size, 2e-6 + size / 3.9e12) for size in (1 << 20, 1 << 32)),
    launch_s=1.5e-6,
    l2_bandwidth=7e12,
    pipes={"fma_fp32": 132 * 256 * 1.7e9},
    memory_loads=((1 << 32, 0.7e-6),),
    cached_loads=((1 << 24, 0.16e-6),),
)
"""An H200 as its predecessors are: 90% of 4.8 TB/s, 1.5 us from launch to launch, 270 clocks for a load of the L2."""


SHARES = [(1, 131072, 0.008), (1, 1 << 20, 0.06), (6, 1 << 20, 0.3), (64, 1 << 20, 0.6)]


@pytest.mark.parametrize(("B", "N", "least"), SHARES)
def test_expected_share_of_the_read_roof(B: int, N: int, least: float) -> None:
    """Two launches, their bisections and chains take some 13 us; from 6M scores on the share is 30%."""
    case = sparse(B, N)
    seconds = predict_from_ceilings(IMPLS["triton"].stages(case, H200), CEILINGS, H200).seconds
    share = work(case).bytes / CEILINGS.read_roof / seconds
    assert least < share < 2.5 * least


def test_refusals_and_senseless_cases() -> None:
    refusal = IMPLS["triton"].supports
    assert "4096" in str(refusal(replace(LISTED, k=5000), H200))
    assert "1024" in str(refusal(replace(LISTED, k=2000, order="value"), H200))
    assert refusal(sparse(1, 1 << 20), H200) is None
    for name in ("torch", "flashinfer"):
        assert IMPLS[name].supports(replace(TINY, scores="two"), H200 if name == "flashinfer" else CPU)
    assert "lengths" in str(IMPLS["torch-sort"].supports(replace(TINY, lengths="ragged"), CPU))
    with pytest.raises(ValueError, match="order"):
        replace(TINY, order="any")
