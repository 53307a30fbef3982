"""Shapes against the parameter counts that their publishers give, and config.json files against the shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from kernels import model_config, models
from kernels.model_config import BadConfig, from_config
from kernels.models import MODELS, ModelShape, UnknownModel, model
from tests.support import ROOT
from tests.support.properties import given, settings, st

PUBLISHED_PARAMETERS = {
    # exact numbers are the elements of the published weights, as public lists give them; they include norms, biases
    # and the rotary frequencies of Llama 2, which our count does not
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-2-7b": 6_738_417_664,
    "llama-2-70b": 68_976_653_312,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8.19e9,  # as its checkpoint is listed on Hugging Face, in three digits
    "qwen3-32b": 32_762_123_264,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "gemma-3-27b": 27.016e9,  # arXiv 2503.19786, table 1: 25,600 M + 1,416 M embedding, without the vision encoder
    "gpt-oss-20b": 20.91e9,  # arXiv 2508.10925, table 1, also for the active parameters below
    "gpt-oss-120b": 116.83e9,
    "qwen3-next-80b-a3b": 79_674_391_296,  # the elements of transformers' class, as tests/data/configs has them
    "qwen3.5-35b-a3b": 34_660_610_688,  # likewise
    "granite-4.0-h-small": 59.99 * 2**30 / 2,  # GiB of its files in bf16; its card says 32B, 9B of them active
    # the elements of transformers' classes of these files, built on the meta device; Falcon-H1 with its sizes
    "nemotron-3-nano-30b-a3b": 31.578e9,
    "nemotron-h-56b": 56.324e9,
    "falcon-h1-0.5b": 521_411_104,
    "jamba-v0.1": 51_570_323_328,  # likewise
    "kimi-linear-48b-a3b": 49_122_675_072,  # likewise, with the 7 layers that attend in its published file
    "mamba-130m": 129_135_360,  # likewise
    "falcon-mamba-7b": 7_272_665_088,  # likewise, with the sizes of its published file
    "mamba-codestral-7b": 7_285_403_648,  # likewise, with the defaults of its class
    "deepseek-v3": 671e9,  # README_WEIGHTS of deepseek-ai/DeepSeek-V3: main model, 36.6e9 of them active
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_published_one(name):
    """Decays and convolutions, which are not counted, are a thousandth and more of Mamba."""
    loose = {"mamba-130m": 1e-2, "falcon-mamba-7b": 3e-3}.get(name, 1e-3)
    assert models.parameters(MODELS[name]) == pytest.approx(PUBLISHED_PARAMETERS[name], rel=loose)


@pytest.mark.parametrize(
    ("name", "active"), [("gpt-oss-20b", 3.61e9), ("gpt-oss-120b", 5.13e9), ("deepseek-v3", 36.6e9)]
)
def test_active_parameters_are_the_published_ones(name, active):
    assert models.active_parameters(MODELS[name]) == pytest.approx(active, rel=2e-3)


def test_dense_models_activate_all_but_the_embedding():
    shape = model("llama-3.1-70b")
    assert models.active_parameters(shape) == models.parameters(shape) - 128256 * 8192
    tied = model("gemma-3-27b")
    assert models.active_parameters(tied) == models.parameters(tied)


def test_projections_of_llama_70b():
    assert models.projections(model("Llama-3.1-70B")) == {
        "q": (8192, 8192),
        "k": (1024, 8192),
        "v": (1024, 8192),
        "o": (8192, 8192),
        "gate": (28672, 8192),
        "up": (28672, 8192),
        "down": (8192, 28672),
        "lm_head": (128256, 8192),
    }


def test_projections_of_deepseek_are_those_of_mla_and_one_expert():
    found = models.projections(model("deepseek-v3"))
    assert found["q_a"] == (1536, 7168)
    assert found["q_b"] == (128 * (128 + 64), 1536)
    assert found["kv_a"] == (512 + 64, 7168)
    assert found["kv_b"] == (128 * (128 + 128), 512)
    assert found["gate"] == (2048, 7168)
    assert found["router"] == (256, 7168)


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("llama-3.1-70b", 80 * 2 * 8 * 128 * 2),  # 327,680
        ("llama-2-7b", 32 * 2 * 32 * 128 * 2),  # MHA: 524,288, more than the 70B with GQA
        ("deepseek-v3", 61 * (512 + 64) * 2),  # 70,272
        ("gpt-oss-120b", 36 * 2 * 8 * 64 * 2),
    ],
)
def test_kv_bytes_per_token_by_hand(name, per_token):
    assert models.kv_bytes_per_token(model(name), 2) == per_token


def test_sliding_windows_bound_the_cache():
    mistral = model("mistral-7b")
    assert models.kv_bytes(mistral, 4096, 2) == models.kv_bytes(mistral, 3_000_000, 2) == 4096 * 131072
    assert models.kv_bytes(mistral, 1000, 2) == 1000 * 131072
    oss = model("gpt-oss-20b")  # 12 of 24 layers keep 128 tokens
    assert models.kv_bytes(oss, 10_000, 1) == (12 * 10_000 + 12 * 128) * 2 * 8 * 64
    dense = model("llama-3.1-8b")
    assert models.kv_bytes(dense, 8192, 2) == 2 * models.kv_bytes(dense, 4096, 2)


def test_unknown_model_names_the_nearest():
    with pytest.raises(UnknownModel, match=r"unknown model 'llama3-70b'; nearest: .*llama-3.1-70b"):
        model("llama3-70b")
    with pytest.raises(UnknownModel, match=r"known: llama-3\.1-8b"):
        model("@@@@")


SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


def config(model_type: str, sizes: tuple[int, ...], **more: object) -> dict[str, Any]:
    return {"model_type": model_type, **dict(zip(SIZES, sizes, strict=False)), **more}


LLAMA_70B = config("llama", (80, 8192, 64, 8, 28672, 128256, 131072), tie_word_embeddings=False)
MISTRAL = config("mistral", (32, 4096, 32, 8, 14336, 32000, 32768), tie_word_embeddings=False, sliding_window=4096)
MIXTRAL = {"model_type": "mixtral", "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN_MOE = {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
CONFIGS = {
    "llama-3.1-70b": LLAMA_70B,
    "mistral-7b": MISTRAL,
    "mixtral-8x7b": MISTRAL | MIXTRAL,
    "qwen2.5-7b": config(
        "qwen2",
        (28, 3584, 28, 4, 18944, 152064, 131072),
        sliding_window=131072,
        use_sliding_window=False,
        max_window_layers=28,
    ),
    "qwen3-32b": config(
        "qwen3",
        (64, 5120, 64, 8, 25600, 151936, 40960),
        head_dim=128,
        sliding_window=None,
        use_sliding_window=False,
    ),
    "gemma-3-27b": {
        "model_type": "gemma3",
        "text_config": config("gemma3_text", (62, 5376, 32, 16, 21504), head_dim=128, sliding_window=1024),
    },
    "gpt-oss-120b": config(
        "gpt_oss",
        (36, 2880, 64, 8, 2880, 201088, 131072),
        head_dim=64,
        sliding_window=128,
        num_local_experts=128,
        num_experts_per_tok=4,
        layer_types=["sliding_attention", "full_attention"] * 18,
    ),
    "deepseek-v3": config(
        "deepseek_v3",
        (61, 7168, 128, 128, 18432, 129280, 163840),
        kv_lora_rank=512,
        q_lora_rank=1536,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_shared_experts=1,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
    ),
    "qwen3-next-80b-a3b": config(
        "qwen3_next",
        (48, 2048, 16, 2, 5120, 151936, 262144),
        head_dim=256,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
    ),
    "qwen3.5-35b-a3b": json.loads((ROOT / "tests/data/configs/Qwen--Qwen3.5-35B-A3B.json").read_text()),
    "granite-4.0-h-small": config(
        "granitemoehybrid",
        (40, 4096, 32, 8, 768, 100352, 131072),
        num_local_experts=72,
        num_experts_per_tok=10,
        shared_intermediate_size=1536,
        mamba_d_state=128,
        tie_word_embeddings=True,
        layer_types=(["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    ),
}
"""The fields of published config.json files that a shape needs."""


@pytest.mark.parametrize("name", CONFIGS)
def test_config_gives_the_known_shape(name):
    read, known = from_config(CONFIGS[name], name=name), MODELS[name]
    assert {k: v for k, v in vars(read).items() if k != "source"} == {
        k: v for k, v in vars(known).items() if k != "source"
    }


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size"])
def test_missing_field_is_named(field):
    with pytest.raises(BadConfig, match=f"field '{field}' is missing"):
        from_config({k: v for k, v in LLAMA_70B.items() if k != field})


def test_wrong_fields_are_named():
    with pytest.raises(BadConfig, match="'model_type' is missing"):
        from_config({})
    with pytest.raises(BadConfig, match=r"model_type 'wkv' is not known; the nearest of the \d+"):
        from_config({"model_type": "wkv"})
    with pytest.raises(BadConfig, match="model_type 'bert' is an encoder or has one: only decoders are read"):
        from_config({"model_type": "bert"})
    with pytest.raises(BadConfig, match="'hidden_size' is '8192', not a positive whole number"):
        from_config(LLAMA_70B | {"hidden_size": "8192"})
    with pytest.raises(BadConfig, match="'num_attention_heads' is 0"):
        from_config(LLAMA_70B | {"num_attention_heads": 0})
    with pytest.raises(BadConfig, match="'num_local_experts' is missing"):
        from_config(MISTRAL | {"model_type": "mixtral"})
    with pytest.raises(BadConfig, match="'q_lora_rank' is '1536', not a positive whole number"):
        from_config(CONFIGS["deepseek-v3"] | {"q_lora_rank": "1536"})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral-7b", {"layer_types": 5}, "'layer_types' is 5, not a list of 32"),
        ("gpt-oss-120b", {"layer_types": ["full_attention"] * 35}, "not a list of 36, each sliding_attention or full"),
        ("gpt-oss-120b", {"layer_types": ["linear_attention"] * 36}, "'layer_types' is"),
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": "a"}, "'max_window_layers' is 'a', not a pos"),
        ("qwen2.5-7b", {"use_sliding_window": "no"}, "'use_sliding_window' is 'no', not true or false"),
        ("llama-3.1-70b", {"attn_logit_softcapping": "a"}, "'attn_logit_softcapping' is 'a', not a number"),
        ("llama-3.1-70b", {"attn_logit_softcapping": float("nan")}, "'attn_logit_softcapping' is nan, not a number"),
        ("llama-3.1-70b", {"tie_word_embeddings": "no"}, "'tie_word_embeddings' is 'no', not true or false"),
        ("llama-3.1-70b", {"num_key_value_heads": 3}, "'num_attention_heads' is 64, not a multiple of the 3 of 'num_k"),
        ("llama-3.1-70b", {"num_key_value_heads": 128}, "'num_attention_heads' is 64, not a multiple of the 128"),
        ("llama-3.1-70b", {"hidden_size": 8193}, "'hidden_size' is 8193, not a multiple of the 64 of 'num_attention"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "'num_experts_per_tok' is 9, not at most the 8 experts"),
        ("qwen3-32b", QWEN_MOE | {"mlp_only_layers": ["a"]}, "'mlp_only_layers' is ['a'], not a list of whole numbers"),
        ("qwen3-32b", QWEN_MOE | {"decoder_sparse_step": "2"}, "'decoder_sparse_step' is '2', not a positive whole"),
        ("deepseek-v3", {"first_k_dense_replace": 62}, "'first_k_dense_replace' is 62, not at most the 61 layers"),
    ],
)
def test_nonsense_is_one_line_that_names_the_field(name, changes, message):
    with pytest.raises(BadConfig) as caught:
        from_config(CONFIGS[name] | changes)
    assert str(caught.value).startswith("config.json: field ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "billions", "kv_per_token"),
    [
        (config("gemma3_text", (48, 3840, 16, 8, 15360)), 11.766, 2 * 48 * 8 * 256),
        ({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}, 3.880, 2 * 34 * 4 * 256),
    ],
    ids=["12b", "4b"],
)
def test_gemma_leaves_out_what_its_class_has_by_default(fields, billions, kv_per_token):
    """Text parameters as KerasHub counts them, without norms. A head is not as wide as hidden size / heads."""
    text = fields | {"model_type": "gemma3_text", "sliding_window": 1024}
    shape = from_config({"model_type": "gemma3", "text_config": text})
    assert models.parameters(shape) == pytest.approx(billions * 1e9, rel=1e-3)
    assert models.kv_bytes_per_token(shape, 2) == 2 * kv_per_token


def test_a_pattern_of_no_layers_is_refused():
    text = CONFIGS["gemma-3-27b"]["text_config"] | {"sliding_window_pattern": 0}
    with pytest.raises(BadConfig, match="'sliding_window_pattern' is 0, not a positive whole number"):
        from_config({"model_type": "gemma3", "text_config": text})


def test_heads_need_not_share_the_hidden_size_where_their_width_is_given():
    assert from_config(CONFIGS["qwen3-32b"] | {"hidden_size": 5121}).head_dim == 128
    assert from_config(CONFIGS["deepseek-v3"] | {"hidden_size": 7169}).head_dim == 128


LAYER_TYPES = st.lists(st.sampled_from(["sliding_attention", "full_attention", 5, None]), max_size=3)
PLAIN = (st.none(), st.booleans(), st.integers(-2, 300), st.floats(), st.text(max_size=3))
VALUES = st.one_of(*PLAIN, st.just([]), st.just({}), LAYER_TYPES)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_a_file_holds_there_is_a_shape_or_one_line(data):
    flat = [config.get("text_config", config) for config in CONFIGS.values()]
    config = data.draw(st.sampled_from(flat))
    fields = sorted({field for each in flat for field in each} | {"sliding_window_pattern", "attn_logit_softcapping"})
    config = config | data.draw(st.dictionaries(st.sampled_from(fields), VALUES, max_size=3))
    shape = read_or_refused(config)
    if isinstance(shape, str):
        assert shape.startswith("config.json: ")
        assert "\n" not in shape
    else:
        assert models.parameters(shape) > 0
        assert (models.kv_bytes(shape, 1000, 2) > 0) == (shape.attention_layers > 0)
        assert 0 <= shape.windowed_layers <= shape.layers


def test_layers_without_experts_are_dense():
    """Qwen3-MoE names them, or has experts in every second layer; DeepSeek's files have `moe_layer_freq`."""
    moe = CONFIGS["qwen3-32b"] | QWEN_MOE
    assert from_config(moe).moe_layers == 64
    assert from_config(moe | {"mlp_only_layers": [0, 5]}).moe_layers == 62
    assert from_config(moe | {"decoder_sparse_step": 2}).moe_layers == 32
    assert from_config(CONFIGS["deepseek-v3"] | {"moe_layer_freq": 2}).moe_layers == 29  # 4, 6, ... 60
    assert from_config(CONFIGS["deepseek-v3"] | {"moe_layer_freq": [0] * 11 + [1] * 50}).moe_layers == 50


def read_or_refused(config: dict[str, object]) -> ModelShape | str:
    try:
        return from_config(config)
    except BadConfig as error:
        return str(error)


def test_a_family_is_one_class(monkeypatch):
    monkeypatch.setattr(model_config.families, "FAMILIES", dict(model_config.FAMILIES))
    with pytest.raises(BadConfig, match="model_type 'planted' is not known"):
        from_config(LLAMA_70B | {"model_type": "planted"})

    class Planted(model_config.Family):
        model_types = ("planted",)
        dims: ClassVar = {"layers": ("depth",)}
        defaults: ClassVar = {"sliding_window": 256}

        @staticmethod
        def windowed(fields, layers):
            return layers // 3

    shape = from_config(LLAMA_70B | {"model_type": "planted", "depth": 12})
    assert (shape.layers, shape.window, shape.windowed_layers, shape.heads) == (12, 256, 4, 64)


def test_families_differ_in_their_windows():
    assert from_config(MISTRAL | {"sliding_window": None}).windowed_layers == 0
    assert from_config(MISTRAL | {"layer_types": None}).windowed_layers == 32
    listed = {k: v for k, v in CONFIGS["gpt-oss-120b"].items() if k != "layer_types"}
    assert from_config(listed).windowed_layers == 18
    sliding = CONFIGS["qwen2.5-7b"] | {"use_sliding_window": True, "max_window_layers": 20}
    assert from_config(sliding).windowed_layers == 8
    assert from_config(sliding | {"max_window_layers": None}).windowed_layers == 0
    assert from_config(sliding | {"max_window_layers": 0}).windowed_layers == 28


def test_predictions_need_neither_torch_nor_triton():
    code = (
        "import sys, bench.predict.command, kernels.models; print({'torch', 'triton', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
