"""A case is sampled again where the machine did not let it be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bench.measure.attempts import sample_calmly
from bench.measure.telemetry import Sampler


def test_a_disturbed_case_is_measured_again_and_the_calmest_attempt_counts() -> None:
    seen = [
        {"host": {"others": 0.5, "stolen": 0.0}, "disturbed": True},
        {"host": {"others": 0.1, "stolen": 0.1}, "disturbed": True},
        {"host": {"others": 0.3, "stolen": 0.0}, "disturbed": True},
    ]

    class Told(Sampler):
        def __init__(self) -> None:
            super().__init__(None)

        def summary(self) -> dict[str, Any]:
            return told.pop(0)

    told = list(seen)
    timers = {"one": SimpleNamespace(sample=lambda: 1.0)}
    how: dict[str, Any] = {"cap_s": 1.0, "aim": 0.02, "entering": lambda name: None}
    assert sample_calmly(timers, Told, attempts=3, **how)[1] == seen[1]  # type: ignore[arg-type]
    assert not told
    told = [seen[0], {"host": {"others": 0.0, "stolen": 0.0}, "disturbed": False}, seen[2]]
    assert sample_calmly(timers, Told, attempts=3, **how)[1]["disturbed"] is False  # type: ignore[arg-type]
    assert told == [seen[2]], "a calm attempt ends it"
