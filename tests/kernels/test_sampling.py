"""Sampling against Python, inputs that leave no doubt, planted errors, any shape, and what is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.devices import find
from bench.measure.gate import check
from bench.predict.roofline import predict_from_ceilings
from kernels.common.compare import compare
from kernels.op import Inputs, Target, implementations, total
from kernels.sampling.op import FILTERS, OP, SHARE, SamplingCase, kept, vocabulary, work
from kernels.sampling.triton_sample import MOST_GROUPS, PART, plan
from tests.kernels.test_topk import CEILINGS
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu", sm_count=2)
H200 = find("h200").target()
IMPLS = {impl.name: impl for impl in implementations("sampling")[0]}
TINY = SamplingCase(B=6, V=150)


def by_hand(case: SamplingCase, logits: list[float], u: float, p: float, min_p: float) -> int:
    """Sets of tokens as the formulas say, in Python's floats."""
    if not case.temperature:
        return logits.index(max(logits))
    w = [math.exp((x - max(logits)) / case.temperature) for x in logits]
    tokens = list(range(len(logits)))
    if case.k:
        least = sorted(logits)[-case.k]
        tokens = [i for i in tokens if logits[i] >= least]
    if case.p:
        whole = sum(w[i] for i in tokens)
        enough = [t for t in logits if sum(w[i] for i in tokens if logits[i] >= t) >= p * whole]
        tokens = [i for i in tokens if logits[i] >= max(enough)]
    if case.min_p:
        tokens = [i for i in tokens if w[i] >= min_p]
    wanted, passed = u * sum(w[i] for i in tokens), 0.0
    for i in tokens:
        passed += w[i]
        if passed > wanted:
            return i
    raise AssertionError("u is below 1")


@pytest.mark.parametrize("case", [replace(TINY, **each) for each in FILTERS], ids=lambda case: case.id)
def test_the_reference_does_as_the_formulas_say(case: SamplingCase) -> None:
    inputs = OP.inputs(case, "cpu", 3)
    rows = zip(*(inputs[name].tolist() for name in ("logits", "u", "p", "min_p")), strict=True)
    assert OP.reference(case, inputs).tolist() == [by_hand(case, *row) for row in rows]


@pytest.mark.parametrize("fields", FILTERS[1:], ids=str)
def test_inputs_leave_no_doubt(fields: dict[str, Any]) -> None:
    """Weights that err by 2^-20, u by a third of the smallest step, p and min_p by 1e-6 give the same tokens."""
    case = SamplingCase(B=8, V=30000, **fields)
    inputs = OP.inputs(case, "cpu", 1)
    expected = OP.reference(case, inputs)
    for sign in (-1, 1):
        p, min_p = (inputs[name] * (1 + 1e-6 * sign) for name in ("p", "min_p"))
        weights = kept(case, inputs["logits"], p, min_p)
        noise = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        ends = (weights * (1 + noise * 2**-20)).cumsum(1)
        u = inputs["u"][:, None] + sign * SHARE / 3
        assert torch.equal((ends <= u * ends[:, -1:]).sum(1), expected.long())
    assert len(set(expected.tolist())) > 5, "tokens differ from row to row"


WRONG: dict[str, Callable[[SamplingCase, Inputs], Inputs]] = {
    "twice the temperature": lambda c, i: {**i, "logits": i["logits"] / 2},
    "another row's u": lambda c, i: {**i, "u": i["u"].flip(0)},
    "one logit more in the nucleus": lambda c, i: {**i, "p": i["p"] + 2e-3},
    "one logit less": lambda c, i: {**i, "p": i["p"] - 2e-3},
    "min_p of the next": lambda c, i: {**i, "min_p": i["min_p"] * 1.1},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_shows(wrong: str) -> None:
    case = SamplingCase(B=16, V=30000, p=0.9, min_p=0.0 if "nucleus" in wrong or "less" in wrong else 0.01)
    inputs = OP.inputs(case, "cpu", 0)
    expected = OP.reference(case, inputs)
    assert compare(IMPLS["torch"].prepare(case, inputs, CPU)(), expected, OP.tolerance(case)).passed
    found = IMPLS["torch"].prepare(case, WRONG[wrong](case, inputs), CPU)()
    assert not compare(found, expected, OP.tolerance(case)).passed


def test_the_next_token_is_wrong() -> None:
    inputs = OP.inputs(TINY, "cpu", 0)
    expected = OP.reference(TINY, inputs)
    found = expected.int()
    found[3] += 1
    assert not compare(found, expected, OP.tolerance(TINY)).passed


@settings(max_examples=8, deadline=None)
@given(
    V=st.sampled_from([2, 100, PART + 3]),
    temperature=st.sampled_from([0.5, 1.0, 1.5]),
    k=st.integers(0, 60),
    p=st.sampled_from([0.0, 0.1, 0.95]),
    min_p=st.sampled_from([0.0, 0.2]),
    dtype=st.sampled_from(["bf16", "fp32"]),
    seed=st.integers(0, 99),
)
def test_drawn_shapes_pass_the_gate(V, temperature, k, p, min_p, dtype, seed, target) -> None:
    case = SamplingCase(B=2, V=V, temperature=temperature, k=min(k, V), p=p, min_p=min_p, dtype=dtype)
    for name in ("numba", "torch") if seed % 2 else ("triton",):
        assert check(OP, IMPLS[name], case, target if name == "triton" else CPU).reason is None, (name, case.id)


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("fields", [{"p": 0.999}, {"k": 40, "p": 0.5}], ids=str)
def test_flat_logits_and_large_nuclei(fields: dict[str, Any], target: Target) -> None:
    """With equal logits in all places but one the maxima of groups never have the weight that is wanted."""
    case = SamplingCase(B=1, V=PART + 100, dtype="fp32", **fields)
    inputs = OP.inputs(case, target.device, 0)
    inputs["logits"].fill_(1.0)[0, 77] = 2.0
    inputs["u"].fill_(0.5 if "k" not in fields else 1e-6)
    inputs["p"].fill_(0.9)
    output = IMPLS["triton"].prepare(case, inputs, target)()
    assert compare(output, OP.reference(case, inputs), OP.tolerance(case)).passed


@pytest.mark.parametrize("suite", ["smoke", "quick", "full", "test"])
def test_plans_stages_and_launches_agree(suite: str) -> None:
    for case in OP.cases(suite):
        p = plan(case, H200)
        launches = IMPLS["triton"].build(case, OP.inputs(case, "meta", 0), H200).launches
        stages = IMPLS["triton"].stages(case, H200)
        assert [launch.grid[0] * launch.grid[1] for launch in launches] == [stage.ctas for stage in stages]
        assert len(launches) == (1 if not case.temperature else 3 if case.k or case.p else 2)
        assert p.tile <= MOST_GROUPS
        assert p.tile * p.group >= case.V
        assert p.parts * (PART // p.group) <= p.tile
        assert total(stages).bytes >= work(case).bytes


def test_work_by_hand() -> None:
    assert work(vocabulary("llama-3.1-8b", 64, p=0.9)).bytes_read == 64 * (2 * 128256 + 8)
    assert work(replace(TINY, temperature=0.0, dtype="fp32")).bytes == 6 * (4 * 150 + 4)


SHARES = [(64, {"p": 0.9}, 0.12), (256, {"p": 0.9}, 0.2), (256, {"temperature": 0.0}, 0.6)]


@pytest.mark.parametrize(("B", "fields", "least"), SHARES)
def test_expected_share_of_the_read_roof(B: int, fields: dict[str, Any], least: float) -> None:
    case = vocabulary("llama-3.1-8b", B, **fields)
    seconds = predict_from_ceilings(IMPLS["triton"].stages(case, H200), CEILINGS, H200).seconds
    assert least < work(case).bytes / CEILINGS.read_roof / seconds < 2 * least


def test_senseless_cases_raise() -> None:
    for wrong, said in (({"p": 1.5}, "below 1"), ({"temperature": 0.0, "k": 3}, "greedy"), ({"k": 200}, "k = 200")):
        with pytest.raises(ValueError, match=said):
            replace(TINY, **wrong)
    assert "at most 2048" in str(IMPLS["triton"].supports(SamplingCase(B=1, V=9000, k=3000), H200))
