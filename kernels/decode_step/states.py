"""Layers that keep a state instead of a cache: `kernels/state_update` between two products, with a gated norm.

    mixed = x W_in^T, y = the state's answer to the first columns of mixed, the rest is z; norm(y, z) W_out^T

The state of sequence b stands in slot 2b or 2b + 1 in turn, so that a step reads one and writes the other, and may run
again. The ring of sequence b is ring b.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kernels.common.random_inputs import torch_dtype
from kernels.decode_step.blocks import attends
from kernels.decode_step.wiring import wiring_of
from kernels.op import Inputs
from kernels.rmsnorm.op import NormCase
from kernels.rmsnorm.op import reference as normed
from kernels.silu_mul.op import GateCase
from kernels.silu_mul.op import reference as weighed
from kernels.state_update.cases import DELTA, StateCase
from kernels.state_update.memory import ring_of, state_of
from kernels.state_update.recurrence import advance, at_token, tokens_of

if TYPE_CHECKING:
    import torch

    from kernels.common.random_inputs import RandomInputs
    from kernels.decode_step.op import StepCase

NORM_GATES = {"gated_delta": "silu", "kda": "sigmoid", "mamba2": "silu_first"}
"""The gate of the norm behind the state, by kind."""

PARAMETERS = {
    "A_log": (0.6, 0.7),
    "dt_bias": (0.5, -2.0),
    "conv_weight": (0.5, 0.0),
    "conv_bias": (0.25, 0.0),
    "D": (1.0, 0.0),
}
"""Deviation and mean of what is drawn, as in `kernels/state_update`: most decays are between 0.4 and 0.95."""


def memory_of(case: StepCase, layer: int) -> str:
    """The name of what holds the states of a layer. It stands beside the cache where a layer also attends."""
    return f"{layer}.states" if attends(case, layer) else f"{layer}.memory"


def state_case(case: StepCase) -> StateCase:
    found = wiring_of(case.model).state
    assert found, case.model
    return replace(found, model=case.model, B=case.B, dtype=case.dtype)


def inner(state: StateCase) -> int:
    """Columns of y, and of z."""
    return state.H * state.V


def state_norm(case: StepCase) -> NormCase:
    """Of the delta rule each head is a group, and all have one weight; of Mamba-2 heads that share B and C are one."""
    state, delta, wiring = state_case(case), state_case(case).kind in DELTA, wiring_of(case.model)
    groups = state.H if delta else state.G
    return NormCase(
        model=case.model,
        B=case.B,
        D=inner(state) // groups,
        groups=groups,
        shared=delta,
        gate="silu" if wiring.norm_first else NORM_GATES[state.kind],
        wide=wide(state),
        epsilon=wiring.epsilon,
        dtype=case.dtype,
    )


def state_gate(case: StepCase) -> GateCase:
    """silu(z) y, of models without a norm behind the state."""
    state = state_case(case)
    return GateCase(
        model=case.model, B=case.B, F=inner(state), apart=True, wide=wide(state), dtype=case.dtype, activation="swiglu"
    )


def wide(state: StateCase) -> bool:
    """Whether y is in fp32 beside tokens of 16 bits."""
    return state.y_type == "fp32" != state.dtype


def vectors(state: StateCase) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of the parameters of a state update."""
    heads = (state.H, state.K) if state.kind == "kda" else (state.V if state.kind == "mamba1" else state.H,)
    yield "A_log", (state.V, state.K) if state.kind == "mamba1" else (state.H,), "fp32"
    yield "dt_bias", heads, "fp32"
    if state.conv:
        yield "conv_weight", (state.conv, state.convolved), state.dtype
        if state.kind not in DELTA:
            yield "conv_bias", (state.convolved,), state.dtype
    if state.kind not in DELTA:
        yield "D", (state.V if state.kind == "mamba1" else state.H,), "fp32"


def parameters(state: StateCase, inputs: Inputs, layer: int) -> Inputs:
    found = {name: inputs[f"{layer}.{name}"] for name, _, _ in vectors(state)}
    none = found["D"][:0] if "D" in found else None  # of a convolution that is a part of its own
    return found if state.conv else found | {"conv_weight": none, "conv_bias": none}


def memory_shape(state: StateCase) -> tuple[int, ...]:
    return sum(state.regions), state.K


def drawn_memory(state: StateCase, draw: RandomInputs) -> torch.Tensor:
    """States, rings and y ~ N(0, 1)."""
    memory = draw.normal(memory_shape(state), state.state)
    if draw.device != "meta":
        ring = ring_of(state, memory)
        ring.copy_(draw.normal(tuple(ring.shape), state.dtype))
    return memory


def bookkeeping(case: StepCase, positions: torch.Tensor) -> Inputs:
    """Where states and rings are: `slots`, `kept` and `state_positions` as `kernels/state_update` takes them. What a
    ring holds before the first token of a text has positions from 0 on too."""
    import torch

    state, b = state_case(case), torch.arange(case.B, dtype=torch.int32)
    slots = torch.stack([b, 2 * b + positions % 2, 2 * b + (positions + 1) % 2], dim=1)
    selective = wiring_of(case.model).selective
    first = selective.taps if selective else state.ring
    found = {"slots": slots, "kept": torch.zeros_like(b), "state_positions": positions + first}
    return found | ({"rings": b} if selective else {})


def update_inputs(case: StepCase, inputs: Inputs, layer: int) -> Inputs:
    """What a state update reads beside its tokens."""
    return parameters(state_case(case), inputs, layer) | {
        "memory": inputs[memory_of(case, layer)],
        "slots": inputs["slots"],
        "kept": inputs["kept"],
        "positions": inputs["state_positions"],
    }


def reference(case: StepCase, inputs: Inputs, layer: int, mixed: torch.Tensor) -> torch.Tensor:
    """[B, H V], what goes into the last product of a state mixer, with no rounding between."""
    state = state_case(case)
    tokens, z = mixed.split([state.width, inner(state)], dim=1)
    return gated(case, inputs, layer, answer(case, inputs, layer, tokens), z)


def answer(case: StepCase, inputs: Inputs, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    """y [B, H, V] of the state after these tokens, fp64."""
    state, given = state_case(case), update_inputs(case, inputs, layer)
    given["tokens"] = tokens[:, None]
    memory, everyone = given["memory"], given["slots"][:, 0].long()
    history = tokens_of(state, given, ring_of(state, memory), everyone)
    channels, gates = at_token(state, given, history, slice(None), 0)
    before = state_of(state, memory)[given["slots"][:, 1].long()].double()
    return advance(state, given, before, channels, gates)[1]


def gated(case: StepCase, inputs: Inputs, layer: int, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """What stands behind a state: its norm, or its gate alone."""
    if not wiring_of(case.model).state_norm:
        return weighed(state_gate(case), {"x": z, "up": y.reshape(case.B, -1)}).to(z.dtype)
    norm = state_norm(case)
    found: dict[str, Any] = {"x": y.reshape(norm.rows, norm.D), "z": z, "w": inputs[f"{layer}.state_norm"]}
    return normed(norm, found).view(case.B, -1).to(z.dtype)


def carried(state: StateCase, before: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """The memory of the step before, or that of a text that begins."""
    if before is not None:
        return before
    return like.new_zeros(memory_shape(state), dtype=torch_dtype(state.state))
