"""Work x ceilings -> predicted seconds. Pure: no torch, no I/O, and it never looks at the operation's own time.

It makes two predictions of the same stages:

- From the datasheet: each stage takes max(bytes / bandwidth, FLOPs / peak), and nothing else costs time. Bytes to or
  from the host move at the link's bandwidth.
- From the ceilings that `stream` and `gemm_peak` measured in the same run: the memory time is the measured time of a
  stream of as many bytes, so it includes launch, ramp and size. FLOPs and L2 bytes take their time in addition to a
  launch. If the last wave leaves SMs idle, it can draw only the busy SMs' share of the measured L2 bandwidth. The link
  to the host has the rate of the fastest plain copy that `host_link` has measured so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.ceilings import Ceilings
from bench.devices import DeviceSpec
from kernels.op import Stage, Target


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected seconds of one launch, the terms behind them, and the term that bounds."""

    seconds: float
    terms: dict[str, float] = field(default_factory=dict)
    """Seconds by name, summed over stages."""
    bound: str
    """`memory`, `l2`, `link`, `launch`, or the name of a pipe. Each stage is spent under its largest term; the bound is
    the term under which most time is spent. With measured ceilings, it is `launch` where launches take over half."""
    basis: str
    """The device's datasheet, or the ceilings measured in the same run."""
    missing: tuple[str, ...] = ()
    """Ceilings that are needed and not known. Their terms are left out."""


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
    """The time that the last wave takes beyond its share of a full stream, because it leaves SMs idle.

    A wave is `sm_count x ctas_per_sm` CTAs. In the last wave only some SMs are busy. Each of them can draw at most
    `l2_bandwidth / sm_count`, so the wave's bytes move at min(read roof, busy SMs x l2_bandwidth / sm_count).
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
    """The term under which a stage's time is spent; empty where no term is known."""
    return {name: terms[name] for name in [max(terms, key=terms.__getitem__)]} if terms else {}


def _accumulate(sums: dict[str, float], terms: Mapping[str, float]) -> None:
    for name, seconds in terms.items():
        sums[name] = sums.get(name, 0.0) + seconds
