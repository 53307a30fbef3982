"""A Hugging Face config.json -> the shape that it describes. Standard library only."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kernels.models import DIMS, ModelShape


class BadConfig(ValueError):
    """No shape can be read from a config.json; the message is one line and names the field."""


OPTIONAL = {"q_latent": "q_lora_rank", "shared_experts": "n_shared_experts", "dense_layers": "first_k_dense_replace"}
"""Fields that a file may lack, or have as null or 0; the shape then has 0."""

LAYER_TYPES = ("sliding_attention", "full_attention")

FAMILIES: dict[str, type[Family]] = {}
"""Families by `model_type`; a subclass of `Family` enters itself."""


class Family:
    """Models whose config.json files are read alike. A subclass says how they differ from Llama's.

    - `model_types`: the values of `model_type` that such files have
    - `dims`: the fields of dimensions that they have besides `DIMS`, or instead
    - `defaults`: what they may leave out, the defaults of transformers' configuration class
    - `slides`: whether a `sliding_window` counts where `use_sliding_window` is absent
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    slides: ClassVar = True

    def __init_subclass__(cls) -> None:
        FAMILIES.update(dict.fromkeys(cls.model_types, cls))

    @staticmethod
    def windowed(fields: _Fields, layers: int) -> int:
        """How many layers have a sliding window, where the file has no `layer_types`."""
        return layers


class Llama(Family):
    model_types = ("llama", "mistral")


class Mixtral(Family):
    model_types = ("mixtral",)
    dims: ClassVar = {
        "experts": ("num_local_experts",),
        "experts_per_token": ("num_experts_per_tok", "experts_per_token"),
        "expert_ffn": ("intermediate_size",),
    }


class Qwen(Family):
    model_types: ClassVar[tuple[str, ...]] = ("qwen2", "qwen3")
    defaults: ClassVar = {"max_window_layers": 28}
    slides = False

    @staticmethod
    def windowed(fields: _Fields, layers: int) -> int:
        """All but the first `max_window_layers`."""
        return max(0, layers - (fields.whole("max_window_layers") if fields.values["max_window_layers"] else 0))


class QwenMoe(Qwen):
    model_types = ("qwen3_moe",)
    dims: ClassVar = {
        "experts": ("n_routed_experts", "num_experts"),
        "experts_per_token": ("num_experts_per_tok",),
        "expert_ffn": ("moe_intermediate_size",),
    }


class Gemma3(Family):
    model_types = ("gemma3", "gemma3_text")
    defaults: ClassVar = {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    }

    @staticmethod
    def windowed(fields: _Fields, layers: int) -> int:
        """All but one of every `sliding_window_pattern`."""
        return layers - layers // fields.whole("sliding_window_pattern")


class GptOss(Family):
    model_types = ("gpt_oss",)
    dims: ClassVar = Mixtral.dims

    @staticmethod
    def windowed(fields: _Fields, layers: int) -> int:
        """Every second one, the first included."""
        return (layers + 1) // 2


class DeepSeek(Family):
    model_types = ("deepseek_v2", "deepseek_v3")
    dims: ClassVar = {
        "head_dim": ("qk_nope_head_dim",),
        "kv_latent": ("kv_lora_rank",),
        "rope_dim": ("qk_rope_head_dim",),
        "v_head_dim": ("v_head_dim",),
        **QwenMoe.dims,
    }


def from_config(config: Mapping[str, Any], *, name: str = "") -> ModelShape:
    """The shape that a Hugging Face config.json describes. Raises a `BadConfig` that names the field at fault."""
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise BadConfig("config.json: field 'text_config' is not an object")
    model_type = text.get("model_type") or config.get("model_type")
    if model_type is None:
        raise BadConfig("config.json: field 'model_type' is missing")
    if str(model_type) not in FAMILIES:
        raise BadConfig(f"config.json: model_type {model_type!r} is not known; known: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    given = {field: value for field, value in text.items() if value is not None}
    fields = _Fields(model_type, {**family.defaults, **given})
    dims = {**DIMS, **family.dims}
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
        name=name or str(config.get("_name_or_path") or model_type),
        source="config.json given by the user",
        tied_embeddings=fields.truth("tie_word_embeddings", default=False),
        window=fields.whole("sliding_window") if windowed else 0,
        windowed_layers=windowed,
        softcap=fields.real("attn_logit_softcapping"),
        **numbers,
    )


@dataclass(frozen=True)
class _Fields:
    """The fields of a config.json that are not null, read as what they must be, or a `BadConfig` that names the
    field."""

    model_type: str
    values: dict[str, Any]

    def present(self, *names: str) -> str:
        """The first of these names that the file has."""
        found = next((name for name in names if name in self.values), None)
        if found is None:
            raise BadConfig(f"config.json: field {names[0]!r} is missing (model_type {self.model_type!r})")
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
        """A number from 0 on; 0 if the file has none."""
        value = self.values.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.wrong(name, "a number from 0 on")
        return float(value)


def _windowed_layers(fields: _Fields, family: type[Family], layers: int) -> int:
    """How many layers have a sliding window: as `layer_types` lists them, else by the family's rule."""
    slides = fields.truth("use_sliding_window", default=family.slides)
    if not fields.values.get("sliding_window") or not slides:
        return 0
    if "layer_types" in fields.values:
        listed = fields.values["layer_types"]
        if not isinstance(listed, list) or len(listed) != layers or any(each not in LAYER_TYPES for each in listed):
            raise fields.wrong("layer_types", f"a list of {layers}, each {' or '.join(LAYER_TYPES)}")
        return listed.count("sliding_attention")
    return family.windowed(fields, layers)
