"""Tokens that come from several products: the tensors that hold their parts, and what is written behind them.

    mamba1   tokens [B, 1, V] convolved, and b, c [B, K], z, dt [B, V]
    kda      tokens [B, 1, 3 H K], q, k and v as they are, and a [B, H K], beta [B, H]

Rows of each may be further apart than they are long. y is then no part of the memory's numbers, but 16-bit elements in
its last rows: the next product takes them as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.op import Inputs
from kernels.state_update.cases import StateCase
from kernels.state_update.memory import y_of

if TYPE_CHECKING:
    import torch


def parts(case: StateCase) -> dict[str, int]:
    """Elements of each part of a token, in the order in which one tensor would hold them."""
    found = case.channels | case.gates
    first = case.convolved if case.kind == "kda" else found["x"]
    alone = case.gates if case.kind == "kda" else {name: n for name, n in found.items() if name != "x"}
    return {"tokens": first, **alone}


def taken_apart(case: StateCase, inputs: Inputs) -> Inputs:
    """The inputs with a tensor for each part of the tokens."""
    split = inputs["tokens"].split(list(parts(case).values()), dim=2)
    found = {name: part[:, 0] for name, part in zip(parts(case), split, strict=True)}
    return inputs | found | {"tokens": split[0]}


def joined(case: StateCase, inputs: Inputs, out: torch.Tensor | None = None) -> torch.Tensor:
    """`[B, 1, width]`: the parts in one tensor."""
    import torch

    whole = [inputs["tokens"][:, 0], *(inputs[name] for name in list(parts(case))[1:])]
    return torch.cat(whole, dim=1, out=None if out is None else out[:, 0])[:, None]


def decoded(case: StateCase, memory: torch.Tensor) -> torch.Tensor:
    """The memory; with y of another type its numbers, then those of y, in one row."""
    import torch

    if not case.apart:
        return memory
    return torch.cat([memory[: -case.regions[2]].reshape(-1), y_of(case, memory).reshape(-1).to(memory.dtype)])


def lasting(case: StateCase, found: torch.Tensor) -> torch.Tensor:
    """States and rings `[rows, K]` of what `decoded` gave."""
    return found[: -y_elements(case)].view(-1, case.K) if case.apart else found


def decoded_y(case: StateCase, found: torch.Tensor) -> torch.Tensor:
    """`[B, q_len, H, V]` of what `decoded` gave."""
    if not case.apart:
        return y_of(case, found)
    return found[-y_elements(case) :].view(case.B, case.q_len, case.H, case.V)


def y_elements(case: StateCase) -> int:
    return case.B * case.q_len * case.H * case.V
