"""Public config.json files, read into shapes: parameters, caches and states against what others count or publish."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kernels import models
from kernels.model_config import BadConfig, from_config, read
from kernels.models import ModelShape
from tests.support import ROOT

CONFIGS = ROOT / "tests/data/configs"
CLASSES: dict[str, int] = json.loads((CONFIGS / "parameters_of_classes.json").read_text())


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def shape(name: str) -> ModelShape:
    return from_config(config(name))


@pytest.mark.parametrize("model_type", CLASSES)
def test_class_defaults_have_as_many_parameters_as_the_model_of_transformers(model_type: str) -> None:
    """An empty text config has all defaults of its class. Norms, biases and convolutions are not counted here."""
    given = {"num_experts_per_tok": 6} if model_type == "deepseek_v2" else {}
    read_shape = from_config({"text_config": {"model_type": model_type, **given}})
    assert models.parameters(read_shape) == pytest.approx(CLASSES[model_type], rel=3e-3)


PUBLISHED: dict[str, tuple[float, float, int]] = {
    # total and active parameters in 1e9, bytes of KV cache per token in bf16. Totals are those of transformers' models
    # of these files on the meta device. Active ones are those of the model cards, which round, less the embedding where
    # they count it: Qwen3-30B-A3B 3.3, Mixtral 12.9, Llama-4-Scout 17. DeepSeek-V3: 37 (36.6 in its README_WEIGHTS)
    "meta-llama--Meta-Llama-3.1-8B": (8.030, 7.505, 131_072),
    "meta-llama--Meta-Llama-3.1-70B": (70.554, 69.502, 327_680),
    "Qwen--Qwen3-8B": (8.191, 7.568, 147_456),
    "Qwen--Qwen3-30B-A3B": (30.532, 3.353 - 0.311, 98_304),
    "mistralai--Mixtral-8x7B-v0.1": (46.703, 12.88 - 0.131, 131_072),
    "deepseek-ai--DeepSeek-V2-Lite": (15.706, 2.45, 31_104),
    "deepseek-ai--DeepSeek-V3": (671.026, 36.6, 70_272),
    "deepseek-ai--DeepSeek-V3.2": (671.878, 37.48, 70_272 + 61 * 132),  # an fp8 key of 128 and its fp32 scale
    "openai--gpt-oss-20b": (20.915, 3.61, 49_152),
    "openai--gpt-oss-120b": (116.829, 5.13, 73_728),
    "google--gemma-3-12b-it": (11.766, 11.766, 393_216),
    "moonshotai--Kimi-K2-Instruct": (1026.408, 32.86 - 1.174, 70_272),
    "Qwen--Qwen3.5-35B-A3B": (34.661, 2.945, 10 * 2 * 2 * 256 * 2),
    "default--qwen3_next": (79.674, 3.562, 12 * 2 * 2 * 256 * 2),
    "default--jamba": (51.570, 11.836, 4 * 2 * 8 * 128 * 2),
    "default--falcon_h1": (8.515, 7.990, 32 * 2 * 8 * 128 * 2),
    "default--granitemoehybrid": (38.601, 12.497, 0),
    "default--gemma2": (2.614, 2.614, 26 * 2 * 4 * 256 * 2),
    "default--glm4_moe": (103.481, 9.432, 46 * 2 * 8 * 42 * 2),  # 4096 // 96 heads
    "default--olmoe": (13.362, 1.984, 16 * 2 * 16 * 128 * 2),
    "default--phi3": (3.821, 3.722, 32 * 2 * 32 * 96 * 2),
    "meta-llama--Llama-4-Scout-17B-16E-Instruct": (107.770, 17.17 - 1.035, 196_608),
    "MiniMaxAI--MiniMax-M2.5": (228.690, 10.415, 253_952),
    "nvidia--Nemotron-H-56B-Base-8K": (56.324, 55.243, 10 * 2 * 8 * 128 * 2),
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.578, 3.227, 6 * 2 * 2 * 128 * 2),
    "zai-org--GLM-5": (743.911, 40.83, 78 * (576 * 2 + 132)),
    "Qwen--Qwen3-VL-8B-Instruct": (8.191, 7.568, 147_456),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_kv_bytes_are_the_published_ones(name: str) -> None:
    total, active, kv = PUBLISHED[name]
    found = shape(name)
    assert models.parameters(found) == pytest.approx(total * 1e9, rel=1e-3)
    assert models.active_parameters(found) == pytest.approx(active * 1e9, rel=1e-2)
    assert models.kv_bytes_per_token(found, 2) == kv


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # 36 layers x (32 heads x 128 x 128 in fp32 + 3 inputs of 2 x 2048 + 4096 in 16 bits)
        ("default--qwen3_next", 36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)),
        ("Qwen--Qwen3.5-35B-A3B", 30 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)),
        # 23 layers x (64 heads x 64 x 128 in fp32 + 3 inputs of 4096 + 2 x 8 x 128)
        ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 23 * (64 * 64 * 128 * 4 + 3 * 6144 * 2)),
        ("nvidia--Nemotron-H-56B-Base-8K", 54 * (256 * 64 * 256 * 4 + 3 * (16384 + 4096) * 2)),
        # 28 layers x (8192 channels x 16 in fp32 + 3 inputs of 8192)
        ("default--jamba", 28 * (8192 * 16 * 4 + 3 * 8192 * 2)),
        # every layer: 1024 channels x 256, and 3 inputs of 1024 + 2 x 256
        ("default--falcon_h1", 32 * (1024 * 256 * 4 + 3 * 1536 * 2)),
        ("default--granitemoehybrid", 32 * (8192 * 256 * 4 + 3 * 8704 * 2)),
        ("meta-llama--Meta-Llama-3.1-8B", 0),
    ],
)
def test_state_bytes_of_hybrids_by_hand(name: str, by_hand: int) -> None:
    assert shape(name).state_bytes_per_request == by_hand


def test_only_layers_with_attention_keep_a_cache() -> None:
    nemotron = shape("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")  # MEMEM*E...: 23 M, 6 *, 23 E
    assert (nemotron.attention_layers, nemotron.moe_layers, nemotron.dense_ffn_layers) == (6, 23, 0)
    assert nemotron.state_mixer is not None
    assert nemotron.state_mixer.layers == 23
    dense = shape("nvidia--Nemotron-H-56B-Base-8K")
    assert (dense.attention_layers, dense.moe_layers, dense.dense_ffn_layers) == (10, 0, 54)
    falcon = shape("default--falcon_h1")
    assert (falcon.attention_layers, falcon.state_mixer and falcon.state_mixer.layers) == (32, 32)
    jamba = shape("default--jamba")
    assert (jamba.attention_layers, jamba.moe_layers, jamba.dense_layers) == (4, 16, 16)


def test_the_head_of_nemotron_h_is_never_tied() -> None:
    """Its class in transformers has two matrices with `tie_word_embeddings` true: a quarter of a small model."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "NemotronHConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no NemotronHConfig")
    sizes = {"vocab_size": 8000, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 256}
    sizes |= {"num_key_value_heads": 2, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2}
    given = sizes | {"hybrid_override_pattern": "M-*-", "tie_word_embeddings": True}
    with torch.device("meta"):
        model = transformers.NemotronHForCausalLM(transformers.NemotronHConfig(**given))
    model.tie_weights()
    found = from_config(given | {"model_type": "nemotron_h"})
    assert models.parameters(found) == pytest.approx(sum(each.numel() for each in model.parameters()), rel=0.01)


def test_a_state_may_be_kept_in_16_bits() -> None:
    given = config("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    assert from_config(given | {"mamba_ssm_cache_dtype": "bfloat16"}).state_bytes_per_request == 23 * (
        64 * 64 * 128 * 2 + 3 * 6144 * 2
    )


@pytest.mark.parametrize(
    ("name", "window", "layers"),
    [
        ("google--gemma-3-12b-it", 1024, 40),
        ("default--gemma2", 4096, 13),
        ("openai--gpt-oss-120b", 128, 18),
        ("meta-llama--Llama-4-Scout-17B-16E-Instruct", 8192, 36),
        ("gemma3-no-window", 4096, 22),  # the default of Gemma3TextConfig
        ("mistral-no-window", 4096, 32),  # the default of MistralConfig
        ("Qwen--Qwen3-8B", 0, 0),
    ],
)
def test_windows(name: str, window: int, layers: int) -> None:
    assert (shape(name).window, shape(name).windowed_layers) == (window, layers)


def test_a_family_is_read_by_its_fields() -> None:
    """transformers 5 writes the experts of Qwen3-MoE as `num_local_experts`; Kimi-K2's fields are DeepSeek-V3's."""
    again, first = shape("qwen3-30b-a3b-saved-by-transformers-5"), shape("Qwen--Qwen3-30B-A3B")
    assert models.parameters(again) == models.parameters(first)
    kimi = config("moonshotai--Kimi-K2-Instruct")
    assert from_config(kimi | {"model_type": "deepseek_v3"}, name="k") == from_config(kimi, name="k")


def test_class_defaults_fill_what_a_file_lacks() -> None:
    assert shape("qwen3-32b-no-head-dim").head_dim == 128  # not 5120 / 64
    assert shape("qwen3-32b-no-head-dim").windowed_layers == 0
    flat = {key: value for key, value in config("Qwen--Qwen3-8B").items() if key != "num_hidden_layers"}
    with pytest.raises(BadConfig, match="'num_hidden_layers' is missing"):  # a flat file always has its sizes
        from_config(flat)


def test_rope_scaling_extends_the_longest_context() -> None:
    assert shape("qwen3-32b-yarn").max_context == 4 * 32_768
    assert shape("deepseek-ai--DeepSeek-V3").max_context == 40 * 4096
    assert shape("google--gemma-3-12b-it").max_context == 131_072  # its longest includes the factor 8
    linear = config("Qwen--Qwen3-8B") | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    assert from_config(linear).max_context == 2 * 40_960
    listed = config("Qwen--Qwen3-8B") | {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 8.0}}}
    assert from_config(listed).max_context == 8 * 40_960
    with pytest.raises(BadConfig, match="'factor' is inf, not a number from 0 on"):
        from_config(linear | {"rope_scaling": {"type": "yarn", "factor": float("inf")}})


def test_layers_with_a_window_may_have_other_heads() -> None:
    """Laguna: 48 query heads in full layers, 64 in those with a window; MiMo: 4 and 8 KV heads, values of 128."""
    kinds = ["full_attention", "sliding_attention"] * 20
    laguna = {"model_type": "laguna", "layer_types": kinds, "num_attention_heads_per_layer": [48, 64] * 20}
    found = dict(from_config({"text_config": laguna}).attention_kinds())
    assert [(kind.layers, kind.heads) for kind in found.values()] == [(20, 48), (20, 64)]
    mimo = {"model_type": "mimo_v2_flash", "hybrid_layer_pattern": [0, *[1] * 5] * 8, "swa_num_key_value_heads": 8}
    shape = from_config({"text_config": mimo})
    assert models.kv_bytes(shape, 1000, 2) == 8 * 1000 * 4 * 320 * 2 + 40 * 128 * 8 * 320 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000, not at most 10,000"),
        ({"num_hidden_layers": 10**400}, "not at most 10,000"),
        ({"vocab_size": 10**12}, "'vocab_size' is 1000000000000, not at most 2,147,483,648"),
        ({"model_type": ["llama"]}, "model_type \"['llama']\" is not known"),
        ({"model_type": "deepseek_v5"}, "model_type 'deepseek_v5' is not known; the nearest of the"),
        ({"text_config": [1]}, "field 'text_config' is not an object"),
        ({"rope_scaling": 3}, "'rope_scaling' is 3, not an object"),
    ],
)
def test_what_cannot_be_read_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        from_config(config("meta-llama--Meta-Llama-3.1-8B") | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_of_mla_need_not_be_shared_evenly() -> None:
    """MLA has no KV heads, whatever the file says of them."""
    given = config("deepseek-ai--DeepSeek-V3") | {"num_key_value_heads": 100}
    assert models.parameters(from_config(given)) == models.parameters(shape("deepseek-ai--DeepSeek-V3"))


def test_nemotron_h_has_a_head_of_its_own_whatever_it_says() -> None:
    """`_tied_weights_keys` of its class in transformers is empty, so the field ties nothing."""
    given = config("nvidia--Nemotron-H-56B-Base-8K")
    tied = from_config(given | {"tie_word_embeddings": True})
    assert models.parameters(tied) == models.parameters(from_config(given))
    assert not tied.tied_embeddings


def test_falcon_has_one_kv_head_unless_it_says_otherwise() -> None:
    """The sizes of Falcon-7B and Falcon-40B."""
    sizes = {"model_type": "falcon", "num_hidden_layers": 32, "vocab_size": 65024, "hidden_size": 4544}
    small = from_config(sizes | {"num_attention_heads": 71, "num_kv_heads": 71, "multi_query": True})
    assert (small.kv_heads, small.head_dim, small.ffn, small.tied_embeddings) == (1, 64, 4 * 4544, True)
    sizes |= {"num_hidden_layers": 60, "hidden_size": 8192, "new_decoder_architecture": True, "multi_query": True}
    large = from_config(sizes | {"num_attention_heads": 128, "num_kv_heads": 8})
    assert (large.kv_heads, large.head_dim, large.ffn) == (8, 64, 4 * 8192)


def test_a_list_may_repeat_a_number_for_each_layer() -> None:
    """As in files of Hunyuan-A13B; each of its experts, the shared one too, is as wide as `intermediate_size`."""
    sizes = {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 4, "hidden_size": 512, "vocab_size": 1000}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048}
    sizes |= {"intermediate_size": 768, "num_experts": 8, "moe_topk": [2] * 4, "tie_word_embeddings": True}
    found = from_config(sizes)
    attention = 512 * (512 + 2 * 128 + 512)
    assert models.parameters(found) == 1000 * 512 + 4 * (attention + 8 * 512 + 9 * 3 * 512 * 768)
    assert found.experts_per_token == 2
    with pytest.raises(BadConfig, match=r"'moe_topk' is \[1, 2, 2, 2\], not a positive whole number"):
        from_config(sizes | {"moe_topk": [1, 2, 2, 2]})


def test_every_layer_is_told_apart() -> None:
    reading = read(config("default--jamba"))
    mixers = [layer.mixer for layer in reading.layers]
    assert [number for number, mixer in enumerate(mixers) if mixer == "attention"] == [4, 12, 20, 28]
    assert [layer.ffn for layer in reading.layers[:4]] == ["dense", "moe", "dense", "moe"]


MAMBA: dict[str, tuple[dict[str, Any], float, int]] = {
    # parameters in 1e9 as transformers 5.24.0 counts its model of these fields on the meta device; state bytes of a
    # request by hand: layers x (channels x state in fp32 + channels x 3 inputs of the convolution in 16 bits)
    "mamba-130m": (
        {"model_type": "mamba", "num_hidden_layers": 24, "intermediate_size": 1536},
        0.129135,
        24 * (1536 * 16 * 4 + 1536 * 3 * 2),
    ),
    "mamba-2.8b": (
        {"model_type": "mamba", "hidden_size": 2560, "num_hidden_layers": 64, "time_step_rank": 160},
        2.768346,
        64 * (5120 * 16 * 4 + 5120 * 3 * 2),
    ),
    "falcon-mamba-7b": (
        {"model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 65024}
        | {"tie_word_embeddings": False, "time_step_rank": 256, "expand": 16, "intermediate_size": 8192},
        7.272665,
        64 * (8192 * 16 * 4 + 8192 * 3 * 2),
    ),
    "Mamba-Codestral-7B-v0.1": (
        {"model_type": "mamba2"},
        7.285404,
        64 * (8192 * 128 * 4 + (8192 + 2 * 8 * 128) * 3 * 2),
    ),
}


@pytest.mark.parametrize("name", MAMBA)
def test_models_without_attention(name: str) -> None:
    given, billions, state = MAMBA[name]
    found = from_config({"text_config": given})
    assert models.parameters(found) == pytest.approx(billions * 1e9, rel=0.01)
    assert found.state_bytes_per_request == state
    assert (found.attention_layers, models.kv_bytes_per_token(found, 2)) == (0, 0)


def test_a_step_without_attention_is_the_same_at_every_context() -> None:
    from bench.devices import find
    from bench.predict.step_model import step

    found = from_config({"text_config": MAMBA["Mamba-Codestral-7B-v0.1"][0]})
    short, long = (step(found, device=find("h100-sxm"), batch=8, context=tokens) for tokens in (128, 1 << 20))
    assert short.seconds == long.seconds
    state = MAMBA["Mamba-Codestral-7B-v0.1"][2]
    assert short.seconds > (2 * models.active_parameters(found) + 8 * state) / 3.35e12
    with pytest.raises(BadConfig, match="num_heads"):
        from_config({"text_config": {"model_type": "mamba2", "num_heads": "many"}})
