"""Work x ceilings -> predicted seconds. Pure: no torch, no I/O, and never a look at the operation's own time.

Two predictions of the same stages:

- from the datasheet: each stage takes max(bytes / bandwidth, FLOPs / peak), nothing else costs anything; bytes that
  cross to the host or back have the link's bandwidth
- from ceilings measured in the same run by `stream` and `gemm_peak`: memory time is read off the measured time of a
  stream of as many bytes, so that launch, ramp and size are in it; FLOPs and L2 bytes come on top of a launch; a last
  wave that leaves SMs idle can draw no more than those SMs' share of the measured L2 bandwidth; the link to the host
  has the rate of the fastest plain copy that `host_link` has measured so far
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.devices import DeviceSpec
from bench.records import Record
from kernels.op import Stage, Target

Points = tuple[tuple[int, float], ...]
"""(bytes moved, measured seconds), ascending."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected seconds of one launch, the terms it was made from (seconds by name) and the one that bounds."""

    seconds: float
    terms: dict[str, float] = field(default_factory=dict)
    bound: str
    """`memory`, `l2`, `link`, `launch`, or the name of a pipe: the largest term of the stages that take most of the
    time; with measured ceilings, `launch` where launches are more than half of it."""
    basis: str
    """What it was made from: a device's datasheet, or the ceilings measured in the same run."""
    missing: tuple[str, ...] = ()
    """Ceilings that were needed and not known; their terms are left out."""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the machine can do, as measured by `stream`, `gemm_peak` and the plain copies of `host_link`."""

    read_points: Points
    copy_points: Points = ()
    launch_s: float = 0.0
    """Seconds from one empty kernel to the next."""
    l2_bandwidth: float | None = None
    host_bandwidth: float | None = None
    """B/s to or from pinned memory of the host, in the faster direction."""
    pipes: Mapping[str, float] = field(default_factory=dict)
    """FLOP/s by pipe."""
    best_read: float = 0.0
    """B/s of the fastest single sample of any read: what no launch's median can exceed."""

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> Ceilings | None:
        """The best of all implementations at each size; None before any read has been measured.

        A time that may be too short makes no roof.
        """
        reads: dict[int, float] = {}
        copies: dict[int, float] = {}
        launches: list[float] = []
        l2_rates: list[float] = []
        host_rates: list[float] = []
        pipes: dict[str, float] = {}
        best_read = 0.0
        for record in records:
            seconds = record.seconds
            if record.status != "ok" or not seconds or record.may_be_too_short:
                continue
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
            elif record.op == "host_link" and record.case["kind"] in ("h2d", "d2h"):
                host_rates.append(record.bytes / seconds)
            elif record.op == "gemm_peak":
                for pipe, flops in record.work["flops"].items():
                    pipes[pipe] = max(flops / seconds, pipes.get(pipe, 0.0))
        if not reads:
            return None
        return cls(
            read_points=tuple(sorted(reads.items())),
            copy_points=tuple(sorted(copies.items())),
            launch_s=min(launches, default=0.0),
            l2_bandwidth=max(l2_rates, default=None),
            host_bandwidth=max(host_rates, default=None),
            pipes=pipes,
            best_read=best_read,
        )

    @property
    def read_roof(self) -> float:
        """The highest measured read bandwidth, in B/s: the roof of decode."""
        return max(size / seconds for size, seconds in self.read_points)

    def read(self, size: int) -> float:
        """Read bandwidth in B/s of a stream of `size` bytes, launch and ramp included."""
        return size / time_of(self.read_points, size) if size else self.read_roof

    def memory_seconds(self, bytes_read: int, bytes_written: int) -> float:
        """Time of a stream with this mix: between the read curve (no writes) and the copy curve (half writes).

        A copy takes no less than a read of as many bytes: one measured size of it knows neither launch nor ramp.
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


def time_of(points: Points, size: int) -> float:
    """Seconds for `size` bytes: linear between measured sizes, at the end points' bandwidth beyond the last.

    Below the first, the line through the first two points, never under zero: at those sizes latency decides.
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


def predict_from_datasheet(stages: Sequence[Stage], spec: DeviceSpec) -> Prediction:
    """The pure roofline, stage by stage."""
    sums: dict[str, float] = {}
    spent: dict[str, float] = {}
    missing: set[str] = set()
    for stage in stages:
        terms: dict[str, float] = {}
        if spec.memory_bandwidth is None:
            missing.add("memory_bandwidth")
        else:
            terms["memory"] = stage.work.bytes / spec.memory_bandwidth.value
        if stage.link_bytes:
            if spec.host_bandwidth is None:
                missing.add("host_bandwidth")
            else:
                terms["link"] = stage.link_bytes / spec.host_bandwidth.value
        for pipe, flops in stage.work.flops.items():
            peak = spec.peaks.get(pipe)
            if peak is None:
                missing.add(pipe)
            else:
                terms[pipe] = flops / peak.value
        _accumulate(sums, terms)
        _accumulate(spent, _largest(terms))
    return Prediction(
        seconds=sum(spent.values()),
        terms=sums,
        bound=max(spent, key=spent.__getitem__, default="memory"),
        basis=f"datasheet of {spec.name}",
        missing=tuple(sorted(missing)),
    )


def predict_from_ceilings(stages: Sequence[Stage], ceilings: Ceilings, target: Target) -> Prediction:
    """The roofline under the ceilings measured in the same run, stage by stage."""
    sums: dict[str, float] = {}
    spent: dict[str, float] = {}
    missing: set[str] = set()
    for stage in stages:
        terms = {"launch": ceilings.launch_s}
        memory = ceilings.memory_seconds(stage.work.bytes_read, stage.work.bytes_written)
        terms["memory"] = memory + _tail_seconds(stage, ceilings, target)
        if stage.l2_bytes:
            if ceilings.l2_bandwidth is None:
                missing.add("l2_bandwidth")
            else:
                terms["l2"] = ceilings.launch_s + (stage.work.bytes + stage.l2_bytes) / ceilings.l2_bandwidth
        if stage.link_bytes:
            if ceilings.host_bandwidth is None:
                missing.add("host_bandwidth")
            else:
                terms["link"] = ceilings.launch_s + stage.link_bytes / ceilings.host_bandwidth
        for pipe, flops in stage.work.flops.items():
            if pipe in ceilings.pipes:
                terms[pipe] = ceilings.launch_s + flops / ceilings.pipes[pipe]
            else:
                missing.add(pipe)
        _accumulate(sums, terms)
        _accumulate(spent, _largest(terms))
    seconds = sum(spent.values())
    bound = max(spent, key=spent.__getitem__)
    if sums["launch"] > 0.5 * seconds:
        bound = "launch"
    return Prediction(
        seconds=seconds,
        terms=sums,
        bound=bound,
        basis="ceilings measured in this run",
        missing=tuple(sorted(missing)),
    )


def _tail_seconds(stage: Stage, ceilings: Ceilings, target: Target) -> float:
    """What the last wave costs beyond its share of a full stream, because it leaves SMs idle.

    A wave is `sm_count x ctas_per_sm` CTAs. In the last one only some SMs are busy; each can draw at most
    `l2_bandwidth / sm_count`, so the wave's bytes move at min(read roof, busy SMs x that).
    """
    if not stage.ctas or ceilings.l2_bandwidth is None:
        return 0.0
    wave = target.sm_count * stage.ctas_per_sm
    last = stage.ctas % wave
    if not last:
        return 0.0
    busy = min(last, target.sm_count)
    rate = min(ceilings.read_roof, busy * ceilings.l2_bandwidth / target.sm_count)
    last_bytes = stage.work.bytes * last / stage.ctas
    return last_bytes * (1 / rate - 1 / ceilings.read_roof)


def _largest(terms: Mapping[str, float]) -> dict[str, float]:
    """The term that a stage's time is spent under; empty where no term is known."""
    return {name: terms[name] for name in [max(terms, key=terms.__getitem__)]} if terms else {}


def _accumulate(sums: dict[str, float], terms: Mapping[str, float]) -> None:
    for name, seconds in terms.items():
        sums[name] = sums.get(name, 0.0) + seconds
