"""Families in which some layers keep a state of constant size instead of a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernels.model_config.families import MOE_DIMS, DeepSeek, Family
from kernels.model_config.fields import Fields
from kernels.model_config.layers import all_but_every
from kernels.models import StateMixer

STATE_TYPES = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "window",
    "linear_attention": "state",
    "mamba": "state",
    "conv": "state",
}
STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def state_bytes(fields: Fields) -> int:
    """Bytes of an element of the state: fp32, in which engines keep it unless the file says otherwise."""
    given = (str(fields.get(name)) for name in ("mamba_ssm_cache_dtype", "mamba_ssm_dtype"))
    return next((STATE_BYTES[each] for each in given if each in STATE_BYTES), 4)


def mamba2(
    fields: Fields,
    hidden: int,
    layers: int,
    *,
    heads: str = "mamba_n_heads",
    head_dim: str = "mamba_d_head",
    groups: str = "mamba_n_groups",
    state: str = "mamba_d_state",
    kernel: str = "mamba_d_conv",
) -> StateMixer:
    """z, x, B, C and dt come from one projection. Each head keeps `[head_dim, state]`; x, B and C are convolved."""
    n_heads = fields.whole(heads)
    if fields.get(head_dim) in (None, "auto"):
        inner = fields.whole_or(fields.whole_or(2, "mamba_expand") * hidden, "mamba_d_ssm")
    else:
        inner = n_heads * fields.whole(head_dim)
    convolved = inner + 2 * fields.whole(groups) * fields.whole(state)
    return StateMixer(
        kind="mamba2",
        layers=layers,
        inputs=((inner + convolved + n_heads, hidden),),
        output=(hidden, inner),
        state=inner * fields.whole(state),
        conv=convolved * (fields.whole(kernel) - 1),
        state_bytes=state_bytes(fields),
    )


class Hybrid(Family):
    layer_types: ClassVar[Mapping[str, str]] = STATE_TYPES


class QwenNext(Hybrid):
    """Gated delta rule in three of four layers; the queries of the others come with a gate of the same size."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
    slides = False

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return all_but_every(fields.whole_or(4, "full_attention_interval"), layers)

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden = numbers["hidden"]
        key = fields.whole("linear_num_key_heads") * fields.whole("linear_key_head_dim")
        values = fields.whole("linear_num_value_heads")
        value = values * fields.whole("linear_value_head_dim")
        mixer = StateMixer(
            kind="gated delta rule",
            layers=sum(states),
            inputs=((2 * key + 2 * value, hidden), (2 * values, hidden)),
            output=(hidden, value),
            state=fields.whole("linear_key_head_dim") * value,
            conv=(2 * key + value) * (fields.whole("linear_conv_kernel_dim") - 1),
            state_bytes=state_bytes(fields),
        )
        gated = fields.truth("attn_output_gate", default=True)
        return {
            "state_mixer": mixer,
            "gate_width": numbers["heads"] * numbers["head_dim"] if gated else 0,
            "shared_ffn": fields.whole_or(0, "shared_expert_intermediate_size"),
        }


class QwenNextMoe(QwenNext):
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_next", "qwen3_5_moe_text")
    dims: ClassVar = {**MOE_DIMS, "expert_ffn": ("moe_intermediate_size",), "ffn": ("intermediate_size", "hidden_size")}


class OlmoHybrid(QwenNext):
    """The same rule in other sizes: without fields for them they follow from the heads of attention, which has no gate.

    The last layer attends where no other would.
    """

    model_types: ClassVar[tuple[str, ...]] = ("olmo_hybrid",)

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        found = all_but_every(4, layers)
        return [*found[:-1], False] if all(found) else found

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        keys = fields.whole_or(numbers["heads"], "linear_num_key_heads")
        dim = fields.whole_or(3 * numbers["hidden"] // (4 * keys), "linear_key_head_dim")
        sizes = {
            "linear_num_key_heads": keys,
            "linear_num_value_heads": fields.whole_or(numbers["heads"], "linear_num_value_heads"),
            "linear_key_head_dim": dim,
            "linear_value_head_dim": fields.whole_or(2 * dim, "linear_value_head_dim"),
            "attn_output_gate": False,
        }
        return QwenNext.more(Fields(fields.model_type, {**fields.given, **sizes}, fields.defaults), numbers, states)


class KimiLinear(Hybrid):
    """KDA in three of four layers, MLA in the others. The checkpoint counts its layers from 1."""

    model_types: ClassVar[tuple[str, ...]] = ("kimi_linear",)
    dims: ClassVar = {
        **DeepSeek.dims,
        "max_context": ("model_max_length", "max_position_embeddings"),
    }

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        full = fields.part("linear_attn_config").indices("full_attn_layers", first=1)
        full = full or {layer for layer in range(1, layers) if layer % 4 == 0}
        return [layer not in full for layer in range(layers)]

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, linear = numbers["hidden"], fields.part("linear_attn_config")
        heads = linear.whole_or(fields.whole_or(32, "linear_num_heads"), "num_heads")
        dim = linear.whole_or(fields.whole_or(128, "linear_head_dim"), "head_dim")
        kernel = linear.whole_or(fields.whole_or(4, "linear_conv_kernel_dim"), "short_conv_kernel_size")
        width = heads * dim
        mixer = StateMixer(
            kind="KDA",
            layers=sum(states),
            inputs=((3 * width, hidden), (heads + 2 * dim, hidden)),
            inner=((2 * width, dim),),
            output=(hidden, width),
            state=width * dim,
            conv=3 * width * (kernel - 1),
            state_bytes=state_bytes(fields),
        )
        return {"state_mixer": mixer}


def mamba1(fields: Fields, hidden: int, layers: int, *, state: str, expand: str, rank: str, kernel: str) -> StateMixer:
    """x and z come from one projection. dt, B and C are made from the convolved x; dt has a low rank.

    The published file of Falcon Mamba has channels that do not follow from its factor.
    """
    said = fields.model_type == "falcon_mamba" and "intermediate_size" in fields.given
    inner = fields.whole("intermediate_size") if said else fields.whole(expand) * hidden
    size = fields.whole(state)
    dt = fields.whole(rank) if isinstance(fields.get(rank), int) else -(-hidden // 16)
    return StateMixer(
        kind="mamba",
        layers=layers,
        inputs=((2 * inner, hidden),),
        inner=((dt + 2 * size, inner), (inner, dt)),
        output=(hidden, inner),
        state=inner * size,
        conv=inner * (fields.whole(kernel) - 1),
        state_bytes=state_bytes(fields),
    )


class Mamba1(Hybrid):
    """Jamba: attention in one of `attn_layer_period` layers, experts in one of `expert_layer_period`."""

    model_types: ClassVar[tuple[str, ...]] = ("jamba",)
    dims: ClassVar = {**MOE_DIMS, "expert_ffn": ("intermediate_size",)}

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        period, offset = fields.whole("attn_layer_period"), fields.whole("attn_layer_offset", least=0)
        return [layer % period != offset for layer in range(layers)]

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        names = {"state": "mamba_d_state", "expand": "mamba_expand", "rank": "mamba_dt_rank", "kernel": "mamba_d_conv"}
        return {"state_mixer": mamba1(fields, numbers["hidden"], sum(states), **names)}


class PureMamba(Hybrid):
    """Mamba without attention and without FFNs: every layer is a mixer. There is no longest context.

    Tensor parallelism shares its channels, or in Mamba-2 its heads.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mamba", "falcon_mamba", "mamba2")
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1 << 20,
        "intermediate_size": 1,
    }
    whole_heads = False

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return [True] * layers

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, layers = numbers["hidden"], numbers["layers"]
        if fields.model_type == "mamba2":
            names = {"heads": "num_heads", "head_dim": "head_dim", "groups": "n_groups"}
            mixer = mamba2(fields, hidden, layers, **names, state="state_size", kernel="conv_kernel")
            shared = fields.whole("num_heads")
        else:
            names = {"state": "state_size", "expand": "expand", "rank": "time_step_rank", "kernel": "conv_kernel"}
            mixer = mamba1(fields, hidden, layers, **names)
            shared = mixer.output[1]
        return {"state_mixer": mixer, "heads": shared, "kv_heads": shared, "head_dim": 1, "plain_layers": layers}


class Bamba(Hybrid):
    model_types: ClassVar[tuple[str, ...]] = ("bamba",)

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        full = fields.indices("attn_layer_indices")
        return [layer not in full for layer in range(layers)]

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return {"state_mixer": mamba2(fields, numbers["hidden"], sum(states))}


class GraniteHybrid(Bamba):
    """Every layer has a shared FFN, and experts beside it unless there are none (`num_local_experts` 0)."""

    model_types: ClassVar[tuple[str, ...]] = ("granitemoehybrid",)
    dims: ClassVar = {**MOE_DIMS, "expert_ffn": ("intermediate_size",)}

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return [True] * layers

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        shared = fields.whole("shared_intermediate_size")
        found = Bamba.more(fields, numbers, states)
        return found | ({"shared_ffn": shared} if numbers.get("experts") else {"ffn": shared})


class FalconH1(Hybrid):
    """Attention and Mamba-2 side by side in every layer."""

    model_types: ClassVar[tuple[str, ...]] = ("falcon_h1",)
    extra: ClassVar = {"parallel_mixers": True}

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, layers = numbers["hidden"], numbers["layers"]
        mixer = mamba2(fields, hidden, layers)
        return {"state_mixer": mixer}


class MiniMaxText(Hybrid):
    """Lightning attention: each head keeps `[head_dim, head_dim]`; one of eight layers has softmax attention."""

    model_types: ClassVar[tuple[str, ...]] = ("minimax", "minimax_text_01", "minimax_m1")
    like: ClassVar = {"minimax_text_01": "minimax", "minimax_m1": "minimax"}
    dims: ClassVar = {**MOE_DIMS, "expert_ffn": ("intermediate_size",)}

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        if "attn_type_list" in fields:
            return [each == 0 for each in fields.listed("attn_type_list", length=layers, known=(0, 1))]
        return [layer % 2 == 1 for layer in range(layers)]

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, width = numbers["hidden"], numbers["heads"] * numbers["head_dim"]
        mixer = StateMixer(
            kind="lightning attention",
            layers=sum(states),
            inputs=((4 * width, hidden),),
            output=(hidden, width),
            state=width * numbers["head_dim"],
            state_bytes=state_bytes(fields),
        )
        return {"state_mixer": mixer, "shared_ffn": fields.whole_or(0, "shared_intermediate_size")}


class Lfm2(Hybrid):
    """A gated short convolution instead of attention in most layers. The width of the FFN is rounded."""

    model_types: ClassVar[tuple[str, ...]] = ("lfm2",)

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        full = fields.indices("full_attn_idxs")
        return [layer not in full for layer in range(layers)] if full else [False] * layers

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, found = numbers["hidden"], {}
        if fields.get("block_auto_adjust_ff_dim") is True:
            width = 2 * fields.whole_or(numbers["ffn"], "block_ff_dim") // 3
            width = int(fields.real("block_ffn_dim_multiplier") * width)
            multiple = fields.whole("block_multiple_of")
            found["ffn"] = -(-width // multiple) * multiple
        mixer = StateMixer(
            kind="short convolution",
            layers=sum(states),
            inputs=((3 * hidden, hidden),),
            output=(hidden, hidden),
            state=0,
            conv=hidden * (fields.whole("conv_L_cache") - 1),
        )
        return found | {"state_mixer": mixer}


class Lfm2Moe(Lfm2):
    model_types: ClassVar[tuple[str, ...]] = ("lfm2_moe",)
    dims: ClassVar = {**MOE_DIMS, "expert_ffn": ("moe_intermediate_size",)}


class NemotronH(Hybrid):
    """Each layer is one thing: Mamba-2 `M`, attention `*`, an FFN `-` or experts `E`; all without a gate.

    Its class has a `lm_head` of its own whatever the file says (`_tied_weights_keys` of `NemotronHForCausalLM` is
    empty).
    """

    model_types: ClassVar[tuple[str, ...]] = ("nemotron_h",)
    extra: ClassVar = {"gated_ffn": False}
    ties: ClassVar = False
    layer_types: ClassVar[Mapping[str, str]] = {}
    letters: ClassVar = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    older: ClassVar = {"mamba": "linear_attention", "attention": "full_attention"}

    @classmethod
    def kinds(cls, fields: Fields) -> list[str]:
        name = fields.present("hybrid_override_pattern", "layers_block_type", "layer_types")
        value = fields.get(name)
        if name == "hybrid_override_pattern" and isinstance(value, str) and value:
            found = [str(cls.letters.get(letter, "")) for letter in value]
        else:
            found = [str(cls.older.get(each, each)) for each in map(str, value)] if isinstance(value, list) else []
        if not found or any(kind not in cls.letters.values() for kind in found):
            raise fields.wrong(name, f"made of {' '.join(cls.letters)}, or a list of {', '.join(cls.letters.values())}")
        return found

    @staticmethod
    def states(fields: Fields, layers: int) -> list[bool]:
        return [kind == "linear_attention" for kind in NemotronH.kinds(fields)]

    @staticmethod
    def more(fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        kinds = NemotronH.kinds(fields)
        count = {kind: kinds.count(kind) for kind in NemotronH.letters.values()}
        found: dict[str, Any] = {
            "attention_free_layers": len(kinds) - count["full_attention"],
            "plain_layers": count["linear_attention"] + count["full_attention"],
        }
        if sum(states):
            names = {"groups": "n_groups", "state": "ssm_state_size", "kernel": "conv_kernel"}
            names |= {"heads": "mamba_num_heads", "head_dim": "mamba_head_dim"}
            found["state_mixer"] = mamba2(fields, numbers["hidden"], sum(states), **names)
        if count["moe"]:
            experts, each = fields.whole("n_routed_experts"), fields.whole("num_experts_per_tok")
            found |= {
                "dense_layers": count["mlp"],
                "experts": experts,
                "experts_per_token": each,
                "expert_ffn": fields.whole("moe_intermediate_size"),
                "shared_experts": fields.whole_or(0, "n_shared_experts"),
                "shared_ffn": fields.whole_or(0, "moe_shared_expert_intermediate_size"),
                "expert_hidden": fields.whole_or(0, "moe_latent_size"),
            }
        return found
