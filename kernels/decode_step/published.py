"""The weights of published checkpoints, under the names that a step has for them.

Names on the left are those of Hugging Face's files. Experts lie there one by one, or all in one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kernels.common.random_inputs import torch_dtype
from kernels.decode_step.inputs import matrices, vectors
from kernels.decode_step.wiring import Wiring, shape_of, wiring_of
from kernels.models import ModelShape

if TYPE_CHECKING:
    import torch

    from kernels.decode_step.op import StepCase

Stored = Mapping[str, "torch.Tensor"]

NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
POST_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}

EXPERTS = (("{}.gate_proj", "{}.up_proj", "{}.down_proj"), ("{}.w1", "{}.w3", "{}.w2"))
"""Gate, up and down of an expert, as most files and as Mixtral's name them."""


def weights(case: StepCase, stored: Stored) -> dict[str, torch.Tensor]:
    """The weights of the measured layers in the type of the case, each of the size that the step wants. A KeyError
    names one that is missing."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    embedding = next((name for name in stored if name.endswith("embed_tokens.weight")), "model.embed_tokens.weight")
    at, shift = embedding.removesuffix("embed_tokens.weight"), float(wiring.norms_less_one)
    found = {"embedding": stored[embedding], "final_norm": stored[f"{at}norm.weight"] + shift}
    if not shape.tied_embeddings:
        found["lm_head"] = stored[next((n for n in stored if n.endswith("lm_head.weight")), "lm_head.weight")]
    for layer in range(case.measured_layers):
        mine = f"{at}layers.{layer}."
        for ours, theirs in (POST_NORMS if wiring.post_norms else NORMS).items():
            found[f"{layer}.{ours}"] = stored[f"{mine}{theirs}.weight"] + shift
        mixer = latents if shape.is_mla else heads
        for pairs in (mixer(shape, wiring, stored, f"{mine}self_attn."), ffn(shape, wiring, stored, mine, layer)):
            found |= {f"{layer}.{name}": tensor for name, tensor in pairs}
    for name, size, _ in (*matrices(case), *vectors(case)):
        if tuple(found[name].shape) != tuple(size):
            raise ValueError(f"{name} has the shape {tuple(found[name].shape)}, config.json says {tuple(size)}")
    return {name: typed(case, name, tensor) for name, tensor in found.items()}


def typed(case: StepCase, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """In the type of the case; what is added to scores stays in fp32."""
    sigmoid = name.endswith("router_bias") and dict(wiring_of(case.model).router).get("score") == "sigmoid"
    kind = "fp32" if sigmoid or name.endswith("sink_logits") else case.dtype
    return tensor.to(torch_dtype(kind)).contiguous()


Pairs = Iterator[tuple[str, "torch.Tensor"]]


def heads(shape: ModelShape, wiring: Wiring, stored: Stored, at: str) -> Pairs:
    """The mixer of a layer whose heads have keys and values of their own."""
    import torch

    none = torch.empty(0)
    yield "qkv", torch.cat([stored[f"{at}{x}_proj.weight"] for x in "qkv"])
    yield "bias", torch.cat([stored[f"{at}{x}_proj.bias"] for x in "qkv"]) if wiring.qkv_bias else none
    for x in "qk":
        norm = stored[f"{at}{x}_norm.weight"] + float(wiring.norms_less_one) if wiring.qk_norm else none
        yield f"{x}_norm", norm
    yield "sink_logits", stored[f"{at}sinks"] if wiring.sink_logits else none
    yield "o", stored[f"{at}o_proj.weight"]
    if wiring.o_bias:
        yield "o_bias", stored[f"{at}o_proj.bias"]


def latents(shape: ModelShape, wiring: Wiring, stored: Stored, at: str) -> Pairs:
    """The mixer of MLA. Files keep the two of a rotated pair next to each other; here they are R/2 apart."""
    import torch

    H, D, R, L = shape.heads, shape.head_dim, shape.rope_dim, shape.kv_latent
    order = torch.arange(R).view(-1, 2).T.flatten() if wiring.pairs_adjacent else torch.arange(R)

    def paired(w: torch.Tensor) -> torch.Tensor:
        """Rows [..., rows, K], of which the last R are rotated."""
        return torch.cat([w[..., :-R, :], w[..., -R:, :][..., order, :]], dim=-2)

    yield "qkv", torch.cat([stored[f"{at}q_a_proj.weight"], paired(stored[f"{at}kv_a_proj_with_mqa.weight"])])
    yield "q_norm", stored[f"{at}q_a_layernorm.weight"]
    yield "q_b", paired(stored[f"{at}q_b_proj.weight"].unflatten(0, (H, D + R))).flatten(0, 1)
    yield "latent_norm", stored[f"{at}kv_a_layernorm.weight"]
    keys, values = stored[f"{at}kv_b_proj.weight"].view(H, -1, L).split([D, shape.value_dim], dim=1)
    yield "kv_b_keys", keys.transpose(1, 2)
    yield "kv_b_values", values
    yield "o", stored[f"{at}o_proj.weight"]


def ffn(shape: ModelShape, wiring: Wiring, stored: Stored, at: str, layer: int) -> Pairs:
    if not shape.is_moe or layer < shape.dense_layers:
        yield from dense(stored, f"{at}mlp.", "")
        return
    import torch

    at += "block_sparse_moe." if f"{at}block_sparse_moe.gate.weight" in stored else "mlp."
    gate = f"{at}router" if f"{at}router.weight" in stored else f"{at}gate"
    yield "router", stored[f"{gate}.weight"]
    corrected = f"{gate}.e_score_correction_bias"
    bias = stored[corrected] if corrected in stored else stored.get(f"{gate}.bias")
    yield "router_bias", torch.empty(0) if bias is None else bias
    first, second = experts(shape, wiring, stored, f"{at}experts.")
    yield from (("experts_gate_up", first), ("experts_down", second))
    if wiring.expert_bias:
        yield "experts_gate_up_bias", apart(stored[f"{at}experts.gate_up_proj_bias"])
        yield "experts_down_bias", stored[f"{at}experts.down_proj_bias"]
    if shape.shared_width:
        yield from dense(stored, f"{at}shared_experts.", "shared_")


def dense(stored: Stored, at: str, prefix: str) -> Pairs:
    for name in ("gate", "up", "down"):
        yield prefix + name, stored[f"{at}{name}_proj.weight"]


def apart(rows: torch.Tensor) -> torch.Tensor:
    """Gate rows, then up rows, of rows [E, 2F, ...] in which they take turns."""
    import torch

    return torch.cat([rows[:, ::2], rows[:, 1::2]], dim=1)


def experts(shape: ModelShape, wiring: Wiring, stored: Stored, at: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, 2F, H] and [E, H, F]."""
    import torch

    if f"{at}gate_up_proj" in stored:
        first, second = stored[f"{at}gate_up_proj"], stored[f"{at}down_proj"]
        if wiring.expert_bias:  # gpt-oss, whose experts are stored with the columns first
            return apart(first.transpose(1, 2)), second.transpose(1, 2)
        return first, second
    names = EXPERTS[f"{at}0.w1.weight" in stored]

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([stored[f"{at}{name.format(e)}.weight"] for e in range(shape.experts)])

    gate, up, down = (stacked(name) for name in names)
    return torch.cat([gate, up], dim=1), down
