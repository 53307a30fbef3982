"""A run's records -> the share of its machine's roofs that each operation of a decode step reaches.

The roofs are those that the run measured (`stream`, `gemm_peak`). A record's share is the time that its compulsory work
would take at those roofs, over its measured time. Each operation of the step gets the share of one record: of those
that measure the same operation in the same precision, the record nearest in FLOP per byte, and among those the nearest
in bytes. So the prediction of a step that consists of measured cases equals their measured times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.devices import DeviceSpec, Quantity
from bench.errors import BadRequest
from bench.predict.step_work import PRECISIONS, StepOp
from bench.records import Record
from bench.run import Run
from kernels.common.quantization import FORMATS
from kernels.common.random_inputs import BYTES
from kernels.op import Work, discover, is_plain, stored_as


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The share of its roof, in (0, 1], that an operation is taken to reach, and the record that says so."""

    name: str
    share: float
    record: Record
    size: float
    """The record's bytes over the bytes of one launch of the operation."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The part of a run with the roofs that were measured on it, and the records that can be trusted."""

    spec: DeviceSpec
    records: tuple[Record, ...]
    launch_s: float
    """The time of an empty kernel. No operation is taken to be faster, even if its share comes from a larger case."""

    @classmethod
    def of(cls, run: Run) -> Machine:
        """Raises `BadRequest` where no read bandwidth was measured."""
        ceilings = run.ceilings
        if ceilings is None:
            raise BadRequest(f"{run.path} holds no read of `stream`: there is no roof to calibrate against")
        sheet = run.part or DeviceSpec(key=run.device_name, name=run.device_name, vendor="", year=0)
        source = f"run {run.header.get('run_id', run.path.name)}"

        def measured(value: float, unit: str) -> Quantity:
            return Quantity(value=value, unit=unit, kind="measured", source=source)

        peaks = {pipe: measured(flops, "FLOP/s") for pipe, flops in ceilings.pipes.items()}
        bandwidth = measured(ceilings.read_roof, "B/s")
        spec = replace(sheet, memory_bandwidth=bandwidth, peaks={**sheet.peaks, **peaks})
        if run.on_host and (memory := run.header.get("environment", {}).get("memory_bytes")):
            spec = replace(spec, memory_capacity=measured(memory, "B"))
        return cls(spec=spec, records=tuple(run.trusted), launch_s=ceilings.launch_s)

    def reached(self, ops: Sequence[StepOp], *, kv: str) -> list[Reached]:
        """One entry per operation that the run measured with as many bits for a weight, and with this KV cache."""
        found = []
        for op in ops:
            together = [each for each in ops if each.measured_as == op.measured_as] if op.joint else [op]
            asked = sum((each.work for each in together), Work())
            fitting = [r for r in self.records if r.op == op.measured_as and _fits(r, op, kv=kv)]
            if fitting:
                record = min(fitting, key=lambda r: (_distance(r, asked, op.calls), r.seconds))
                share = min(1.0, self.roof_seconds(record.bytes, record.work["flops"]) / (record.seconds or math.inf))
                if self.launch_s:
                    share = min(share, self.roof_seconds(asked.bytes, asked.flops) / (op.calls * self.launch_s))
                size = record.bytes * op.calls / asked.bytes
                found.append(Reached(name=op.name, share=share, record=record, size=size))
        return found

    def roof_seconds(self, size: float, flops: Mapping[str, float]) -> float:
        """Seconds of compulsory work at the roofs. Leaves out a pipe whose peak is neither measured nor published."""
        assert self.spec.memory_bandwidth is not None
        peaks = self.spec.peaks
        at_pipes = [n / peaks[pipe].value for pipe, n in flops.items() if pipe in peaks]
        return max([size / self.spec.memory_bandwidth.value, *at_pipes])


def _fits(record: Record, op: StepOp, *, kv: str) -> bool:
    """Whether the case is plain, stores as many bits per number, and multiplies weights in the same pipe."""
    if not is_plain(record.case, discover()[op.measured_as].case_type.PLAIN):
        return False
    if op.stored == "weights" and set(record.work["flops"]) != set(op.work.flops):
        return False
    stored = stored_as(record.case, op.stored)
    bits = FORMATS[stored].bits if stored in FORMATS else 8 * BYTES[stored]
    return bits == (op.weight_bits if op.stored == "weights" else 8 * PRECISIONS[kv].bytes)


def _distance(record: Record, work: Work, calls: int) -> tuple[int, float]:
    """Octaves between the intensities, which decide what bounds; then the logarithm of the ratio of bytes."""
    octaves = 0
    if record.flops and work.total_flops:
        octaves = round(abs(math.log2(record.flops / record.bytes / work.intensity)))
    return octaves, abs(math.log(record.bytes * calls / work.bytes))
