"""Experts on several parts: who is routed where, what the busiest part gets and reads, and what is refused."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from math import log
from typing import Any

import pytest
import torch

from kernels.common.expert_routing import DEVIATION, best_of_groups, chances, drawn, of_busiest
from kernels.moe_ffn import op as moe
from kernels.moe_ffn.op import MoeCase, experts_hit, routing, tokens_per_expert

PUBLISHED = (
    *(10545, 11846, 8542, 33117, 8385, 4892, 24052, 27875, 12287, 21604, 31428),
    *(19248, 13467, 12080, 5198, 1323, 19034, 28040, 44965, 3112, 13323, 4808),
)
"""Tokens of 22 experts: github.com/deepseek-ai/EPLB/issues/22."""


def test_chances_deviate_as_published_counts_do() -> None:
    assert statistics.stdev(map(log, PUBLISHED)) == pytest.approx(DEVIATION, abs=5e-3)
    found = chances("lognormal", 4096, random.Random(3))
    assert statistics.stdev(map(log, found)) == pytest.approx(DEVIATION, rel=0.05)
    assert found == sorted(found, reverse=True)
    assert chances("zipf", 3, random.Random(3)) == [1, 1 / 2, 1 / 3]
    assert chances("uniform", 3, random.Random(3)) == [1, 1, 1]


def test_groups_are_chosen_by_their_two_largest_keys() -> None:
    """Sums of 9, 11 and 10; of 9, the two largest of 9, 0 and 0."""
    keys = [9.0, 0.0, 5.0, 6.0, 8.0, 2.0]
    assert best_of_groups(keys, 3, 1) == [2, 3]
    assert best_of_groups(keys, 3, 2) == [2, 3, 4, 5]
    assert best_of_groups([5.0, 5.0, 0.0, 4.0, 4.0, 4.0], 2, 1) == [0, 1, 2], "4 + 4 + 4 would be more than 5 + 5"


@pytest.mark.parametrize("kind", ["uniform", "lognormal"])
def test_a_token_keeps_to_its_groups(kind: str) -> None:
    tokens = drawn(200, 32, 4, kind=kind, seed=1, groups=8, top_groups=2)
    groups = [{expert // 4 for expert in experts} for experts in tokens]
    assert all(len(set(experts)) == 4 for experts in tokens)
    assert max(map(len, groups)) == 2
    assert set().union(*groups) == set(range(8))


def test_without_groups_tokens_use_more_of_them() -> None:
    free = drawn(200, 32, 4, kind="lognormal", seed=1)
    assert max(len({expert // 4 for expert in experts}) for experts in free) == 4
    loads = Counter(expert for experts in free for expert in experts)
    assert sum(loads[e] for e in range(8)) > 2 * sum(loads[e] for e in range(24, 32)), "the first is the likeliest"


def test_the_busiest_part_by_hand() -> None:
    """Expert 0 has five tokens and the others one each, so its part has six, with whichever expert it is placed."""
    tokens = ((0,),) * 5 + ((1,), (2,), (3,))
    for seed in range(6):
        rows = of_busiest(tokens, 4, 2, 0, seed)
        assert sorted(Counter(rows).values()) == [1, 5]
        assert {expert for (expert,) in rows} == {0, 1}
    # each expert on a part of its own: five rows of expert 0 there
    assert of_busiest(tokens, 4, 4, 0, 0) == ((0,),) * 5


def test_shared_experts_take_the_tokens_of_their_own_part() -> None:
    """Ten tokens on four parts are up to three on a part. The two shared experts come after the one that is routed."""
    rows = of_busiest(((0,),) * 10, 4, 4, 2, 0)
    assert rows == ((0,),) * 10 + ((1,),) * 3 + ((2,),) * 3


def test_work_of_a_part_by_hand() -> None:
    """Eight tokens that use all eight experts, two on each of four parts: 8 rows for each of two. The shared expert has
    the two tokens of its part. An expert has 3 x 16 x 24 weights of 2 B."""
    case = MoeCase(B=8, E=8, k=8, H=16, F=24, parts=4, shared=1)
    assert case.id == "B8-E8k8-H16-F24-ep4-s1-bf16"
    assert (case.rows, case.width, case.experts, case.pairs) == (18, 1, 3, 18)
    assert tokens_per_expert(case) == (8, 8, 2)
    work = moe.work(case)
    assert work.bytes_read == 3 * 2304 + 18 * 16 * 2 + 18 * 8
    assert work.bytes_written == 18 * 16 * 2
    assert work.flops == {"mma_bf16": 6 * 18 * 16 * 24}
    assert not case.is_plain


def test_work_with_shared_experts_on_one_part_by_hand() -> None:
    """Each of three tokens has its two experts and two more, whose weights are read once."""
    case = MoeCase(B=3, E=4, k=4, H=16, F=24, shared=2)
    assert (case.rows, case.width, case.experts, case.pairs) == (3, 6, 6, 18)
    assert all(experts[-2:] == (4, 5) for experts in routing(case))
    assert tokens_per_expert(case) == (3,) * 6
    assert moe.work(case).bytes_read == 6 * 2304 + 3 * 16 * 2 + 18 * 8
    assert moe.work(case).flops == {"mma_bf16": 6 * 18 * 16 * 24}


def test_the_busiest_part_of_a_served_model() -> None:
    """1,024 tokens with 8 of 256 experts are 256 pairs a part on average, and 32 rows more of the shared expert."""
    served: dict[str, Any] = {"E": 256, "k": 8, "H": 16, "F": 16, "parts": 32, "shared": 1}
    rows = {}
    for kind in ("uniform", "lognormal", "zipf"):
        case = MoeCase(B=1024, routing=kind, groups=8, top_groups=4, **served)
        rows[kind] = case.rows
        assert case.experts == 9
        assert tokens_per_expert(case)[8] == 32
        assert experts_hit(case) <= 9
        assert case.id == f"B1024-E256k8-H16-F16{'' if kind == 'uniform' else '-' + kind[:7]}-4of8-ep32-s1-bf16"
    assert 256 + 32 < rows["uniform"] < rows["lognormal"] < rows["zipf"]


def test_a_part_computes_each_row_with_its_one_expert() -> None:
    case = MoeCase(B=4, E=4, k=2, H=8, F=6, dtype="fp32", parts=2, shared=1)
    inputs = moe.inputs(case, "cpu", 2)
    assert inputs["topk_ids"].shape == (case.rows, 1)
    assert inputs["w_down"].shape == (3, 8, 6)
    y = moe.reference(case, inputs)
    for row in range(case.rows):
        expert = int(inputs["topk_ids"][row, 0])
        gate, up = (inputs["w_gate_up"][expert] @ inputs["x"][row]).chunk(2)
        wanted = inputs["topk_weights"][row, 0] * (inputs["w_down"][expert] @ (torch.nn.functional.silu(gate) * up))
        torch.testing.assert_close(y[row], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"k": 9}, "k = 9: at most the E = 8 experts"),
        ({"parts": 3}, "parts 3: each has as many of the E = 8 experts"),
        ({"parts": 0}, "parts is 0: expected a whole number from 1 on"),
        ({"shared": -1}, "shared is -1: expected a whole number from 0 on"),
        ({"groups": 3, "top_groups": 1}, "groups 3: equal ones"),
        ({"groups": 2, "top_groups": 3}, "top_groups 3: at most the groups, 2"),
        ({"top_groups": 1}, "top_groups 1: at most the groups, 0"),
        ({"groups": 4}, "groups 4: equal ones, of which top_groups hold k = 4 experts"),
        ({"groups": 4, "top_groups": 1}, "top_groups hold k = 4"),
        ({"routing": "normal"}, "routing is 'normal': expected one of 'uniform', 'zipf', 'lognormal'"),
    ],
)
def test_experts_that_cannot_be_placed_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MoeCase(**({"B": 4, "E": 8, "k": 4, "H": 16, "F": 16} | fields))
