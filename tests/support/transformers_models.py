"""Toy models of Hugging Face transformers with random weights, and these weights as a decode step takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.decode_step.angles import Rope
from kernels.decode_step.inputs import bookkeeping
from kernels.decode_step.op import StepCase
from kernels.decode_step.published import weights
from kernels.decode_step.states import PARAMETERS
from kernels.decode_step.wiring import shape_of, wiring_of
from tests.support import mamba_models

RATES = ("A_log", "dt_bias", ".D")
"""Parameters of states, which are drawn as a step's inputs are."""

CLASSES = {
    "toy-llama-3": ("LlamaConfig", "LlamaForCausalLM"),
    "toy-qwen2.5": ("Qwen2Config", "Qwen2ForCausalLM"),
    "toy-qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "toy-mistral": ("MistralConfig", "MistralForCausalLM"),
    "toy-mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "toy-qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "toy-gemma-3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "toy-gpt-oss": ("GptOssConfig", "GptOssForCausalLM"),
    "toy-deepseek-v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "toy-qwen3-next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
    "toy-qwen3.5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
    "toy-qwen3.5-moe": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"),
    "toy-bamba": ("BambaConfig", "BambaForCausalLM"),
    "toy-granite-4.0-h": ("GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM"),
    "toy-nemotron-h": ("NemotronHConfig", "NemotronHForCausalLM"),
    "toy-falcon-h1": ("FalconH1Config", "FalconH1ForCausalLM"),
    "toy-falcon-h1-34b": ("FalconH1Config", "FalconH1ForCausalLM"),
    **mamba_models.CLASSES,
}


def need(name: str) -> None:
    """Skip the test, and say so, where the installed release of transformers has no such model."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, CLASSES[name][1]):
        pytest.skip(f"transformers {transformers.__version__} has no {CLASSES[name][1]}")
    if why := mamba_models.lacks(name):
        pytest.skip(f"transformers {transformers.__version__} {why}")


def state_fields(name: str) -> dict[str, Any]:
    """What config.json says of state mixers, and of what comes with them."""
    shape, wiring = shape_of(name), wiring_of(name)
    assert wiring.state
    if name in mamba_models.CLASSES:
        return mamba_models.fields(name)
    state, layers = wiring.state, range(shape.layers)
    stateful = [wiring.states[layer % len(wiring.states)] for layer in layers]
    kinds = ["linear_attention" if each else "full_attention" for each in stateful]
    if state.kind == "gated_delta":
        return {
            "layer_types": kinds,
            "linear_num_value_heads": state.H,
            "linear_num_key_heads": state.G,
            "linear_value_head_dim": state.V,
            "linear_key_head_dim": state.K,
            "linear_conv_kernel_dim": state.conv,
            "shared_expert_intermediate_size": shape.shared_ffn,
        }
    if wiring.blocks:
        return nemotron_fields(name)
    fields: dict[str, Any] = {
        "attn_layer_indices": [layer for layer in layers if not stateful[layer]],
        "mamba_n_heads": state.H,
        "mamba_n_groups": state.G,
        "mamba_d_head": state.V,
        "mamba_d_state": state.K,
        "mamba_d_conv": state.conv,
        "mamba_expand": state.H * state.V // shape.hidden,
        "mamba_chunk_size": 8,
    }
    if shape.parallel_mixers:
        fields |= falcon_fields(name)
    if name == "toy-granite-4.0-h":
        fields |= {"layer_types": kinds, "attention_multiplier": wiring.attention_scale}
        fields |= {"embedding_multiplier": wiring.embedding_factor, "residual_multiplier": wiring.residual_factor}
        fields |= {"logits_scaling": 1 / wiring.logits_factor, "shared_intermediate_size": shape.shared_width}
        fields |= {"intermediate_size": shape.expert_ffn}
    return fields


def nemotron_fields(name: str) -> dict[str, Any]:
    """The smallest step is one that no token takes: only the parallel form of this class limits it."""
    shape, wiring = shape_of(name), wiring_of(name)
    assert wiring.state
    state, router = wiring.state, dict(wiring.router)
    return {
        "hybrid_override_pattern": wiring.blocks,
        "layer_norm_epsilon": wiring.epsilon,
        "mamba_num_heads": state.H,
        "n_groups": state.G,
        "mamba_head_dim": state.V,
        "ssm_state_size": state.K,
        "conv_kernel": state.conv,
        "chunk_size": 8,
        "time_step_min": 1e-9,
        "n_routed_experts": shape.experts,
        "moe_shared_expert_intermediate_size": shape.shared_ffn,
        "moe_latent_size": shape.expert_hidden,
        "routed_scaling_factor": router["scaling"],
    }


def falcon_fields(name: str) -> dict[str, Any]:
    """The multipliers from the factors of rows. What both mixers take in is multiplied by 1.25."""
    wiring = wiring_of(name)
    assert wiring.state
    factors = dict(wiring.factors)
    *tokens, z = factors["state_in"]
    attention, key, _ = factors["qkv"]
    return {
        "mamba_d_ssm": wiring.state.H * wiring.state.V,
        "mamba_rms_norm": wiring.state_norm,
        "mamba_norm_before_gate": wiring.norm_first,
        "embedding_multiplier": wiring.embedding_factor,
        "lm_head_multiplier": wiring.logits_factor,
        "attention_in_multiplier": attention,
        "key_multiplier": key / attention,
        "attention_out_multiplier": factors["o"][0],
        "ssm_in_multiplier": 1.25,
        "ssm_multipliers": [each / 1.25 for each in (z, *tokens)],
        "ssm_out_multiplier": factors["state_out"][0],
        "mlp_multipliers": [factors["gate"][0], factors["down"][0]],
    }


def angle_fields(rope: Rope) -> dict[str, Any]:
    plain = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind == "default":
        return plain
    return plain | {
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original,
        "beta_fast": rope.fast,
        "beta_slow": rope.slow,
        "truncate": rope.truncate,
    }


def config_fields(name: str) -> dict[str, Any]:
    """The fields of a config.json, from the shape and the wiring."""
    shape, wiring = shape_of(name), wiring_of(name)
    if not shape.attention_layers:
        return mamba_models.pure_fields(name)
    angles = angle_fields(wiring.rope)
    fields: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_context,
        "tie_word_embeddings": shape.tied_embeddings,
        "rms_norm_eps": wiring.epsilon,
        "rope_parameters": angles,
        "attn_implementation": "eager",
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if shape.window:
        fields["sliding_window"] = shape.window
    if shape.is_moe:
        fields |= {"num_local_experts": shape.experts, "num_experts": shape.experts}
        fields |= {"num_experts_per_tok": shape.experts_per_token, "moe_intermediate_size": shape.expert_ffn}
        fields |= {"norm_topk_prob": True, "decoder_sparse_step": 1}
    if name == "toy-gpt-oss":  # its experts are as wide as the field for a dense FFN says
        fields |= {"intermediate_size": shape.expert_ffn, "head_dim": shape.head_dim}
    if shape.is_mla:
        # YaRN's magnitude as DeepSeek-V3 has it: none of cosines, and its square of the scores
        fields["rope_parameters"] = angles | {"mscale": 1.0, "mscale_all_dim": 1.0}
        router = dict(wiring.router)
        fields |= {"n_routed_experts": shape.experts, "n_shared_experts": shape.shared_experts}
        fields |= {"n_group": router["groups"], "topk_group": router["top_groups"]}
        fields |= {"routed_scaling_factor": router["scaling"], "first_k_dense_replace": shape.dense_layers}
        fields |= {"kv_lora_rank": shape.kv_latent, "q_lora_rank": shape.q_latent or None}
        fields |= {"qk_rope_head_dim": shape.rope_dim, "qk_nope_head_dim": shape.head_dim}
        fields |= {"v_head_dim": shape.v_head_dim, "num_nextn_predict_layers": 0}
        del fields["head_dim"]
    if wiring.rotary_share != 1:
        fields["rope_parameters"] = angles | {"partial_rotary_factor": wiring.rotary_share}
    if wiring.rope.kind == "none":
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": wiring.rope.theta}
    if wiring.state:
        fields |= state_fields(name)
    if wiring.window_rope:
        local = angle_fields(wiring.window_rope)
        fields["rope_parameters"] = {"full_attention": angles, "sliding_attention": local}
        fields |= {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": shape.head_dim}
    return fields


def model_of(name: str, seed: int = 0) -> Any:
    """In fp32. Weights are of order K^-1/2, and norms and biases differ from 1 and 0, so that each of them shows."""
    import transformers

    config_class, model_class = (getattr(transformers, each) for each in CLASSES[name])
    model = model_class(config_class(**config_fields(name))).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.named_parameters():
        drawn = torch.randn(tensor.shape, generator=generator)
        scale = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.3
        ones = key.endswith(("norm.weight", "layernorm.weight", "norm_f.weight"))
        less_one = wiring_of(name).norms_less_one and "linear_attn" not in key
        centre = 1.0 if tensor.ndim == 1 and ones and not less_one else 0.0
        if key.endswith("dt_proj.bias"):
            scale, centre = PARAMETERS["dt_bias"]
        if key.endswith(RATES):
            scale, centre = PARAMETERS[key.rpartition(".")[2]]
        tensor.data.copy_(centre + scale * drawn)
    for key, tensor in model.named_buffers():
        if key.endswith("e_score_correction_bias"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) / 4)
    return model


def weights_of(name: str, model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names of `kernels/decode_step/op.py`."""
    return weights(StepCase(model=name, B=1, T=1, dtype="fp32"), dict(model.state_dict()))


def step_inputs(case: StepCase, weights: dict[str, torch.Tensor], tokens: list[int], seed: int) -> dict[str, Any]:
    """Inputs of one step with these weights; caches are still to be filled."""
    given = torch.tensor(tokens)
    return weights | {"tokens": given, "next": torch.zeros_like(given)} | bookkeeping(case, "cpu", seed)
