"""Work x ceilings -> predicted seconds. Pure: no torch, no I/O, and never a look at the operation's own time."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected seconds of one launch, the terms it was made from (seconds by name) and the one that bounds."""

    seconds: float
    terms: dict[str, float] = field(default_factory=dict)
    bound: str
    basis: str
    """What it was made from: a device's datasheet, or the ceilings measured in the same run."""
