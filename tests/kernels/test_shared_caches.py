"""Models whose later layers read the cache of earlier ones: Gemma 3n and 4."""

from __future__ import annotations

from typing import Any

import pytest

from bench.devices import find
from bench.predict.step_model import step
from kernels import models
from kernels.model_config import BadConfig, from_config


def gemma3n(**changes: Any) -> models.ModelShape:
    return from_config({"text_config": {"model_type": "gemma3n_text"} | changes})


def gemma4(**changes: Any) -> models.ModelShape:
    return from_config({"text_config": {"model_type": "gemma4_text"} | changes})


def test_layers_that_reuse_a_cache_keep_none() -> None:
    """Gemma 3n E4B: the first 20 of 35 layers keep 2 KV heads of 256; 16 of these have a window of 512."""
    shape = gemma3n()
    row = 2 * 2 * 256 * 2
    assert models.kv_bytes_per_token(shape, 2) == 20 * row
    assert models.kv_bytes(shape, 32_768, 2) == 4 * 32_768 * row + 16 * 512 * row
    assert shape.window == 512


def test_a_step_reads_the_cache_of_others_and_one_row_of_the_table() -> None:
    shape = gemma3n()
    found = step(shape, device=find("h100-sxm"), batch=1, context=8192)
    ops = {op.name: op for op in found.ops}
    row = 2 * 2 * 256 * 2
    assert ops["attention"].kv_bytes == 4 * 8192 * row
    assert ops["attention_reusing"].kv_bytes == 3 * 8192 * row
    assert ops["attention_window_reusing"].kv_bytes == 12 * 512 * row
    assert "kv_append_reusing" not in ops
    assert ops["layer_embedding"].work.bytes_read == 35 * 256 * 2
    table = 262_144 * 35 * 256
    assert models.parameters(shape) - models.active_parameters(shape) == table


def test_each_layer_may_have_its_width() -> None:
    wide = gemma3n(intermediate_size=[8192] * 5 + [16384] * 30)
    assert models.parameters(gemma3n()) - models.parameters(wide) == 5 * 3 * 2048 * 8192
    with pytest.raises(BadConfig, match=r"'intermediate_size' is .*, not one number, or one for each of the 35 layers"):
        gemma3n(intermediate_size=[8192] * 4)


def test_layers_without_a_window_have_other_heads() -> None:
    """Heads of 512 and 2 KV heads in one of six layers, and no matrix for values. Both are cached."""
    shape = gemma4(attention_k_eq_v=True, num_global_key_value_heads=2, hidden_size_per_layer_input=0)
    full, windowed = (kind for _, kind in shape.attention_kinds())
    assert (full.layers, full.head_dim, full.kv_heads) == (5, 512, 2)
    assert (windowed.layers, windowed.head_dim, windowed.kv_heads) == (25, 256, 4)
    assert "v" not in models.attention_projections(full)
    assert models.kv_bytes_per_token(shape, 2) == 5 * 2 * 2 * 512 * 2 + 25 * 2 * 4 * 256 * 2
    listed = {"05": {"head_dim": 512, "num_key_value_heads": 2}}
    assert dict(gemma4(per_layer_config=listed).attention_kinds())[""].kv_heads == 2
    with pytest.raises(BadConfig, match=r"'per_layer_config' is .*, not the same for all layers"):
        gemma4(per_layer_config=listed | {"11": {"head_dim": 256}})


def test_experts_stand_beside_the_ffn_of_a_layer() -> None:
    given = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    shape = gemma4(**given)
    assert models.parameters(shape) - models.parameters(gemma4()) == 30 * 2304 * 128 * (3 * 704 + 1)
    assert models.active_parameters(shape) - models.active_parameters(gemma4()) == 30 * 2304 * (8 * 3 * 704 + 128)
