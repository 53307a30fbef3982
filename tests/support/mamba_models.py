"""Toy models with Mamba or KDA mixers: what their config.json says, and what they have before a step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kernels.decode_step.low_rank import conv_case, kda_token, mamba_token, ring_name
from kernels.decode_step.op import StepCase
from kernels.decode_step.states import state_case
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.short_conv.op import ring_of

CLASSES = {
    "toy-jamba": ("JambaConfig", "JambaForCausalLM"),
    "toy-kimi-linear": ("KimiLinearConfig", "KimiLinearForCausalLM"),
    "toy-mamba": ("MambaConfig", "MambaForCausalLM"),
    "toy-falcon-mamba": ("FalconMambaConfig", "FalconMambaForCausalLM"),
    "toy-mamba2": ("Mamba2Config", "Mamba2ForCausalLM"),
}


def lacks(name: str) -> str:
    """What the installed class of a model does otherwise than its publishers' code; empty for nothing."""
    if name != "toy-mamba2":
        return ""
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

    grouped = "group_size" in inspect.signature(MambaRMSNormGated).parameters
    return "" if grouped else "has no groups in the norm of Mamba-2"


def fields(name: str) -> dict[str, Any]:
    """Of Jamba and Kimi-Linear, beside what all models have."""
    shape, wiring = shape_of(name), wiring_of(name)
    state, selective = wiring.state, wiring.selective
    assert state
    if state.kind == "kda":
        layers = range(shape.layers)
        return {
            "layer_types": ["linear_attention" if wiring.states[layer] else "full_attention" for layer in layers],
            "mlp_layer_types": ["dense" if layer < shape.dense_layers else "sparse" for layer in layers],
            "linear_num_heads": state.H,
            "linear_head_dim": state.K,
            "linear_conv_kernel_dim": state.conv,
        }
    assert selective
    return {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": state.K,
        "mamba_d_conv": selective.taps,
        "mamba_expand": state.V // shape.hidden,
        "mamba_dt_rank": selective.rank,
    }


def pure_fields(name: str) -> dict[str, Any]:
    """Of models without attention."""
    shape, wiring = shape_of(name), wiring_of(name)
    state, selective = wiring.state, wiring.selective
    assert state
    found: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "vocab_size": shape.vocab,
        "state_size": state.K,
        "expand": state.H * state.V // shape.hidden,
        "conv_kernel": selective.taps if selective else state.conv,
        "layer_norm_epsilon": wiring.epsilon,
        "tie_word_embeddings": shape.tied_embeddings,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if selective:
        return found | {"time_step_rank": selective.rank}
    return found | {"num_heads": state.H, "head_dim": state.V, "n_groups": state.G, "chunk_size": 8}


def layers_of(model: Any) -> Sequence[Any]:
    """The layers, which models without attention keep in a backbone."""
    return (getattr(model, "model", None) or model.backbone).layers


def mixer_of(layer: Any) -> Any:
    """The module that has the state."""
    return next(getattr(layer, name) for name in ("linear_attn", "mamba", "mixer", "self_attn") if hasattr(layer, name))


def tokens_before(
    case: StepCase, weights: dict[str, torch.Tensor], layer: int, mixed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole tokens of a prompt, after what its first product gave, and what its ring keeps of them."""
    state = state_case(case)
    if state.kind == "kda":
        return kda_token(case, weights, layer, mixed)[0], mixed[:, : state.convolved]
    channels, z = mixed.split(state.V, dim=1)
    taps = conv_case(case).taps
    padded = torch.cat([torch.zeros(taps - 1, state.V), channels]).unfold(0, taps, 1)
    weight, bias = (weights[f"{layer}.conv_{name}"] for name in ("weight", "bias"))
    u = torch.nn.functional.silu((padded * weight.T).sum(-1) + bias)
    return mamba_token(case, weights, layer, u, z), channels


def kept_tokens(case: StepCase) -> int:
    """How many tokens before the new one a convolution looks back to."""
    return (conv_case(case).taps if wiring_of(case.model).selective else state_case(case).conv) - 1


def fill_ring(case: StepCase, inputs: dict[str, Any], layer: int, sequences: Any, rest: float) -> None:
    """Write the tokens before this one into the ring of a convolution that is a part of its own."""
    conv = conv_case(case)
    memory = torch.full(conv.memory_shape, rest)
    for b, (_, tokens) in enumerate(sequences):
        for back, token in enumerate(reversed(tokens), 1):
            ring_of(conv, memory)[b, (int(inputs["state_positions"][b]) - back) % conv.taps] = token
    inputs[ring_name(layer)] = memory


def new_tokens(case: StepCase, inputs: dict[str, Any], layer: int) -> Iterator[torch.Tensor]:
    """What the step wrote into that ring."""
    conv = conv_case(case)
    for b in range(case.B):
        yield ring_of(conv, inputs[ring_name(layer)])[b, int(inputs["state_positions"][b]) % conv.taps].clone()
