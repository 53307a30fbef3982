"""One rank's share of a step whose model is split over several parts (tensor-parallel), as servers split it.

A rank has its part of the heads with their caches, and of the columns of each FFN. Its last products, `o` and `down`,
give a part of each sum, so an all-reduce behind each of them adds up the parts of all ranks: two a layer. Embedding,
norms and LM head are whole on each rank. Models with heads of their own keys and a dense FFN are split, in one type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kernels.decode_step import compose
from kernels.decode_step.inputs import caches
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import memory_shape
from kernels.decode_step.sequence import Sequence
from kernels.decode_step.wiring import remember, shape_of, wiring_of
from kernels.launch import PartedLaunch
from kernels.op import Inputs, Target

if TYPE_CHECKING:
    import torch

REDUCED = ("o", "ffn")
"""Parts whose outputs are sums over what all ranks have."""

Reduce = Callable[["torch.Tensor"], None]
"""Adds up the tensors of all ranks, in place."""


def share_of(case: StepCase, ranks: int) -> StepCase:
    """The step of one rank. Raises ValueError for one that is not split here."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    if shape.is_moe or shape.is_mla or shape.gate_width or wiring.state or case.quantized or case.kv:
        raise ValueError(f"{case.id}: steps over ranks have dense FFNs, heads with keys of their own, and one type")
    sizes = (shape.heads, shape.kv_heads, shape.ffn)
    if any(size % ranks for size in sizes):
        has = f"{shape.heads} query heads, {shape.kv_heads} KV heads and {shape.ffn} columns"
        raise ValueError(f"{shape.name} has {has}: {ranks} ranks cannot share them evenly")
    name = f"{shape.name}/{ranks}"
    heads, kv_heads, ffn = (size // ranks for size in sizes)
    remember(replace(shape, name=name, heads=heads, kv_heads=kv_heads, ffn=ffn), wiring)
    return replace(case, model=name)


def share(case: StepCase, inputs: Inputs, rank: int, ranks: int) -> Inputs:
    """What rank `rank` of a step reads, of the inputs of the whole step."""
    import torch

    mine, found = share_of(case, ranks), dict(inputs)
    heads, kv_heads, D = shape_of(case.model).heads, shape_of(case.model).kv_heads, shape_of(case.model).head_dim

    def of_heads(rows: torch.Tensor) -> torch.Tensor:
        """Rows of q, k and v: those of this rank's heads."""
        if not len(rows):
            return rows
        each = rows.split([heads * D, kv_heads * D, kv_heads * D])
        return torch.cat([part.chunk(ranks)[rank] for part in each])

    for layer in range(case.measured_layers):
        at = f"{layer}."
        for name in ("qkv", "bias"):
            found[at + name] = of_heads(inputs[at + name])
        for name in ("gate", "up", "sink_logits"):
            found[at + name] = (
                inputs[at + name].chunk(ranks)[rank].clone() if len(inputs[at + name]) else inputs[at + name]
            )
        for name in ("o", "down"):
            found[at + name] = inputs[at + name].chunk(ranks, dim=1)[rank].contiguous()
        memory = inputs[f"{at}memory"].new_zeros(memory_shape(mine, layer))
        for whole, own in zip(caches(case, inputs[f"{at}memory"]), caches(mine, memory), strict=True):
            own.copy_(whole.chunk(ranks, dim=-2)[rank])
        found[f"{at}memory"] = memory
    return found


class Reducing(Sequence):
    """Launches with an all-reduce behind each part that gives a part of a sum."""

    def __init__(self, names: compose.Names, target: Target, reduce: Reduce) -> None:
        super().__init__(names, target)
        self.reduce = reduce

    def run(self, part: compose.Part, given: Inputs) -> torch.Tensor:
        y = super().run(part, given)
        if part.name in REDUCED:
            self.calls.append(("all_reduce", lambda: self.reduce(y)))
        return y


def prepare(case: StepCase, inputs: Inputs, target: Target, reduce: Reduce, by: str = "numba") -> PartedLaunch:
    """The launch of one rank, of a case of `share_of` and inputs of `share`."""
    sequence = Reducing(dict.fromkeys(compose.OPS, (by,)), target, reduce)
    return sequence.launch(compose.Composition(case, inputs, sequence).logits())
