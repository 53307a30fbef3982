"""Families that are nearly those of another file: of 2026, and of publishers' own code with fields of other names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from kernels.model_config.families import DeepSeek, Family, GlmMoe, Llama, Mellum, Patterned, PatternedMoe, Ungated
from kernels.model_config.fields import BadConfig, Fields
from kernels.model_config.gpt import Gpt
from kernels.model_config.hybrids import Hybrid, KimiLinear, Lfm2, QwenNextMoe
from kernels.model_config.sparse import hyper_connections
from kernels.models import Extra, Indexer, Kind


class Laguna(PatternedMoe):
    """Layers with a window have more query heads, and a small matrix gates the output of each head."""

    model_types: ClassVar[tuple[str, ...]] = ("laguna",)

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        found: dict[str, Any] = {"shared_ffn": fields.whole_or(0, "shared_expert_intermediate_size")}
        each = 1 if fields.get("gating") in (None, True, "per-head") else numbers["head_dim"]
        found["gate_width"] = numbers["heads"] * each
        if "num_attention_heads_per_layer" not in fields or "layer_types" not in fields:
            return found
        kinds = fields.listed("layer_types", length=numbers["layers"], known=tuple(Laguna.layer_types))
        heads = fields.get("num_attention_heads_per_layer")
        if not isinstance(heads, list) or len(heads) != len(kinds) or len(set(zip(kinds, heads, strict=True))) > 2:
            raise fields.wrong("num_attention_heads_per_layer", "one number for each kind of layer")
        return found | {"window_heads": dict(zip(kinds, heads, strict=True)).get("sliding_attention", 0)}


class MiMo(Family):
    """Values are narrower than keys, and layers with a window have other KV heads. The first layer is dense."""

    model_types: ClassVar[tuple[str, ...]] = ("mimo_v2_flash",)
    dims: ClassVar = {**GlmMoe.dims, "v_head_dim": ("v_head_dim", "head_dim")}
    defaults: ClassVar = {"sliding_window": 128}

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        if "hybrid_layer_pattern" in fields:
            return fields.listed("hybrid_layer_pattern", length=layers, known=(0, 1)).count(1)
        raise BadConfig("config.json: field 'hybrid_layer_pattern' or 'layer_types' is missing")

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        heads = fields.whole_or(0, "swa_num_attention_heads")
        return {"window_heads": heads, "window_kv_heads": fields.whole_or(0, "swa_num_key_value_heads")}


class Listed(Mellum):
    """Mixtures whose windows `layer_types` lists, with a shared expert."""

    model_types: ClassVar[tuple[str, ...]] = ("flint", "kolibri1")
    dims: ClassVar = {**Mellum.dims, "ffn": ("intermediate_size", "moe_intermediate_size")}


class LaraMini(QwenNextMoe):
    """Layers with a window stand among those with a state; attention has no gate."""

    model_types: ClassVar[tuple[str, ...]] = ("lara_mini",)
    defaults: ClassVar[Mapping[str, Any]] = {"attn_output_gate": False}
    slides: ClassVar = True


class Lfm3(Lfm2):
    """As LFM2, with windows and a small gate of each head."""

    model_types: ClassVar[tuple[str, ...]] = ("lfm3",)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        gated = fields.truth("use_attention_gate", default=True)
        return Lfm2.more(fields, numbers, states) | {"gate_width": numbers["heads"] if gated else 0}


class Glm5Next(KimiLinear):
    """KDA in most layers; in the others MLA without rotary part, of which an indexer chooses tokens."""

    model_types: ClassVar[tuple[str, ...]] = ("glm5_next_text", "glm5_next")
    like: ClassVar[Mapping[str, str]] = {"glm5_next": "glm5_next_text"}
    layer_types: ClassVar[Mapping[str, str]] = {**Hybrid.layer_types, "indexed_attention": "full"}
    dims: ClassVar = {dim: names for dim, names in DeepSeek.dims.items() if dim != "rope_dim"}

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return [layer % 4 != 3 for layer in range(layers)]

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        heads, dim, top = (fields.whole(name) for name in ("index_n_heads", "index_head_dim", "index_topk"))
        attending, rows = len(states) - sum(states), heads + dim
        if "index_kpool" in fields:
            rows += dim
        indexer = Indexer(heads=heads, dim=dim, top=top, layers=attending, key_rows=rows)
        streams = hyper_connections(fields, numbers["hidden"], numbers["layers"], out=True)
        return KimiLinear.more(fields, numbers, states) | {"indexer": indexer, "extras": streams[:1]}


class Mllama(Family):
    """Some layers attend to the image alone. Their keys and values are made once, and do not grow with the text."""

    model_types: ClassVar[tuple[str, ...]] = ("mllama_text_model", "mllama")
    like: ClassVar[Mapping[str, str]] = {"mllama": "mllama_text_model"}

    @staticmethod
    def crossing(fields: Fields, layers: int) -> set[int]:
        found = fields.indices("cross_attention_layers")
        if any(not 0 <= layer < layers for layer in found):
            raise fields.wrong("cross_attention_layers", f"a list of numbers below {layers}")
        return found

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        layers, hidden = numbers["layers"], numbers["hidden"]
        crossing = len(cls.crossing(fields, layers))
        wide, narrow = (numbers[name] * numbers["head_dim"] for name in ("heads", "kv_heads"))
        extras = (
            Extra(name="cross_q", n=wide, k=hidden, layers=crossing),
            Extra(name="cross_kv", n=2 * narrow, k=hidden, layers=crossing, used=0),
            Extra(name="cross_o", n=hidden, k=wide, layers=crossing),
        )
        return {"attention_free_layers": crossing, "extras": extras if crossing else ()}


class Molmo2(Llama):
    """Further rows of the embedding stand for parts of an image."""

    model_types: ClassVar[tuple[str, ...]] = ("molmo2_text", "molmo2")
    like: ClassVar[Mapping[str, str]] = {"molmo2": "molmo2_text"}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        rows = fields.whole_or(0, "additional_vocab_size")
        extra = Extra(name="image_embedding", n=rows, k=numbers["hidden"], layers=1, table=True)
        return {"extras": (extra,) if rows else ()}


class MiniCpm(Llama):
    """MiniCPM of 2024, whose class ties its embeddings."""

    model_types: ClassVar[tuple[str, ...]] = ("minicpm",)
    defaults: ClassVar[Mapping[str, Any]] = {"tie_word_embeddings": True}


class ModernBertDecoder(Patterned):
    """All but one of every three layers have a window."""

    model_types: ClassVar[tuple[str, ...]] = ("modernbert-decoder",)
    defaults: ClassVar = {"sliding_window_pattern": 3}


class NeoXJapanese(Ungated):
    model_types: ClassVar[tuple[str, ...]] = ("gpt_neox_japanese",)
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"ffn": ("hidden_size",)}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {"ffn": fields.whole_or(4, "intermediate_multiple_size") * numbers["hidden"]}


class FirstGpt(Gpt):
    model_types: ClassVar[tuple[str, ...]] = ("openai-gpt", "ctrl")
    renamed: ClassVar[Mapping[str, str]] = {**Gpt.renamed, "dff": "intermediate_size"}


class ChatGlm(Family):
    """ChatGLM2 and 3, and GLM-4 9B, in the publisher's own fields."""

    model_types: ClassVar[tuple[str, ...]] = ("chatglm",)
    renamed: ClassVar[Mapping[str, str]] = {
        "num_layers": "num_hidden_layers",
        "padded_vocab_size": "vocab_size",
        "seq_length": "max_position_embeddings",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
    }

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        if not fields.truth("multi_query_attention", default=False):
            return {}
        return {"kv_heads": fields.whole("multi_query_group_num")}


class FirstQwen(Family):
    """Qwen of 2023: `intermediate_size` is that of gate and up together."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen",)
    renamed: ClassVar[Mapping[str, str]] = {"seq_length": "max_position_embeddings"}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {"ffn": fields.whole("intermediate_size") // 2}


class FirstDeepSeekMoe(GlmMoe):
    """DeepSeekMoE of 2024: experts without MLA."""

    model_types: ClassVar[tuple[str, ...]] = ("deepseek",)


class NemotronNas(Family):
    """Llama with layers that a search changed (Llama-Nemotron): fewer KV heads, no attention, another FFN or none."""

    model_types: ClassVar[tuple[str, ...]] = ("nemotron-nas",)
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kv_heads": ("num_attention_heads",),
        "ffn": ("hidden_size",),
    }

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        layers, hidden, heads = numbers["layers"], numbers["hidden"], numbers["heads"]
        blocks = fields.get("block_configs")
        if not isinstance(blocks, list) or len(blocks) != layers:
            raise fields.wrong("block_configs", f"a list of {layers} objects")
        groups: Counter[int] = Counter()
        widths: Counter[int] = Counter()
        linear: Counter[str] = Counter()
        for block in blocks:
            each = Fields(fields.model_type, block if isinstance(block, Mapping) else {}, {})
            attention, ffn = each.part("attention"), each.part("ffn")
            for part, name in ((attention, "attention"), (ffn, "ffn")):
                if part.get("replace_with_linear") is True:
                    linear[name] += 1
            if not cls.absent(attention):
                groups[attention.whole("n_heads_in_group")] += 1
            if not cls.absent(ffn):
                width = int(2 * ffn.real("ffn_mult") * hidden / 3)
                widths[-(-width // 256) * 256] += 1
        if any(heads % group for group in groups) or 0 in widths:
            raise fields.wrong("block_configs", f"groups that share {heads} heads evenly, and FFNs with a width")
        kinds = tuple(
            Kind(suffix=f"_{heads // group}", layers=count, changes=(("kv_heads", heads // group),))
            for group, count in sorted(groups.items())
        )
        extras = (Extra(name=f"linear_{name}", n=hidden, k=hidden, layers=count) for name, count in linear.items())
        return {
            "kinds": kinds,
            "kv_heads": heads // min(groups) if groups else heads,
            "attention_free_layers": layers - sum(groups.values()),
            "plain_layers": layers - sum(widths.values()),
            "ffn_widths": tuple(sorted(widths.items(), reverse=True)),
            "ffn": max(widths, default=hidden),
            "extras": tuple(extras),
        }

    @staticmethod
    def absent(part: Fields) -> bool:
        return part.get("no_op") is True or part.get("replace_with_linear") is True
