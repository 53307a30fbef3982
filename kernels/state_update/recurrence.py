"""The recurrences in fp64, token by token, for all sequences at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.op import Inputs
from kernels.state_update.apart import joined
from kernels.state_update.cases import DELTA, StateCase
from kernels.state_update.memory import background, ring_of, state_of, y_of

if TYPE_CHECKING:
    import torch

CHUNK_ELEMENTS = 1 << 24
"""Sequences go through the recurrence in chunks of so many elements of state."""

WIDE_ELEMENTS = 1 << 24
"""A larger memory is returned in fp32, as `compare` would take it."""

NORM_EPSILON = 1e-6
"""Beside the squared norm of q and of k (flash-linear-attention's `l2norm`)."""


def reference(case: StateCase, inputs: Inputs) -> torch.Tensor:
    """The whole memory after the step, fp64 or fp32. It starts from the background, not from what `memory` holds."""
    import torch

    if case.apart:
        inputs = inputs | {"tokens": joined(case, inputs)}
    before = background(case, inputs["tokens"].device)
    ys = y_of(case, before).double()
    slots, active = inputs["slots"].long(), inputs["slots"][:, 1] >= 0
    sequences = active.nonzero()[:, 0]
    history = tokens_of(case, inputs, ring_of(case, before), sequences)
    append(case, inputs, ring_of(case, before), sequences)
    after = before.to(torch.float64 if before.numel() <= WIDE_ELEMENTS else torch.float32)
    step = max(1, CHUNK_ELEMENTS // case.slot)
    for first in range(0, len(sequences), step):
        part = sequences[first : first + step]
        states = state_of(case, before)[slots[part, 1]].double()
        at = slice(first, first + len(part))
        for t in range(1 - case.every, case.q_len):
            convolved, gates = at_token(case, inputs, history, at, t)
            updated, y = advance(case, inputs, states, convolved, gates)
            live = t >= -inputs["kept"][part].long()
            states = torch.where(live[:, None, None, None], updated, states)
            if t >= 0:
                ys[part, t] = y
                written = slots[part, 2 + t]
                state_of(case, after)[written[written >= 0]] = states[written >= 0].to(after.dtype)
    if case.apart:
        return torch.cat([after[: -case.regions[2]].reshape(-1), ys.reshape(-1).to(after.dtype)])
    y_of(case, after).copy_(ys)
    return after


def tokens_of(case: StateCase, inputs: Inputs, rings: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
    """`[n, ring, width]`: the last tokens of these sequences and the new ones, in order. Old gates that no ring keeps
    are zeros."""
    import torch

    new = inputs["tokens"][sequences]
    old = case.ring - case.q_len if case.ring else 0
    back = torch.arange(-old, 0, device=new.device)
    places = (inputs["positions"].long()[sequences, None] + back) % max(1, case.ring)
    found = torch.zeros(len(sequences), old + case.q_len, case.width, dtype=new.dtype, device=new.device)
    if case.ring:
        found[:, :old, : case.ring_width] = rings[inputs["slots"].long()[sequences, :1], places]
    found[:, old:] = new
    return found


def append(case: StateCase, inputs: Inputs, rings: torch.Tensor, sequences: torch.Tensor) -> None:
    """The new tokens, in their places of the rings."""
    for t in range(case.q_len if case.ring else 0):
        place = (inputs["positions"].long()[sequences] + t) % case.ring
        rings[inputs["slots"].long()[sequences, 0], place] = inputs["tokens"][sequences, t, : case.ring_width]


def at_token(
    case: StateCase, inputs: Inputs, history: torch.Tensor, at: slice, t: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Channels after the convolution, and gates, of token t of some sequences (0 is the first new one), by name."""
    import torch

    now = history.shape[1] - case.q_len + t
    row = history[at, now].double()
    mixed = row[:, : case.convolved]
    if case.conv:
        window = history[at, now - case.conv + 1 : now + 1, : case.convolved].double()
        mixed = torch.einsum("nwc,wc->nc", window, inputs["conv_weight"].double())
        if case.kind not in DELTA:
            mixed = mixed + inputs["conv_bias"].double()
        mixed = torch.nn.functional.silu(mixed)
    gates = row[:, case.convolved :].split(list(case.gates.values()), dim=1)
    return (
        dict(zip(case.channels, mixed.split(list(case.channels.values()), dim=1), strict=True)),
        dict(zip(case.gates, gates, strict=True)),
    )


def advance(
    case: StateCase,
    inputs: Inputs,
    states: torch.Tensor,  # [n, H, V, K]
    token: dict[str, torch.Tensor],
    gates: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states after one token, and y [n, H, V]."""
    import torch

    def by_head(name: str) -> torch.Tensor:
        """A vector of K elements for each head: heads of a group share one."""
        return token[name].view(-1, case.G, case.K).repeat_interleave(case.H // case.G, dim=1)

    def normed(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().sum(-1, keepdim=True) + NORM_EPSILON).sqrt()

    rate, bias = inputs["A_log"].double().exp(), inputs["dt_bias"].double()
    softplus = torch.nn.functional.softplus
    if case.kind not in DELTA:
        shape = (-1, case.H, case.V)
        dt = softplus(gates["dt"] + bias).view(shape if case.kind == "mamba1" else (-1, case.H, 1))
        x, b, c = token["x"].view(shape), by_head("b"), by_head("c")
        decay = torch.exp(-dt[..., None] * (rate if case.kind == "mamba1" else rate[:, None, None]))
        states = decay * states + (dt * x)[..., None] * b[:, :, None]
        skip = inputs["D"].double() if case.kind == "mamba1" else inputs["D"].double()[:, None]
        y = torch.einsum("nhvk,nhk->nhv", states, c) + skip * x
        return states, y * torch.nn.functional.silu(gates["z"]).view(shape) if case.kind == "mamba1" else y
    a = gates["a"].view(-1, case.H, case.K if case.kind == "kda" else 1)
    decay = torch.exp(-rate[:, None] * softplus(a + bias.view(a.shape[1:])))
    q, k, v = normed(by_head("q")), normed(by_head("k")), token["v"].view(-1, case.H, case.V)
    states = states * decay[:, :, None]
    change = torch.sigmoid(gates["beta"])[..., None] * (v - torch.einsum("nhvk,nhk->nhv", states, k))
    states = states + change[..., None] * k[:, :, None]
    return states, torch.einsum("nhvk,nhk->nhv", states, q) * case.K**-0.5
