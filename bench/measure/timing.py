"""Timers: CUDA events and graphs, rotation against warm caches, and the host's clock. No other file uses these.

A timer owns prepared launches over rotating copies of the inputs. One `sample()` is seconds per launch:

- GPU: one CUDA graph holds a launch on every copy, repeated until a replay lasts `GRAPH_SECONDS`. A sample is the time
  of one replay between two events, divided by its number of launches. A spin kernel ahead of the first event keeps the
  device busy until everything is queued, so that no launch gap of the host is in the time.
- CPU: a sample is one launch on the next copy, between two readings of the host's clock. Where the copies together are
  smaller than `COLD_FACTOR` last-level caches, a buffer of the cache's size is swept before it, outside the time. A
  launch of several ranks tells its time itself: that of the slowest rank.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from bench.errors import describe
from bench.measure.core import InCache
from bench.measure.l2 import forbid_pinning
from bench.stats import median_interval
from kernels.op import Launch, Target

COLD_FACTOR = 4
"""Copies together must be so many times larger than the last-level cache; then nothing of a copy is left in it when its
turn comes again."""

HOST_COPIES = 3
"""So many copies on a host. Where they are too small, its cache is swept."""

MAX_COPIES = 4096

MIN_CACHEABLE = 4096
"""A launch that moves fewer bytes (an empty kernel) is never called warm: no cache matters to it."""

UNCACHEABLE_COPIES = 16
"""So many copies of such a launch on a GPU. The launch decides its time, so more copies only cost time to draw."""

GRAPH_SECONDS = 4e-3
"""One replay lasts at least this long, so that the microseconds around a graph launch stay under 0.1% of it."""

SPIN_HZ = 2e9
"""At most so many cycles a second for the spin kernel. No part's SM clock is higher, so a spin is never too short."""

SPIN_MARGIN_S = 2e-4
"""A spin lasts this much longer than twice the time that the host needed for queueing."""

AIM = 0.005
"""On a GPU, sampling stops when the half-width of the median's interval is at most this share of the median."""

HOST_AIM = 0.02
"""The same on a host, which shares its cores and its memory with other programs."""

MIN_SAMPLES = 12
"""The interval is first looked at after so many samples, or when the time is up."""

FEWEST_SAMPLES = 6
"""So many samples are taken whatever the cap. The range of 6 holds the median with 1 - 2 / 2^6 = 97%; that of 5, with
under 95%."""

MAX_SAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """How many copies of the inputs take turns, and whether a copy can still be cached when its turn comes again.

    `touched_bytes` are the bytes of a copy that any launch must move. What no launch reads (experts that are not hit,
    tokens outside the window, a cache to which one token is appended) drives nothing out of a cache.
    """

    copies: int
    bytes_per_copy: int
    touched_bytes: int
    cache_bytes: int
    flush_bytes: int = 0
    """Bytes swept between two launches, outside the time (hosts only)."""

    @property
    def total_bytes(self) -> int:
        return self.copies * self.bytes_per_copy

    @property
    def cold(self) -> bool:
        """Is nothing of a copy cached when its turn comes? False where the cache's size is not known."""
        if not self.cache_bytes:
            return False
        if self.flush_bytes:
            return self.flush_bytes >= self.cache_bytes
        return self.copies * self.touched_bytes >= COLD_FACTOR * self.cache_bytes

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes, "cold": self.cold}


def plan_rotation(bytes_per_copy: int, touched_bytes: int, target: Target, memory_bytes: int) -> Rotation:
    """Enough copies for a cold cache, but at most half of the free memory and `MAX_COPIES`, and at least two.

    Where that is too few, as many copies as exceed the cache with all their bytes, touched or not; the case is warm
    then. A host has `HOST_COPIES`, or two where two are cold. Its cache is swept where they are too small.
    """
    size, touched = max(1, bytes_per_copy), max(1, touched_bytes)
    affordable = max(2, min(MAX_COPIES, memory_bytes // 2 // size))
    known = {"bytes_per_copy": size, "touched_bytes": touched, "cache_bytes": target.l2_bytes}
    if target.kind == "cuda" and touched < MIN_CACHEABLE:
        return Rotation(copies=min(affordable, UNCACHEABLE_COPIES), **known)
    if target.kind == "cuda":
        cold, least = (max(2, math.ceil(COLD_FACTOR * target.l2_bytes / each)) for each in (touched, size))
        return Rotation(copies=cold if cold <= affordable else min(affordable, least), **known)
    copies = min(affordable, HOST_COPIES if 2 * touched < COLD_FACTOR * target.l2_bytes else 2)
    flush = 0 if copies * touched >= COLD_FACTOR * target.l2_bytes else target.l2_bytes
    return Rotation(copies=copies, flush_bytes=flush, **known)


class Timer(Protocol):
    """`sample()` gives seconds per launch. `outputs` are the tensors that the timed launches write, one per copy."""

    outputs: list[Any]

    def sample(self) -> float: ...

    def close(self) -> None: ...


class SpoiltCapture(RuntimeError):
    """A launch did what cannot be captured, and invalidated the capture. The message is the launch's own error.

    torch's allocator then takes the capture for unfinished, and frees no cached memory any more.
    """


class GraphTimer:
    """Replays a CUDA graph that launches on all copies."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        import torch

        estimate = self._estimate(launches)
        rounds = max(1, math.ceil(GRAPH_SECONDS / (estimate * len(launches))))
        self._count = rounds * len(launches)
        self._graph = torch.cuda.CUDAGraph()
        self._capture(launches, rounds)
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        forbid_pinning()
        self._graph.replay()  # the first replay uploads the graph
        self._spin = spin_cycles(self._graph.replay)

    def _capture(self, launches: Sequence[Launch], rounds: int) -> None:
        import torch

        refused: Exception | None = None
        # a garbage collection during capture may unload a dead kernel's module, which invalidates the graph
        gc.disable()
        try:
            # where a capture ends in an error, torch leaves its stream current; the outer context restores the old one
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self._graph):
                try:
                    for _ in range(rounds):
                        self.outputs = [launch() for launch in launches]
                except Exception as error:
                    refused = error
                    raise
        except Exception as error:
            if error is refused:
                raise
            cause = refused or error
            raise SpoiltCapture(describe(cause)) from cause
        finally:
            gc.enable()

    @staticmethod
    def _estimate(launches: Sequence[Launch]) -> float:
        """Rough seconds per launch, after one warm-up launch on each copy. Capture wants it on a side stream."""
        import torch

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(side):
            for launch in launches:
                launch()
            probe = launches[: min(8, len(launches))]
            torch.cuda._sleep(len(probe) * spin_cycles(probe[0]))
            start.record()
            for launch in probe:
                launch()
            end.record()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        return max(1e-6, start.elapsed_time(end) / 1e3 / len(probe))

    def sample(self) -> float:
        import torch

        forbid_pinning()  # also what a thread of an implementation set since the last sample
        torch.cuda._sleep(self._spin)
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / self._count

    def close(self) -> None:
        self._graph.reset()


def spin_cycles(queue: Callable[[], Any]) -> int:
    """How many cycles the device must spin so that the host has called `queue` before the spin ends.

    The host needs milliseconds to queue a graph of thousands of kernels. Without the spin they would be in the time.
    """
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    queue()
    queued = time.perf_counter() - start
    torch.cuda.synchronize()
    return int((2 * queued + SPIN_MARGIN_S) * SPIN_HZ)


class HostTimer:
    """Times one launch on the host, each on the next copy, after a sweep of the cache where one is needed.

    `ranks_s` are the seconds of each rank in the last sample, where a launch has ranks.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        flush: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        busy_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._launches = list(launches)
        self._flush, self._clock, self._busy_clock = flush, clock, busy_clock
        self._next = 0
        self._wall = self._busy = 0.0
        self.ranks_s: list[float] = []
        self.outputs = [launch() for launch in self._launches]

    def sample(self) -> float:
        turn = self._next % len(self._launches)
        self._next += 1
        self._flush()
        busy, start = self._busy_clock(), self._clock()
        self.outputs[turn] = self._launches[turn]()
        end, busy_end = self._clock(), self._busy_clock()
        self._wall += end - start
        self._busy += busy_end - busy
        self.ranks_s = getattr(self._launches[turn], "seconds", [])
        return max(self.ranks_s, default=end - start)

    @property
    def waited(self) -> bool:
        """Did the process use less than half a core while its launches ran? Then it slept, waited, or was kept waiting.

        Launches under a millisecond are not judged, because handing work to threads takes part of such a time.
        """
        return self._busy < 0.5 * self._wall and self._wall > 1e-3 * self._next

    def close(self) -> None:
        self._launches = []


def host_flush(size: int) -> Callable[[], None]:
    """A function that reads and writes `size` bytes, so that a cache of that size holds nothing else."""
    if not size:
        return lambda: None
    import torch

    buffer = torch.zeros(size // 4, dtype=torch.float32)

    def sweep() -> None:
        buffer.add_(1.0)

    return sweep


ISOLATED = 20
"""So many single launches are timed of each implementation."""


def isolated_times(launches: Sequence[Launch], turn: int = 0) -> list[float]:
    """Seconds of `ISOLATED` single cold launches on a GPU, one event pair each, rotating over the copies.

    `turn` counts the calls before this one, also for other implementations. If every call began at the first copy, it
    would find there what the last call left in the cache.
    """
    import torch

    order = [launches[(turn * (ISOLATED + 1) + index) % len(launches)] for index in range(ISOLATED + 1)]
    pairs = []
    spin = spin_cycles(order[0])
    for launch in order[1:]:
        forbid_pinning()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(spin)
        start.record()
        launch()
        end.record()
        pairs.append((start, end))
        end.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


@dataclass(kw_only=True)
class Sampling:
    """All samples of one timer, and why sampling ended."""

    samples_s: list[float] = field(default_factory=list)
    before_s: list[float] = field(default_factory=list)
    """Seconds of the roof's read before each sample, and of the one after it; empty without a roof."""
    after_s: list[float] = field(default_factory=list)
    ranks_s: list[list[float]] = field(default_factory=list)
    """Seconds of each rank in each sample; empty where a launch has no ranks, or does not tell them."""
    stop: str = "time cap"

    @property
    def converged(self) -> bool:
        return self.stop == "converged"

    @property
    def halfwidth(self) -> float:
        """Half of the interval of the median, as a share of the median."""
        return median_interval(self.samples_s).relative_halfwidth

    @property
    def ratio_halfwidth(self) -> float:
        """The same of the samples over the reads of the roof around them; that of the samples without such reads."""
        if not self.before_s:
            return self.halfwidth
        reads = zip(self.samples_s, self.before_s, self.after_s, strict=True)
        return median_interval([2 * sample / (before + after) for sample, before, after in reads]).relative_halfwidth


def sample_interleaved(
    timers: Mapping[str, Timer],
    *,
    cap_s: float,
    aim: float = AIM,
    roof: Timer | None = None,
    cores: Mapping[str, InCache] = MappingProxyType({}),
    entering: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Sampling]:
    """Let the timers take turns, each until its median is known within `aim`, or it used `cap_s` for `FEWEST_SAMPLES`.

    Because they take turns, drift of clocks and temperature hits all alike. `entering(name)` is called before each
    sample, so that the right one is blamed for a fault. The interval is looked at whenever sampling ends, so `stop` is
    `converged` for every median that is known within `aim`.

    With a `roof`, each sample lies between two of the roof's: R A R B R A R. Then sampling goes on until the median of
    the ratios to these is known within `aim`. When the time is up, it is enough that one of both medians is. After
    each sample comes one of the same kernel in the caches of the `cores`, where there is one.
    """
    before = roof.sample() if roof else 0.0
    results = {name: Sampling() for name in timers}
    active = list(timers)
    used = dict.fromkeys(timers, 0.0)
    while active:
        for name in list(active):
            entering(name)
            result = results[name]
            # between two looks at the interval a quarter more: a look costs more than a sample of a short kernel
            for _ in range(max(1, len(result.samples_s) // 4) if len(result.samples_s) >= MIN_SAMPLES else 1):
                start = clock()
                result.samples_s.append(timers[name].sample())
                if ranks_s := getattr(timers[name], "ranks_s", None):
                    result.ranks_s.append(list(ranks_s))
                if roof:
                    after = roof.sample()
                    result.before_s.append(before)
                    result.after_s.append(after)
                    before = after
                if name in cores:
                    cores[name].sample()
                used[name] += clock() - start
            taken = len(result.samples_s)
            time_up = used[name] >= cap_s and taken >= FEWEST_SAMPLES
            known = (time_up or taken >= MIN_SAMPLES) and result.ratio_halfwidth <= aim
            if known or (time_up and result.halfwidth <= aim):
                result.stop = "converged"
            elif taken >= MAX_SAMPLES:
                result.stop = "sample cap"
            elif not time_up:
                continue
            active.remove(name)
    return results
