"""A token that is lost, counted twice or misplaced fails the gate, at the lengths of the suites, for 100 seeds of 100.

Heads are few, so that two cores can compute them; sequences are as long as in the suites. Every run tries some seeds
of the shorter ones; `pytest -m exhaustive` tries 100. `test_lost_in_batches.py` has the heads and batches of suites.
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
from kernels.common.marks import Marks, draw_marks, ends
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from kernels.op import Inputs, Op
from tests.support.planted_attention import Fault, all_heads, output, worth_of
from tests.support.quick_draws import quick_draws


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


SHORT = [few(256), few(300, kv="int8", page=16), latents(300, kv="fp8")]
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


@pytest.mark.parametrize(
    ("case", "seeds"),
    [
        *(pytest.param(case, 3, id=case.id) for case in SHORT),
        *(pytest.param(case, 5, id=case.id, marks=pytest.mark.slow) for case in CASES),
        *(pytest.param(case, 100, id=f"{case.id}-100", marks=pytest.mark.exhaustive) for case in [*CASES, *LONG]),
    ],
)
def test_no_token_is_lost_doubled_or_misplaced_unseen(case: Any, seeds: int) -> None:
    found = caught(case, seeds)
    assert found.pop("right") == 0
    assert set(found.values()) == {seeds}, found


@pytest.mark.parametrize(
    "case",
    [few(1024), few(4096, kv="fp8"), few(32768, kv="int8"), latents(16384), few(1024, H_q=4, H_kv=4, D=64)],
    ids=lambda c: c.id,
)
def test_every_chosen_token_is_worth_ten_tolerances(case: Any) -> None:
    op, marks_of = operation(case)
    for seed in range(2):
        chosen = marks_of(case, "cpu", seed).chosen.nonzero().flatten()
        worth = worth_of(all_heads(case, op.inputs(case, "cpu", seed))[0], chosen)
        assert float(worth.min()) >= 10 * op.tolerance(case).max_rel


def test_ends_of_many_sequences_have_cells_of_their_own() -> None:
    """50 of the 64 cells hold an end; with drawn cells, some of them would hold two."""
    sequences = [((0, end),) for end in range(1000, 5000, 83)]
    for seed in range(5):
        marks = draw_marks(sequences, 5000, heads=1, classes=2, dims=64, channel_dims=64, raised=4, seed=seed)
        at_an_end = ends(sequences, 1)
        assert bool(marks.chosen[at_an_end].all())
        assert len(set(marks.dim[at_an_end].tolist())) == len(at_an_end) == 50


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
