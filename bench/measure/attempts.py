"""Sampling under telemetry, again where the GPU throttled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from bench.measure.core import InCache
from bench.measure.telemetry import Sampler
from bench.measure.timing import Sampling, Timer, sample_interleaved

Attempt = tuple[dict[str, Sampling], dict[str, Any]]
"""The samples of all timers, and the telemetry of their time."""


def sample_calmly(
    timers: Mapping[str, Timer],
    telemetry: Callable[[], Sampler],
    *,
    attempts: int,
    roof: Timer | None = None,
    cores: Mapping[str, InCache] = MappingProxyType({}),
    cap_s: float,
    aim: float,
    entering: Callable[[str], None],
) -> Attempt:
    """`sample_interleaved`, at most `attempts` times: again while the part was throttled. The last attempt counts.

    A host that others disturbed stays so for a while. So a disturbed case is measured again at the end of the run.
    """
    for _ in range(attempts):
        with telemetry() as sampler:
            samplings = sample_interleaved(timers, cap_s=cap_s, aim=aim, roof=roof, cores=cores, entering=entering)
        summary = sampler.summary()
        if not summary.get("throttled"):
            break
    return samplings, summary
