"""A token that is lost, counted twice or misplaced fails the gate, at the lengths of the suites, for 100 seeds of 100.

Heads are few, so that two cores can compute them; sequences are as long as in the suites. Every run tries 10 seeds;
`pytest -m exhaustive` tries 100.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kernels.attention_decode import op as attention
from kernels.attention_decode.op import AttentionCase
from kernels.common.compare import compare
from kernels.common.marks import Marks
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from kernels.op import Inputs, Op
from tests.support.planted_attention import Fault, Head, all_heads, output
from tests.support.quick_draws import quick_draws, seeds_or_100


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_draws():
        yield


def few(T: int, **more: Any) -> AttentionCase:
    return AttentionCase(**({"B": 1, "H_q": 4, "H_kv": 1, "D": 64, "T": T} | more))


def latents(T: int, **more: Any) -> MlaCase:
    return MlaCase(**({"B": 1, "H": 4, "L": 64, "R": 16, "T": T} | more))


def operation(case: Any) -> tuple[Op, Any]:
    module: Any = mla if isinstance(case, MlaCase) else attention
    return module.OP, module.marks_of


def drawn_token(marks: Marks, generator: torch.Generator, length: int) -> int:
    """One of the chosen tokens, the last one left out."""
    chosen = marks.chosen[: length - 1].nonzero().flatten()
    return int(chosen[torch.randint(len(chosen), (1,), generator=generator)])


def faults(case: Any, seed: int) -> dict[str, Fault]:
    """Each in the longest sequence, whose live tokens are numbered as in the cache."""
    generator = torch.Generator().manual_seed(seed)
    length = case.T
    token = drawn_token(operation(case)[1](case, "cpu", seed), generator, length - case.q_len)
    return {
        "first lost": Fault(counts={0: 0.0}),
        "last lost": Fault(counts={length - 1: 0.0}),
        "chosen lost": Fault(counts={token: 0.0}),
        "chosen doubled": Fault(counts={token: 2.0}),
        "last doubled": Fault(counts={length - 1: 2.0}),
        "value of the neighbour": Fault(moved={token: token + 1}),
    }


def caught(case: Any, seeds: int) -> Counter[str]:
    """For how many seeds the gate fails each fault, and a right kernel."""
    op, _ = operation(case)
    found: Counter[str] = Counter({"right": 0})
    lengths = (mla if isinstance(case, MlaCase) else attention).lengths(case)
    longest = max(range(case.B), key=lengths.__getitem__)
    for seed in range(seeds):
        inputs = op.inputs(case, "cpu", seed)
        expected, tolerance = op.reference(case, inputs), op.tolerance(case)
        heads = all_heads(case, inputs)
        right = output(case, heads)
        found["right"] += not compare(right, expected, tolerance).passed
        for name, fault in faults(case, seed).items():
            wrong = right.clone()
            wrong[longest] = output(case, [heads[longest]], fault)[0]
            found[name] += not compare(wrong, expected, tolerance).passed
    return found


CASES = [
    few(1024),
    few(1024, B=16, page=16, lengths="ragged"),
    few(4096, H_q=8, page=16, q_len=4),
    few(4096, page=16, kv="fp8"),
    few(8192, kv="int8", page=64, layout="HND"),
    few(32768, page=16),
    latents(4096, page=64),
    latents(16384, kv="fp8"),
]
LONG = [few(32768, kv="int8"), few(131072), latents(65536, page=64)]


@seeds_or_100(10)
@pytest.mark.parametrize("case", [*CASES, *LONG], ids=lambda case: case.id)
def test_no_token_is_lost_doubled_or_misplaced_unseen(case: Any, seeds: int) -> None:
    found = caught(case, seeds)
    assert found.pop("right") == 0
    assert set(found.values()) == {seeds}, found


def test_in_short_sequences_too() -> None:
    """A few seeds of small shapes, in every run of the tests."""
    for case in (few(256), few(300, kv="int8", page=16), latents(300, kv="fp8")):
        found = caught(case, seeds=3)
        assert found.pop("right") == 0
        assert set(found.values()) == {3}, found


def without(head: Head, t: int) -> torch.Tensor:
    """How wrong each element is if token t is lost: `max_rel` of `compare`, without any rounding."""
    p = torch.softmax(head.scores, dim=-1)
    values = head.values * head.scale[:, None]
    o = p @ values
    change = p[:, t, None] / (1 - p[:, t, None]) * (o - values[t])
    return change.abs() / (o.abs() + o.square().mean(dim=-1, keepdim=True).sqrt())


@pytest.mark.parametrize(
    "case", [few(1024), few(4096, kv="fp8"), few(32768, kv="int8"), latents(16384)], ids=lambda c: c.id
)
def test_a_chosen_token_is_worth_ten_tolerances(case: Any) -> None:
    """Of 200 chosen tokens of each seed. Two in a hundred may have a little less: noise adds up against them."""
    op, marks_of = operation(case)
    worth = []
    for seed in range(2):
        marks = marks_of(case, "cpu", seed)
        heads = all_heads(case, op.inputs(case, "cpu", seed))[0]
        tokens = marks.chosen.nonzero().flatten().tolist()
        worth += [max(float(without(head, t).max()) for head in heads) for t in tokens[:: max(1, len(tokens) // 200)]]
    worth.sort()
    tolerance = op.tolerance(case).max_rel
    assert worth[len(worth) // 50] >= 10 * tolerance
    assert worth[0] >= 8 * tolerance


def without_rope(case: MlaCase, inputs: Inputs, count: int) -> Inputs:
    """The last tokens have no rotary keys."""
    rope = inputs["rope"] if case.kv else inputs["cache"]
    dropped = rope.clone()
    dropped[:, -count:, 0 if case.kv else case.L :] = 0
    return inputs | {"rope" if case.kv else "cache": dropped}


@pytest.mark.parametrize("case", [latents(16384), latents(4096, H=16, L=128, R=64, kv="fp8")], ids=lambda case: case.id)
def test_the_last_tokens_need_their_rotary_keys(case: MlaCase) -> None:
    for seed in range(5):
        inputs = mla.inputs(case, "cpu", seed)
        wrong = output(case, all_heads(case, without_rope(case, inputs, 32)))
        errors = compare(wrong, mla.reference(case, inputs), mla.tolerance(case))
        assert errors.max_rel >= 10 * mla.tolerance(case).max_rel


@pytest.mark.parametrize("kv", ["", "fp8", "int8"])
@pytest.mark.parametrize("more", [1, 3])
def test_a_token_beyond_the_end_shows(kv: str, more: int) -> None:
    """All but the longest sequence have dead tokens in their last group of scales."""
    for seed in range(10):
        case = few(1030, B=2, lengths="ragged", seed=3, page=16, kv=kv)
        assert min(attention.lengths(case)) % 16 < 13
        inputs = attention.inputs(case, "cpu", seed)
        short = attention.lengths(case).index(min(attention.lengths(case)))
        right = output(case, all_heads(case, inputs))
        assert compare(right, attention.reference(case, inputs), attention.tolerance(case)).passed
        right[short] = output(case, [all_heads(case, inputs, more)[short]])[0]
        assert not compare(right, attention.reference(case, inputs), attention.tolerance(case)).passed
