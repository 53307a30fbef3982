"""The ceilings that a run measured, read from its records. Pure: no torch, no I/O."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bench.records import Record

Points = tuple[tuple[int, float], ...]
"""(bytes, seconds), ascending: the bytes that a stream moves, or those among which a chase jumps."""

L1_FOOTPRINT = 64 << 10
"""Bytes that the L1 of every part holds beside shared memory. An L2 price needs a larger footprint."""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the machine can do, by `stream`, `gemm_peak`, `peer_link` and the plain copies of `host_link`."""

    read_points: Points
    copy_points: Points = ()
    launch_s: float = 0.0
    """Seconds from the start of one empty kernel to the start of the next."""
    l2_bandwidth: float | None = None
    host_bandwidth: float | None = None
    """B/s to or from pinned memory of the host, whichever direction is faster."""
    peer_points: Points = ()
    """Seconds until a rank has so many bytes of another one."""
    pipes: Mapping[str, float] = field(default_factory=dict)
    """FLOP/s by pipe."""
    best_read: float = 0.0
    """B/s of the fastest single sample of any read. No launch's median can be faster."""
    memory_loads: Points = ()
    """Seconds of one of several dependent loads, none of which finds its line in a cache, by footprint in bytes. A
    larger footprint has more misses of the TLB."""
    cached_loads: Points = ()
    """The same where a cache holds the whole footprint."""
    fma_points: tuple[tuple[float, float], ...] = ()
    """On a host, (s, t) ascending in s: a stream whose FLOPs alone take s times as long as a plain read of its bytes
    takes t times as long as that read."""
    usual_read_s: float = 0.0
    """On a host, seconds of the roof's read around the samples, in the median of the run. The times of streams are
    those of a memory that is as fast. 0 without such reads."""

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> Ceilings | None:
        """The fastest implementation at each size; None if no read has been measured yet.

        Only times that can be trusted count. Where the roof was read around the samples, a stream takes as long as it
        would take while that read takes its median over the run.
        """
        records = list(records)
        usual = usual_read(records)
        reads: dict[int, float] = {}
        copies: dict[int, float] = {}
        peers: dict[int, float] = {}
        launches: list[float] = []
        l2_rates: list[float] = []
        host_rates: list[float] = []
        pipes: dict[str, float] = {}
        chases: list[Record] = []
        computing: list[tuple[Record, float]] = []
        best_read = 0.0
        for record in records:
            seconds = record.seconds
            if not record.is_trusted or not seconds:
                continue
            if record.op == "stream" and record.read_s:
                seconds *= usual / record.read_s
            if record.op == "stream":
                kind = record.case["kind"]
                if kind == "read":
                    reads[record.bytes] = min(seconds, reads.get(record.bytes, math.inf))
                    best_read = max(best_read, record.bytes / min(record.samples_s))
                elif kind == "copy":
                    copies[record.bytes] = min(seconds, copies.get(record.bytes, math.inf))
                elif kind == "launch":
                    launches.append(seconds)
                elif kind == "l2_read":
                    l2_rates.append(sum(s["l2_bytes"] for s in record.stages) / seconds)
                elif kind == "chase":
                    chases.append(record)
                elif kind == "fma_read":
                    computing.append((record, record.read_s / usual if record.read_s else 1.0))
                    if record.core_s:
                        pipes["fma_fp32"] = max(record.flops / record.core_s, pipes.get("fma_fp32", 0.0))
            elif record.op == "peer_link":
                size = record.case["size"]
                peers[size] = min(seconds, peers.get(size, math.inf))
            elif record.op == "host_link" and record.case["kind"] in ("h2d", "d2h"):
                host_rates.append(record.bytes / seconds)
            elif record.op == "gemm_peak":
                for pipe, flops in record.work["flops"].items():
                    pipes[pipe] = max(flops / seconds, pipes.get(pipe, 0.0))
        if not reads:
            return None
        launch_s = min(launches, default=0.0)
        memory_loads, cached_loads = prices_of_loads(chases, launch_s)
        return cls(
            read_points=tuple(sorted(reads.items())),
            copy_points=tuple(sorted(copies.items())),
            launch_s=launch_s,
            l2_bandwidth=max(l2_rates, default=None),
            host_bandwidth=max(host_rates, default=None),
            peer_points=tuple(sorted(peers.items())),
            pipes=pipes,
            best_read=best_read,
            memory_loads=memory_loads,
            cached_loads=cached_loads,
            fma_points=fma_points(computing, tuple(sorted(reads.items())), pipes.get("fma_fp32")),
            usual_read_s=usual,
        )

    def beside(self, record: Record) -> Ceilings:
        """The ceilings in the seconds of a measurement: streams are slower by as much as the read of the roof was.

        Without reads around the record's samples, the ceilings are the same for the whole run.
        """
        if not record.read_s or not self.usual_read_s:
            return self
        slower = record.read_s / self.usual_read_s
        return replace(
            self,
            read_points=tuple((size, slower * seconds) for size, seconds in self.read_points),
            copy_points=tuple((size, slower * seconds) for size, seconds in self.copy_points),
        )

    @property
    def read_roof(self) -> float:
        """The highest measured read bandwidth in B/s, which is the roof of decode."""
        return max(size / seconds for size, seconds in self.read_points)

    def arithmetic_seconds(self, flops: Mapping[str, int]) -> float | None:
        """Seconds of FLOPs at their pipes' peaks; None if the peak of a pipe was not measured."""
        if any(pipe not in self.pipes for pipe in flops):
            return None
        return sum(count / self.pipes[pipe] for pipe, count in flops.items())

    def read(self, size: int) -> float:
        """Read bandwidth in B/s of a stream of `size` bytes, including launch and ramp."""
        return size / time_of(self.read_points, size) if size else self.read_roof

    def memory_seconds(self, bytes_read: int, bytes_written: int) -> float:
        """Seconds of a stream with this mix, between the read curve (no writes) and the copy curve (half writes).

        A copy takes at least as long as a read of as many bytes. The rule is needed because copies may be measured at
        one size only, from which neither launch nor ramp can be told.
        """
        size = bytes_read + bytes_written
        if not size:
            return self.launch_s
        reading = time_of(self.read_points, size)
        if not self.copy_points:
            return max(self.launch_s, reading)
        mix = min(1.0, 2 * bytes_written / size)
        copying = max(reading, time_of(self.copy_points, size))
        return max(self.launch_s, (1 - mix) * reading + mix * copying)

    def peer_seconds(self, size: int) -> float | None:
        """Seconds until a rank has `size` bytes of other ranks, launch and meeting included; None if not measured."""
        return time_of(self.peer_points, size) if self.peer_points else None

    def fused_seconds(self, memory_s: float, arithmetic_s: float) -> float | None:
        """Seconds of a stage whose bytes alone take `memory_s` and whose FLOPs alone `arithmetic_s`.

        Straight between the streams that were measured (a plain read computes nothing); beyond the last one all
        further FLOPs come on top. None where no such stream was measured.
        """
        if not self.fma_points or not memory_s:
            return None
        share = arithmetic_s / memory_s
        points = [(0.0, 1.0), *self.fma_points]
        after = next((i for i, (s, _) in enumerate(points) if s >= share), None)
        if after is None:
            return memory_s * (points[-1][1] + share - points[-1][0])
        (s0, t0), (s1, t1) = points[max(0, after - 1)], points[max(1, after)]
        return memory_s * (t0 + (t1 - t0) * (share - s0) / (s1 - s0))

    def load_seconds(self, level: str, l2_bytes: int) -> float | None:
        """Seconds of a load that waits for the load before it, and that this level answers: `l1`, `l2` or `dram`.

        The price of the L2 is that of the largest footprint that takes at most half of its `l2_bytes`: half of the L2
        of a large part is farther from an SM than the other half. The price of the memory is that of the largest
        footprint. None where no such footprint was measured.
        """
        if level == "dram":
            found = [seconds for _, seconds in self.memory_loads]
        elif level == "l2":
            found = [seconds for size, seconds in self.cached_loads if L1_FOOTPRINT < size <= l2_bytes / 2]
        else:
            found = [seconds for size, seconds in self.cached_loads if size <= L1_FOOTPRINT]
        return found[-1] if found else None


def fma_points(
    computing: Iterable[tuple[Record, float]], reads: Points, peak: float | None
) -> tuple[tuple[float, float], ...]:
    """`Ceilings.fma_points` from the records of `fma_read`, each with how much slower the memory was beside it than
    usually. The FLOPs are not slower then."""
    found: dict[float, float] = {}
    if not peak:
        return ()
    for record, slower in computing:
        alone = slower * time_of(reads, record.bytes)
        computes = record.core_s or record.flops / peak
        found[computes / alone] = max(1.0, (record.seconds or math.inf) / alone)
    return tuple(sorted(found.items()))


def usual_read(records: Iterable[Record]) -> float:
    """Seconds of the read around the samples of all records, in the median; 0.0 without any."""
    found = [seconds for r in records if r.roof for name in ("before_s", "after_s") for seconds in r.roof[name]]
    return statistics.median(found) if found else 0.0


def prices_of_loads(chases: Iterable[Record], launch_s: float) -> tuple[Points, Points]:
    """(`memory_loads`, `cached_loads`) from the records of `chase`.

    A load meets a line for the first time, or again. The share of the bytes that come from DRAM tells how many loads of
    a chain do the first. A chase without any second meeting gives the price of the memory. Two chases over the same
    array differ by loads that a cache answers, and the difference of their times is the price of these.
    """
    series: dict[tuple[int, int, bool], dict[int, tuple[float, float]]] = defaultdict(dict)
    for record in chases:
        case, again = record.case, sum(s["l2_bytes"] for s in record.stages)
        assert record.seconds
        new = case["loads"] * record.work["bytes_read"] / (record.work["bytes_read"] + again)
        found = series[case["size"], case["chains"], case["l1"]]
        before = found.get(case["loads"], (0.0, math.inf))[1]
        found[case["loads"]] = (new, min(record.seconds, before))
    memory: dict[int, float] = {}
    cached: dict[int, float] = {}
    for (size, chains, l1), found in series.items():
        (fewest, (new, seconds)), (most, (new_of_most, longest)) = min(found.items()), max(found.items())
        if new < fewest or seconds <= launch_s:
            continue
        price = (seconds - launch_s) / fewest
        memory[size] = min(price, memory.get(size, math.inf))
        further = new_of_most - new
        difference = longest - seconds - further * price
        if new_of_most < most and difference > 0:
            cached[size // chains if l1 else size] = difference / (most - fewest - further)
    return tuple(sorted(memory.items())), tuple(sorted(cached.items()))


def time_of(points: Points, size: int) -> float:
    """Seconds for `size` bytes: linear between measured sizes, and at the last point's bandwidth beyond it.

    Below the first size it follows the line through the first two points, but never below zero: latency decides there.
    """
    sizes = [s for s, _ in points]
    after = bisect_left(sizes, size)
    if after == len(points):
        return points[-1][1] * size / sizes[-1]
    if sizes[after] == size:
        return points[after][1]
    if after == 0:
        if len(points) == 1:
            return points[0][1] * size / sizes[0]
        after = 1
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return max(0.0, y0 + (y1 - y0) * (size - x0) / (x1 - x0))
