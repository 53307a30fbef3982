"""A config.json on disk -> the model's shape, how its weights are stored, and the type of its KV cache."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.errors import BadRequest, unknown
from bench.predict.weights import ATTENTION, PRECISIONS, WeightPlan, from_checkpoint, recipe
from kernels.model_config import BadConfig, Reading, read
from kernels.model_config.quantization import checkpoint
from kernels.models import ModelShape

BESIDE = "hf_quant_config.json"
"""The file in which modelopt says how a checkpoint is stored, where config.json does not. Both may have a prefix."""

UNSURE = "its name says"
"""How the note begins that a file lacks what its name promises."""

QUANTIZED_NAME = re.compile(r"fp8|nvfp4|mxfp4|fp4|awq|gptq|int4|int8|w4a16|w8a8|bnb", re.IGNORECASE)
LARGEST_FILE = 16 << 20


def read_config(path: Path, name: str = "", weights: str | None = None) -> tuple[ModelShape, WeightPlan, str]:
    """Raises a `BadRequest` of one line that names the file and the field at fault."""
    config = json_object(path)
    beside = path.with_name(path.name.removesuffix("config.json") + BESIDE)
    if not config.get("quantization_config") and beside.is_file() and path.name != beside.name:
        config = config | {"quantization_config": _modelopt(json_object(beside))}
    try:
        reading = read(config, name=name)
        plan, kv = _plan(path, config, reading, weights)
    except BadConfig as error:
        raise BadRequest(f"{path}: {error}") from None
    except RecursionError:
        raise BadRequest(f"{path} is nested too deeply") from None
    shape = reading.shape
    printable = "".join(each if each.isprintable() else "?" for each in shape.name)
    return replace(shape, name=printable[:200]), plan, kv


def known_precision(name: str) -> str:
    if name not in PRECISIONS:
        raise unknown("weight precision", name, PRECISIONS)
    return name


def _plan(path: Path, config: dict[str, Any], reading: Reading, weights: str | None) -> tuple[WeightPlan, str]:
    """What the file says, or what was asked for instead."""
    if weights:
        plan = recipe(reading.shape, known_precision(weights))
        try:
            stored = checkpoint(config, reading)
        except BadConfig:
            return plan, "bf16"
        said = f"config.json stores weights as {stored.name}; counted as {weights} instead"
        differs = stored.name not in (weights, "bf16")
        return replace(plan, notes=(*plan.notes, said) if differs else plan.notes), stored.kv or "bf16"
    stored = checkpoint(config, reading)
    plan = from_checkpoint(stored)
    notes: list[str] = list(plan.notes)
    if stored.modules:
        notes.append(f"weights stored as config.json says: {_summary(stored.name, plan)}")
    elif named := QUANTIZED_NAME.search(f"{path.stem} {config.get('_name_or_path') or ''}"):
        notes.append(
            f"{UNSURE} {named.group()}, but it has no quantization_config: counted in {plan.name}; put {BESIDE} "
            "beside it, or give --weights"
        )
    if stored.kv:
        notes.append(f"KV cache in {stored.kv}, as config.json says")
    return replace(plan, notes=tuple(notes)), stored.kv or "bf16"


def _summary(name: str, plan: WeightPlan) -> str:
    """Which modules are not stored in the plain type."""
    narrow = {module for module, parts in plan.parts.items() if any(p.bytes < plan.base.bytes for p, _ in parts)}
    kept = [module for module in plan.parts if module not in narrow]
    attention = [module for module in kept if module in ATTENTION]
    if attention and not narrow.intersection(ATTENTION):
        kept = ["attention", *(module for module in kept if module not in attention)]
    return f"{name} but for {', '.join(kept)}" if kept else name


def json_object(path: Path, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """A JSON object on disk of so many bytes at most. Raises a `BadRequest` of one line."""
    try:
        if path.stat().st_size > largest:
            raise BadRequest(f"{path} is larger than {largest >> 20} MiB: no config.json")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise BadRequest(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequest(f"{path} holds no JSON object")
    return fields


def _modelopt(fields: dict[str, Any]) -> dict[str, Any]:
    inner = fields.get("quantization")
    if not isinstance(inner, dict):
        raise BadRequest(f"{BESIDE} holds no 'quantization'")
    return {"quant_method": "modelopt", **inner}
