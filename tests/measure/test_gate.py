"""The gate after timing, on copies whose references are written down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.measure import gate
from kernels.op import Result, Tolerance

COPIES = [{"x": torch.full((2, 3), float(k + 1))} for k in range(5)]


class Doubling:
    """y = 2 x, within 1%. Keeps how many copies each comparison held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compared: list[int] = []
        honest = gate.compare

        def compare(output: torch.Tensor, *rest: Any) -> Any:
            self.compared.append(len(output))
            return honest(output, *rest)

        monkeypatch.setattr(gate, "compare", compare)

    def tolerance(self, case: Any) -> Tolerance:
        return Tolerance(max_rel=0.01, rms_rel=0.01)

    def decoded(self, case: Any, output: torch.Tensor) -> torch.Tensor:
        return output

    def results(self, case: Any, inputs: dict[str, torch.Tensor]) -> list[Result]:
        return []

    def reference(self, case: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return 2 * inputs["x"]


def outputs(**wrong: float) -> list[torch.Tensor]:
    """Right outputs of all copies, except that the first element of `copy<k>` is off by that share."""
    found = [2.0 * copy["x"] for copy in COPIES]
    for name, share in wrong.items():
        found[int(name.removeprefix("copy"))][0, 0] *= 1 + share
    return found


@pytest.mark.parametrize(
    ("elements", "groups", "where"),
    [(1 << 20, [5], "copies 0 to 4"), (12, [2, 2, 1], "copies 2 to 3"), (7, [1] * 5, "copy 3"), (1, [1] * 5, "copy 3")],
)
def test_copies_are_compared_by_as_many_as_may_be_held_at_once(
    monkeypatch: pytest.MonkeyPatch, elements: int, groups: list[int], where: str
) -> None:
    monkeypatch.setattr(gate, "STACK_ELEMENTS", elements)
    op: Any = Doubling(monkeypatch)
    right, wrong = gate.check_copies(op, SimpleNamespace(), COPIES, [outputs(), outputs(copy3=0.5)])
    assert op.compared == [count for count in groups for _ in range(2)]
    assert (right.passed, right.elements, right.bad_elements, right.max_rel) == (True, 30, 0, 0.0)
    assert (wrong.passed, wrong.elements, wrong.bad_elements) == (False, 30, 1)
    assert (wrong.reason or "").endswith(f", in {where} of 5 after timing")


def test_the_worst_of_all_copies_counts_and_the_first_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst element is too large by half of its value, which is its row's size too: max_rel is 0.5 / (1 + 1)."""
    monkeypatch.setattr(gate, "STACK_ELEMENTS", 1)
    op: Any = Doubling(monkeypatch)
    for off, first in (({"copy1": 0.5, "copy3": 0.1}, "copy 1"), ({"copy1": 0.1, "copy3": 0.5}, "copy 1")):
        (found,) = gate.check_copies(op, SimpleNamespace(), COPIES, [outputs(**off)])
        assert found.max_rel == pytest.approx(0.25)
        assert found.row_rel == pytest.approx(0.5 / 3**0.5)
        assert found.rms_rel == pytest.approx(0.5 / 6**0.5)
        assert (found.bad_elements, found.elements) == (2, 30)
        assert f"in {first} of 5" in (found.reason or "")


def test_of_no_implementation_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    op: Any = Doubling(monkeypatch)
    assert gate.check_copies(op, SimpleNamespace(), COPIES, []) == []


def test_sequences_of_all_copies_are_judged_one_by_one() -> None:
    """[B, q_len, heads, D] of five copies: the second sequence of the last copy is too large by 0.2%."""
    copies = [{"x": torch.randn(2, 1, 16, 64, generator=torch.Generator().manual_seed(k))} for k in range(5)]
    y = [(2 * copy["x"]).bfloat16() for copy in copies]
    y[4][1] = (2.004 * copies[4]["x"][1]).bfloat16()
    unit = 2.0**-8
    tolerance = Tolerance(max_rel=8 * unit, rms_rel=unit, slope=0.0625 * unit, each_sequence=True)
    op: Any = SimpleNamespace(
        tolerance=lambda case: tolerance,
        reference=lambda case, inputs: 2 * inputs["x"],
        decoded=lambda case, output: output,
        results=lambda case, inputs: [],
    )
    (found,) = gate.check_copies(op, SimpleNamespace(), copies, [y])
    assert "of sequence 9" in (found.reason or "")
