"""Families after GPT-2: two matrices in an FFN four times as wide as the hidden size, and fields of other names.

Learned positions are looked up like the embedding and are not counted: 1.3% of OPT-125M, below 0.2% from 6 B on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernels.model_config.families import Ungated
from kernels.model_config.fields import Fields


class Gpt(Ungated):
    model_types: ClassVar[tuple[str, ...]] = ("gpt2", "gptj", "codegen", "gpt-sw3", "biogpt")
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"ffn": ("intermediate_size", "hidden_size")}
    renamed: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
    }

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {} if "intermediate_size" in fields else {"ffn": 4 * numbers["hidden"]}


class BigCode(Gpt):
    """StarCoder: one KV head for all queries, unless the file says otherwise."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt_bigcode",)

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        one = fields.truth("multi_query", default=True)
        return Gpt.more(fields, numbers, states) | ({"kv_heads": 1} if one else {"kv_heads": numbers["heads"]})


class GptNeo(Gpt):
    """Every second layer has a window."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt_neo",)
    layer_types: ClassVar = {"global": "full", "local": "window"}
    renamed: ClassVar = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "window_size": "sliding_window",
        "attention_layers": "layer_types",
    }

    @staticmethod
    def windowed(fields: Fields, layers: int) -> int:
        return layers // 2


class Opt(Gpt):
    model_types: ClassVar[tuple[str, ...]] = ("opt", "xglm")
    renamed: ClassVar = {
        "ffn_dim": "intermediate_size",
        "d_model": "hidden_size",
        "num_layers": "num_hidden_layers",
        "attention_heads": "num_attention_heads",
    }

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        """OPT-350M alone has an embedding narrower than its layers, and matrices between them."""
        if fields.whole_or(numbers["hidden"], "word_embed_proj_dim") != numbers["hidden"]:
            raise fields.wrong("word_embed_proj_dim", f"the {numbers['hidden']} of 'hidden_size': two more matrices")
        return Gpt.more(fields, numbers, states)


class Bloom(Gpt):
    """Positions are biases of the scores, so no context is too long for the file; 2,048 tokens were trained."""

    model_types: ClassVar[tuple[str, ...]] = ("bloom",)
    renamed: ClassVar = {**Gpt.renamed, "num_layers": "num_hidden_layers", "seq_length": "max_position_embeddings"}
    defaults: ClassVar = {"max_position_embeddings": 2048}


class Mpt(Gpt):
    model_types: ClassVar[tuple[str, ...]] = ("mpt",)
    renamed: ClassVar = {
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings",
    }

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        attention = fields.part("attn_config")
        if attention.get("attn_type") not in (None, "multihead_attention"):
            raise attention.wrong("attn_type", "'multihead_attention'")
        return {"ffn": fields.whole_or(4, "expansion_ratio") * numbers["hidden"]}
