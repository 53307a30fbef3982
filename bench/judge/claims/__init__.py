"""The published claims, judged. A claim is one entry of one theme's `CLAIMS`; nothing here imports torch.

`scorecard(runs)` judges all of them; `explain` tells one in full, `main_table` all in a line each, `as_dict` for JSON.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.errors import unknown
from bench.judge.claims import hardware, intensity, kv, latency, money, quantization, utilization
from bench.judge.claims.base import Claim, Comparison, Measured, Published, Verdict
from bench.judge.claims.words import as_dict, explain, main_table, sentence, status_text
from bench.records import Run

__all__ = [
    "CLAIMS",
    "Claim",
    "Comparison",
    "Published",
    "Verdict",
    "as_dict",
    "explain",
    "find_claim",
    "judge",
    "main_table",
    "scorecard",
    "sentence",
    "status_text",
]

THEMES = (intensity, utilization, latency, quantization, kv, money, hardware)


def _order(claim_id: str) -> tuple[int, int]:
    """I, T, K, M, H, and by number within each."""
    return "ITKMH".index(claim_id[0]), int(claim_id[1:])


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in sorted((c for theme in THEMES for c in theme.CLAIMS), key=lambda claim: _order(claim.id))
}
"""By id, in the order of the list of claims."""


def find_claim(claim_id: str) -> Claim:
    """The claim of that id; upper and lower case are alike. Raises `BadRequest`."""
    claim = CLAIMS.get(claim_id.upper())
    if claim is None:
        raise unknown("claim", claim_id, CLAIMS)
    return claim


def judge(claim_id: str, runs: Iterable[Run] = ()) -> Verdict:
    """One claim. Raises `BadRequest` for an id that is not in the list."""
    return find_claim(claim_id).judge([Measured(run) for run in runs])


def scorecard(runs: Iterable[Run] = ()) -> list[Verdict]:
    """Every claim, judged by the model and by what these runs measured; the same runs give the same verdicts."""
    measured = [Measured(run) for run in runs]
    return [claim.judge(measured) for claim in CLAIMS.values()]
