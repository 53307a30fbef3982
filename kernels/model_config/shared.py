"""Gemma 3n and 4: later layers read the cache of earlier ones, and layers have embeddings of their own.

A table of embeddings for each layer is only looked up: a step reads one row of it for each token. It counts as
parameters, and as bytes of weights, but not as active parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from kernels.model_config.families import Family, layer_kinds
from kernels.model_config.fields import Fields
from kernels.models import Extra, Kind


def kinds(windowed: Sequence[bool], reusing: int, full: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The kinds of attention layers: with a window or not, and the last `reusing` without a cache of their own.

    `full` says how the layers without a window differ.
    """
    first = len(windowed) - reusing
    counts = Counter((window, layer >= first) for layer, window in enumerate(windowed))
    found = []
    for (window, reuses), layers in sorted(counts.items()):
        changes = {} if window else dict(full)
        if reuses:
            changes["reused_cache"] = True
        suffix = ("_window" if window else "") + ("_reusing" if reuses else "")
        found.append(Kind(suffix=suffix, layers=layers, windowed=window, changes=tuple(sorted(changes.items()))))
    return tuple(found)


def embeddings(fields: Fields, hidden: int, layers: int) -> list[Extra]:
    """The table of embeddings for each layer, and the matrices that bring them in."""
    width = fields.whole_or(0, "hidden_size_per_layer_input")
    if not width:
        return []
    tokens = fields.whole("vocab_size_per_layer_input")
    return [
        Extra(name="layer_embedding", n=tokens, k=layers * width, layers=1, table=True),
        Extra(name="layer_embedding_in", n=layers * width, k=hidden, layers=1),
        Extra(name="layer_embedding_gate", n=width, k=hidden, layers=layers),
        Extra(name="layer_embedding_out", n=hidden, k=width, layers=layers),
    ]


class Gemma3n(Family):
    """Four streams of the hidden state (AltUp), of which one passes through a layer, and a low-rank residual (LAuReL).

    One of five layers has no window. A list may give each layer a width of its FFN.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gemma3n", "gemma3n_text")
    like: ClassVar[Mapping[str, str]] = {"gemma3n": "gemma3n_text"}
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"ffn": ("widest_ffn",)}
    every: ClassVar = 5

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        return fields.plus({"widest_ffn": max(_widths(fields, "intermediate_size"))})

    @classmethod
    def attention(cls, fields: Fields, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """How layers without a window differ from the others."""
        return {}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        layers, hidden = numbers["layers"], numbers["hidden"]
        listed = layer_kinds(fields, cls, layers)
        if not listed:
            listed = ["full" if (layer + 1) % cls.every == 0 else "window" for layer in range(layers)]
        windows = [each == "window" for each in listed]
        reusing = fields.whole_or(0, "num_kv_shared_layers")
        if reusing >= layers:
            raise fields.wrong("num_kv_shared_layers", f"less than the {layers} layers")
        return {
            "kinds": kinds(windows, reusing, cls.attention(fields, numbers)),
            "windowed_layers": sum(windows),
            "extras": tuple(embeddings(fields, hidden, layers) + cls.streams(fields, hidden, layers)),
            "ffn_widths": cls.widths(fields, layers, reusing),
        }

    @classmethod
    def widths(cls, fields: Fields, layers: int, reusing: int) -> tuple[tuple[int, int], ...]:
        widths = _widths(fields, "intermediate_size")
        if len(widths) not in (1, layers):
            raise fields.wrong("intermediate_size", f"one number, or one for each of the {layers} layers")
        return tuple(Counter(widths * (layers // len(widths))).items())

    @classmethod
    def streams(cls, fields: Fields, hidden: int, layers: int) -> list[Extra]:
        streams, rank = fields.whole("altup_num_inputs"), fields.whole("laurel_rank")
        between = 2 * (streams - 1)
        return [
            Extra(name="laurel_in", n=rank, k=hidden, layers=layers),
            Extra(name="laurel_out", n=hidden, k=rank, layers=layers),
            Extra(name="stream_router", n=streams, k=hidden, layers=layers),
            *([Extra(name="streams", n=hidden, k=hidden, layers=between)] if between else []),
        ]


def _widths(fields: Fields, name: str) -> list[int]:
    value = fields.get(name)
    if not isinstance(value, list):
        return [fields.whole(name)]
    if not value:
        raise fields.wrong(name, "a list of positive whole numbers")
    return [Fields(fields.model_type, {name: each}, {}, fields.called).whole(name) for each in value]


class Gemma4(Gemma3n):
    """Layers without a window have wider heads, and may have other KV heads, whose keys are then their values as well.

    Experts stand beside the FFN of a layer.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gemma4", "gemma4_text", "gemma4_unified_text", "gemma4_unified")
    like: ClassVar[Mapping[str, str]] = {"gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"}
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {"global_head_dim": 512}
    every: ClassVar = 6
    reads_layers: ClassVar = True

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        return fields

    @classmethod
    def attention(cls, fields: Fields, numbers: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"head_dim": fields.whole("global_head_dim")}
        shared = fields.truth("attention_k_eq_v", default=False)
        if shared:
            found |= {"value_is_key": True}
            found["kv_heads"] = fields.whole_or(numbers["kv_heads"], "num_global_key_value_heads")
        return found | _of_layers(fields)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        found = super().more(fields, numbers, states)
        if not fields.truth("enable_moe_block", default=False):
            return found
        return found | {
            "experts": fields.whole("num_experts"),
            "experts_per_token": fields.whole("top_k_experts"),
            "expert_ffn": fields.whole("moe_intermediate_size"),
            "shared_ffn": numbers["ffn"],
            "ffn_widths": (),
        }

    @classmethod
    def widths(cls, fields: Fields, layers: int, reusing: int) -> tuple[tuple[int, int], ...]:
        """`use_double_wide_mlp`: twice as wide in layers that reuse a cache."""
        width = fields.whole("intermediate_size")
        if not fields.truth("use_double_wide_mlp", default=False) or not reusing:
            return ()
        return ((width, layers - reusing), (2 * width, reusing))

    @classmethod
    def streams(cls, fields: Fields, hidden: int, layers: int) -> list[Extra]:
        return []


def _of_layers(fields: Fields) -> dict[str, Any]:
    """What `per_layer_config` says of the layers without a window; it must be the same of all of them."""
    value = fields.get("per_layer_config")
    if value is None:
        return {}
    layers = list(value.values()) if isinstance(value, Mapping) else [None]
    names = {"head_dim": "head_dim", "num_key_value_heads": "kv_heads", "num_attention_heads": "heads"}
    if any(not isinstance(each, Mapping) or each != layers[0] or set(each) - set(names) for each in layers):
        raise fields.wrong("per_layer_config", "the same for all layers that it names, of " + ", ".join(names))
    same = Fields(fields.model_type, dict(layers[0] or {}) if layers else {}, {})
    return {here: same.whole(name) for name, here in names.items() if name in same}


__all__ = ["Gemma3n", "Gemma4"]
