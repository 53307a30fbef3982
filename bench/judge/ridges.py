"""Where the arithmetic takes as long as the memory, by measured ceilings."""

from __future__ import annotations

from dataclasses import dataclass

from bench.ceilings import Ceilings
from bench.judge.view import Point, View
from bench.predict.step_work import PRECISIONS
from bench.units import brief


def left_of_ridge(point: Point, ceilings: Ceilings) -> bool | None:
    """Whether the bytes take longer at the read roof than the FLOPs at their pipes' peaks; None without a peak."""
    arithmetic = ceilings.arithmetic_seconds(point.record.work["flops"])
    return bool(point.record.bytes / ceilings.read_roof > arithmetic) if arithmetic else None


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Where the arithmetic of a pipe takes as long as the memory."""

    pipe: str
    intensity: float
    """FLOP/B: the measured peak over the measured read roof."""
    precision: str
    """The first type of weights that the pipe multiplies."""
    batch: float
    """The batch at which a product with weights of that type has this intensity: 2 FLOP per weight and row."""

    @property
    def text(self) -> str:
        return f"ridge {brief(self.intensity)} FLOP/B = batch {self.batch:,.0f} in {self.precision}"


def ridges(view: View) -> list[Ridge]:
    """The measured ridge of each pipe that a case uses."""
    ceilings = view.run.ceilings
    if ceilings is None:
        return []
    found = []
    for pipe in sorted({pipe for p in view.points for pipe in p.record.work["flops"]} & ceilings.pipes.keys()):
        types = [(name, kind) for name, kind in PRECISIONS.items() if kind.pipe == pipe]
        if types:
            at, (name, kind) = ceilings.pipes[pipe] / ceilings.read_roof, types[0]
            found.append(Ridge(pipe=pipe, intensity=at, precision=name, batch=at * kind.bytes / 2))
    return found
