"""How the weights of a model are stored, module by module: in one precision, by a recipe, or as a config.json says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kernels.common.quantization import weight_bytes
from kernels.model_config.quantization import Checkpoint, Stored
from kernels.models import ModelShape, modules, parameters

SCALE_SIZE = 2
"""Bytes of one of int4's scales."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a number is stored and, for a weight, the pipe that multiplies with it."""

    bytes: float
    """Bytes of one number, without scales."""
    pipe: str
    format: str = ""
    """The format of `kernels/common/quantization.py` that tells what scales weights have; empty for none."""
    scale_bits: float = 0.0
    """Without a `format`: bits of scales for each weight, and in `row_bits` for each row."""
    row_bits: float = 0.0

    def weight_bytes(self, n: float, k: float) -> float:
        """Bytes of a matrix `[n, k]` with its scales."""
        if not self.format:
            return n * k * self.bytes + (n * k * self.scale_bits + n * self.row_bits) / 8
        return weight_bytes(self.format, math.ceil(n), math.ceil(k), SCALE_SIZE)


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(bytes=4, pipe="fma_fp32"),
    "bf16": Precision(bytes=2, pipe="mma_bf16"),
    "fp16": Precision(bytes=2, pipe="mma_bf16"),
    "fp8": Precision(bytes=1, pipe="mma_fp8", format="fp8"),
    "int8": Precision(bytes=1, pipe="mma_int8", format="int8"),
    "w8a16": Precision(bytes=1, pipe="mma_bf16", format="int8"),
    "int4": Precision(bytes=0.5, pipe="mma_bf16", format="int4"),
    "fp4": Precision(bytes=0.5, pipe="mma_fp4", format="mxfp4"),
}
"""`fp8`, `int8` and `fp4` weights are multiplied in that type. `w8a16` and `int4` weights are read in 8 or 4 bits and
multiplied in 16."""

PIPES = {"16": "mma_bf16", "32": "fma_fp32", "fp8": "mma_fp8", "int8": "mma_int8", "fp4": "mma_fp4"}
"""The pipe by the type in which a checkpoint's weights are multiplied."""

Parts = tuple[tuple[Precision, float], ...]
"""Precisions, and the share of a module's layers that each has."""


@dataclass(frozen=True, kw_only=True)
class WeightPlan:
    """The precision of each kind of module (`kernels.models.modules`); `base` for those that are not named."""

    name: str
    base: Precision
    parts: Mapping[str, Parts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, module: str) -> Parts:
        return self.parts.get(module, ((self.base, 1.0),))

    def on(self, convert: Callable[[Precision], Precision]) -> WeightPlan:
        """The plan with each precision converted."""
        parts = {name: tuple((convert(p), share) for p, share in each) for name, each in self.parts.items()}
        return replace(self, base=convert(self.base), parts=parts)

    def precisions(self) -> set[Precision]:
        return {self.base} | {precision for each in self.parts.values() for precision, _ in each}

    def matrix_bytes(self, module: str, n: float, k: float) -> float:
        """Bytes of `[n, k]` with its scales, averaged over the layers that have the module."""
        return sum(share * precision.weight_bytes(n, k) for precision, share in self.of(module))

    def total_bytes(self, shape: ModelShape) -> int:
        """All weights as stored. In one precision, scales are counted as if every row had the hidden size."""
        if not self.parts:
            return round(self.base.weight_bytes(parameters(shape) / shape.hidden, shape.hidden))
        return round(sum(m.layers * m.copies * self.matrix_bytes(m.name, m.n, m.k) for m in modules(shape)))


def as_plan(weights: WeightPlan | Precision, name: str = "") -> WeightPlan:
    return weights if isinstance(weights, WeightPlan) else WeightPlan(name=name, base=weights)


KEPT = ("embedding", "lm_head", "router", "index_k")
"""What checkpoints in fewer than 16 bits keep in 16."""
ATTENTION = ("q", "k", "v", "o", "q_a", "q_b", "kv_a", "kv_b", "attention_gate", "index_q")


def recipe(shape: ModelShape, precision: str) -> WeightPlan:
    """The plan of a published checkpoint in this precision of `PRECISIONS`.

    Embedding, `lm_head` and router stay in 16 bits. In fp4, a mixture of experts also keeps attention in 16 bits, as
    gpt-oss and NVIDIA's NVFP4 of DeepSeek-V3 do.
    """
    base = PRECISIONS[precision]
    if base.bytes >= 2:
        return WeightPlan(name=precision, base=base)
    kept = KEPT + (ATTENTION if precision == "fp4" and shape.is_moe else ())
    wide = PRECISIONS["bf16"]
    has: list[str] = [name for name in ("embedding", "lm_head", "router") if name in {m.name for m in modules(shape)}]
    if len(kept) > len(KEPT):
        has.append("attention")
    note = f"{' and '.join([', '.join(has[:-1]), has[-1]]) if has[:-1] else has[0]} stay in 16 bits"
    return WeightPlan(name=precision, base=base, parts=dict.fromkeys(kept, ((wide, 1.0),)), notes=(note,))


def from_checkpoint(found: Checkpoint) -> WeightPlan:
    """The plan of a config.json."""
    parts = {
        module: tuple((_precision(stored), share) for stored, share in each) for module, each in found.modules.items()
    }
    return WeightPlan(name=found.name, base=_precision(found.plain), parts=parts, notes=found.notes)


def _precision(stored: Stored) -> Precision:
    return Precision(
        bytes=stored.bits / 8,
        pipe=PIPES[stored.computes],
        scale_bits=stored.scale_bits,
        row_bits=stored.row_bits,
    )
