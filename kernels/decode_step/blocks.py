"""Which blocks a layer has. Most have a mixer and then an FFN; a layer of Nemotron-H is one block; of Falcon-H1, each
has attention and a state mixer side by side, then an FFN. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.decode_step.wiring import shape_of, wiring_of

if TYPE_CHECKING:
    from kernels.decode_step.op import StepCase


def letter(case: StepCase, layer: int) -> str:
    """The only block of a layer, as `Wiring.blocks` names it; empty where a layer has a mixer and an FFN."""
    blocks = wiring_of(case.model).blocks
    return blocks[layer] if blocks else ""


def stateful(case: StepCase, layer: int) -> bool:
    """Whether a layer has a state mixer."""
    turns = wiring_of(case.model).states
    return bool(turns) and turns[layer % len(turns)]


def attends(case: StepCase, layer: int) -> bool:
    """Whether a layer has attention."""
    only = letter(case, layer)
    return only == "*" if only else shape_of(case.model).parallel_mixers or not stateful(case, layer)


def has_attention(case: StepCase) -> bool:
    """Whether the model has layers with attention."""
    return shape_of(case.model).attention_layers > 0


def mixes(case: StepCase, layer: int) -> bool:
    """Whether a layer has attention or a state mixer."""
    return stateful(case, layer) or attends(case, layer)


def feeds(case: StepCase, layer: int) -> bool:
    """Whether a layer has an FFN or experts."""
    shape = shape_of(case.model)
    return letter(case, layer) not in ("M", "*") and shape.plain_layers < shape.layers


def alone(case: StepCase) -> bool:
    """Whether each layer is one block."""
    return bool(wiring_of(case.model).blocks)
