"""How public checkpoints store their weights, against their published sizes; and `predict --config` on all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.predict.command import rows
from bench.predict.model_file import read_config
from bench.predict.weights import recipe
from kernels.model_config import BadConfig, read
from kernels.model_config.names import Names
from kernels.model_config.quantization import checkpoint
from kernels.models import MODELS, modules
from tests.support import ROOT

CONFIGS = ROOT / "tests/data/configs"
FILES = sorted(p for p in CONFIGS.glob("*.json") if p.stem != "parameters_of_classes")

SIZES = {
    # GB of the weight files, as the repositories on Hugging Face list them, and where else it is said
    "openai--gpt-oss-120b": 65.3,  # 60.8 GiB, table 1 of arXiv 2508.10925
    "openai--gpt-oss-20b": 13.78,  # 12.8 GiB, there; 13,780,162,412 bytes in ollama's list of models
    "hugging-quants--Llama-3.1-8B-AWQ-INT4": 5.73,  # "5.7 GB": n-shot.com/?p=6178
    "unsloth--Llama-3.1-8B-bnb-4bit": 5.70,
    "RedHatAI--Llama-3.1-8B-FP8-dynamic": 9.08,
    "Qwen--Qwen2.5-72B-Instruct-AWQ": 41.6,
    "Qwen--Qwen3-30B-A3B-FP8": 31.2,
    "MiniMaxAI--MiniMax-M2.5": 230.0,
    "moonshotai--Kimi-K2-Instruct": 1029.0,
}


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def plan_of(name: str, **changes: Any) -> Any:
    given = config(name) | changes
    return checkpoint(given, read(given))


@pytest.mark.parametrize("name", SIZES)
def test_weights_take_what_the_published_files_take(name: str) -> None:
    shape, plan, _ = read_config(CONFIGS / f"{name}.json")
    assert plan.total_bytes(shape) == pytest.approx(SIZES[name] * 1e9, rel=0.01)


def test_the_file_of_deepseek_also_holds_a_layer_that_is_not_counted() -> None:
    """688,586,727,753 bytes: one layer more for multi-token prediction, whose embedding and head are stored again."""
    shape, plan, _ = read_config(CONFIGS / "deepseek-ai--DeepSeek-V3.json")
    layer = sum(m.n * m.k * m.copies for m in modules(shape) if m.layers in (58, 61) and m.name not in ("gate", "up"))
    layer += 2 * 7168 * 7168 + 2 * 2 * 129280 * 7168
    assert plan.total_bytes(shape) + layer == pytest.approx(688.587e9, rel=2e-3)
    assert "not counted: 1 more layer for multi-token prediction" in plan.notes


@pytest.mark.parametrize(
    ("model", "weights", "published"),
    [("llama-3.1-8b", "int4", 5.7), ("llama-3.1-70b", "fp8", 72.7), ("gpt-oss-120b", "fp4", 65.3)],
)
def test_a_recipe_keeps_in_16_bits_what_checkpoints_keep(model: str, weights: str, published: float) -> None:
    row = rows(model=model, parts=["b200"], batches=[1], context=100, weights=weights)[0]
    assert row["weight_bytes"] == pytest.approx(published * 1e9, rel=0.01)
    assert any("stay in 16 bits" in note for note in row["notes"])


def test_gpt_oss_fits_where_its_publisher_says() -> None:
    """gpt-oss-120b on one H100 of 80 GB."""
    row = rows(config=CONFIGS / "openai--gpt-oss-120b.json", parts=["h100-sxm"], batches=[1], context=4096)[0]
    assert row["fits"] is True
    assert row["weights"] == "mxfp4"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_public_file_is_predicted(path: Path) -> None:
    found = rows(config=path, parts=["h200"], batches=[1, 64], context=2048)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(row["seconds"] > 0 for row in found)
    for row in found:
        assert sum(op["seconds"] for op in row["ops"]) == pytest.approx(row["seconds"])


def test_states_count_in_memory_and_time() -> None:
    """Qwen3-Next: 77 MB of states a request, read and written once a step; they do not grow with the context."""
    path = CONFIGS / "default--qwen3_next.json"
    short, long = (rows(config=path, parts=["h200"], batches=[8], context=c)[0] for c in (1024, 2048))
    states = 36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    assert short["state_bytes_per_request"] == long["state_bytes_per_request"] == states
    assert long["kv_bytes_per_request"] - short["kv_bytes_per_request"] == 1024 * 12 * 2 * 2 * 256 * 2
    ops = {op["name"]: op for op in short["ops"]}
    assert ops["state"]["bytes"] == 2 * 8 * states


def test_sparse_attention_reads_the_best_tokens_and_every_key_of_the_indexer() -> None:
    path = CONFIGS / "deepseek-ai--DeepSeek-V3.2.json"
    at = {
        c: {op["name"]: op for op in rows(config=path, parts=["b200"], batches=[1], context=c)[0]["ops"]}
        for c in (2048, 65_536)
    }
    assert at[65_536]["attention"]["bytes"] == at[2048]["attention"]["bytes"]
    assert at[65_536]["index"]["bytes"] - at[2048]["index"]["bytes"] == (65_536 - 2048) * 61 * 132


def test_an_asked_precision_overrides_the_file_and_says_so() -> None:
    path = CONFIGS / "openai--gpt-oss-20b.json"
    row = rows(config=path, parts=["h200"], batches=[1], context=100, weights="bf16")[0]
    assert row["weight_bytes"] == pytest.approx(2 * 20.9e9, rel=1e-3)
    assert "config.json stores weights as mxfp4; counted as bf16 instead" in row["notes"]


def test_lists_of_modules() -> None:
    path = ("layers.3.mlp.gate_proj", "layers.3.feed_forward.gate_proj")
    for picks in (["gate_proj"], ["model.layers.3"], ["mlp"], ["model.layers.*.mlp"], ["re:.*mlp\\.gate_proj$"]):
        assert Names(picks).name(path), picks
    for other in (["gate"], ["model.layers.33"], ["model.layers.3.mlp.gate"], ["re:gate_proj"], ["lm_head"], ["*.m"]):
        assert not Names(other).name(path), other


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}
KIMI_THINKING = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
}


def test_other_bits_for_some_modules() -> None:
    """GPTQModel's `dynamic`, auto-round's `extra_config`, quark's `layer_quant_config`."""
    base = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
    llama = "meta-llama--Meta-Llama-3.1-8B"
    found = plan_of(llama, quantization_config=base | {"dynamic": {"-:.*self_attn.*": {}, "+:.*down.*": {"bits": 8}}})
    assert [stored.name for stored, _ in found.of("q")] == ["bf16"]
    assert [stored.name for stored, _ in found.of("down")] == ["int8"]
    assert [stored.name for stored, _ in found.of("up")] == ["int4"]
    extra = {"model.layers.0.mlp.down_proj": {"bits": 16}, "model.layers.1.mlp.down_proj": {"bits": 8}}
    found = plan_of(llama, quantization_config=base | {"quant_method": "auto-round", "extra_config": extra})
    shares = {stored.name: round(32 * share) for stored, share in found.of("down")}
    assert shares == {"bf16": 1, "int4": 30, "int8": 1}
    weight = {"weight": {"dtype": "fp8_e4m3"}}
    quark = {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}, "exclude": ["lm_head"]}
    quark |= {"layer_quant_config": {"*self_attn*": weight}, "kv_cache_quant_config": {"*k_proj": weight}}
    found = plan_of(llama, quantization_config=quark)
    assert [stored.name for stored, _ in found.of("q")] == ["fp8"]
    assert [stored.name for stored, _ in found.of("down")] == ["mxfp4"]
    assert found.kv == "fp8"


def test_experts_of_deepseek_v4_are_in_four_bits_and_all_else_in_eight() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
    given = {"text_config": {"model_type": "deepseek_v4"}, "expert_dtype": "fp4", "quantization_config": fp8}
    found = checkpoint(given, read(given))
    assert {stored.name for stored, _ in found.of("expert_up")} == {"mxfp4"}
    assert {stored.name for stored, _ in found.of("o_a")} == {"fp8"}
    assert {stored.name for stored, _ in found.of("lm_head")} == {"bf16"}
    assert sorted(found.name.split("+")) == ["fp8", "mxfp4"]


def test_nvfp4_of_deepseek_keeps_attention_in_16_bits() -> None:
    """nvidia/DeepSeek-V3-0324-NVFP4 excludes `self_attn*` of each layer; its cache is asked for in fp8 here."""
    exclude = [f"model.layers.{n}.self_attn*" for n in range(61)] + ["lm_head", "model.embed_tokens"]
    found = plan_of("deepseek-ai--DeepSeek-V3", quantization_config=MODELOPT | {"exclude_modules": exclude})
    assert found.kv == "fp8"
    assert [stored.name for stored, _ in found.of("kv_b")] == ["bf16"]
    ((experts, share),) = found.of("expert_gate")
    assert (experts.name, experts.bits + experts.scale_bits, experts.computes, share) == ("nvfp4", 4.5, "fp4", 1.0)


def test_one_layer_that_is_excluded_has_its_share() -> None:
    found = plan_of(
        "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
        quantization_config=MODELOPT | {"exclude_modules": ["backbone.layers.5.mixer.q_proj", "backbone.layers.4.*"]},
    )
    assert sorted((stored.name, round(share, 6)) for stored, share in found.of("q")) == [
        ("bf16", round(1 / 6, 6)),
        ("nvfp4", round(5 / 6, 6)),
    ]
    assert {stored.name for stored, _ in found.of("state_in")} == {"bf16", "nvfp4"}  # layer 4 is Mamba


def test_kimi_k2_thinking_stores_its_experts_alone_in_int4() -> None:
    """594 GB on Hugging Face (moonshotai/Kimi-K2-Thinking): int4 with a 16-bit scale for 32 weights."""
    given = config("moonshotai--Kimi-K2-Instruct") | {"quantization_config": KIMI_THINKING}
    reading = read(given)
    found = checkpoint(given, reading)
    quantized = {module for module in found.modules if any(s.name == "int4" for s, _ in found.of(module))}
    assert quantized == {"expert_gate", "expert_up", "expert_down"}
    assert found.kv == "fp8"
    from bench.predict.weights import from_checkpoint

    assert from_checkpoint(found).total_bytes(reading.shape) == pytest.approx(594e9, rel=0.02)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, 4 + 20 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, 4 + 20 / 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": False}, 4.5),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 16384),
        ({"quant_method": "fbgemm_fp8"}, 8),
        ({"quant_algo": "W4A16_AWQ"}, 4.125),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}}, 4.25),
        ({"quant_method": "quark", "global_quant_config": {"weight": [{"dtype": "fp8_e4m3"}, {"dtype": "fp4"}]}}, 4.25),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 64}}, 4.5),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig", "_data": {}}}},
            8,
        ),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}}},
            3 + 32 / 64,
        ),
        ({"quant_method": "exl2", "bits": 4.65, "head_bits": 6}, 4.65),
        ({"quant_method": "exl3", "bits": 3.0, "head_bits": 6}, 3.0),
        ({"quant_method": "intel/auto-round", "bits": 2, "group_size": 32, "sym": True}, 2.5),
        ({"quant_method": "auto-round", "bits": 4, "data_type": "nv_fp4_with_static_gs"}, 4.5),
        ({"quant_method": "quanto", "weights": "int8"}, 8),
        ({"quant_method": "eetq"}, 8),
        ({"quant_method": "bitnet"}, 2),
        ({"quant_method": "fp_quant", "forward_dtype": "mxfp4"}, 4.25),
        ({"quant_algo": "W4A16_AWQ", "group_size": 64}, 4.25),
    ],
)
def test_bits_of_a_weight_with_its_scales(quantization: dict[str, Any], bits: float) -> None:
    ((stored, share),) = plan_of("meta-llama--Meta-Llama-3.1-8B", quantization_config=quantization).of("down")
    assert (stored.bits + stored.scale_bits, share) == (pytest.approx(bits), 1.0)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "aqlm"}, "quant_method 'aqlm' is not known; known: fp8"),
        ({"quant_method": "torchao", "quant_type": "uint7"}, "torchao's quant_type 'uint7' is not known"),
        ({"quant_method": "hqq", "quant_config": {}}, "hqq without 'weight_quant_params'"),
        ({"quant_method": "exl2", "bits": 0}, "'bits' is 0, not a number above 0"),
        ({"quant_method": "quanto", "weights": "int3"}, "'weights' is 'int3', not int8 or float8 or int4"),
        ({"quant_method": "auto-round", "bits": 3, "data_type": "mx_fp"}, "'data_type' is 'mx_fp', not mx_fp of 4 or"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
            "'sparsity_config' is",
        ),
        ({"quant_method": "awq"}, "'bits' is missing"),
        ({"quant_method": "awq", "bits": True}, "'bits' is True"),
        ({"quant_method": "fp8", "weight_block_size": 3}, "'weight_block_size' is 3, not a list"),
        (
            {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
            "'modules_to_not_convert' is 'lm_head'",
        ),
        ({"quant_method": "compressed-tensors"}, "'config_groups' names no group with weights"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {}, "targets": ["re:("]}}}, "re:("),
        ({"quant_algo": "NVFP5"}, "quant_algo 'NVFP5' is not known"),
        ({"quant_method": "mxfp4"}, "names no module of this model"),
        ("fp8", "'quantization_config' is not an object"),
    ],
)
def test_a_quantization_that_cannot_be_read_is_one_line(tmp_path: Path, quantization: Any, message: str) -> None:
    given = config("meta-llama--Meta-Llama-3.1-8B") | {"quantization_config": quantization}
    with pytest.raises(BadConfig) as caught:
        checkpoint(given, read(given))
    assert "\n" not in str(caught.value)
    if message != "re:(":
        assert message in str(caught.value)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(given))
    assert read_config(path, weights="fp8")[1].name == "fp8"  # an asked precision needs no quantization_config


def test_a_name_that_says_more_than_the_file_is_noted(tmp_path: Path) -> None:
    name = "nvidia--Llama-3.1-70B-Instruct-FP8"
    _, plan, _ = read_config(CONFIGS / f"{name}.json")
    assert plan.notes[0].startswith("its name says FP8, but it has no quantization_config: counted in bf16")
    (tmp_path / "config.json").write_text((CONFIGS / f"{name}.json").read_text())
    beside = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    shape, plan, kv = read_config(tmp_path / "config.json")
    assert (plan.name, kv) == ("fp8", "fp8")
    assert plan.total_bytes(shape) == pytest.approx(72.7e9, rel=0.01)


def test_files_that_are_no_config_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, message in (("[" * 100_000, "nested too deeply"), ('{"a": ' * 100_000, "nested too deeply")):
        path.write_text(text)
        with pytest.raises(BadRequest, match=message):
            read_config(path)
    given = config("meta-llama--Meta-Llama-3.1-8B") | {"_name_or_path": "a\x1b[31mb\nc"}
    path.write_text(json.dumps(given))
    assert read_config(path)[0].name == "a?[31mb?c"


def test_a_context_beyond_the_longest_needs_to_be_asked_for() -> None:
    path = CONFIGS / "qwen3-32b-yarn.json"
    asked: dict[str, Any] = {"config": path, "parts": ["b200"], "batches": [1]}
    assert rows(**asked, context=131_072)[0]["seconds"] > 0
    with pytest.raises(BadRequest, match=r"context 200000 is beyond qwen3's longest, 131072; --beyond predicts it"):
        rows(**asked, context=200_000)
    row = rows(**asked, context=200_000, beyond=True)[0]
    assert "200,000 tokens are beyond the 131,072 that qwen3 is made for" in row["notes"]


def test_huge_models_and_splits_answer_at_once(tmp_path: Path) -> None:
    given = config("meta-llama--Meta-Llama-3.1-8B") | {"num_attention_heads": 1 << 30, "num_key_value_heads": 1 << 30}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(given | {"head_dim": 128}))
    with pytest.raises(BadRequest, match="3 devices cannot share them evenly; try 1, 2, 4"):
        rows(config=path, parts=["h200"], batches=[1], context=100, devices=3)
    for asked in ({"batches": [10**300]}, {"context": 10**300}, {"devices": 10**300}):
        with pytest.raises(BadRequest, match=r"must be at most 1,073,741,824|at most 4,096"):
            rows(**{"model": "llama-3.1-8b", "parts": ["h200"], "batches": [1], "context": 10} | asked)


def test_recipes_in_16_bits_or_more_are_uniform() -> None:
    for precision in ("bf16", "fp16", "fp32"):
        assert not recipe(MODELS["deepseek-v3"], precision).parts
