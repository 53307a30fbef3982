"""Families of models: how a config.json of each `model_type` is read. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

from kernels.model_config.fields import BadConfig, Fields
from kernels.model_config.layers import moe_pattern, windows_of_pattern

FAMILIES: dict[str, type[Family]] = {}
"""Families by `model_type`; a subclass of `Family` enters itself."""


class Family:
    """Models whose config.json files are read alike. A subclass says how they differ from Llama's.

    - `model_types`: the values of `model_type` that such files have
    - `like`: the `model_type` whose defaults in transformers count, where a type is unknown there
    - `dims`: the fields of dimensions that they have besides `DIMS`, or instead
    - `defaults`: what they may leave out, besides the defaults of transformers' configuration class
    - `slides`: whether a `sliding_window` counts where `use_sliding_window` is absent
    - `layer_types`: what `layer_types` may list, and what it means: `window`, `full` or `state`
    - `extra`: further fields of the shape
    - `renamed`: what fields are called in such files, and the names under which they are read here
    - `whole_heads`: whether the heads must share the hidden size evenly where a file has no `head_dim`
    - `ties`: whether `tie_word_embeddings` counts; else `lm_head` is always a matrix of its own
    - `reads_layers`: whether it reads `per_layer_config`; other families refuse it
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    like: ClassVar[Mapping[str, str]] = {}
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    slides: ClassVar = True
    layer_types: ClassVar[Mapping[str, str]] = {"sliding_attention": "window", "full_attention": "full"}
    extra: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    whole_heads: ClassVar = True
    ties: ClassVar = True
    reads_layers: ClassVar = False

    def __init_subclass__(cls) -> None:
        FAMILIES.update(dict.fromkeys(cls.model_types, cls))

    @classmethod
    def variant(cls, text: Mapping[str, Any]) -> type[Family]:
        """The family that reads this file: another where the file lacks what makes this one."""
        return cls

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        """The fields, with those that follow from others."""
        return fields

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        """How many layers have a sliding window, where the file has no `layer_types`."""
        return layers

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        """Which layers have a state mixer instead of attention, where the file has no `layer_types`."""
        return [False] * layers

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        """Further fields of the shape, from those that are known already."""
        return {}


def layer_kinds(fields: Fields, family: type[Family], layers: int) -> list[str] | None:
    """`window`, `full` or `state` for each layer, if the file lists its layers."""
    if "layer_types" not in fields or not family.layer_types:
        return None
    known = family.layer_types
    return [known[each] for each in fields.listed("layer_types", length=layers, known=tuple(known))]


class Llama(Family):
    model_types: ClassVar[tuple[str, ...]] = (
        *("llama", "ministral3", "phi3", "olmo", "olmo2", "glm", "glm4", "glm4v_text", "granite", "seed_oss"),
        *("hunyuan_v1_dense", "ernie4_5", "internlm3", "stablelm", "gemma", "mistral", "ministral", "cohere"),
        *("internlm2", "baichuan", "yi", "helium", "iquestcoder", "hyperclovax", "bitnet"),
        *("diffllama", "emu3", "emu3_text_model", "glm_ocr_text", "granite_docling_text", "granite4_vision_text"),
        *("paddleocr_vl_text", "hunyuan_vl_text", "phi4_multimodal", "xverse", "phi4mm", "stablelm_epoch"),
    )
    like: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("internlm2", "baichuan", "yi", "xverse"), "llama"),
        "emu3": "emu3_text_model",
        "phi4mm": "phi4_multimodal",
        "stablelm_epoch": "stablelm",
    }

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        """A file may hold experts that this family does not have; it is not counted as if it had none."""
        for name in MOE_DIMS["experts"]:
            if fields.whole_or(0, name) > 1:
                raise fields.wrong(name, f"absent: {fields.model_type!r} is read without experts here")
        return fields


class Exaone(Family):
    """Files for the publisher's own code name the number of layers `num_layers`."""

    model_types: ClassVar[tuple[str, ...]] = ("exaone",)
    dims: ClassVar = {"layers": ("num_hidden_layers", "num_layers")}


class Ungated(Family):
    """Up and down alone."""

    model_types: ClassVar[tuple[str, ...]] = (
        *("nemotron", "arcee", "apertus", "starcoder2", "jais2", "phi", "gpt_neox", "nanochat", "persimmon"),
        *("apertus1p5_text",),
    )
    extra: ClassVar[Mapping[str, Any]] = {"gated_ffn": False}


class Falcon(Ungated):
    """One KV head for all queries, unless the file says otherwise. The FFN is four times as wide as the hidden size."""

    model_types: ClassVar[tuple[str, ...]] = ("falcon",)
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kv_heads": ("num_kv_heads", "num_attention_heads"),
        "ffn": ("ffn_hidden_size", "hidden_size"),
    }

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        one = fields.truth("multi_query", default=True) and not fields.truth("new_decoder_architecture", default=False)
        found = {} if fields.present(*Falcon.dims["ffn"]) == "ffn_hidden_size" else {"ffn": 4 * numbers["hidden"]}
        return found | ({"kv_heads": 1} if one else {})


MOE_DIMS: dict[str, tuple[str, ...]] = {
    "experts": ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_k", "moe_topk"),
    "expert_ffn": ("moe_intermediate_size", "intermediate_size"),
}
"""Fields of a mixture of experts; the first that a file has counts."""


class Mixtral(Family):
    """Its experts are as wide as `intermediate_size`."""

    model_types: ClassVar[tuple[str, ...]] = (
        "mixtral",
        "phimoe",
        "olmoe",
        "granitemoe",
        "granitemoeshared",
        "minimax_m2",
        "flex_olmo",
        "aria_text",
    )
    dims: ClassVar = {**MOE_DIMS, "expert_ffn": ("intermediate_size",)}

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {"shared_ffn": fields.whole_or(0, "shared_intermediate_size")}


class Qwen(Family):
    model_types: ClassVar[tuple[str, ...]] = (
        *(
            "qwen2",
            "qwen3",
            "qwen2_vl_text",
            "qwen2_5_vl_text",
            "qwen3_vl_text",
            "smollm3",
            "mimo",
            "qwen2_5_omni_text",
        ),
    )
    like: ClassVar[Mapping[str, str]] = {"mimo": "qwen2"}
    defaults: ClassVar = {"max_window_layers": 28}
    slides = False

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        """All but the first `max_window_layers`; a null there leaves the default."""
        if fields.get("max_window_layers") is None:
            return max(0, layers - Qwen.defaults["max_window_layers"])
        return max(0, layers - fields.whole_or(0, "max_window_layers"))


class QwenMoe(Qwen):
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_moe", "qwen2_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text")
    dims: ClassVar = {
        **MOE_DIMS,
        "experts": ("n_routed_experts", "num_experts", "num_local_experts"),
        "expert_ffn": ("moe_intermediate_size",),
    }

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {"shared_ffn": fields.whole_or(0, "shared_expert_intermediate_size")}


class Mellum(QwenMoe):
    """Layers have a window where `layer_types` says so, and only there."""

    model_types: ClassVar[tuple[str, ...]] = ("mellum",)
    slides = True

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        return 0


class Gemma3(Family):
    model_types: ClassVar[tuple[str, ...]] = ("gemma3", "gemma3_text")
    like: ClassVar[Mapping[str, str]] = {"gemma3": "gemma3_text"}
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_attention_heads": 8,
        "vocab_size": 262208,
        "sliding_window_pattern": 6,
    }

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        """All but one of every `sliding_window_pattern`."""
        return windows_of_pattern(fields, layers)


class Patterned(Gemma3):
    """All but one of every four layers have a window."""

    model_types: ClassVar[tuple[str, ...]] = ("cohere2", "exaone4", "olmo3", "cwm", "granite_swa")
    like: ClassVar[Mapping[str, str]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {"sliding_window_pattern": 4}


class PatternedMixtral(Patterned):
    model_types: ClassVar[tuple[str, ...]] = ("granitemoe_swa", "cohere2_moe")
    dims: ClassVar = {**Mixtral.dims, "ffn": ("prefix_dense_intermediate_size", "intermediate_size")}

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {"shared_ffn": fields.whole_or(0, "shared_intermediate_size")}


class HunyuanMoe(Family):
    """One expert is shared by all tokens. Files may say for each layer what is the same in all of them."""

    model_types: ClassVar[tuple[str, ...]] = ("hunyuan_v1_moe",)
    dims: ClassVar = Mixtral.dims

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {"shared_ffn": numbers["expert_ffn"]} if numbers.get("experts") else {}


class GptOss(Family):
    model_types: ClassVar[tuple[str, ...]] = ("gpt_oss",)
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = Mixtral.dims

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        """Every second one, the first included."""
        return (layers + 1) // 2


class Gemma2(GptOss):
    model_types: ClassVar[tuple[str, ...]] = ("gemma2", "vaultgemma")
    dims: ClassVar = {}


class GlmMoe(Family):
    """Leading layers are dense, and one expert or more is shared by all tokens."""

    model_types: ClassVar[tuple[str, ...]] = (
        *("glm4_moe", "glm4v_moe_text", "solar_open", "ernie4_5_moe", "dots1", "sarvam_moe", "hy_v3"),
    )
    dims: ClassVar = {
        **MOE_DIMS,
        "expert_ffn": ("moe_intermediate_size",),
        "ffn": ("intermediate_size", "moe_intermediate_size"),
    }
    whole_heads = False

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        """All but the first `max_window_layers` of Dots; none of the others has a window."""
        return max(0, layers - fields.whole_or(0, "max_window_layers"))


class PatternedMoe(Patterned):
    model_types: ClassVar[tuple[str, ...]] = ("exaone_moe", "afmoe")
    dims: ClassVar = GlmMoe.dims

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        return windows_of_pattern(fields, layers, "global_attn_every_n_layers", "sliding_window_pattern")

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        gated = fields.model_type == "afmoe"
        return {"gate_width": numbers["heads"] * numbers["head_dim"] if gated else 0}


class DeepSeek(Family):
    model_types: ClassVar[tuple[str, ...]] = (
        "deepseek_v2",
        "deepseek_v3",
        "kimi_k2",
        "glm4_moe_lite",
        "mistral4",
        "deepseek_v32",
        "glm_moe_dsa",
        "sarvam_mla",
        "axk1",
    )
    like: ClassVar[Mapping[str, str]] = {"kimi_k2": "deepseek_v3"}
    layer_types: ClassVar = {**Family.layer_types, "indexed_attention": "full"}
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "head_dim": ("qk_nope_head_dim",),
        "kv_latent": ("kv_lora_rank",),
        "rope_dim": ("qk_rope_head_dim",),
        "v_head_dim": ("v_head_dim",),
        **MOE_DIMS,
        "expert_ffn": ("moe_intermediate_size",),
    }

    @classmethod
    def variant(cls, text: Mapping[str, Any]) -> type[Family]:
        """Small ones of DeepSeek-VL2 and DeepSeek-OCR have plain attention."""
        plain = text.get("use_mla") is False or text.get("kv_lora_rank", 1) in (0, None)
        return FAMILIES["deepseek"] if plain and cls is DeepSeek else cls

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        if "index_topk" not in fields:
            return {}
        from kernels.models import Indexer

        layers = numbers["layers"]
        if "indexer_types" in fields:
            layers = fields.listed("indexer_types", length=layers, known=("full", "shared")).count("full")
        heads, dim, top = (fields.whole(name) for name in ("index_n_heads", "index_head_dim", "index_topk"))
        return {"indexer": Indexer(heads=heads, dim=dim, top=top, layers=layers)}


class DenseMla(Family):
    """MLA without experts."""

    model_types: ClassVar[tuple[str, ...]] = ("minicpm3", "youtu")
    dims: ClassVar = {dim: names for dim, names in DeepSeek.dims.items() if dim not in MOE_DIMS}


class Llama4(Family):
    """Every `interleave_moe_layer_step`-th layer has experts, one of which is shared by all tokens.

    The layers with rotary embedding attend inside chunks: at most `attention_chunk_size` tokens.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llama4_text",)
    dims: ClassVar = {**Mixtral.dims, "ffn": ("intermediate_size_mlp",)}
    layer_types: ClassVar = {"chunked_attention": "window", "full_attention": "full"}
    extra: ClassVar = {"shared_experts": 1}

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        """All but one of every `no_rope_layer_interval`, as `no_rope_layers` lists them if the file has it."""
        if fields.get("no_rope_layers"):
            return fields.listed("no_rope_layers", length=layers, known=(0, 1)).count(1)
        return windows_of_pattern(fields, layers, "no_rope_layer_interval")


ENCODERS = (
    *("bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot", "blenderbot-small", "camembert"),
    *("data2vec-text", "electra", "ernie", "florence2", "git", "marian", "mbart", "megatron-bert", "moshi", "musicgen"),
    *("musicgen_melody", "mvp", "pegasus", "pix2struct", "plbart", "prophetnet", "reformer", "rembert", "roberta"),
    *("roberta-prelayernorm", "roc_bert", "roformer", "t5", "t5gemma", "t5gemma2", "trocr", "udop", "umt5", "whisper"),
    *("xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "mt5", "blip", "vision-encoder-decoder", "distilbert"),
)
"""Types of encoders, and of decoders that also attend to one; their steps are not those of a decoder alone."""


def family_of(model_type: str) -> tuple[str, type[Family]]:
    """The `model_type` as a family knows it, and the family. Raises `BadConfig`.

    Older files of a vision model hold the fields of its text model directly: `qwen2_5_vl` is then `qwen2_5_vl_text`.
    """
    for name in (model_type, f"{model_type}_text"):
        if name in FAMILIES:
            return name, FAMILIES[name]
    if model_type in ENCODERS:
        raise BadConfig(f"config.json: model_type {model_type!r} is an encoder or has one: only decoders are read")
    near = ", ".join(difflib.get_close_matches(model_type, FAMILIES, n=3))
    known = f"the nearest of the {len(FAMILIES)} that are: {near}" if near else f"{len(FAMILIES)} others are"
    raise BadConfig(f"config.json: model_type {model_type[:60]!r} is not known; {known}")


__all__ = ["FAMILIES", "MOE_DIMS", "Family", "family_of", "moe_pattern"]
