"""A run's records -> what its machine reaches of its own roofs, for each operation of a decode step.

The roofs are those that the run measured (`stream`, `gemm_peak`); a record's share of them is its compulsory work at
those roofs over its time. An operation of the step gets the share of the record of the same kind and precision that is
nearest in FLOP per byte and then in bytes, so that a step of just the measured cases would take the measured times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.devices import DeviceSpec, Quantity
from bench.errors import BadRequest
from bench.predict.step_model import OpPrediction
from bench.predict.step_work import PRECISIONS
from bench.records import Record
from bench.run import Run
from kernels.common.quantization import FORMATS
from kernels.common.random_inputs import BYTES
from kernels.op import Work, discover, is_plain, stored_as


@dataclass(frozen=True, kw_only=True)
class Reached:
    """`share` (0 to 1] of its roof that an operation of the step is taken to reach, and the record that says so."""

    name: str
    share: float
    record: Record
    size: float
    """Bytes of the record over those of one launch of the operation."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The part of a run with the roofs that were measured there, and the records whose times are none too short."""

    spec: DeviceSpec
    records: tuple[Record, ...]
    launch_s: float
    """An empty kernel: no operation is taken to be faster, however large the case was that stands for it."""

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
        return cls(spec=spec, records=tuple(run.trusted), launch_s=ceilings.launch_s)

    def reached(self, ops: Sequence[OpPrediction], *, weights: str, kv: str) -> list[Reached]:
        """For those operations that the run measured in these precisions (names of `PRECISIONS`)."""
        found = []
        for op in ops:
            together = [each for each in ops if each.measured_as == op.measured_as] if _joint(op) else [op]
            asked = sum((each.work for each in together), Work())
            fitting = [r for r in self.records if r.op == op.measured_as and _fits(r, op, weights=weights, kv=kv)]
            if fitting:
                record = min(fitting, key=lambda r: (_distance(r, asked, op.calls), r.seconds))
                share = min(1.0, self.roof_seconds(record.bytes, record.work["flops"]) / (record.seconds or math.inf))
                if self.launch_s:
                    share = min(share, self.roof_seconds(asked.bytes, asked.flops) / (op.calls * self.launch_s))
                size = record.bytes * op.calls / asked.bytes
                found.append(Reached(name=op.name, share=share, record=record, size=size))
        return found

    def roof_seconds(self, size: float, flops: Mapping[str, float]) -> float:
        """Compulsory work at the roofs; a pipe that neither the run nor the vendor has a number for is left out."""
        assert self.spec.memory_bandwidth is not None
        peaks = self.spec.peaks
        at_pipes = [n / peaks[pipe].value for pipe, n in flops.items() if pipe in peaks]
        return max([size / self.spec.memory_bandwidth.value, *at_pipes])


def _joint(op: OpPrediction) -> bool:
    """Whether one record measures several operations of the step: all matrices of the routed experts."""
    return op.measured_as == "moe_ffn"


def _fits(record: Record, op: OpPrediction, *, weights: str, kv: str) -> bool:
    """Whether it is a plain case that stores the same number of bits and multiplies weights in the same pipe."""
    case_type = discover()[op.measured_as].case_type
    if not is_plain(record.case, case_type.PLAIN):
        return False
    if "weights" in case_type.__dataclass_fields__:
        same_pipe = set(record.work["flops"]) == set(op.work.flops)
        return same_pipe and _bits(record, "weights") == 8 * PRECISIONS[weights].bytes
    return _bits(record, "kv") == 8 * PRECISIONS[kv].bytes


def _bits(record: Record, field: str) -> float:
    """Of a stored element: of that field's type, or of the case's where the case has no such field."""
    name = stored_as(record.case, field)
    return FORMATS[name].bits if name in FORMATS else 8 * BYTES[name]


def _distance(record: Record, work: Work, calls: int) -> tuple[int, float]:
    """Octaves between the intensities, which decide what bounds, then the ratio of the bytes of one launch."""
    octaves = 0
    if record.flops and work.total_flops:
        octaves = round(abs(math.log2(record.flops / record.bytes / work.intensity)))
    return octaves, abs(math.log(record.bytes * calls / work.bytes))
