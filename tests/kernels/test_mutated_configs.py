"""Damaged config.json files: every field of many families, replaced by what it must not be. A shape, or one line."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from bench.devices import find
from bench.predict.step_model import step
from bench.predict.weights import from_checkpoint
from kernels import models
from kernels.model_config import BadConfig, read
from kernels.model_config.families import FAMILIES, family_of
from kernels.model_config.fields import class_defaults
from kernels.model_config.quantization import checkpoint
from tests.support import ROOT

CONFIGS = ROOT / "tests/data/configs"
STRANGE: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 2**31, 10**30, 0.5, -0.5, 1e308, float("inf"), float("nan"), True, False, None),
    *("", "x", "1,2", "é" * 100, [], [0], [1, 2], ["x"], [None], [[1]], {}, {"a": 1}, {"full_attention": 1}),
)
MORE = (
    *("layer_types", "mlp_layer_types", "rope_scaling", "rope_parameters", "sliding_window", "per_layer_config"),
    *("moe_layers_enum", "compress_ratios", "compress_rates", "attn_config", "ffn_config", "block_configs"),
    *("attention_other_setting", "sparse_attention_config", "linear_attn_config", "tie_word_embeddings", "dtype"),
    *("hybrid_layer_ids", "layers_block_type", "block_types", "cross_attention_layers", "no_rope_layers"),
    *("first_k_dense_replace", "moe_layer_freq", "indexer_types", "kv_source_layers", "attn", "hidden_ratio"),
)
"""Fields that the defaults of classes do not have."""
QUANTIZED: tuple[dict[str, Any], ...] = (
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*": {}}},
    {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": {"lm_head": {"bits": 8}}},
    {"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 64}},
    {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
    {"quant_method": "exl2", "bits": 4.0, "head_bits": 6},
    {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}, "layer_quant_config": {"*": {}}},
    {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"lm_head": {"quant_algo": "FP8"}}, "exclude_modules": ["x"]},
    {"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4}}}},
    {"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
)


def counted(config: dict[str, Any]) -> None:
    """All that `predict --config` counts. Raises `BadConfig` of one line alone."""
    try:
        reading = read(config)
        plan = from_checkpoint(checkpoint(config, reading))
    except BadConfig as refused:
        if "\n" in str(refused) or not str(refused):
            raise AssertionError(f"not one line: {refused}") from None
        return
    shape = reading.shape
    assert models.parameters(shape) >= 0
    assert models.active_parameters(shape) >= 0
    assert models.kv_bytes_per_token(shape, 2) >= 0
    assert models.kv_bytes(shape, 1000, 2) >= 0
    assert shape.state_bytes_per_request >= 0
    assert plan.total_bytes(shape) >= 0


def damaged(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """With one to three fields replaced, added or left out, at any depth."""
    config = json.loads(json.dumps(config))
    for _ in range(rng.choice((1, 1, 2, 3))):
        inner = config
        while True:
            name = rng.choice([*inner, *MORE]) if inner else rng.choice(MORE)
            if isinstance(inner.get(name), dict) and rng.random() < 0.7:
                inner = inner[name]
                continue
            break
        if rng.random() < 0.15:
            inner.pop(name, None)
        else:
            inner[name] = rng.choice(STRANGE)
    return config


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_of_every_family(seed: int) -> None:
    rng = random.Random(seed)
    for model_type in sorted(FAMILIES):
        known, family = family_of(model_type)
        text = {"model_type": model_type, **class_defaults(family.like.get(known, known), nested=True)}
        counted(damaged({"text_config": text, "dtype": "bfloat16"}, rng))


@pytest.mark.parametrize("seed", range(2))
def test_damaged_quantizations(seed: int) -> None:
    rng = random.Random(seed)
    llama = json.loads((CONFIGS / "meta-llama--Meta-Llama-3.1-8B.json").read_text())
    llama |= {"num_hidden_layers": 2}
    for given in QUANTIZED * 5:
        counted(llama | {"quantization_config": damaged(given, rng)})


def test_a_step_of_every_family() -> None:
    """Of the defaults of its class, on one device and shared by two."""
    for model_type in sorted(FAMILIES):
        text = {"model_type": model_type}
        try:
            shape = read({"text_config": text}).shape
        except BadConfig:
            continue
        context = min(1000, shape.max_context)
        one = step(shape, device=find("b200"), batch=2, context=context, crossings=False)
        assert 0 < one.seconds < 10
        assert sum(op.seconds for op in one.ops) == pytest.approx(one.seconds)
