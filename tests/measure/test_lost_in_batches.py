"""A token that is lost, doubled or misplaced in one sequence fails the gate in every batch of the suites.

See `tests/support/one_sequence.py` for why one sequence is enough. `pytest -m exhaustive` tries 100 seeds of every case
of `smoke`, `quick` and `full`, each seed with another sequence of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.attention_decode import op as attention
from kernels.attention_decode.cases import layer
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from tests.support.one_sequence import MLA_HEADS, one_sequence, ranges_of
from tests.support.planted_attention import Fault
from tests.support.quick_draws import quick_draws


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_draws():
        yield


def alike(case: Any) -> Any:
    """Cases that have this in common have the same sequences: of uniform lengths and, for latent attention, with
    enough heads."""
    if isinstance(case, MlaCase):
        case = replace(case, H=min(case.H, MLA_HEADS))
    return replace(case, B=1) if case.lengths == "uniform" else case


SUITES = [c for op in (attention.OP, mla.OP) for suite in ("smoke", "quick", "full") for c in op.cases(suite)]
DISTINCT = {alike(case): case for case in sorted(SUITES, key=lambda case: (case.T, case.B))}
"""Of cases that are alike, the one with the largest batch."""


def sequence(module: Any, case: Any, seed: int) -> int:
    """The longest, the shortest, and then others in turn. A sequence of one token has no other to be told from."""
    lengths = module.lengths(case)
    order = sorted((b for b in range(case.B) if lengths[b] > case.q_len + 1), key=lengths.__getitem__)
    return (order[-1:] + order)[seed % (len(order) + 1)]


def missed(case: Any, seed: int) -> list[str]:
    """What the gate gets wrong in one sequence."""
    module: Any = mla if isinstance(case, MlaCase) else attention
    b = sequence(module, case, seed)
    marks = module.marks_of(case, "cpu", seed)
    ranges = ranges_of(case, module.lengths(case)[b])
    live = torch.cat([torch.arange(*r) for r in ranges])
    last = len(live) - 1
    chosen = marks.chosen[live].nonzero().flatten()
    inner = chosen[(chosen > 0) & (chosen < len(live) - case.q_len)]
    picked = inner if len(inner) else chosen
    token = int(picked[torch.randint(len(picked), (1,), generator=torch.Generator().manual_seed(seed))])
    faults = {
        "first lost": Fault(counts={0: 0.0}),
        "last lost": Fault(counts={last: 0.0}),
        "chosen lost": Fault(counts={token: 0.0}),
        "chosen doubled": Fault(counts={token: 2.0}),
        "last doubled": Fault(counts={last: 2.0}),
        "value of the neighbour": Fault(moved={token: token + 1 if token < last else token - 1}),
    }
    positions = [last, token]
    if len(ranges) > 1:
        start = ranges[0][1] - ranges[0][0]
        positions.append(start)
        faults["first of the window lost"] = Fault(counts={start: 0.0})
    one = one_sequence(case, b, seed, marks, positions)
    wrong = [] if one.passes() else ["right"]
    wrong += [name for name, fault in faults.items() if one.passes(fault)]
    tolerances = float(one.worth().min()) / one.tolerance.max_rel
    return wrong + ([] if tolerances >= 10 else [f"a chosen token is worth {tolerances:.1f} tolerances"])


def all_missed(case: Any, seeds: int) -> dict[str, int]:
    return dict(Counter(what for seed in range(seeds) for what in missed(case, seed)))


QUICK = (
    layer("llama-3.1-8b", 256, 4096, page=16),
    layer("llama-3.1-8b", 64, 4096, page=16, lengths="ragged"),
    layer("gpt-oss-120b", 64, 4096, page=16, sink_logits=True),
    MlaCase(model="deepseek-v3", B=64, H=16, T=8192, page=64, lengths="ragged"),
)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.id)
def test_in_some_cases(case: Any) -> None:
    assert case in SUITES
    assert all_missed(case, seeds=2) == {}


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", DISTINCT.values(), ids=lambda case: case.id)
def test_in_every_case_of_the_suites(case: Any) -> None:
    assert all_missed(case, seeds=100) == {}
