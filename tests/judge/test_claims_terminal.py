"""`claims` on a terminal: one line a claim, in colour, and the tally last."""

from __future__ import annotations

import re

import pytest

from bench.judge.claims import CLAIMS
from tests.support.terminal import on_a_terminal


@pytest.mark.parametrize(("columns", "colour"), [(80, False), (120, True)])
def test_each_claim_is_one_line_that_fits(columns: int, colour: bool) -> None:
    said = on_a_terminal(columns, "claims", colour=colour)
    assert ("\x1b[32mHOLDS" in said and "\x1b[31mFAILS" in said) is colour
    assert ("\x1b" in said) is colour
    lines = re.sub(r"\x1b\[[\d;]*m", "", said).splitlines()
    assert [line.split()[0] for line in lines[: len(CLAIMS)]] == list(CLAIMS)
    assert max(map(len, lines[: len(CLAIMS)])) <= columns
    assert " ".join(lines[len(CLAIMS) :]).startswith(f"Of {len(CLAIMS)} published claims: ")
    assert re.search(r"^T5 +HOLDS \(predicted\) +INT4 brings a 70B model to 35 GB", "\n".join(lines), re.MULTILINE)
