"""Where a launch finds and leaves what lasts: states, rings of tokens and y are parts of one tensor `memory [rows, K]`.

One tensor, because the gate compares one: it sees a write to a wrong slot. Before a launch all of it holds the
`background`, which is the same for every seed, so the reference need not trust what an earlier launch has left.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from kernels.common.random_inputs import torch_dtype
from kernels.state_update.cases import StateCase

if TYPE_CHECKING:
    import torch

PERIOD = 4093
"""Values of the background before they repeat. It is a prime, so all slots, rows and tokens differ."""


@cache
def values() -> torch.Tensor:
    """Normal values that are exact in every type."""
    import torch

    drawn = torch.randn(PERIOD, generator=torch.Generator().manual_seed(PERIOD))
    return drawn.bfloat16().half().bfloat16()


def fill(flat: torch.Tensor, shift: int) -> None:
    """The values from `shift` on, again and again."""
    once = values().roll(-shift).to(flat.device, flat.dtype)
    whole = flat.numel() // PERIOD * PERIOD
    flat[:whole].view(-1, PERIOD).copy_(once)
    flat[whole:].copy_(once[: flat.numel() - whole])


def background(case: StateCase, device: str | torch.device) -> torch.Tensor:
    """`memory` before a launch. On `meta` it has a shape only."""
    import torch

    memory = torch.empty(sum(case.regions), case.K, dtype=torch_dtype(case.state), device=device)
    if str(device) != "meta":
        fill(memory.view(-1), 0)
        fill(ring_of(case, memory).reshape(-1), 1)
    return memory


def state_of(case: StateCase, memory: torch.Tensor) -> torch.Tensor:
    """`[slots, H, V, K]`"""
    return memory[: case.regions[0]].view(case.slots, case.H, case.V, case.K)


def ring_of(case: StateCase, memory: torch.Tensor) -> torch.Tensor:
    """`[rings, ring, ring_width]` in `dtype`. In a memory of fp32 two 16-bit elements take the place of one."""
    states, rows, _ = case.regions
    flat = memory[states : states + rows].view(-1).view(torch_dtype(case.dtype))
    return flat[: case.rings * case.ring * case.ring_width].view(case.rings, case.ring, case.ring_width)


def y_of(case: StateCase, memory: torch.Tensor) -> torch.Tensor:
    """`[B, q_len, H, V]` in the type of the state, or in `dtype` behind a token that was apart."""
    count = case.B * case.q_len * case.H * case.V
    flat = memory[-case.regions[2] :].view(-1)
    flat = flat.view(torch_dtype(case.y_type)) if case.apart else flat
    return flat[:count].view(case.B, case.q_len, case.H, case.V)
