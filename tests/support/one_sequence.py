"""One sequence of a case of the suites, with the marks that it has in the whole batch, so that the host can compute it.

A fault in one sequence shows in the rows of this sequence. `max_rel` and `row_rel` of `compare` are the largest of all
rows, so a row that fails alone fails in every batch. A batch acts on a sequence only through the marks, since the ends
of all sequences are chosen tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from kernels.attention_decode import op as attention
from kernels.common.compare import compare
from kernels.common.marks import Marks
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from kernels.op import Tolerance
from tests.support.planted_attention import Fault, Head, attention_heads, mla_head, output, worth_of

MLA_HEADS = 16
"""Heads of latent attention that are computed: one for each class of the marks."""


@dataclass(frozen=True, kw_only=True)
class SomeHeads(Marks):
    """The marks of some KV heads; scores are those of all."""

    whole: Marks

    @property
    def depth(self) -> int:
        return self.whole.depth

    @property
    def ground(self) -> float:
        return self.whole.ground

    def sink_scores(self, tokens: int) -> list[float]:
        return self.whole.sink_scores(tokens)


def some_heads(marks: Marks, kept: Sequence[int]) -> SomeHeads:
    """The heads `kept` as 0, 1, ..., and one more that stands for all others."""
    number = torch.full((marks.heads,), len(kept))
    number[list(kept)] = torch.arange(len(kept))
    heads = len(kept) + (len(kept) < marks.heads)
    return SomeHeads(**{**vars(marks), "head": number[marks.head], "heads": heads}, whole=marks)


@dataclass(frozen=True, kw_only=True)
class Sequence1:
    """One sequence: its case with B = 1, the KV heads that were asked for, and what is right for them."""

    case: Any
    heads: list[Head]
    expected: torch.Tensor
    """`[1, q_len, query heads, D]`."""
    tokens: torch.Tensor
    """The numbers of the live tokens."""
    chosen: torch.Tensor
    """Positions in `tokens` of the chosen ones whose marks are in `heads`."""
    tolerance: Tolerance

    def passes(self, fault: Fault | None = None) -> bool:
        """Do all rows pass, each by itself?"""
        errors = compare(output(self.case, [self.heads], fault), self.expected, self.tolerance)
        return errors.max_rel <= self.tolerance.max_rel and errors.row_rel <= 4 * self.tolerance.rms_rel

    def worth(self) -> torch.Tensor:
        return worth_of(self.heads, self.chosen)


def ranges_of(case: Any, length: int) -> Sequence[tuple[int, int]]:
    return ((0, length),) if isinstance(case, MlaCase) else attention.live(case, length)


def numbers(ranges: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.cat([torch.arange(*r) for r in ranges])


@contextmanager
def patched(module: Any, **values: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        yield


def one_sequence(case: Any, b: int, seed: int, marks: Marks, positions: Sequence[int]) -> Sequence1:
    """Sequence b, and those KV heads that have the marks of the live tokens at these positions."""
    latent = isinstance(case, MlaCase)
    module: Any = mla if latent else attention
    length = module.lengths(case)[b]
    live = numbers(ranges_of(case, length))
    kept = sorted(set(marks.head[live[list(positions)]].tolist()))
    mine = some_heads(marks, kept)
    if latent:
        part = replace(case, B=1, H=min(case.H, MLA_HEADS))
        values: dict[str, Any] = {"marks_of": lambda *_: marks}
    else:
        part = replace(case, B=1, H_kv=mine.heads, H_q=mine.heads * case.group)
        logit = attention.typical_logit(case, marks)
        values = {"marks_of": lambda *_: mine, "typical_logit": lambda *_: logit}
    read: dict[tuple[Any, ...], torch.Tensor] = {}
    of_cache = module.tokens

    def tokens(case: Any, inputs: Any, *which: Any) -> torch.Tensor:
        """The tokens of a cache in fp32, made once for the reference and for the planted kernels: half of the time."""
        if which not in read:
            read[which] = of_cache(case, inputs, *which)
        return read[which]

    with patched(module, lengths=lambda _: (length,), tokens=tokens, **values):
        inputs = module.inputs(part, "cpu", seed)
        heads = [mla_head(part, inputs, 0)] if latent else attention_heads(part, inputs, 0)[: len(kept)]
        expected = module.reference(part, inputs)
        expected = expected if latent else expected[:, :, : len(kept) * case.group]
    chosen = marks.chosen[live] & (mine.head[live] < len(kept))
    return Sequence1(
        case=part,
        heads=heads,
        expected=expected,
        tokens=live,
        chosen=chosen.nonzero().flatten(),
        tolerance=module.tolerance(case),
    )
