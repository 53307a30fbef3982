"""A token that is lost, doubled or misplaced in one sequence fails the gate in every batch of the suites, and so does
an error of all its elements.

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
from kernels.common.compare import SEQUENCE_ROWS, compare
from kernels.common.integers import cdiv
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from tests.support.one_sequence import MLA_HEADS, Sequence1, one_sequence, ranges_of
from tests.support.planted_attention import Fault, output
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


OUTPUTS = 2048
"""Outputs of a sequence that are judged, at least: fewer than any case has, and fewer hide more."""
FEW_TOKENS = 128
"""Rounded sums of four splits of so few tokens do not show: probabilities of few tokens leave only 0.7 of the noise of
a rounding on average, and the sums of 32 tokens are within what is allowed. No kernel cuts two blocks into four."""


def of_all_elements(case: Any) -> dict[str, Fault]:
    """Those of `test_systematic_errors.py`."""
    few = 0 < getattr(case, "window", 0) <= FEW_TOKENS
    gain = 1.007 if isinstance(case, MlaCase) else 1.002
    return {
        "gain": Fault(gain=gain),
        "loss": Fault(gain=2 - gain),
        "offset": Fault(offset=0.002),
        "softmax scale": Fault(softmax_scale=1.001),
        "softmax scale too small": Fault(softmax_scale=0.999),
        **({} if few else {"partial sums": Fault(partial=torch.bfloat16)}),
    }


def longest(case: Any, seed: int) -> Sequence1:
    """The longest sequence, and as many of its KV heads as are needed."""
    module: Any = mla if isinstance(case, MlaCase) else attention
    lengths = module.lengths(case)
    b, marks = max(range(case.B), key=lengths.__getitem__), module.marks_of(case, "cpu", seed)
    if isinstance(case, MlaCase):
        return one_sequence(case, b, seed, marks, [0])
    rows = case.q_len * case.group
    count = min(case.H_kv, max(cdiv(OUTPUTS, rows * case.D), cdiv(SEQUENCE_ROWS, rows)))
    of_head = marks.head[torch.cat([torch.arange(*r) for r in ranges_of(case, lengths[b])])]
    positions = [int((of_head == h).nonzero()[0]) for h in sorted(set(of_head.tolist()))[:count]]
    return one_sequence(case, b, seed, marks, positions)


def missed_of_all_elements(case: Any, seed: int) -> list[str]:
    """What the gate gets wrong in the longest sequence."""
    one = longest(case, seed)

    def passes(fault: Fault | None = None) -> bool:
        return compare(output(one.case, [one.heads], fault), one.expected, one.tolerance).passed

    wrong = [] if passes() else ["right"]
    return wrong + [name for name, fault in of_all_elements(case).items() if passes(fault)]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.id)
def test_errors_of_all_elements_in_some_cases(case: Any) -> None:
    assert missed_of_all_elements(case, 0) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", DISTINCT.values(), ids=lambda case: case.id)
def test_errors_of_all_elements_in_every_case_of_the_suites(case: Any) -> None:
    assert Counter(what for seed in range(100) for what in missed_of_all_elements(case, seed)) == {}
