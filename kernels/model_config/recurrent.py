"""Families whose layers are recurrent in ways of their own: Zamba, RecurrentGemma, RWKV, xLSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernels.model_config.fields import Fields
from kernels.model_config.hybrids import Hybrid, PureMamba, mamba1, mamba2
from kernels.models import Extra, StateMixer


class Zamba2(Hybrid):
    """Mamba in every layer; before some of them attention and an FFN, whose weights these layers share in turns.

    Each use counts as a layer more here. Attention reads the hidden state and the embedding side by side. Low-rank
    matrices make each use of an FFN differ.
    """

    model_types: ClassVar[tuple[str, ...]] = ("zamba2",)
    layer_types: ClassVar[Mapping[str, str]] = {}
    whole_heads: ClassVar = False
    blocks: ClassVar = ("linear_attention", "mamba", "hybrid")

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        layers = fields.whole("num_hidden_layers", most=5000)
        uses = cls.uses(fields, layers)
        wide = fields.whole_or(2 * fields.whole("hidden_size"), "attention_hidden_size")
        dim = fields.whole_or(wide // fields.whole("num_attention_heads"), "attention_head_dim")
        kinds = ["mamba"] * layers + ["attention"] * uses
        # the inner width of Mamba is `mamba_expand` times the hidden size, whatever `mamba_headdim` says
        derived = {"head_dim": dim, "states": kinds, "wide": wide, "mamba_headdim": None}
        return fields.plus({"num_hidden_layers": layers + uses, **derived})

    @classmethod
    def uses(cls, fields: Fields, layers: int) -> int:
        """How many layers have attention."""
        if "layers_block_type" not in fields:
            return len(fields.indices("hybrid_layer_ids"))
        return fields.listed("layers_block_type", length=layers, known=cls.blocks).count("hybrid")

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return [each == "mamba" for each in fields.get("states")]

    @classmethod
    def mixer(cls, fields: Fields, hidden: int, layers: int) -> StateMixer:
        names = {"heads": "n_mamba_heads", "head_dim": "mamba_headdim", "groups": "mamba_ngroups"}
        return mamba2(fields, hidden, layers, **names)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, layers = numbers["hidden"], sum(states)
        uses = len(states) - layers
        return {
            "state_mixer": cls.mixer(fields, hidden, layers),
            "attention_input": fields.whole("wide"),
            "plain_layers": layers,
            "weight_sets": min(uses, fields.whole_or(1, "num_mem_blocks")),
            "extras": tuple(extra for extra in cls.extras(fields, numbers, uses) if extra.layers),
        }

    @classmethod
    def extras(cls, fields: Fields, numbers: Mapping[str, Any], uses: int) -> list[Extra]:
        hidden, ffn, rank = numbers["hidden"], numbers["ffn"], fields.whole("adapter_rank")
        found = [
            Extra(name="use_out", n=hidden, k=hidden, layers=uses),
            Extra(name="ffn_adapter_in", n=rank, k=hidden, layers=uses),
            Extra(name="ffn_adapter_out", n=2 * ffn, k=rank, layers=uses),
        ]
        if fields.truth("use_shared_attention_adapter", default=False):
            wide = numbers["heads"] * numbers["head_dim"]
            found.append(Extra(name="attention_adapter_in", n=3 * rank, k=fields.whole("wide"), layers=uses))
            found.append(Extra(name="attention_adapter_out", n=3 * wide, k=rank, layers=uses))
        return found


class Zamba(Zamba2):
    """The first one: Mamba-1, whose inner products are split by heads, and one set of shared weights."""

    model_types: ClassVar[tuple[str, ...]] = ("zamba",)

    @classmethod
    def uses(cls, fields: Fields, layers: int) -> int:
        if "layers_block_type" in fields:
            return super().uses(fields, layers)
        period, offset = fields.whole("attn_layer_period"), fields.whole("attn_layer_offset", least=0)
        return sum(layer == 2 or (layer > 2 and layer % period == offset) for layer in range(layers))

    @classmethod
    def mixer(cls, fields: Fields, hidden: int, layers: int) -> StateMixer:
        names = {"state": "mamba_d_state", "expand": "mamba_expand", "rank": "mamba_dt_rank", "kernel": "mamba_d_conv"}
        return mamba1(fields, hidden, layers, **names)

    @classmethod
    def extras(cls, fields: Fields, numbers: Mapping[str, Any], uses: int) -> list[Extra]:
        return [Extra(name="use_out", n=numbers["hidden"], k=numbers["hidden"], layers=uses)]


class RecurrentGemma(Hybrid):
    """Griffin: a gated linear recurrence in two of three layers, attention with a window in the third.

    `intermediate_size` is that of gate and up together. Two gates are products with blocks, one for each head.
    """

    model_types: ClassVar[tuple[str, ...]] = ("recurrent_gemma",)
    layer_types: ClassVar[Mapping[str, str]] = {}
    renamed: ClassVar[Mapping[str, str]] = {"attention_window_size": "sliding_window"}
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 8192,
        "block_types": ["recurrent", "recurrent", "attention"],
        "sliding_window": 2048,
    }

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        blocks = fields.get("block_types") if "block_types" in fields else []
        kinds = ("recurrent", "attention")
        blocks = fields.listed("block_types", length=len(blocks) if isinstance(blocks, list) else 1, known=kinds)
        if not blocks:
            raise fields.wrong("block_types", "a list of recurrent or attention")
        return [blocks[layer % len(blocks)] == "recurrent" for layer in range(layers)]

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden = numbers["hidden"]
        width = fields.whole_or(hidden, "lru_width")
        blocks = fields.whole("num_attention_heads")
        mixer = StateMixer(
            kind="RG-LRU",
            layers=sum(states),
            inputs=((2 * width, hidden),),
            inner=((2 * width, width // blocks),),
            output=(hidden, width),
            state=width,
            conv=width * (fields.whole("conv1d_width") - 1),
        )
        return {"state_mixer": mixer, "ffn": numbers["ffn"] // 2}


class Rwkv(PureMamba):
    """RWKV-4: each channel keeps the numerator, denominator and exponent of a decaying mean, and two last inputs."""

    model_types: ClassVar[tuple[str, ...]] = ("rwkv",)
    layer_types: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, layers = numbers["hidden"], numbers["layers"]
        width = fields.whole_or(hidden, "attention_hidden_size")
        mixer = StateMixer(
            kind="RWKV",
            layers=layers,
            inputs=((3 * width, hidden),),
            output=(hidden, width),
            state=3 * width,
            conv=2 * hidden,
        )
        gate = Extra(name="receptance", n=hidden, k=hidden, layers=layers)
        return {
            "state_mixer": mixer,
            "heads": width,
            "kv_heads": width,
            "head_dim": 1,
            "gated_ffn": False,
            "ffn": fields.whole_or(4 * hidden, "intermediate_size"),
            "extras": (gate,),
        }

    defaults: ClassVar = {name: value for name, value in PureMamba.defaults.items() if name != "intermediate_size"}
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"ffn": ("intermediate_size", "hidden_size")}


class Rwkv7(Rwkv):
    """RWKV-7, in the fields of flash-linear-attention: each head keeps `[D, D]`; four low-rank matrices steer it."""

    model_types: ClassVar[tuple[str, ...]] = ("rwkv7",)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        if fields.get("attn") is not None:
            raise fields.wrong("attn", "null: layers with attention are not read here")
        hidden, layers = numbers["hidden"], numbers["layers"]
        dim = fields.whole_or(64, "head_dim", "head_size")
        names = ("decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim")
        ranks = [fields.whole(name) for name in names]
        mixer = StateMixer(
            kind="RWKV-7",
            layers=layers,
            inputs=((3 * hidden + sum(ranks), hidden),),
            inner=tuple((hidden, rank) for rank in ranks),
            output=(hidden, hidden),
            state=hidden * dim,
            conv=2 * hidden,
        )
        ratio = fields.whole_or(4, "hidden_ratio") if isinstance(fields.get("hidden_ratio"), int) else 4
        ffn = fields.whole_or(ratio * hidden, "intermediate_size")
        return {"state_mixer": mixer, "head_dim": 1, "heads": hidden, "kv_heads": hidden} | {
            "gated_ffn": False,
            "ffn": ffn,
        }


class Xlstm(PureMamba):
    """mLSTM: each head keeps a matrix `[D_qk, D_v]`, a vector `[D_qk]` and a number, all in fp32."""

    model_types: ClassVar[tuple[str, ...]] = ("xlstm",)
    ties: ClassVar = False
    layer_types: ClassVar[Mapping[str, str]] = {}
    renamed: ClassVar[Mapping[str, str]] = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, layers, heads = numbers["hidden"], numbers["layers"], fields.whole("num_heads")
        keys = round(fields.real("qk_dim_factor") * hidden)
        values = round(fields.real("v_dim_factor") * hidden)
        step = fields.whole("ffn_round_up_to_multiple_of")
        ffn = -(-round(fields.real("ffn_proj_factor") * hidden) // step) * step
        mixer = StateMixer(
            kind="mLSTM",
            layers=layers,
            inputs=((2 * keys + 2 * values, hidden), (2 * heads, hidden)),
            output=(hidden, values),
            state=keys * values // heads + keys + heads,
        )
        found = {"state_mixer": mixer, "heads": heads, "kv_heads": heads, "head_dim": 1, "ffn": ffn}
        if ffn < 1 or not keys or not values:
            raise fields.wrong("ffn_proj_factor", "a positive number")
        return found
