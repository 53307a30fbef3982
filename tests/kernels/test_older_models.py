"""config.json files of families after GPT-2, whose fields have other names, and of families with few fields."""

from __future__ import annotations

from typing import Any

import pytest

from kernels import models
from kernels.model_config import BadConfig, from_config, read
from kernels.model_config.quantization import checkpoint

LEARNED: dict[str, tuple[int, int]] = {
    # parameters as transformers 5.24.0 counts its model with the defaults of its class on the meta device, and how many
    # positions have a learned vector of their own there, which are not counted here
    "gpt2": (124_439_808, 1024),
    "gpt_bigcode": (111_446_784, 1024),
    "gpt_neo": (1_315_575_808, 2048),
    "biogpt": (346_763_264, 1026),
    "opt": (125_239_296, 2050),
}


@pytest.mark.parametrize("model_type", LEARNED)
def test_all_but_learned_positions_is_counted(model_type: str) -> None:
    total, positions = LEARNED[model_type]
    found = from_config({"text_config": {"model_type": model_type}})
    assert models.parameters(found) + positions * found.hidden == pytest.approx(total, rel=2e-3)
    assert not found.gated_ffn


GPT: dict[str, Any] = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257}


def test_fields_of_other_names_are_read_and_named_as_the_file_names_them() -> None:
    """GPT-2 XL: 1.56 B parameters, 48 layers of 12 x 1600^2 and the embedding."""
    found = from_config(GPT | {"n_inner": None, "n_positions": 1024})
    assert models.parameters(found) == 48 * 12 * 1600**2 + 50257 * 1600
    assert (found.heads, found.head_dim, found.ffn, found.max_context) == (25, 64, 6400, 1024)
    assert from_config(GPT | {"n_inner": 4000}).ffn == 4000
    with pytest.raises(BadConfig, match="field 'n_embd' is 0, not a positive whole number"):
        from_config(GPT | {"n_embd": 0})
    with pytest.raises(BadConfig, match="field 'n_layer' is missing"):
        from_config({name: value for name, value in GPT.items() if name != "n_layer"})


def test_starcoder_has_one_kv_head_and_gpt_neo_a_window_in_every_second_layer() -> None:
    """StarCoder: 40 layers, 48 heads of 128, one of them for keys and values."""
    sizes = {"n_embd": 6144, "n_layer": 40, "n_head": 48, "n_inner": 24576, "n_positions": 8192, "vocab_size": 49152}
    one = from_config({"model_type": "gpt_bigcode", "multi_query": True, **sizes})
    assert models.kv_bytes_per_token(one, 2) == 40 * 2 * 128 * 2
    many = from_config({"model_type": "gpt_bigcode", "multi_query": False, **sizes})
    assert models.kv_bytes_per_token(many, 2) == 48 * models.kv_bytes_per_token(one, 2)
    neo = {"model_type": "gpt_neo", "hidden_size": 2048, "num_layers": 24, "num_heads": 16, "vocab_size": 50257}
    listed = neo | {"attention_layers": ["global", "local", "local"] * 8, "window_size": 128}
    assert (from_config(neo).window, from_config(neo).windowed_layers) == (256, 12)
    assert (from_config(listed).window, from_config(listed).windowed_layers) == (128, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model_type": "opt", "word_embed_proj_dim": 512},
            "'word_embed_proj_dim' is 512, not the 768 of 'hidden_size'",
        ),
        ({"model_type": "mpt", "attn_config": {"attn_type": "multiquery_attention"}}, "'attn_type' is 'multiquery_att"),
        (
            {"model_type": "qwen3", "per_layer_config": {"05": {"head_dim": 512}}},
            "'per_layer_config' gives some layers",
        ),
    ],
)
def test_what_would_be_counted_wrongly_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        from_config({"text_config": given})


def test_mellum_has_windows_only_where_its_layers_are_listed() -> None:
    kinds = ["full_attention", *["sliding_attention"] * 3] * 7
    assert from_config({"text_config": {"model_type": "mellum"}}).windowed_layers == 0
    assert from_config({"text_config": {"model_type": "mellum", "layer_types": kinds}}).windowed_layers == 21


def test_the_sizes_of_olmo_hybrid_follow_from_its_heads() -> None:
    """24 of 32 layers keep a state: 30 heads of 96 x 192 in fp32, and 3 inputs of 2 x 2880 + 5760 in 16 bits."""
    found = from_config({"text_config": {"model_type": "olmo_hybrid"}})
    assert found.state_bytes_per_request == 24 * (30 * 96 * 192 * 4 + 3 * (2 * 2880 + 5760) * 2)
    assert found.attention_layers == 8
    assert found.gate_width == 0
    three = {"model_type": "olmo_hybrid", "num_hidden_layers": 3}
    assert from_config({"text_config": three}).attention_layers == 1, "the last layer attends where no other would"


def test_parts_that_see_or_hear_are_said_not_to_be_counted() -> None:
    given = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {"hidden_size": 1}}
    assert checkpoint(given, read(given)).notes == ("not counted: what sees or hears (vision_config)",)
    assert checkpoint(given["text_config"], read(given["text_config"] | GEMMA)).notes == ()


GEMMA = {"hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "intermediate_size": 9216} | {
    "num_key_value_heads": 4,
    "vocab_size": 262208,
}
