"""The run file: JSON Lines, append-only, each line flushed. Never imports torch.

Line kinds, in the order in which they appear:

- `run`: once per process that writes (a resumed run has several): suite, argv, environment, device, time
- `prediction`: op, impl, case id, what is expected; on disk before the measurement starts
- `record`: one case of one implementation, with every sample, or the reason why there is none
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 1

Status = Literal["ok", "refused", "wrong", "failed", "timeout", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One case of one implementation. Seconds, bytes, FLOP, joule, watt, hertz throughout.

    `status`: `ok`; `refused` (the implementation does not support it), `wrong` (gate failed), `failed` (raised, or its
    process died), `timeout`, `skipped` (no time left); `reason` says why for all but `ok`.
    """

    schema: int = SCHEMA
    op: str
    impl: str
    ours: bool
    case_id: str
    case: dict[str, Any]
    status: Status
    reason: str | None = None
    version: str = ""
    """Of the library behind the implementation, e.g. `torch 2.11.0`."""
    work: dict[str, Any]
    """Compulsory minimum: `{"flops": {pipe: n}, "bytes_read": n, "bytes_written": n}`."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """What it really does, one entry per kernel: name, work, l2_bytes, ctas, ctas_per_sm."""
    prediction: dict[str, Any] = field(default_factory=dict)
    """`{"datasheet": Prediction | None, "measured": Prediction | None, "at": iso time}`, made before measuring."""
    samples_s: list[float] = field(default_factory=list)
    """Seconds per launch, cold caches, launch gaps out (graph replay on a GPU)."""
    isolated_s: list[float] = field(default_factory=list)
    """Seconds of single cold launches, one event pair each; empty on a CPU."""
    stop: str = ""
    """Why sampling ended: `converged` (interval of the median within the aim) or `time cap`."""
    error: dict[str, Any] | None = None
    """`kernels.compare.Errors` of the worst checked output."""
    rotation: dict[str, Any] = field(default_factory=dict)
    """`{"copies", "bytes_per_copy", "total_bytes", "cache_bytes", "cold": bool, "flush_bytes"}`."""
    telemetry: dict[str, Any] = field(default_factory=dict)
    """Clocks, power, temperature, throttle reasons, energy while it ran; empty where nothing can be read."""
    counters: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    """`noisy`, `throttled`, `impossible`, `warm`, `allocates`, ...: kept and shown, never dropped."""
    seed: int = 0
    measured_at: str = ""
    run_id: str = ""
