"""Index scores against a loop over tokens and heads, planted errors, any shape, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.devices import find
from bench.measure.gate import check
from kernels.common.compare import compare
from kernels.index_score.op import OP, IndexCase, deepseek, lengths, work
from kernels.index_score.triton_score import BLOCK_T, plan
from kernels.op import Inputs, Target, implementations, total
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu", sm_count=2)
H200 = find("h200").target()
IMPLS = {impl.name: impl for impl in implementations("index_score")[0]}
TINY = IndexCase(B=2, T=90, H=16, D=32, page=16)


def test_the_reference_is_a_loop_over_tokens_and_heads() -> None:
    case = replace(TINY, lengths="holes", B=3, H=3, page=4, T=10)
    inputs = OP.inputs(case, "cpu", 3)
    found = OP.reference(case, inputs)
    q, w, keys = inputs["q"].double(), inputs["w"].double(), inputs["keys"].double()
    for b, length in enumerate(lengths(case)):
        assert found[b, length:].isnan().all()
        for t in range(length):
            page, slot = int(inputs["block_table"][b, t // 4]), t % 4
            products = [max(0.0, float(q[b, h] @ keys[page, slot])) * float(w[b, h]) for h in range(case.H)]
            assert float(found[b, t]) == pytest.approx(sum(products) * float(inputs["key_scale"][page, slot]))


Plant = Callable[[Inputs], Inputs]
WRONG: dict[str, Plant] = {
    "a head without its weight": lambda i: {**i, "w": i["w"] * (torch.arange(16) != 5)},
    "weights in bf16": lambda i: {**i, "w": i["w"].bfloat16().float()},
    "scales of neighbours": lambda i: {**i, "key_scale": i["key_scale"].roll(1, 1)},
    "two pages swapped": lambda i: {**i, "block_table": i["block_table"][:, [1, 0, *range(2, 7)]]},
    "another sequence's queries": lambda i: {**i, "q": i["q"].view(torch.uint8).flip(0).view(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_shows(wrong: str) -> None:
    inputs = OP.inputs(TINY, "cpu", 0)
    expected = OP.reference(TINY, inputs)
    assert compare(IMPLS["torch"].prepare(TINY, inputs, CPU)(), expected, OP.tolerance(TINY)).passed
    found = IMPLS["torch"].prepare(TINY, WRONG[wrong](inputs), CPU)()
    assert not compare(found, expected, OP.tolerance(TINY)).passed


def test_a_missing_maximum_and_a_lost_token_show() -> None:
    inputs = OP.inputs(TINY, "cpu", 0)
    expected = OP.reference(TINY, inputs)
    lost = expected.float()
    lost[1, -1] = lost[1, -2]
    both = OP.reference(TINY, {**inputs, "q": (-inputs["q"].float()).to(torch.float8_e4m3fn)})
    for found in (lost, expected - both):  # ReLU(x) - ReLU(-x) is x
        assert not compare(found.float(), expected, OP.tolerance(TINY)).passed


@settings(max_examples=8, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 200),
    H=st.integers(1, 33),
    D=st.sampled_from([16, 32, 64]),
    page=st.sampled_from([0, 1, 24, 64]),
    drawn=st.sampled_from(["uniform", "ragged", "holes"]),
    seed=st.integers(0, 99),
)
def test_drawn_shapes_pass_the_gate(B, T, H, D, page, drawn, seed, target) -> None:
    case = IndexCase(B=B, T=T, H=H, D=D, page=page, lengths=drawn, seed=seed)
    for name in ("numba", "torch", "triton"):
        where = target if name == "triton" else CPU
        if IMPLS[name].supports(case, where) is None:
            assert check(OP, IMPLS[name], case, where).reason is None, (name, case.id)


@pytest.mark.parametrize("suite", ["smoke", "quick", "full", "test"])
def test_plans_stages_and_launches_agree(suite: str) -> None:
    for case in OP.cases(suite):
        inputs = OP.inputs(case, "meta", 0)
        (launch,) = IMPLS["triton"].build(case, inputs, H200).launches
        (stage,) = IMPLS["triton"].stages(case, H200)
        run = plan(case, H200).run
        assert run % BLOCK_T == 0
        assert launch.grid == (-(-case.T // run), case.B)
        assert stage.ctas == sum(-(-length // run) for length in lengths(case))
        assert (stage.work.bytes_read, stage.work.bytes_written) == (work(case).bytes_read, work(case).bytes_written)
        assert stage.work.flops["mma_fp8"] >= work(case).flops["mma_fp8"]
        assert total(IMPLS["torch"].stages(case, H200)).bytes >= (3 if case.T > 1000 else 1) * work(case).bytes


def test_work_by_hand() -> None:
    """131,072 tokens of 132 bytes, 2,048 pages, 64 queries of 128 bytes with a weight each."""
    found = work(deepseek(1, 131072))
    assert found.bytes_read == 131072 * 132 + 4 * 2048 + 64 * 132 + 4
    assert found.bytes_written == 4 * 131072
    assert found.flops["mma_fp8"] == 131072 * 64 * 128 * 2


def test_senseless_cases_raise() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        replace(TINY, D=24)
    with pytest.raises(ValueError, match="dtype bf16"):
        replace(TINY, dtype="bf16")
    assert "power of two" in str(IMPLS["triton"].supports(replace(TINY, D=48), H200))
    assert "lengths" in str(IMPLS["torch"].supports(replace(TINY, lengths="ragged"), CPU))
