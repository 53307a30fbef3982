"""Mixtures of experts whose layers or files differ from the others': LongCat-Flash, Step-3, Bailing, DBRX, JetMoE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernels.model_config.families import MOE_DIMS, DeepSeek, Family, GlmMoe, Mixtral
from kernels.model_config.fields import Fields
from kernels.model_config.hybrids import Hybrid, state_bytes
from kernels.models import Extra, StateMixer


class LongCat(DeepSeek):
    """A layer has attention and a dense FFN twice, and experts once beside them.

    It is counted as two layers here: the first has the experts and, as shared ones, both dense FFNs; the second has
    none. Of the experts that a token chooses, `zero_expert_num` have no weights.
    """

    model_types: ClassVar[tuple[str, ...]] = ("longcat_flash",)
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **DeepSeek.dims,
        "experts_per_token": ("moe_topk", "num_experts_per_tok"),
        "expert_ffn": ("expert_ffn_hidden_size", "moe_intermediate_size"),
        "ffn": ("ffn_hidden_size", "intermediate_size"),
    }

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        layers = fields.whole("num_layers", most=5000)
        pattern = ["sparse", "dense"] * layers
        return fields.plus({"num_hidden_layers": 2 * layers, "mlp_layer_types": pattern})

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {
            "dense_layers": 0,
            "plain_layers": numbers["layers"] // 2,
            "shared_ffn": 2 * numbers["ffn"],
            "zero_experts": fields.whole_or(0, "zero_expert_num"),
        }


class Step3(Family):
    """Step-3: queries go through a latent of `share_q_dim`, and one KV head serves all of them."""

    model_types: ClassVar[tuple[str, ...]] = ("step3_text", "step3_vl", "step3")
    renamed: ClassVar[Mapping[str, str]] = {
        "num_attention_groups": "num_key_value_heads",
        "moe_top_k": "num_experts_per_tok",
        "share_expert_dim": "shared_intermediate_size",
        "share_expert_dims": "shared_intermediate_size",
        "share_q_dim": "q_lora_rank",
        "max_position_embedding": "max_position_embeddings",
        "max_seq_len": "max_position_embeddings",
    }
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {**MOE_DIMS, "expert_ffn": ("moe_intermediate_size",)}
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 65536}

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        """The layers with experts are a text of numbers with commas; lists may go on with layers for prediction."""
        layers, more = fields.whole("num_hidden_layers", most=10_000), {}
        listed = fields.get("moe_layers_enum")
        if isinstance(listed, str):
            numbers = [each.strip() for each in listed.split(",")]
            if not all(each.isdecimal() and len(each) < 6 for each in numbers):
                raise fields.wrong("moe_layers_enum", "whole numbers with commas")
            listed = [int(each) for each in numbers]
        if listed is not None:
            more["moe_layers"] = listed
        elif "mlp_layer_types" not in fields:
            more["moe_layers"] = list(range(3, layers))
        for name in ("layer_types", "mlp_layer_types"):
            if isinstance(fields.get(name), list):
                more[name] = fields.get(name)[:layers]
        return fields.plus(more)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {
            "shared_ffn": fields.whole_or(0, "shared_intermediate_size"),
            "q_latent": fields.whole_or(0, "q_lora_rank"),
        }


class Step35(Step3):
    """Step-3.5: layers with a window have more query heads, and each head's output has a gate."""

    model_types: ClassVar[tuple[str, ...]] = ("step3p5", "step3p7", "step3p5_text")
    like: ClassVar[Mapping[str, str]] = {"step3p7": "step3p5", "step3p5_text": "step3p5"}
    reads_layers: ClassVar = True

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        other = fields.part("attention_other_setting").whole_or(0, "num_attention_heads")
        heads = fields.whole_or(other, "num_sliding_attention_heads")
        gated = fields.get("gating") in (None, True, "per-head")
        gated = gated or fields.get("use_head_wise_attn_gate") is True
        return Step3.more(fields, numbers, states) | {
            "window_heads": heads if numbers["windowed_layers"] else 0,
            "gate_width": numbers["heads"] * (1 if gated else numbers["head_dim"]),
        }


class Bailing(GlmMoe):
    """Ling and Ring of the first two generations."""

    model_types: ClassVar[tuple[str, ...]] = ("bailing_moe", "bailing_moe_v2")
    renamed: ClassVar[Mapping[str, str]] = {"moe_shared_expert_intermediate_size": "shared_intermediate_size"}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        width = fields.whole_or(0, "shared_intermediate_size") * max(1, numbers.get("shared_experts", 0))
        return {"shared_ffn": width if numbers.get("shared_experts") else 0}


def lightning(fields: Fields, numbers: Mapping[str, Any], layers: int, width: int, dim: int) -> StateMixer:
    """Each head keeps `[dim, dim]`; a gate of the same size as the output comes from the hidden state."""
    return StateMixer(
        kind="lightning attention",
        layers=layers,
        inputs=((4 * width, numbers["hidden"]),),
        output=(numbers["hidden"], width),
        state=width * dim,
        state_bytes=state_bytes(fields),
    )


def all_but_groups(fields: Fields, layers: int) -> list[bool]:
    """All but the last of every `layer_group_size` layers, and what is left over at the end."""
    size = fields.whole("layer_group_size")
    return [(layer + 1) % size != 0 and layer < layers // size * size for layer in range(layers)]


class BailingLinear(Bailing):
    """Ring-linear: lightning attention in all but the last of every group of layers."""

    model_types: ClassVar[tuple[str, ...]] = ("bailing_moe_linear",)
    layer_types: ClassVar[Mapping[str, str]] = Hybrid.layer_types

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return all_but_groups(fields, layers)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        dim = numbers["head_dim"]
        mixer = lightning(fields, numbers, sum(states), numbers["heads"] * dim, dim)
        return super().more(fields, numbers, states) | {"state_mixer": mixer}


class BailingHybrid(Family):
    """MLA in the last of every group of layers. In the others KDA, or lightning attention in Ling 2.5 and Ring 2.5."""

    model_types: ClassVar[tuple[str, ...]] = ("bailing_hybrid",)
    layer_types: ClassVar[Mapping[str, str]] = Hybrid.layer_types
    dims: ClassVar = {
        **DeepSeek.dims,
        "experts_per_token": ("num_experts_per_tok", "num_experts_per_token"),
        "max_context": ("max_position_embeddings", "model_max_length"),
    }
    lightning_only: ClassVar = ("group_norm_size", "linear_silu", "use_linear_silu", "linear_backend")

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return all_but_groups(fields, layers)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, heads = numbers["hidden"], numbers["heads"]
        if any(name in fields.given for name in cls.lightning_only):
            dim = fields.whole_or(numbers["head_dim"], "head_dim")
            return {"state_mixer": lightning(fields, numbers, sum(states), heads * dim, dim)}
        # transformers writes the size of MLA's rotary part into `head_dim`
        dim = fields.whole_or(numbers["head_dim"], "linear_head_dim")
        heads = fields.whole_or(heads, "linear_num_heads")
        width = heads * dim
        mixer = StateMixer(
            kind="KDA",
            layers=sum(states),
            inputs=((5 * width, hidden), (heads, hidden)),
            output=(hidden, width),
            state=width * dim,
            conv=3 * width * (fields.whole("short_conv_kernel_size") - 1),
            state_bytes=state_bytes(fields),
        )
        return {"state_mixer": mixer, "gate_width": numbers["heads"]}


class Dbrx(Mixtral):
    """The fields of attention and of the experts are in objects of their own."""

    model_types: ClassVar[tuple[str, ...]] = ("dbrx",)
    renamed: ClassVar[Mapping[str, str]] = {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "max_seq_len": "max_position_embeddings",
    }

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        attention, ffn = fields.part("attn_config"), fields.part("ffn_config")
        return fields.plus(
            {
                "num_key_value_heads": attention.whole("kv_n_heads"),
                "num_local_experts": ffn.whole("moe_num_experts"),
                "num_experts_per_tok": ffn.whole("moe_top_k"),
                "intermediate_size": ffn.whole("ffn_hidden_size"),
            }
        )


class JetMoe(Mixtral):
    """The query heads and the output of attention are experts too; keys and values are common to them.

    A step reads those that a token chooses; that a batch chooses more is not counted.
    """

    model_types: ClassVar[tuple[str, ...]] = ("jetmoe",)

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        heads = fields.whole("num_key_value_heads") * fields.whole("num_experts_per_tok")
        return fields.plus({"num_attention_heads": heads, "head_dim": fields.whole("kv_channels")})

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        layers, hidden, experts = numbers["layers"], numbers["hidden"], numbers["experts"]
        idle = experts - numbers["experts_per_token"]
        rows = 2 * numbers["kv_heads"] * numbers["head_dim"]
        extras = [
            Extra(name="attention_router", n=experts, k=hidden, layers=layers),
            Extra(name="attention_experts", n=rows, k=hidden, layers=layers, copies=idle, used=0),
        ]
        return {"extras": tuple(extra for extra in extras if extra.copies)}
