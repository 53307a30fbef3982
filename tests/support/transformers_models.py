"""Toy models of Hugging Face transformers with random weights, and these weights as a decode step takes them."""

from __future__ import annotations

from typing import Any

import torch

from kernels.decode_step.inputs import bookkeeping
from kernels.decode_step.op import StepCase
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.rmsnorm.op import EPSILON

CLASSES = {
    "toy-llama-3": ("LlamaConfig", "LlamaForCausalLM"),
    "toy-qwen2.5": ("Qwen2Config", "Qwen2ForCausalLM"),
    "toy-qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "toy-mistral": ("MistralConfig", "MistralForCausalLM"),
    "toy-mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "toy-qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "toy-gemma-3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
}


def config_fields(name: str) -> dict[str, Any]:
    """The fields of a config.json, from the shape and the wiring."""
    shape, wiring = shape_of(name), wiring_of(name)
    angles = {"rope_type": "default", "rope_theta": wiring.theta}
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
        "rms_norm_eps": EPSILON,
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
    if wiring.window_theta:
        local = angles | {"rope_theta": wiring.window_theta}
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
        centre = 1.0 if tensor.ndim == 1 and key.endswith("norm.weight") and not name.startswith("toy-gemma") else 0.0
        tensor.data.copy_(centre + scale * drawn)
    return model


NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}


def weights_of(name: str, model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names of `kernels/decode_step/op.py`. Gemma stores norms less 1."""
    shape, wiring = shape_of(name), wiring_of(name)
    found, shift = dict(model.state_dict()), float(name.startswith("toy-gemma"))
    weights = {"embedding": found["model.embed_tokens.weight"], "final_norm": found["model.norm.weight"] + shift}
    if not shape.tied_embeddings:
        weights["lm_head"] = found["lm_head.weight"]
    for layer in range(shape.layers):
        at, to = f"model.layers.{layer}.", f"{layer}."
        for ours, theirs in (GEMMA_NORMS if wiring.post_norms else NORMS).items():
            weights[to + ours] = found[f"{at}{theirs}.weight"] + shift
        weights[to + "qkv"] = torch.cat([found[f"{at}self_attn.{x}_proj.weight"] for x in "qkv"])
        biases = [found[f"{at}self_attn.{x}_proj.bias"] for x in "qkv"] if wiring.qkv_bias else [torch.empty(0)]
        weights[to + "bias"] = torch.cat(biases)
        for x in "qk":
            norm = found[f"{at}self_attn.{x}_norm.weight"] + shift if wiring.qk_norm else torch.empty(0)
            weights[f"{to}{x}_norm"] = norm
        weights[to + "o"] = found[f"{at}self_attn.o_proj.weight"]
        if shape.is_moe:
            weights[to + "router"] = found[f"{at}mlp.gate.weight"]
            for x in ("gate_up", "down"):
                weights[f"{to}experts_{x}"] = found[f"{at}mlp.experts.{x}_proj"]
        else:
            for x in ("gate", "up", "down"):
                weights[to + x] = found[f"{at}mlp.{x}_proj.weight"]
    return {key: tensor.contiguous() for key, tensor in weights.items()}


def step_inputs(case: StepCase, weights: dict[str, torch.Tensor], tokens: list[int], seed: int) -> dict[str, Any]:
    """Inputs of one step with these weights; caches are still to be filled."""
    given = torch.tensor(tokens)
    return weights | {"tokens": given, "next": torch.zeros_like(given)} | bookkeeping(case, "cpu", seed)
