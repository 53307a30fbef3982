"""State mixers whose tokens come from several products: Mamba's and KDA's.

    KDA     q, k, v, beta, f, g = x W_in^T; decays a = f W_f^T and the gate z = g W_g^T, from f and g of a head's size
    Mamba   u, z = x W_in^T; u = silu(convolution of u); dt, B, C = u W_x^T, maybe normalized; then
            dt W_dt^T is dt of each channel

The states then answer y. KDA's is normalized and gated by z; Mamba's is gated in the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kernels.decode_step import states
from kernels.decode_step.blocks import stateful
from kernels.decode_step.mamba_wiring import Selective
from kernels.decode_step.states import state_case
from kernels.decode_step.wiring import Wiring, shape_of, wiring_of
from kernels.ffn_gemv.op import GemvCase
from kernels.head_gemv.op import HeadCase
from kernels.op import Case, Inputs
from kernels.rmsnorm.op import NormCase
from kernels.short_conv import op as short_conv
from kernels.short_conv.op import ConvCase
from kernels.state_update.cases import StateCase
from kernels.state_update.memory import y_of

if TYPE_CHECKING:
    import torch

    from kernels.common.random_inputs import RandomInputs
    from kernels.decode_step.compose import Composition
    from kernels.decode_step.op import StepCase

NORMS = ("dt", "b", "c")
"""What Jamba and Falcon Mamba normalize."""


def selective_of(case: StepCase) -> Selective:
    found = wiring_of(case.model).selective
    assert found, case.model
    return found


def conv_case(case: StepCase) -> ConvCase:
    taps = selective_of(case).taps
    return ConvCase(model=case.model, B=case.B, C=state_case(case).V, taps=taps, dtype=case.dtype)


def cases_of(case: StepCase) -> Iterator[tuple[str, str, Case]]:
    """The operations between the norm and the residual."""
    hidden, state = shape_of(case.model).hidden, state_case(case)
    common: dict[str, Any] = {"model": case.model, "B": case.B, "dtype": case.dtype}

    def product(name: str, N: int, K: int) -> tuple[str, str, Case]:
        return name, "ffn_gemv", GemvCase(layer=name, N=N, K=K, weights=case.weights, **common)

    if state.kind == "kda":
        yield product("state_in", state.convolved + state.H + 2 * state.K, hidden)
        yield "state_inner", "head_gemv", HeadCase(H=2, N=state.H * state.V, K=state.K, **common)
        yield "state", "state_update", state
        yield "state_norm", "rmsnorm", states.state_norm(case)
        yield product("state_out", hidden, state.H * state.V)
        return
    selective = selective_of(case)
    yield product("state_in", 2 * state.V, hidden)
    yield "state_conv", "short_conv", conv_case(case)
    yield product("state_x", selective.rank + 2 * state.K, state.V)
    for name, D in zip(NORMS, (selective.rank, state.K, state.K), strict=True):
        if selective.norms:
            yield f"state_{name}_norm", "rmsnorm", NormCase(D=D, epsilon=selective.epsilon, **common)
    yield product("state_dt", state.V, selective.rank)
    yield "state", "state_update", state
    yield product("state_out", hidden, state.V)


# ---- a step


def mix(step: Composition, layer: int, x: torch.Tensor) -> torch.Tensor:
    """What the mixer adds to the residual."""
    state = state_case(step.case)
    return (mix_kda if state.kind == "kda" else mix_mamba)(step, state, layer, x)


def mix_kda(step: Composition, state: StateCase, layer: int, x: torch.Tensor) -> torch.Tensor:
    norm: NormCase = step.part(layer, "state_norm")
    mixed = step.product(layer, "state_in", x)
    qkv, beta, ranks = mixed.split([state.convolved, state.H, 2 * state.K], dim=1)
    ranks = ranks.unflatten(1, (2, state.K))
    wide = step.run(layer, "state_inner", x=ranks, w=step.inputs[f"{layer}.state_inner"])
    given = states.update_inputs(step.case, step.inputs, layer)
    memory = step.run(layer, "state", tokens=qkv[:, None], a=wide[:, 0], beta=beta, **given)
    y, w = y_of(state, memory).view(norm.rows, norm.D), step.inputs[f"{layer}.state_norm"]
    normed = step.run(layer, "state_norm", x=y, z=wide[:, 1], w=w)
    return step.product(layer, "state_out", normed.view(step.case.B, -1))


def mix_mamba(step: Composition, state: StateCase, layer: int, x: torch.Tensor) -> torch.Tensor:
    inputs, selective = step.inputs, selective_of(step.case)
    channels, z = step.product(layer, "state_in", x).split(state.V, dim=1)
    memory = step.run(
        layer,
        "state_conv",
        x=channels,
        memory=inputs[f"{layer}.ring"],
        weight=inputs[f"{layer}.conv_weight"],
        bias=inputs[f"{layer}.conv_bias"],
        rings=inputs["rings"],
        positions=inputs["state_positions"],
    )
    u = short_conv.y_of(conv_case(step.case), memory)
    found = step.product(layer, "state_x", u).split([selective.rank, state.K, state.K], dim=1)
    if selective.norms:
        named = zip(NORMS, found, strict=True)
        found = tuple(step.norm(layer, f"state_{name}_norm", [part], None)[0] for name, part in named)
    dt, b, c = found
    dt = step.product(layer, "state_dt", dt)
    given = states.update_inputs(step.case, inputs, layer)
    memory = step.run(layer, "state", tokens=u[:, None], b=b, c=c, z=z, dt=dt, **given)
    return step.product(layer, "state_out", y_of(state, memory).view(step.case.B, -1))


# ---- what lasts


def ring_name(layer: int) -> str:
    return f"{layer}.ring"


def drawn_ring(case: StepCase, layer: int, draw: RandomInputs) -> Inputs:
    """The ring of a convolution that is a part of its own, ~ N(0, 1)."""
    if not wiring_of(case.model).selective:
        return {}
    return {ring_name(layer): draw.normal(conv_case(case).memory_shape, case.dtype)}


def carried_ring(case: StepCase, layer: int, before: Inputs | None, like: torch.Tensor) -> Inputs:
    """That of the step before, or of a text that begins."""
    if not wiring_of(case.model).selective or not stateful(case, layer):
        return {}
    name = ring_name(layer)
    return {name: before[name] if before else like.new_zeros(conv_case(case).memory_shape)}


# ---- the reference


def reference(case: StepCase, inputs: Inputs, layer: int, mixed: torch.Tensor) -> torch.Tensor:
    """[B, H V], what goes into the last product, with no rounding between. `mixed` is what the first one gives."""
    state = state_case(case)
    if state.kind == "kda":
        tokens, z = kda_token(case, inputs, layer, mixed)
        return states.gated(case, inputs, layer, states.answer(case, inputs, layer, tokens), z)
    ring = short_conv.ring_of(conv_case(case), inputs[ring_name(layer)])
    given = {"x": mixed[:, : state.V], "rings": inputs["rings"], "positions": inputs["state_positions"]}
    given |= {name: inputs[f"{layer}.conv_{name}"] for name in ("weight", "bias")}
    u = short_conv.convolved(conv_case(case), given, ring).to(mixed.dtype)
    tokens = mamba_token(case, inputs, layer, u, mixed[:, state.V :])
    return states.answer(case, inputs, layer, tokens).flatten(1).to(mixed.dtype)


def kda_token(case: StepCase, inputs: Inputs, layer: int, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole tokens, and z."""
    import torch

    state = state_case(case)
    qkv, beta, f, g = mixed.split([state.convolved, state.H, state.K, state.K], dim=1)
    decays, gate = inputs[f"{layer}.state_inner"].to(mixed.dtype)
    return torch.cat([qkv, f @ decays.T, beta], dim=1), g @ gate.T


def mamba_token(case: StepCase, inputs: Inputs, layer: int, u: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The whole tokens, from convolved channels u and their gate z."""
    import torch

    from kernels.decode_step.reference import weight

    state, selective = state_case(case), selective_of(case)
    found = (u @ weight(case, inputs, f"{layer}.state_x").T.to(u.dtype)).split(
        [selective.rank, state.K, state.K], dim=1
    )
    if selective.norms:
        found = tuple(
            part
            * (part.square().mean(-1, keepdim=True) + selective.epsilon).rsqrt()
            * inputs[f"{layer}.state_{name}_norm"].to(part.dtype)
            for name, part in zip(NORMS, found, strict=True)
        )
    dt, b, c = found
    return torch.cat([u, b, c, z, dt @ weight(case, inputs, f"{layer}.state_dt").T.to(u.dtype)], dim=1)


# ---- published weights


def published(
    state: StateCase, wiring: Wiring, stored: Mapping[str, torch.Tensor], at: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a mixer, whose names in a file begin with `at`."""
    import torch

    if state.kind == "kda":
        yield from published_kda(state, stored, at)
        return
    assert wiring.selective
    yield "state_in", stored[f"{at}in_proj.weight"]
    yield "conv_weight", stored[f"{at}conv1d.weight"][:, 0].T
    bias = stored.get(f"{at}conv1d.bias")
    yield "conv_bias", torch.zeros(state.V) if bias is None else bias
    yield "state_x", stored[f"{at}x_proj.weight"]
    yield "state_dt", stored[f"{at}dt_proj.weight"]
    yield "dt_bias", stored[f"{at}dt_proj.bias"]
    yield from ((name, stored[at + name]) for name in ("A_log", "D"))
    for name, D in zip(NORMS, (wiring.selective.rank, state.K, state.K), strict=True):
        if wiring.selective.norms:
            plain = wiring.selective.norms == "plain"
            yield f"state_{name}_norm", torch.ones(D) if plain else stored[f"{at}{name}_layernorm.weight"]
    yield "state_out", stored[f"{at}out_proj.weight"]


def published_kda(state: StateCase, stored: Mapping[str, torch.Tensor], at: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Files have three convolutions, and no object around the gate of decays; transformers has one of each."""
    import torch

    gate = f"{at}forget_gate." if f"{at}forget_gate.A_log" in stored else at
    rows = [f"{at}{x}_proj" for x in ("q", "k", "v", "b")] + [f"{gate}f_a_proj", f"{at}g_a_proj"]
    yield "state_in", torch.cat([stored[f"{name}.weight"] for name in rows])
    yield "state_inner", torch.stack([stored[f"{gate}f_b_proj.weight"], stored[f"{at}g_b_proj.weight"]])
    if f"{at}conv1d.weight" in stored:
        taps = stored[f"{at}conv1d.weight"]
    else:
        taps = torch.cat([stored[f"{at}{x}_conv1d.weight"] for x in "qkv"])
    yield "conv_weight", taps.flatten(1).T
    yield "A_log", stored[f"{gate}A_log"].flatten()
    yield "dt_bias", stored[f"{gate}dt_bias"].view(state.H, state.K)
    yield "state_norm", stored[f"{at}o_norm.weight"]
    yield "state_out", stored[f"{at}o_proj.weight"]
