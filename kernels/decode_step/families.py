"""A config.json, as `kernels/model_config` read it -> how the layers of that model are wired. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.decode_step import hybrids, mambas
from kernels.decode_step.angles import Rope, yarn_magnitude
from kernels.decode_step.wiring import Wiring
from kernels.model_config import BadConfig, Reading
from kernels.model_config.fields import Fields, class_defaults
from kernels.state_update.cases import StateCase

Given = Mapping[str, Any]
"""The fields of a file, or of an object in it."""

ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the configuration class of a `model_type` says where a file says nothing, and what no file says.

    `always` is the wiring that all models of the type have. `biased` tells whether `attention_bias` counts. `rotary` is
    the part of a head that is rotated; where it is less than 1, a file may say another one. `state` reads the sizes of
    state mixers, and `more` what else there is of the wiring.
    """

    theta: float = 10000.0
    epsilon: float = 1e-6
    always: Mapping[str, Any] = field(default_factory=dict)
    biased: bool = False
    full_every: int = 0
    rotary: float = 1.0
    state: Callable[[Fields], StateCase] | None = None
    more: Callable[[Fields], dict[str, Any]] | None = None


def gated_delta(fields: Fields) -> StateCase:
    return StateCase(
        kind="gated_delta",
        B=1,
        H=fields.whole("linear_num_value_heads"),
        G=fields.whole("linear_num_key_heads"),
        V=fields.whole("linear_value_head_dim"),
        K=fields.whole("linear_key_head_dim"),
        conv=fields.whole("linear_conv_kernel_dim"),
    )


def mamba2(fields: Fields) -> StateCase:
    mambas.no_bias(fields, "mamba_proj_bias")
    hybrids.unlimited(fields)
    heads, inner = fields.whole("mamba_n_heads"), fields.whole("mamba_expand") * fields.whole("hidden_size")
    if inner % heads or fields.get("mamba_d_head") not in (None, "auto", inner // heads):
        raise fields.wrong("mamba_d_head", f"the part of {heads} heads of the {inner} channels of mamba_expand")
    return StateCase(
        kind="mamba2",
        B=1,
        H=heads,
        G=fields.whole("mamba_n_groups"),
        V=inner // heads,
        K=fields.whole("mamba_d_state"),
        conv=fields.whole("mamba_d_conv"),
    )


QWEN_NEXT = Family(
    rotary=0.25,
    state=gated_delta,
    always={"qk_norm": True, "norms_less_one": True, "shared_gate": True},
)

FAMILIES = {
    "llama": Family(biased=True),
    "mistral": Family(),
    "mixtral": Family(theta=1e6, epsilon=1e-5),
    "qwen2": Family(always={"qkv_bias": True}),
    "qwen3": Family(biased=True, always={"qk_norm": True}),
    "qwen3_moe": Family(biased=True, always={"qk_norm": True}),
    "gemma3_text": Family(
        theta=1e6,
        full_every=6,
        always={"qk_norm": True, "post_norms": True, "scaled_embedding": True, "norms_less_one": True},
    ),
    "gpt_oss": Family(
        theta=150000.0,
        epsilon=1e-5,
        full_every=2,
        always={
            "qkv_bias": True,
            "o_bias": True,
            "expert_bias": True,
            "sink_logits": True,
            "activation": "swiglu_clamped",
            "router": (("bias", True),),
        },
    ),
    "deepseek_v3": Family(always={"latent_epsilon": 1e-6}),
    "qwen3_next": QWEN_NEXT,
    "qwen3_5_text": QWEN_NEXT,
    "qwen3_5_moe_text": QWEN_NEXT,
    "bamba": Family(epsilon=1e-5, rotary=0.5, state=mamba2),
    "granitemoehybrid": Family(state=mamba2),
    "nemotron_h": Family(epsilon=1e-5, state=hybrids.nemotron_state, always={"activation": "relu2"}),
    "falcon_h1": Family(epsilon=1e-5, state=hybrids.falcon_state),
    "jamba": Family(state=mambas.jamba, more=mambas.jamba_wiring),
    "mamba": Family(epsilon=1e-5, state=mambas.mamba1, more=mambas.mamba1_wiring),
    "falcon_mamba": Family(epsilon=1e-5, state=mambas.mamba1, more=mambas.mamba1_wiring),
    "mamba2": Family(epsilon=1e-5, state=mambas.mamba2, more=mambas.epsilon),
    "kimi_linear": Family(epsilon=1e-5, state=mambas.kda, more=mambas.kimi_wiring),
}
"""By `model_type`: `configuration_<type>.py` and `modeling_<type>.py` of transformers 5.24."""


def wiring_from(reading: Reading) -> Wiring:
    """Raises `BadConfig` in one line for what no step is composed for."""
    text, shape = reading.text, reading.shape
    kind = str(text.get("model_type") or "")
    kind = "gemma3_text" if kind == "gemma3" else kind
    family = FAMILIES.get(kind)
    if family is None:
        raise BadConfig(f"model_type {kind!r}: no step is composed for it; there is for {', '.join(FAMILIES)}")
    refuse(text, reading)
    found: dict[str, Any] = {"epsilon": float(text.get("rms_norm_eps") or family.epsilon), **family.always}
    if family.biased and text.get("attention_bias"):
        found |= {"qkv_bias": True, "o_bias": True}
    if "activation" not in found:
        name = text.get("hidden_activation") or text.get("hidden_act") or "silu"
        name = "gelu_pytorch_tanh" if kind == "gemma3_text" else name
        if name not in ACTIVATIONS:
            raise BadConfig(f"hidden_act {name!r}: a step has {', '.join(ACTIVATIONS)}")
        found["activation"] = ACTIVATIONS[name]
    if family.state:
        found["state"] = family.state(Fields(kind, text, class_defaults(kind, nested=False)))
        found["states"] = tuple(layer.mixer == "state" for layer in reading.layers)
    sparse = [layer.ffn == "moe" for layer in reading.layers]
    if shape.is_moe and any(sparse[: shape.dense_layers]):
        found["sparse"] = tuple(sparse)
    full, window = rope_fields(text, family)
    found["rope"] = rope_from(full, family)
    if family.rotary != 1:
        found["rotary_share"] = float(full.get("partial_rotary_factor") or family.rotary)
    if shape.window:
        found["windows"] = windows(text, shape.layers, family)
    if window:
        found["window_rope"] = rope_from(window, family)
    if kind == "gemma3_text":
        found["attention_scale"] = float(text.get("query_pre_attn_scalar") or 256) ** -0.5
    if kind == "granitemoehybrid":
        found |= multipliers(text)
    if kind in ("nemotron_h", "falcon_h1"):
        found |= hybrids.wired(kind, text, reading)
    if kind in ("qwen3_moe", "qwen3_next"):  # Qwen3.5 renormalizes always
        found["router"] = (("renormalize", bool(text.get("norm_topk_prob", kind == "qwen3_next"))),)
    if shape.is_mla:
        found |= latents(text, full)
    if family.more:
        found |= family.more(Fields(kind, text, class_defaults(kind, nested=False)))
    return Wiring(**found)


def refuse(text: Mapping[str, Any], reading: Reading) -> None:
    """What would give other tokens than the model has."""
    shape = reading.shape
    if shape.softcap or text.get("final_logit_softcapping"):
        raise BadConfig("attn_logit_softcapping or final_logit_softcapping: a step has no softcap")
    if text.get("mlp_bias") or (shape.is_mla and text.get("attention_bias")):
        raise BadConfig("mlp_bias or attention_bias: a step has no such bias for this model")


def windows(text: Mapping[str, Any], layers: int, family: Family) -> tuple[bool, ...]:
    """Which layers have a sliding window."""
    listed = text.get("layer_types")
    if listed:
        return tuple(each == "sliding_attention" for each in listed)
    if text.get("max_window_layers") is not None:
        return tuple(layer >= int(text["max_window_layers"]) for layer in range(layers))
    every = int(text.get("sliding_window_pattern") or family.full_every)
    return tuple(not every or (layer + 1) % every > 0 for layer in range(layers))


def multipliers(text: Given) -> dict[str, Any]:
    """What Granite multiplies by, and whether its heads turn."""
    found: dict[str, Any] = {
        "attention_scale": float(text.get("attention_multiplier", 1.0)),
        "embedding_factor": float(text.get("embedding_multiplier", 1.0)),
        "residual_factor": float(text.get("residual_multiplier", 1.0)),
        "logits_factor": 1 / float(text.get("logits_scaling", 1.0)),
    }
    return found if text.get("position_embedding_type") == "rope" else found | {"rope": Rope(kind="none")}


def rope_fields(text: Given, family: Family) -> tuple[Given, Given | None]:
    """What a file says about the angles of layers without a window, and with one where these have their own."""
    given = text.get("rope_parameters") or {}
    if "full_attention" in given:
        return given["full_attention"], given.get("sliding_attention")
    scaling = given or text.get("rope_scaling") or {}
    theta = text.get("rope_theta") or family.theta
    own = text.get("rope_local_base_freq")
    share = {} if family.rotary == 1 else {"partial_rotary_factor": text.get("partial_rotary_factor")}
    if not share and text.get("partial_rotary_factor", 1.0) != 1:
        raise BadConfig("partial_rotary_factor: a step rotates whole heads of this model")
    return {"rope_theta": theta, **share, **scaling}, {"rope_theta": own} if own else None


def rope_from(given: Given, family: Family) -> Rope:
    kind, theta = given.get("rope_type") or given.get("type") or "default", float(given["rope_theta"])
    if family.rotary == 1 and given.get("partial_rotary_factor", 1.0) != 1:
        raise BadConfig("partial_rotary_factor: a step rotates whole heads of this model")
    if kind == "default":
        return Rope(theta=theta)
    factor, original = float(given.get("factor") or 1), int(given.get("original_max_position_embeddings") or 0)
    if kind == "linear":
        return Rope(theta=theta, kind="linear", factor=factor)
    if kind not in ("yarn", "llama3") or not original:
        raise BadConfig(f"rope_type {kind!r}: a step has default, linear, yarn and llama3, with their fields")
    common: dict[str, Any] = {"theta": theta, "kind": kind, "factor": factor, "original": original}
    if kind == "llama3":
        return Rope(fast=float(given["high_freq_factor"]), slow=float(given["low_freq_factor"]), **common)
    magnitude = given.get("attention_factor")
    if magnitude is None:
        one, all_dims = float(given.get("mscale") or 0), float(given.get("mscale_all_dim") or 0)
        both = one and all_dims
        magnitude = yarn_magnitude(factor, one if both else 1.0) / (yarn_magnitude(factor, all_dims) if both else 1.0)
    borders: dict[str, Any] = {"fast": float(given.get("beta_fast") or 32), "slow": float(given.get("beta_slow") or 1)}
    return Rope(**common, **borders, truncate=given.get("truncate", True), magnitude=float(magnitude))


def latents(text: Given, rope: Given) -> dict[str, Any]:
    """The router and the scores of DeepSeek-V3."""
    all_dims = rope.get("mscale_all_dim") if (rope.get("rope_type") or rope.get("type")) == "yarn" else None
    factor = yarn_magnitude(float(rope["factor"]), float(all_dims)) ** 2 if all_dims else 1.0
    router = {
        "score": "sigmoid",
        "groups": int(text.get("n_group") or 8),
        "top_groups": int(text.get("topk_group") or 4),
        "scaling": float(text.get("routed_scaling_factor", 2.5)),
        "renormalize": bool(text.get("norm_topk_prob", True)),
    }
    adjacent = bool(text.get("rope_interleave", True))
    return {"score_factor": factor, "router": tuple(router.items()), "pairs_adjacent": adjacent}
