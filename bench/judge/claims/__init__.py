"""The published claims, judged by the model and by measurements. Nothing here imports torch.

To add a claim, write one block into the module of its theme, or into a new module of this package: its published
numbers, the functions that predict and measure them, and a module-level `Claim`. Nothing else needs an edit.

`scorecard(runs, COMMITTED)` judges every claim, with published tables where no run does. `main_table` shows one line
for each, `explain` tells one in full, and `as_dict` gives one for JSON.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from bench.errors import unknown
from bench.judge.claims.base import Claim, Comparison, Published, Verdict
from bench.judge.claims.others import COMMITTED, Others
from bench.judge.claims.reading import MeasuredPart
from bench.judge.claims.settle import judge_claim
from bench.judge.claims.words import as_dict, explain, line, main_table, sentence, status_text, tally
from bench.run import Run

__all__ = [
    "CLAIMS",
    "COMMITTED",
    "Claim",
    "Comparison",
    "Published",
    "Verdict",
    "as_dict",
    "explain",
    "find_claim",
    "judge",
    "line",
    "main_table",
    "scorecard",
    "sentence",
    "status_text",
    "tally",
]

FIRST = ("I", "T", "K", "M", "H")
"""The letters that a scorecard shows first. Letters that are not listed follow in the order of the alphabet."""


def _order(claim_id: str) -> tuple[int, str, int]:
    """Sort by letter, then by number."""
    letter = claim_id.rstrip("0123456789")
    rank = FIRST.index(letter) if letter in FIRST else len(FIRST)
    return rank, letter, int(claim_id.removeprefix(letter))


def _collect() -> dict[str, Claim]:
    """Every `Claim` that a module of this package defines, by id. Raises `ValueError` if two have the same id."""
    claims: dict[str, Claim] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Claim) and claims.setdefault(value.id, value) is not value:
                raise ValueError(f"two claims have the id {value.id}")
    return {claim_id: claims[claim_id] for claim_id in sorted(claims, key=_order)}


CLAIMS: dict[str, Claim] = _collect()


def find_claim(claim_id: str) -> Claim:
    """The claim of that id; upper and lower case are alike. Raises `BadRequest`."""
    claim = CLAIMS.get(claim_id.upper())
    if claim is None:
        raise unknown("claim", claim_id, CLAIMS)
    return claim


def judge(claim_id: str, runs: Iterable[Run] = (), others: Others | None = None) -> Verdict:
    """One claim. Raises `BadRequest` for an id that is not in the list."""
    return judge_claim(find_claim(claim_id), [MeasuredPart(run) for run in runs], others)


def scorecard(runs: Iterable[Run] = (), others: Others | None = None) -> list[Verdict]:
    """Every claim, judged by the model, by what these runs measured, and by published rows.

    `others` is `COMMITTED` for the committed tables, None for no published rows. The same runs and rows give the same
    verdicts.
    """
    measured = [MeasuredPart(run) for run in runs]
    return [judge_claim(claim, measured, others) for claim in CLAIMS.values()]
