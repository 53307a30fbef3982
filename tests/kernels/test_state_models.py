"""Models with Mamba's or KDA's states: what a config.json says is what the tables have."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from kernels.decode_step.families import wiring_from
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import parts
from kernels.decode_step.wiring import wiring_of
from kernels.model_config import BadConfig, read
from kernels.models import MODELS
from tests.support import ROOT

ATTENDING = [4, 8, 12, 16, 20, 24, 27]
KIMI: dict[str, Any] = {
    "model_type": "kimi_linear",
    "vocab_size": 163840,
    "hidden_size": 2304,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "intermediate_size": 9216,
    "head_dim": 72,
    "model_max_length": 1048576,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "linear_attn_config": {
        "kda_layers": [layer for layer in range(1, 28) if layer not in ATTENDING],
        "full_attn_layers": ATTENDING,
        "num_heads": 32,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
    },
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_shared_experts": 1,
    "num_expert_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 1024,
    "moe_renormalize": True,
    "routed_scaling_factor": 2.446,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "mla_use_nope": True,
}
"""As others quote the file of moonshotai/Kimi-Linear-48B-A3B-Instruct."""

FILES: dict[str, dict[str, Any]] = {
    "jamba-v0.1": json.loads((ROOT / "tests/data/configs/default--jamba.json").read_text()),
    "kimi-linear-48b-a3b": KIMI,
    "mamba-130m": {
        "model_type": "mamba",
        "hidden_size": 768,
        "intermediate_size": 1536,
        "num_hidden_layers": 24,
        "vocab_size": 50280,
        "time_step_rank": 48,
    },
    "falcon-mamba-7b": {
        "model_type": "falcon_mamba",
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "expand": 16,
        "num_hidden_layers": 64,
        "vocab_size": 65024,
        "time_step_rank": 256,
        "tie_word_embeddings": False,
    },
    "mamba-codestral-7b": {"model_type": "mamba2", "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 32768},
}


@pytest.mark.parametrize("name", FILES)
def test_the_shape_and_the_wiring_of_a_file_are_those_of_the_tables(name: str) -> None:
    """A list of all layers stands for the one that is repeated. Models without FFNs have no width of one."""
    reading, table = read(FILES[name], name=name), MODELS[name]
    without = {"source", *(["ffn"] if table.plain_layers else [])}
    for each in {field.name for field in fields(table)} - without:
        assert getattr(reading.shape, each) == getattr(table, each), each
    wiring, known = wiring_from(reading), wiring_of(name)
    for each in {field.name for field in fields(known)} - {"states", "sparse", "router"}:
        assert getattr(wiring, each) == getattr(known, each), each
    for each in ("states", "sparse"):
        short, long = getattr(known, each), getattr(wiring, each)
        assert len(long) in (0, table.layers)
        assert long == tuple(short[layer % len(short)] for layer in range(len(long))), each
    assert dict(wiring.router) | dict(known.router) == dict(wiring.router)


def test_a_model_of_mamba_alone_has_neither_attention_nor_an_ffn() -> None:
    found = [part.name for part in parts(StepCase(model="mamba-130m", layers=1, B=1, T=64))]
    layer = ["attention_norm", "state_in", "state_conv", "state_x", "state_dt", "state", "state_out"]
    assert found == ["embedding", *layer, "final_norm", "lm_head", "sampling"]


def test_what_a_step_does_not_do_is_refused() -> None:
    for name, changes, said in (
        ("kimi-linear-48b-a3b", {"mla_use_nope": False}, "mla_use_nope"),
        ("mamba-130m", {"use_bias": True}, "use_bias"),
        ("mamba-codestral-7b", {"time_step_limit": [0.0, 1.0]}, "time_step_limit"),
        ("jamba-v0.1", {"mamba_proj_bias": True}, "mamba_proj_bias"),
    ):
        with pytest.raises(BadConfig, match=said):
            wiring_from(read(FILES[name] | changes))
