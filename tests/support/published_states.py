"""State layers as transformers publishes them, at toy size: y of each token, and the tokens as our operation has
them."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from kernels.state_update.cases import StateCase


def qwen3_next(case: StateCase, given: dict[str, Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers.models.qwen3_next import modeling_qwen3_next as published

    config = published.Qwen3NextConfig(
        hidden_size=x.shape[-1],
        linear_num_value_heads=case.H,
        linear_num_key_heads=case.G,
        linear_key_head_dim=case.K,
        linear_value_head_dim=case.V,
        linear_conv_kernel_dim=case.conv,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    layer = published.Qwen3NextGatedDeltaNet(config, 0)
    parts = layer.fix_query_key_value_ordering(layer.in_proj_qkvz(x), layer.in_proj_ba(x))
    q, k, v, _, beta, a = (part.flatten(2) for part in parts)
    return run_layer(layer, given, x, layer.norm), torch.cat([q, k, v, a, beta], dim=-1)


def kimi_linear(case: StateCase, given: dict[str, Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers.models.kimi_linear import modeling_kimi_linear as published

    config = published.KimiLinearConfig(
        hidden_size=x.shape[-1],
        linear_num_heads=case.H,
        linear_head_dim=case.K,
        linear_conv_kernel_dim=case.conv,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    layer = published.KimiLinearDeltaAttention(config, 0)
    gate = layer.forget_gate
    a = gate.f_b_proj(gate.f_a_proj(x))
    token = torch.cat([layer.q_proj(x), layer.k_proj(x), layer.v_proj(x), a, layer.b_proj(x)], dim=-1)
    return run_layer(layer, given, x, layer.o_norm), token


def mamba_2(case: StateCase, given: dict[str, Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers.models.mamba2 import modeling_mamba2 as published

    config = published.Mamba2Config(
        hidden_size=x.shape[-1],
        num_heads=case.H,
        head_dim=case.V,
        state_size=case.K,
        n_groups=case.G,
        conv_kernel=case.conv,
        expand=case.H * case.V // x.shape[-1],
        chunk_size=8,
        time_step_limit=(0.0, float("inf")),
    )
    layer = published.Mamba2Mixer(config, 0)
    return run_layer(layer, given, x, layer.norm), layer.in_proj(x)[..., case.H * case.V :]


def mamba_1(case: StateCase, given: dict[str, Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers.models.mamba import modeling_mamba as published

    config = published.MambaConfig(hidden_size=x.shape[-1], state_size=case.K, expand=case.V // x.shape[-1])
    layer = published.MambaMixer(config, 0)
    projected: list[torch.Tensor] = []
    layer.x_proj.register_forward_hook(lambda _, inputs, out: projected.extend((inputs[0], out)))
    y = run_layer(layer, given, x, layer.out_proj)
    convolved, (rank, b, c) = projected[0], projected[1].split([config.time_step_rank, case.K, case.K], dim=-1)
    z = layer.in_proj(x)[..., case.V :]
    return y, torch.cat([convolved, b, c, z, rank @ layer.dt_proj.weight.T], dim=-1)


def run_layer(layer: Any, given: dict[str, Any], x: torch.Tensor, behind: Any) -> torch.Tensor:
    """y before what comes behind the state: a gated norm, or the output's projection. The layer gets our parameters."""
    own = dict(layer.named_parameters())
    for name, value in given.items():
        found = next(p for full, p in own.items() if full == name or full.endswith(f".{name}"))
        found.data.copy_(value.reshape(found.shape))
    seen: list[torch.Tensor] = []
    behind.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    layer.eval()(x)
    return seen[0]


PUBLISHED = {"gated_delta": qwen3_next, "kda": kimi_linear, "mamba2": mamba_2, "mamba1": mamba_1}
MODULES = {"gated_delta": "qwen3_next", "kda": "kimi_linear", "mamba2": "mamba2", "mamba1": "mamba"}


def is_published(kind: str) -> bool:
    """Does the installed release of transformers have the layers of this kind?"""
    return importlib.util.find_spec(f"transformers.models.{MODULES[kind]}") is not None
