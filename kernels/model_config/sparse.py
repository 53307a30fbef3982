"""Families that read a part of their cache, or a shorter one: DeepSeek-V4, MiniMax-M3 and others of 2026."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kernels.model_config.families import MOE_DIMS, DeepSeek, Family, Mixtral, layer_kinds
from kernels.model_config.fields import Fields
from kernels.models import Extra, Indexer, Kind


def hyper_connections(fields: Fields, hidden: int, layers: int, *, out: bool) -> tuple[Extra, ...]:
    """Matrices that mix the `hc_mult` streams of the hidden state before attention and FFN, and before `lm_head`.

    `out`: whether they also say how the streams mix with each other. The checkpoint keeps them in fp32.
    """
    streams = fields.whole_or(0, "hc_mult")
    if not streams:
        return ()
    rows = streams * (streams + 2) if out else 2 * streams
    return (
        Extra(name="hyper_connection", n=rows, k=streams * hidden, layers=2 * layers),
        Extra(name="hyper_head", n=streams, k=streams * hidden, layers=1),
    )


class DeepSeekV4(Family):
    """All query heads share one row of the cache, which is key and value at once.

    The last `sliding_window` tokens have a row each. Of the tokens before them, 4 share a row in some layers, of which
    an indexer chooses `index_topk`; 128 share one in others; none is kept in the rest. The cache is counted in 16 bits,
    the indexer's keys too: this gives the 9.62 GiB that are published for DeepSeek-V4-Pro and 1,048,576 tokens.
    """

    model_types: ClassVar[tuple[str, ...]] = ("deepseek_v4",)
    dims: ClassVar = {**MOE_DIMS, "expert_ffn": ("moe_intermediate_size",), "ffn": ("moe_intermediate_size",)}
    layer_types: ClassVar[Mapping[str, str]] = {
        "sliding_attention": "window",
        "compressed_sparse_attention": "sparse",
        "heavily_compressed_attention": "heavy",
    }
    ratios: ClassVar = {0: "window", 4: "sparse", 128: "heavy"}

    @classmethod
    def listed(cls, fields: Fields, layers: int) -> list[str]:
        """Of each layer `window`, `sparse` or `heavy`; layers for multi-token prediction may follow in the file."""
        if found := layer_kinds(fields, cls, layers):
            return found
        ratios = fields.get("compress_ratios")
        if ratios is None:
            return ["sparse" if layer > 1 and layer % 2 else "heavy" for layer in range(layers)]
        cut = fields.plus({"compress_ratios": ratios[:layers] if isinstance(ratios, list) else ratios})
        given = cut.listed("compress_ratios", length=layers, known=tuple(cls.ratios))
        return [cls.ratios[each] for each in given]

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        hidden, layers, width = numbers["hidden"], numbers["layers"], numbers["head_dim"]
        listed = cls.listed(fields, layers)
        count = {kind: listed.count(kind) for kind in cls.ratios.values()}
        rates = fields.part("compress_rates")
        few = rates.whole_or(fields.whole_or(4, "compress_rate_csa"), "compressed_sparse_attention")
        many = rates.whole_or(fields.whole_or(128, "compress_rate_hca"), "heavily_compressed_attention")
        heads, dim, top = (fields.whole(name) for name in ("index_n_heads", "index_head_dim", "index_topk"))
        indexer = Indexer(
            heads=heads,
            dim=dim,
            top=top,
            layers=count["sparse"],
            ratio=few,
            key_rows=4 * dim + heads,
            scales=0,
        )
        kinds = (
            Kind(suffix="_window", layers=count["window"], windowed=True),
            Kind(suffix="_sparse", layers=count["sparse"], changes=(("ratio", few), ("indexer", indexer))),
            Kind(suffix="_heavy", layers=count["heavy"], changes=(("ratio", many),)),
        )
        extras = (
            Extra(name="compressor_sparse", n=4 * width, k=hidden, layers=count["sparse"]),
            Extra(name="compressor_heavy", n=2 * width, k=hidden, layers=count["heavy"]),
        )
        return {
            "kv_heads": 1,
            "shared_row": True,
            "q_latent": fields.whole("q_lora_rank"),
            "o_groups": fields.whole("o_groups"),
            "o_latent": fields.whole("o_lora_rank"),
            "window": fields.whole("sliding_window"),
            "windowed_layers": count["window"],
            "kinds": tuple(kind for kind in kinds if kind.layers),
            "extras": tuple(extra for extra in extras if extra.layers)
            + hyper_connections(fields, hidden, layers, out=True),
        }


class MiniMaxM3(Mixtral):
    """Some layers read only the best blocks of the cache, which an indexer with keys of 16 bits chooses.

    Files before transformers 5 hold its fields in `sparse_attention_config`.
    """

    model_types: ClassVar[tuple[str, ...]] = ("minimax_m3_vl_text", "minimax_m3_text", "minimax_m3_vl", "minimax_m3")
    like: ClassVar[Mapping[str, str]] = dict.fromkeys(model_types[1:], model_types[0])
    dims: ClassVar = {**Mixtral.dims, "ffn": ("dense_intermediate_size", "intermediate_size")}
    layer_types: ClassVar[Mapping[str, str]] = {"full_attention": "full", "minimax_m3_sparse": "sparse"}
    older: ClassVar = {
        "index_n_heads": "sparse_num_index_heads",
        "index_head_dim": "sparse_index_dim",
        "index_block_size": "sparse_block_size",
        "index_topk_blocks": "sparse_topk_blocks",
    }

    @classmethod
    def prepared(cls, fields: Fields) -> Fields:
        older = fields.part("sparse_attention_config")
        given = {here: older.get(name) for here, name in cls.older.items() if name in older}
        if "sparse_attention_freq" in older and "layer_types" not in fields:
            flags = older.get("sparse_attention_freq")
            if not isinstance(flags, list):
                raise older.wrong("sparse_attention_freq", "a list of 0 and 1")
            given["layer_types"] = ["minimax_m3_sparse" if each else "full_attention" for each in flags]
        return fields.plus(given)

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        found = {"shared_ffn": fields.whole_or(0, "shared_intermediate_size")}
        layers = numbers["layers"]
        sparse = (layer_kinds(fields, cls, layers) or []).count("sparse")
        if not sparse:
            return found
        top = fields.whole("index_topk_blocks") * fields.whole("index_block_size")
        dim = fields.whole("index_head_dim")
        heads = fields.whole("index_n_heads")
        indexer = Indexer(heads=heads, dim=dim, top=top, layers=sparse, key_rows=dim, scales=0)
        kinds = (
            Kind(layers=layers - sparse),
            Kind(suffix="_sparse", layers=sparse, changes=(("indexer", indexer),)),
        )
        return found | {"kinds": tuple(kind for kind in kinds if kind.layers)}


class HunyuanV4(DeepSeek):
    """DeepSeek's sparse attention with a gate, and streams of the hidden state."""

    model_types: ClassVar[tuple[str, ...]] = ("hy_v4", "hy_v4_vl_text")

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        return DeepSeek.more(fields, numbers, states) | {
            "gate_width": numbers["heads"] * numbers["v_head_dim"],
            "extras": hyper_connections(fields, numbers["hidden"], numbers["layers"], out=False),
        }


class MistralLarge4(DeepSeek):
    """Heads of layers without rotary embedding have no rotary part, and `qk_rope_head_dim` more of the other."""

    model_types: ClassVar[tuple[str, ...]] = ("mistral_large4_text", "mistral_large4")
    like: ClassVar = {"mistral_large4": "mistral_large4_text"}

    @classmethod
    def more(cls, fields: Fields, numbers: Mapping[str, Any], states: list[bool]) -> dict[str, Any]:
        found, layers = DeepSeek.more(fields, numbers, states), numbers["layers"]
        if fields.get("kv_source_layers") not in (None, list(range(layers))):
            raise fields.wrong("kv_source_layers", "each layer's own number: no cache is shared here")
        rotary = layers
        if fields.get("no_rope_layers"):
            rotary = fields.listed("no_rope_layers", length=layers, known=(0, 1)).count(1)
        indexer = found.pop("indexer")
        if indexer.layers != layers:
            raise fields.wrong("indexer_types", "'full' in each layer")
        whole = numbers["head_dim"] + numbers["rope_dim"]

        def kind(suffix: str, count: int, **changes: Any) -> Kind:
            own = Indexer(heads=indexer.heads, dim=indexer.dim, top=indexer.top, layers=count, latent=False)
            return Kind(suffix=suffix, layers=count, changes=tuple(sorted((changes | {"indexer": own}).items())))

        kinds = [kind("", rotary), kind("_unrotated", layers - rotary, rope_dim=0, head_dim=whole)]
        return found | {"kinds": tuple(each for each in kinds if each.layers)}
