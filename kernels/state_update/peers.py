"""The same step by torch, operation by operation in fp32: the states are gathered, updated and put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.state_update.apart import joined
from kernels.state_update.cases import DELTA, StateCase
from kernels.state_update.memory import ring_of, state_of, y_of
from kernels.state_update.op import work
from kernels.state_update.recurrence import NORM_EPSILON

if TYPE_CHECKING:
    import torch

PASSES = {"mamba1": (5, 4), "mamba2": (4, 3), "gated_delta": (5, 3), "kda": (5, 3)}
"""Reads and writes of all states in fp32 for a token: the decay, the outer product and their sum, two products with
vectors."""


def stages(case: StateCase, target: Target) -> tuple[Stage, ...]:
    """States go through DRAM for each operation, and twice more to be gathered and put back."""
    reads, writes = PASSES[case.kind]
    states = 4 * case.B * case.slot
    passes = Work(bytes_read=states * (reads * case.q_len + 1), bytes_written=states * (writes * case.q_len + 1))
    small = 4 * 4 * case.B * case.q_len * case.width * max(1, case.conv) + 4 * states // case.K
    return (Stage(name="torch", work=work(case) + passes, l2_bytes=small),)


def supports(case: StateCase, target: Target) -> str | None:
    if case.idle:
        return "needs a sequence in every entry: torch has no index that means nowhere"
    if case.every > 1:
        return "replays as many tokens for one sequence as for another"
    return None


def prepare(case: StateCase, inputs: Inputs, target: Target) -> Launch:
    """The launch computes all that depends on tokens, slots and positions, and allocates on its way."""

    memory = inputs["memory"]
    state, y = state_of(case, memory), y_of(case, memory)

    def launch() -> torch.Tensor:
        slots, tokens = inputs["slots"].long(), joined(case, inputs) if case.apart else inputs["tokens"]
        mixed = convolve(case, inputs, slots, tokens)
        s = state[slots[:, 1]].float()
        for t in range(case.q_len):
            gates = tokens[:, t, case.convolved :].float()
            parts = mixed[:, t].split(list(case.channels.values()), dim=1)
            s, out = (delta if case.kind in DELTA else selective)(case, inputs, s, parts, gates)
            y[:, t] = out
            state[slots[:, 2 + t]] = s.to(state.dtype)
        return memory

    return launch


def convolve(case: StateCase, inputs: Inputs, slots: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The convolved channels of the new tokens, fp32 `[B, q_len, convolved]`; the tokens are put in the ring."""
    import torch

    new = tokens[..., : case.convolved]
    if not case.conv:
        return new.float()
    ring = ring_of(case, inputs["memory"])
    steps = torch.arange(1 - case.conv, case.q_len, device=tokens.device)
    places = (inputs["positions"].long()[:, None] + steps) % case.ring
    back = case.conv - 1
    window = torch.cat([ring[slots[:, :1], places[:, :back]], new], dim=1).float()
    ring[slots[:, :1], places[:, back:]] = new
    weight = inputs["conv_weight"].float()
    mixed = sum(window[:, tap : tap + case.q_len] * weight[tap] for tap in range(case.conv))
    if "conv_bias" in inputs:
        mixed = mixed + inputs["conv_bias"].float()
    return torch.nn.functional.silu(mixed)


def selective(
    case: StateCase, inputs: Inputs, s: torch.Tensor, parts: tuple[torch.Tensor, ...], gates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mamba: the states after a token, and y."""
    import torch

    silu, softplus = torch.nn.functional.silu, torch.nn.functional.softplus
    x = parts[0].view(case.B, case.H, case.V)
    b, c = (by_head(case, part) for part in parts[1:])
    rate = inputs["A_log"].exp()
    if case.kind == "mamba1":
        z, dt = gates.split([case.V, case.V], dim=1)
        dt = softplus(dt + inputs["dt_bias"])[:, None, :]
        s = s * torch.exp(-dt[..., None] * rate) + (dt * x)[..., None] * b[:, :, None]
        return s, ((s * c[:, :, None]).sum(-1) + inputs["D"] * x) * silu(z)[:, None]
    dt = softplus(gates + inputs["dt_bias"])
    s = s * torch.exp(-dt * rate)[..., None, None] + (dt[..., None] * x)[..., None] * b[:, :, None]
    return s, (s * c[:, :, None]).sum(-1) + inputs["D"][:, None] * x


def delta(
    case: StateCase, inputs: Inputs, s: torch.Tensor, parts: tuple[torch.Tensor, ...], gates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The delta rule: the states after a token, and y."""
    import torch

    q, k = (by_head(case, part) for part in parts[:2])
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPSILON) for x in (q, k))
    v = parts[2].view(case.B, case.H, case.V)
    a, beta = gates.split(list(case.gates.values()), dim=1)
    columns = case.K if case.kind == "kda" else 1
    shift = inputs["dt_bias"].view(case.H, columns)
    decay = -inputs["A_log"].exp()[:, None] * torch.nn.functional.softplus(a.view(case.B, case.H, columns) + shift)
    s = s * decay.exp()[:, :, None]
    change = torch.sigmoid(beta)[..., None] * (v - (s * k[:, :, None]).sum(-1))
    s = s + change[..., None] * k[:, :, None]
    return s, (s * q[:, :, None]).sum(-1) * case.K**-0.5


def by_head(case: StateCase, part: torch.Tensor) -> torch.Tensor:
    """`[B, H, K]`: the heads of a group share a vector."""
    return part.view(case.B, case.G, case.K).repeat_interleave(case.H // case.G, dim=1)


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
