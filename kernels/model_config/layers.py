"""Which layers of a model have experts, which a window, and which a state instead of attention."""

from __future__ import annotations

from kernels.model_config.fields import Fields

MOST_LAYERS = 10_000
SPARSE = ("sparse", "moe", "hash_moe")


def windows_of_pattern(fields: Fields, layers: int, *names: str) -> int:
    """All but one of every few layers, as one of these fields says; `sliding_window_pattern` if none is named."""
    pattern = fields.whole(*(names or ("sliding_window_pattern",)))
    return layers - layers // pattern


def moe_pattern(fields: Fields, layers: int) -> list[bool]:
    """Which layers have experts. Families say it in one of six ways; without any, all have."""
    every = range(layers)
    if "mlp_layer_types" in fields:
        listed = fields.listed("mlp_layer_types", length=layers, known=("dense", *SPARSE))
        return [each in SPARSE for each in listed]
    if fields.get("moe_layers"):
        chosen = fields.indices("moe_layers")
        return [layer in chosen for layer in every]
    if "interleave_moe_layer_step" in fields:
        step = fields.whole("interleave_moe_layer_step")
        return [(layer + 1) % step == 0 for layer in every]
    if "expert_layer_period" in fields:
        period, offset = fields.whole("expert_layer_period"), fields.whole("expert_layer_offset", least=0)
        return [layer % period == offset for layer in every]
    if "moe_layer_interval" in fields:
        interval, first = fields.whole("moe_layer_interval"), fields.whole_or(0, "moe_layer_start_index")
        last = fields.get("moe_layer_end_index")
        last = layers - 1 if last in (None, -1) else fields.whole("moe_layer_end_index", least=0)
        return [(layer + 1) % interval == 0 and first <= layer <= last for layer in every]
    return _after_the_dense_ones(fields, layers)


def _after_the_dense_ones(fields: Fields, layers: int) -> list[bool]:
    """Dense layers lead; of the others every `moe_layer_freq`-th or `decoder_sparse_step`-th has experts."""
    name = "num_dense_layers" if "num_dense_layers" in fields else "first_k_dense_replace"
    dense = fields.whole_or(0, name)
    if dense > layers:
        raise fields.wrong(name, f"at most the {layers} layers")
    if isinstance(fields.get("moe_layer_freq"), list):
        return [each == 1 for each in fields.listed("moe_layer_freq", length=layers, known=(0, 1))]
    every, step = fields.whole_or(1, "moe_layer_freq"), fields.whole_or(1, "decoder_sparse_step")
    plain = fields.indices("mlp_only_layers")
    return [
        layer >= dense and layer % every == 0 and (layer + 1) % step == 0 and layer not in plain
        for layer in range(layers)
    ]


def all_but_every(interval: int, layers: int) -> list[bool]:
    """True but for the last of every `interval` layers."""
    return [(layer + 1) % interval != 0 for layer in range(layers)]
