"""`decodebench step`: which step is asked for, and what it is expected to take. Pure: no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bench.devices import DeviceSpec, find
from bench.errors import BadRequest
from bench.predict import expected_rows
from bench.predict.command import check_split, load_shape
from bench.predict.host import PART
from bench.predict.model_file import known_precision
from bench.predict.step_model import StepPrediction
from bench.predict.step_model import step as predict_step
from bench.predict.step_waterfall import Waterfall, expected_waterfall
from bench.predict.weights import recipe
from bench.run import Run
from kernels.common.fields import TYPES
from kernels.common.random_inputs import LARGEST
from kernels.models import ModelShape
from kernels.op import discover

PAGE = 16
"""Tokens a page of the cache, as in vLLM."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One step; `layers` of 0 stands for all of the model."""

    model: str
    batch: int
    context: int
    layers: int = 0
    weights: str = "bf16"
    kv: str = "bf16"
    part: str = "h100-sxm"
    devices: int = 1
    """How many parts share the model (tensor-parallel)."""
    tokens: int = 1
    """Tokens of each sequence in a step: one and the drafts that it verifies."""

    @property
    def case(self) -> Any:
        """The case that measures this step. Raises `BadRequest` for one that is not composed."""
        narrow = self.kv if self.kv in LARGEST else ""
        if not narrow and self.kv not in TYPES:
            raise BadRequest(
                f"--kv {self.kv}: a step is measured with a cache in 16 or 32 bits, {' or '.join(LARGEST)}"
            )
        if self.devices != 1 or self.tokens != 1:
            raise BadRequest("a step is measured on one part, with one token a sequence: leave out --tp and --drafts")
        stored = {"w8a16": "int8"}.get(self.weights, self.weights)
        dtype = self.weights if self.weights in ("bf16", "fp16", "fp32") else "bf16"
        fields = {"model": self.model.lower(), "B": self.batch, "T": self.context, "layers": self.layers}
        fields |= {"page": PAGE, "dtype": dtype, "weights": "" if dtype == stored else stored, "kv": narrow}
        try:
            return discover()["decode_step"].case_from_dict(fields)
        except ValueError as error:
            raise BadRequest(str(error)) from None


def shape_of(request: Request) -> ModelShape:
    """The shape with as many layers as are asked for; windows stay where they are in the first of them."""
    shape = load_shape(request.model)
    if not request.layers or request.layers == shape.layers:
        return shape
    if request.layers > shape.layers:
        raise BadRequest(f"--layers {request.layers}: {shape.name} has {shape.layers}")
    apart = (shape.window_heads, shape.attention_free_layers, shape.state_mixer, shape.kinds, shape.extras)
    if shape.is_moe or any(apart):
        raise BadRequest(f"--layers: the layers of {shape.name} are not all alike")
    inside = request.case.windowed_layers if shape.window else 0
    return replace(shape, layers=request.layers, windowed_layers=inside)


def predicted_on(request: Request, spec: DeviceSpec) -> StepPrediction:
    """The floor of the step. Raises `BadRequest`."""
    shape = shape_of(request)
    check_split(shape, request.devices)
    return predict_step(
        shape,
        device=spec,
        weights=recipe(shape, known_precision(request.weights)),
        kv=request.kv,
        batch=request.batch,
        context=request.context,
        devices=request.devices,
        q_len=request.tokens,
    )


def roof_of(request: Request, run: Run) -> float | None:
    """The read roof that a run of the same part measured. Raises `BadRequest` for a run of another part."""
    part = find(request.part)
    if run.part is None or run.part.key != part.key:
        raise BadRequest(f"--from: the run is of {run.device_name}, and the step of {part.name}: give its --part")
    return run.ceilings.read_roof if run.ceilings else None


def expect(request: Request, read_roof: float | None = None) -> Waterfall:
    """The step on a part of the datasheets, by constants. Raises `BadRequest`."""
    if request.part == PART:
        raise BadRequest(f"--part {PART}: give --device {PART}, and the step is measured on this host")
    spec = expected_rows.as_reported(find(request.part))
    return expected_waterfall(predicted_on(request, spec), shape_of(request), spec, read_roof)
