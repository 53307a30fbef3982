"""From one step to the next: the inputs of a step that goes on from the cache of the step before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.decode_step import low_rank, states
from kernels.decode_step.blocks import attends, stateful
from kernels.decode_step.inputs import bookkeeping, caches
from kernels.decode_step.parts import memory_shape
from kernels.op import Inputs

if TYPE_CHECKING:
    import torch

    from kernels.decode_step.op import StepCase


def following(
    case: StepCase, weights: Inputs, token: int, before: tuple[StepCase, Inputs] | None, device: str
) -> Inputs:
    """The inputs of a step for one sequence, whose newest token is `token`. `before` is the step of the token before it
    and its inputs, None for the first token of a text."""
    import torch

    tokens = torch.tensor([token], device=device)
    inputs = weights | {"tokens": tokens, "next": torch.zeros_like(tokens)} | bookkeeping(case, device, 0)
    for layer in range(case.measured_layers):
        if attends(case, layer):
            inputs[f"{layer}.memory"] = carried(case, inputs, layer, before)
        if stateful(case, layer):
            name = states.memory_of(case, layer)
            old, like = before[1] if before else {}, inputs["embedding"]
            inputs[name] = states.carried(states.state_case(case), old.get(name), like)
            inputs |= low_rank.carried_ring(case, layer, old, like)
    return inputs


def carried(case: StepCase, inputs: Inputs, layer: int, before: tuple[StepCase, Inputs] | None) -> torch.Tensor:
    """The cache of the step before. Where a page was added, all pages move to their new places."""
    import torch

    name, like = f"{layer}.memory", inputs["embedding"]
    if before and memory_shape(before[0], layer) == memory_shape(case, layer):
        return before[1][name]
    memory = torch.zeros(memory_shape(case, layer), dtype=like.dtype, device=like.device)
    if before:
        old_case, old = before
        columns = -(-old_case.T // case.page)
        pages, to = (each["block_table"][0, :columns].long() for each in (old, inputs))
        for source, cache in zip(caches(old_case, old[name]), caches(case, memory), strict=True):
            cache[to] = source[pages]
    return memory
