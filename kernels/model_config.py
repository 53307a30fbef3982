"""A Hugging Face config.json -> the shape it describes. Standard library only."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.models import DIMS, ModelShape


class BadConfig(ValueError):
    """A config.json from which no shape can be read; the message is one line and names the field."""


LOCAL_EXPERTS = {
    "experts": ("num_local_experts",),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token"),
    "expert_ffn": ("intermediate_size",),
}
ROUTED_EXPERTS = {
    "experts": ("n_routed_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_ffn": ("moe_intermediate_size",),
}
MLA = {
    "head_dim": ("qk_nope_head_dim",),
    "kv_latent": ("kv_lora_rank",),
    "rope_dim": ("qk_rope_head_dim",),
    "v_head_dim": ("v_head_dim",),
}
FAMILIES: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": {},
    "mistral": {},
    "mixtral": LOCAL_EXPERTS,
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": ROUTED_EXPERTS,
    "gemma3": {},
    "gemma3_text": {},
    "gpt_oss": LOCAL_EXPERTS,
    "deepseek_v2": MLA | ROUTED_EXPERTS,
    "deepseek_v3": MLA | ROUTED_EXPERTS,
}
"""Values of `model_type` that `from_config` reads, and the fields that such a file has besides `DIMS`."""

OPTIONAL = {"q_latent": "q_lora_rank", "shared_experts": "n_shared_experts", "dense_layers": "first_k_dense_replace"}
"""Fields that a file may lack, or have as null or 0; the shape has 0 then."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    "qwen": {"max_window_layers": 28},
}
"""What a config.json may leave out, by how its `model_type` begins: defaults of transformers' `Gemma3TextConfig`,
`Qwen2Config` and `Qwen3Config`."""


def from_config(config: Mapping[str, Any], *, name: str = "") -> ModelShape:
    """The shape that a Hugging Face config.json describes. Raises `BadConfig` naming the field at fault."""
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise BadConfig("config.json: field 'text_config' is not an object")
    family = text.get("model_type") or config.get("model_type")
    if family is None:
        raise BadConfig("config.json: field 'model_type' is missing")
    if str(family) not in FAMILIES:
        raise BadConfig(f"config.json: model_type {family!r} is not known; known: {', '.join(FAMILIES)}")
    defaults = next((given for start, given in DEFAULTS.items() if family.startswith(start)), {})
    fields = _Fields(family, defaults | {field: value for field, value in text.items() if value is not None})
    dims = DIMS | FAMILIES[family]
    if dims["head_dim"] == ("head_dim",) and "head_dim" not in fields.values:
        fields.values["head_dim"] = fields.share("hidden_size", "num_attention_heads")
    numbers = {dim: fields.whole(*names) for dim, names in dims.items()}
    numbers |= {dim: fields.whole(field) if fields.values.get(field) else 0 for dim, field in OPTIONAL.items()}
    fields.share("num_attention_heads", fields.present(*DIMS["kv_heads"]))
    if numbers.get("experts_per_token", 0) > numbers.get("experts", 0):
        raise fields.wrong(fields.present(*dims["experts_per_token"]), f"at most the {numbers['experts']} experts")
    if numbers["dense_layers"] > numbers["layers"]:
        raise fields.wrong(OPTIONAL["dense_layers"], f"at most the {numbers['layers']} layers")
    for field, plain in (("mlp_only_layers", []), ("decoder_sparse_step", 1)):
        if numbers.get("experts") and fields.values.get(field, plain) != plain:
            raise fields.wrong(field, f"{plain}: some of its layers would have no experts, which is not known here")
    windowed = _windowed_layers(fields, family, numbers["layers"])
    return ModelShape(
        name=name or str(config.get("_name_or_path") or family),
        source="config.json given by the user",
        tied_embeddings=fields.truth("tie_word_embeddings", default=False),
        window=fields.whole("sliding_window") if windowed else 0,
        windowed_layers=windowed,
        softcap=fields.real("attn_logit_softcapping"),
        **numbers,
    )


@dataclass(frozen=True)
class _Fields:
    """The fields of a config.json that are not null, read as what they must be. Raises `BadConfig` naming the field."""

    family: str
    values: dict[str, Any]

    def present(self, *names: str) -> str:
        """The first of these that is there."""
        found = next((name for name in names if name in self.values), None)
        if found is None:
            raise BadConfig(f"config.json: field {names[0]!r} is missing (model_type {self.family!r})")
        return found

    def wrong(self, name: str, wanted: str) -> BadConfig:
        return BadConfig(f"config.json: field {name!r} is {reprlib.repr(self.values[name])}, not {wanted}")

    def whole(self, *names: str) -> int:
        found = self.present(*names)
        value = self.values[found]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(found, "a positive whole number")
        return value

    def share(self, total: str, parts: str) -> int:
        """`total` / `parts`, which must be whole."""
        if self.whole(total) % self.whole(parts):
            raise self.wrong(total, f"a multiple of the {self.values[parts]} of {parts!r}")
        return self.whole(total) // self.whole(parts)

    def truth(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def real(self, name: str) -> float:
        """0 where it is absent."""
        value = self.values.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.wrong(name, "a number from 0 on")
        return float(value)


LAYER_TYPES = ("sliding_attention", "full_attention")


def _windowed_layers(fields: _Fields, family: str, layers: int) -> int:
    """How many layers slide: as `layer_types` lists them, else by the family's rule."""
    slides = fields.truth("use_sliding_window", default=not family.startswith("qwen"))
    if not fields.values.get("sliding_window") or not slides:
        return 0
    if "layer_types" in fields.values:
        listed = fields.values["layer_types"]
        if not isinstance(listed, list) or len(listed) != layers or any(each not in LAYER_TYPES for each in listed):
            raise fields.wrong("layer_types", f"a list of {layers}, each {' or '.join(LAYER_TYPES)}")
        return listed.count("sliding_attention")
    if family.startswith("gemma3"):
        return layers - layers // fields.whole("sliding_window_pattern")
    if family == "gpt_oss":
        return (layers + 1) // 2
    if family.startswith("qwen"):
        return max(0, layers - (fields.whole("max_window_layers") if fields.values["max_window_layers"] else 0))
    return layers
