"""A case is sampled again where the GPU throttled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bench.measure.attempts import sample_calmly
from bench.measure.telemetry import Sampler


def test_a_throttled_case_is_measured_again_and_the_last_attempt_counts() -> None:
    class Told(Sampler):
        def __init__(self) -> None:
            super().__init__(None)

        def summary(self) -> dict[str, Any]:
            return told.pop(0)

    def sampled(*summaries: dict[str, Any]) -> dict[str, Any]:
        told[:] = summaries
        return sample_calmly(timers, Told, attempts=3, cap_s=1.0, aim=0.02, entering=lambda name: None)[1]

    told: list[dict[str, Any]] = []
    timers: Any = {"one": SimpleNamespace(sample=lambda: 1.0)}
    hot, fine = {"throttled": True, "n": 1}, {"throttled": False}
    assert sampled(hot, hot, {"throttled": True, "n": 2})["n"] == 2
    assert not told
    assert sampled(hot, fine, hot) == fine
    assert told == [hot], "an attempt without throttling ends it"
    disturbed = {"disturbed": True}
    assert sampled(disturbed, hot, hot) == disturbed
    assert told == [hot, hot], "a disturbed host is measured again at the end of the run, not at once"
