"""Work x ceilings -> predicted seconds. Pure: no torch, no I/O, and it never looks at the operation's own time.

It makes two predictions of the same stages: from the part's datasheet, and from the ceilings that `stream` and
`gemm_peak` measured in the same run. `datasheet_terms` and `measured_terms` hold all terms:

| term | seconds of a stage | datasheet | measured in the same run |
|---|---|---|---|
| `launch` | from the start of an empty kernel to the next | - | `stream` launch |
| `memory` | DRAM bytes | bytes / bandwidth | a stream of as many bytes, launch and ramp included, and the tail |
| `l2` | DRAM bytes and those that the L2 serves | - | launch + bytes / rate of `stream` l2_read |
| `link` | bytes to or from the host | bytes / bandwidth | launch + bytes / rate of `host_link`'s fastest plain copy |
| `peers` | bytes from other ranks | bytes / bandwidth of the link in one direction | `peer_link` with as many bytes |
| a pipe | FLOPs of `mma_bf16`, `fma_fp32`, ... | FLOPs / peak | launch + FLOPs / peak of `gemm_peak` |
| `issue` | instructions, conversions too | instructions / issue rate | launch + the same at the clock of `fma_fp32` |
| `chain` | loads in a row, before and after the stream | - | loads x price of `stream` chase, level by level |
| `core` | the kernel's instructions, on a host | - | launch + the same kernel over data in the cores' caches |
| `bend` | bytes and FLOPs together, on a host | - | by how much `stream` fma_read exceeds the larger of both |

The terms of a stage overlap, so the largest is its time. `chain` does not overlap: nothing streams yet, or any more.
`bend` comes on top too: a host's core does not hide all of its arithmetic behind its loads, or the other way round.
Stages follow each other. A term whose ceiling is not known is left out, and `Prediction.missing` names the ceiling.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from bench.ceilings import Ceilings
from bench.devices import DeviceSpec, issue_rate
from bench.records import Record
from kernels.op import Stage, Target, Work
from kernels.work import part_of

Terms = dict[str, float | None]
"""Seconds of one stage by term; None where the ceiling of the term is not known."""

CEILING_OF = {
    "memory": "memory_bandwidth",
    "l2": "l2_bandwidth",
    "link": "host_bandwidth",
    "peers": "link_bandwidth",
    "issue": "issue_rate",
    "chain": "dependent_load",
    "bend": "fma_read",
}
"""The ceiling behind a term, by its name in `Prediction.missing`. The ceiling of a pipe has the pipe's name."""

ON_TOP = ("chain", "bend")
"""Terms that do not overlap with the others."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Expected seconds of one launch, the terms behind them, and the term that bounds."""

    seconds: float
    terms: dict[str, float] = field(default_factory=dict)
    """Seconds by name, summed over stages."""
    bound: str
    """`memory`, `l2`, `link`, `peers`, `issue`, `core`, `chain`, `launch`, or the name of a pipe. Each stage is spent
    under its largest term, and under those `ON_TOP`; the bound is the term under which most time is spent. With
    measured ceilings, it is `launch` where launches take over half."""
    basis: str
    """The device's datasheet, or the ceilings measured in the same run."""
    missing: tuple[str, ...] = ()
    """Ceilings that are needed and not known. Their terms are left out."""


def predict_from_datasheet(stages: Sequence[Stage], spec: DeviceSpec) -> Prediction:
    """The pure roofline, stage by stage."""
    return sum_up((datasheet_terms(stage, spec) for stage in stages), f"datasheet of {spec.name}")


def predict_from_ceilings(stages: Sequence[Stage], ceilings: Ceilings, target: Target) -> Prediction:
    """The roofline under the ceilings measured in the same run, stage by stage."""
    terms = (measured_terms(stage, ceilings, target) for stage in stages)
    return sum_up(terms, "ceilings measured in this run")


def predict_beside(record: Record, ceilings: Ceilings, target: Target) -> Prediction | None:
    """The same formula under what was measured between the samples of a record: the read roof, and where there is a
    smaller case, the kernel's instructions in the caches of the cores. None without reads.

    The formula, the work and the other ceilings do not know the record's own times.
    """
    if not record.read_s or not record.prediction.get("measured"):
        return None
    here = ceilings.beside(record)
    known = {f.name for f in fields(Stage)}
    stages = [
        Stage(**{**{k: v for k, v in stage.items() if k in known}, "work": Work(**stage["work"])})
        for stage in record.stages
    ]
    basis = "ceilings of this run, with the read roof measured between the samples"
    cores = record.core_s_of_parts if record.core_s is None else {"": record.core_s}
    by_part: dict[str, list[Terms]] = {}
    for stage in stages:
        name = part_of(stage.name) if record.core_s is None else ""
        by_part.setdefault(name, []).append(measured_terms(stage, here, target))
    terms: list[Terms] = []
    for name, of_part in by_part.items():
        terms += [with_core(of_part, cores[name], here)] if name in cores else of_part
    return sum_up(terms, basis + ", and kernels in the caches of the cores" * bool(cores))


class Expected:
    """What a report will predict for each record of a run, as far as its ceilings have been heard of."""

    def __init__(self) -> None:
        self.ceilings: list[Record] = []

    def __call__(self, record: Record) -> float | None:
        found = record.prediction.get("measured")
        if not found:
            self.ceilings.append(record)
            return None
        known = Ceilings.from_records(self.ceilings) if record.read_s else None
        beside = predict_beside(record, known, Target(kind="cpu", name="a host")) if known else None
        return beside.seconds if beside else float(found["seconds"])


def with_core(stages: Sequence[Terms], core_s: float, ceilings: Ceilings) -> Terms:
    """The terms of all stages together, where the time of their instructions was measured.

    The FLOPs are among these instructions, so the terms of pipes go."""
    found: Terms = {"launch": 0.0, "memory": 0.0}
    for terms in stages:
        for name in ("launch", "memory", "chain"):
            if (seconds := terms.get(name)) is not None:
                found[name] = (found.get(name) or 0.0) + seconds
    memory, launch = found["memory"] or 0.0, found["launch"] or 0.0
    found["core"] = core = launch + core_s
    if together := ceilings.fused_seconds(memory, core):
        found["bend"] = max(0.0, together - max(memory, core))
    return found


def datasheet_terms(stage: Stage, spec: DeviceSpec) -> Terms:
    peaks = {pipe: peak.value for pipe, peak in spec.peaks.items()}
    memory, link = (rate.value if rate else None for rate in (spec.memory_bandwidth, spec.host_bandwidth))
    terms: Terms = {"memory": _time(stage.work.bytes, memory)}
    if stage.link_bytes:
        terms["link"] = _time(stage.link_bytes, link)
    if stage.peer_bytes:
        terms["peers"] = _time(stage.peer_bytes, spec.link_bandwidth.value if spec.link_bandwidth else None)
    if stage.instructions:
        terms["issue"] = _time(stage.instructions, issue_rate(spec.sm, peaks.get("fma_fp32", 0.0)))
    return terms | {pipe: _time(flops, peaks.get(pipe)) for pipe, flops in stage.work.flops.items()}


def measured_terms(stage: Stage, ceilings: Ceilings, target: Target) -> Terms:
    launch, pipes = ceilings.launch_s, ceilings.pipes
    memory = ceilings.memory_seconds(stage.work.bytes_read, stage.work.bytes_written)
    terms: Terms = {"launch": launch, "memory": memory + tail_seconds(stage, ceilings, target)}
    if stage.l2_bytes:
        terms["l2"] = _time(stage.work.bytes + stage.l2_bytes, ceilings.l2_bandwidth, launch)
    if stage.link_bytes:
        terms["link"] = _time(stage.link_bytes, ceilings.host_bandwidth, launch)
    if stage.peer_bytes:
        terms["peers"] = ceilings.peer_seconds(stage.peer_bytes)
    if stage.instructions:
        terms["issue"] = _time(stage.instructions, issue_rate(target.sm, pipes.get("fma_fp32", 0.0)), launch)
    if stage.loads_before or stage.loads_after:
        terms["chain"] = chain_seconds(stage, ceilings, target)
    terms |= {pipe: _time(flops, pipes.get(pipe), launch) for pipe, flops in stage.work.flops.items()}
    if ceilings.fma_points and (bend := bend_seconds(stage, memory, ceilings)):
        terms["bend"] = bend
    return terms


def bend_seconds(stage: Stage, memory: float, ceilings: Ceilings) -> float | None:
    """By how much a stream with this stage's FLOPs, in fp32, takes longer than its bytes or its FLOPs alone.

    None where the peak of a pipe is not known."""
    arithmetic = ceilings.arithmetic_seconds(stage.work.flops)
    together = ceilings.fused_seconds(memory, arithmetic) if arithmetic is not None else None
    return None if together is None or arithmetic is None else max(0.0, together - max(memory, arithmetic))


def _time(amount: float, rate: float | None, launch: float = 0.0) -> float | None:
    """Seconds for an amount at a rate, behind a launch; None for an unknown rate."""
    return launch + amount / rate if rate else None


def chain_seconds(stage: Stage, ceilings: Ceilings, target: Target) -> float | None:
    """Seconds of the loads that wait for each other; None unless the price is known at each level."""
    total = 0.0
    for loads in (stage.loads_before, stage.loads_after):
        for level, count in loads.items():
            price = ceilings.load_seconds(level, target.l2_bytes)
            if price is None:
                return None
            total += count * price
    return total


def tail_seconds(stage: Stage, ceilings: Ceilings, target: Target) -> float:
    """The time by which a stage exceeds a full stream of its bytes, because SMs run out of work before others do.

    A slot is room for one CTA: an SM has `ctas_per_sm`. All slots that are busy move bytes at the same rate, so the
    slot with the fewest bytes is idle first. While `busy` slots are left, at most as many SMs draw bytes, and each of
    them at most `l2_bandwidth / sm_count`: the bytes move at min(read roof, busy SMs x l2_bandwidth / sm_count).
    """
    if not stage.ctas or ceilings.l2_bandwidth is None:
        return 0.0
    slots = sorted(slot_sizes(stage, target.sm_count * stage.ctas_per_sm))
    unit = stage.work.bytes / sum(slots) if any(slots) else 0.0
    tail = done = 0.0
    for idle, size in enumerate(slots):
        busy = len(slots) - idle
        rate = min(ceilings.read_roof, min(busy, target.sm_count) * ceilings.l2_bandwidth / target.sm_count)
        tail += busy * (size - done) * unit * (1 / rate - 1 / ceilings.read_roof)
        done = size
    return tail


def slot_sizes(stage: Stage, slots: int) -> list[float]:
    """The work of each slot that gets any, in units of `Stage.pieces`: the largest is the makespan.

    The next CTA starts on the slot that is free first (list scheduling). Equal CTAs come in waves.
    """
    if not stage.pieces:
        waves, last = divmod(stage.ctas, slots)
        return [waves + 1.0] * last + [float(waves)] * (slots - last if waves else 0)
    loads = [0.0] * slots
    for count, size in stage.pieces:
        for _ in range(count):
            heapq.heapreplace(loads, loads[0] + size)
    return [load for load in loads if load]


def sum_up(stages: Iterable[Terms], basis: str) -> Prediction:
    """The prediction for stages that follow each other."""
    sums: dict[str, float] = {}
    spent: dict[str, float] = {}
    missing: set[str] = set()
    for terms in stages:
        known = {name: seconds for name, seconds in terms.items() if seconds is not None}
        missing |= {CEILING_OF.get(name, name) for name in terms.keys() - known.keys()}
        _accumulate(sums, known)
        _accumulate(spent, _spent(known))
    seconds = sum(spent.values())
    bound = max(spent, key=spent.__getitem__, default="memory")
    return Prediction(
        seconds=seconds,
        terms=sums,
        bound="launch" if sums.get("launch", 0.0) > 0.5 * seconds else bound,
        basis=basis,
        missing=tuple(sorted(missing)),
    )


def _spent(terms: Mapping[str, float]) -> dict[str, float]:
    """The terms under which a stage's time is spent: the largest of those that overlap, and those on top."""
    overlapping = [name for name in terms if name not in ON_TOP]
    largest = [max(overlapping, key=terms.__getitem__)] if overlapping else []
    return {name: terms[name] for name in [*largest, *(name for name in ON_TOP if name in terms)]}


def _accumulate(sums: dict[str, float], terms: Mapping[str, float]) -> None:
    for name, seconds in terms.items():
        sums[name] = sums.get(name, 0.0) + seconds
