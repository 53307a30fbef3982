"""Sampling under telemetry, again where the machine did not let it be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.measure.telemetry import Sampler
from bench.measure.timing import Sampling, Timer, sample_interleaved

Attempt = tuple[dict[str, Sampling], dict[str, Any]]
"""The samples of all timers, and the telemetry of their time."""


def sample_calmly(
    timers: Mapping[str, Timer],
    telemetry: Callable[[], Sampler],
    *,
    attempts: int,
    cap_s: float,
    aim: float,
    entering: Callable[[str], None],
) -> Attempt:
    """`sample_interleaved`, at most `attempts` times: again while the part was throttled or the host was disturbed."""
    tried: list[Attempt] = []
    for _ in range(attempts):
        with telemetry() as sampler:
            samplings = sample_interleaved(timers, cap_s=cap_s, aim=aim, entering=entering)
        tried.append((samplings, sampler.summary()))
        if not any(tried[-1][1].get(reason) for reason in ("throttled", "disturbed")):
            break
    return calmest(tried)


def calmest(tried: Sequence[Attempt]) -> Attempt:
    """The last attempt; on a host, the one in which others had the least of the cores."""

    def taken(attempt: Attempt) -> float:
        host = attempt[1].get("host") or {}
        return host.get("others", 0.0) + host.get("stolen", 0.0)

    return min(reversed(tried), key=taken)
