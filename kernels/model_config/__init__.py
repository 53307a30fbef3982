"""A Hugging Face config.json -> the shape that it describes. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.model_config import families, further, gpt, mixtures, recurrent, shared, sparse  # they enter themselves
from kernels.model_config.families import FAMILIES, Family, family_of, layer_kinds
from kernels.model_config.fields import BadConfig, Fields, class_defaults
from kernels.model_config.hybrids import NemotronH
from kernels.model_config.layers import MOST_LAYERS, moe_pattern
from kernels.models import DIMS, ModelShape

NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where files of models that also see or hear keep the fields of their decoder."""

MOE = ("experts", "experts_per_token", "expert_ffn", "shared_experts")
"""Dimensions that a model without experts does not have."""

OPTIONAL = {
    "q_latent": ("q_lora_rank",),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
}
"""Fields that a file may lack, or have as null or 0; the shape then has 0."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one layer has: `attention`, `state`, `both` or `none`; `dense`, `moe` or `none`."""

    mixer: str
    ffn: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A config.json as it was read."""

    shape: ModelShape
    layers: tuple[Layer, ...]
    """In their order, which lists of modules in quantized checkpoints refer to."""
    text: Mapping[str, Any]
    """The object that holds the fields of the decoder."""
    notes: tuple[str, ...] = field(default=())


def from_config(config: Mapping[str, Any], *, name: str = "") -> ModelShape:
    """The shape that a Hugging Face config.json describes. Raises a `BadConfig` that names the field at fault."""
    return read(config, name=name).shape


def read(config: Mapping[str, Any], *, name: str = "") -> Reading:
    """The shape, and which layer has what. Raises a `BadConfig` that names the field at fault."""
    text, nested = _decoder(config)
    fields, family = _fields(config, text, nested)
    if family is NemotronH:
        layers = len(NemotronH.kinds(fields))
        fields = Fields(fields.model_type, {**fields.given, "num_hidden_layers": layers}, fields.defaults)
    fields = family.prepared(fields)
    layers = fields.whole(*family.dims.get("layers", DIMS["layers"]), most=MOST_LAYERS)
    numbers = _numbers(fields, family)
    listed = layer_kinds(fields, family, layers)
    states = [each == "state" for each in listed] if listed else family.states(fields, layers)
    moe = moe_pattern(fields, layers) if numbers.get("experts") else [False] * layers
    if not any(moe):
        numbers = {name: value for name, value in numbers.items() if name not in MOE}
    numbers |= _layer_counts(states, moe)
    numbers |= family.extra
    windowed = _windowed(fields, family, listed, layers - sum(states))
    numbers |= {
        "window": fields.whole("sliding_window", "attention_chunk_size") if windowed else 0,
        "windowed_layers": windowed,
    }
    numbers |= family.more(fields, numbers, states)
    shape = ModelShape(
        name=name or str(config.get("_name_or_path") or fields.model_type),
        source="config.json given by the user",
        tied_embeddings=family.ties and _tied(config, fields),
        softcap=fields.real("attn_logit_softcapping"),
        **numbers,
    )
    return Reading(shape=shape, layers=_layers(fields, family, shape, states, moe), text=text)


def _decoder(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The object that holds the decoder's fields, and whether it is inside another."""
    for name in NESTED:
        inner = config.get(name)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise BadConfig(f"config.json: field {name!r} is not an object")
        return _decoder(inner)[0], True
    return config, False


def _fields(config: Mapping[str, Any], text: Mapping[str, Any], nested: bool) -> tuple[Fields, type[Family]]:
    model_type = text.get("model_type") or config.get("model_type")
    if model_type is None:
        raise BadConfig("config.json: field 'model_type' is missing")
    known, family = family_of(str(model_type))
    family = family.variant(text)
    of_class = class_defaults(family.like.get(known, known), nested=nested)
    defaults = {family.renamed.get(name, name): value for name, value in of_class.items()} | dict(family.defaults)
    if text.get("per_layer_config") and not family.reads_layers:
        raise BadConfig("config.json: field 'per_layer_config' gives some layers other sizes: not read here")
    given = {**{family.renamed.get(name, name): value for name, value in text.items()}, **text}
    called = {here: name for name, here in family.renamed.items() if here not in text}
    return Fields(known, given, defaults, called), family


def _numbers(fields: Fields, family: type[Family]) -> dict[str, Any]:
    dims = {**DIMS, **family.dims}
    if _without_experts(fields, dims):
        dims = {dim: names for dim, names in dims.items() if dim not in MOE}
    given: dict[str, Any] = {}
    if dims["head_dim"] == ("head_dim",) and "head_dim" not in fields:
        whole = fields.share("hidden_size", "num_attention_heads") if family.whole_heads else 0
        given["head_dim"] = whole or fields.whole("hidden_size") // fields.whole("num_attention_heads")
        del dims["head_dim"]
    numbers: dict[str, Any] = {dim: fields.whole(*names) for dim, names in dims.items()} | given
    numbers |= {dim: fields.whole_or(0, *names) for dim, names in OPTIONAL.items()}
    if "kv_latent" not in dims:  # MLA has no KV heads, and it alone has latents without a word of its family
        numbers["q_latent"] = 0
        fields.share("num_attention_heads", fields.present(*dims["kv_heads"]))
    if numbers.get("experts_per_token", 0) > numbers.get("experts", 0):
        raise fields.wrong(fields.present(*dims["experts_per_token"]), f"at most the {numbers['experts']} experts")
    return numbers | {"max_context": extended(fields, numbers["max_context"])}


def _without_experts(fields: Fields, dims: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a file of a family with experts says that there are none."""
    names = [name for name in dims.get("experts", ()) if name in fields.given]
    return bool(names) and all(fields.given[name] in (0, None) for name in names)


def _windowed(fields: Fields, family: type[Family], listed: list[str] | None, attending: int) -> int:
    """How many layers have a sliding window: as `layer_types` lists them, else by the family's rule."""
    slides = fields.truth("use_sliding_window", default=family.slides)
    if not (fields.get("sliding_window") or fields.get("attention_chunk_size")) or not slides:
        return 0
    return listed.count("window") if listed else family.windowed(fields, attending)


def _layer_counts(states: list[bool], moe: list[bool]) -> dict[str, int]:
    """A model of a family with experts may have them in no layer; all its layers are then dense."""
    return {"dense_layers": len(moe) - sum(moe) if any(moe) else 0, "attention_free_layers": sum(states)}


def _layers(
    fields: Fields, family: type[Family], shape: ModelShape, states: list[bool], moe: list[bool]
) -> tuple[Layer, ...]:
    if family is NemotronH:
        mixers = {"linear_attention": "state", "full_attention": "attention"}
        ffns = {"mlp": "dense", "moe": "moe"}
        kinds = NemotronH.kinds(fields)
        return tuple(Layer(mixer=mixers.get(kind, "none"), ffn=ffns.get(kind, "none")) for kind in kinds)
    attends = "both" if shape.parallel_mixers else "attention"
    return tuple(
        Layer(mixer="state" if state else attends, ffn="moe" if experts else "dense")
        for state, experts in zip(states, moe, strict=True)
    )


def _tied(config: Mapping[str, Any], fields: Fields) -> bool:
    """The decoder's own field, else that of the file around it, else the default of the class."""
    for name in ("tie_word_embeddings", "tie_embedding"):
        if fields.given.get(name) is None and isinstance(config.get(name), bool):
            return bool(config[name])
        if name in fields.given:
            return fields.truth(name, default=False)
    return fields.truth("tie_word_embeddings", default=False)


def extended(fields: Fields, longest: int) -> int:
    """The longest context with the file's rope scaling.

    YaRN gives `factor` x `original_max_position_embeddings`; linear and dynamic scaling `factor` x the longest, but not
    in Gemma 3, whose longest includes it. The other kinds change nothing.
    """
    rope = fields.part("rope_scaling" if "rope_scaling" in fields else "rope_parameters")
    if "full_attention" in rope:
        rope = rope.part("full_attention")
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in ("yarn", "linear", "dynamic") or "factor" not in rope or fields.model_type.startswith("gemma3"):
        return longest
    factor = rope.real("factor")
    if not 1 <= factor <= 1 << 20:
        raise rope.wrong("factor", "from 1 to 1,048,576")
    original = rope.whole_or(longest, "original_max_position_embeddings")
    return max(longest, round(factor * (original if kind == "yarn" else longest)))


MODULES = (families, further, gpt, mixtures, recurrent, shared, sparse)
"""Where families are; each enters itself in `FAMILIES`."""

__all__ = ["FAMILIES", "BadConfig", "Family", "Layer", "Reading", "families", "from_config", "read"]
