"""A predicted step and the operations that measure it count the same bytes: codes, scales, caches."""

from __future__ import annotations

from typing import Any

import pytest

from bench.predict.step_cache import STATE_FLOPS
from bench.predict.step_work import PRECISIONS, StepOp, decode_ops, expected_experts
from kernels.models import MODELS, ModelShape
from kernels.op import Work, discover
from kernels.state_update.op import FLOPS

OPS = discover()
DENSE, MOE, LATENT = MODELS["llama-3.1-8b"], MODELS["gpt-oss-20b"], MODELS["deepseek-v3"]
WEIGHTS = {"bf16": "bf16", "fp8": "fp8", "int8": "int8", "w8a16": "int8", "int4": "int4", "fp4": "mxfp4"}
"""Precisions of a prediction, and what a case calls weights that are stored so."""


def step(shape: ModelShape, *, weights: str = "bf16", kv: str = "bf16", batch: int = 3) -> dict[str, StepOp]:
    precisions = {"weights": PRECISIONS[weights], "kv": PRECISIONS[kv]}
    return {op.name: op for op in decode_ops(shape, batch=batch, context=1000, devices=1, q_len=1, **precisions)}


def work(op: str, **fields: Any) -> Work:
    case = OPS[op].case_from_dict(fields)
    return OPS[op].work(case)


def test_every_precision_with_scales_is_here() -> None:
    assert {name for name, precision in PRECISIONS.items() if precision.format} == WEIGHTS.keys() - {"bf16"}
    assert {WEIGHTS[name] for name in WEIGHTS if name != "bf16"} == {p.format for p in PRECISIONS.values()} - {""}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_projection_reads_the_bytes_of_its_gemv(weights: str) -> None:
    """`down` is one matrix of the hidden size by the FFN's; the activations have 16 bits in both."""
    down = step(DENSE, weights=weights)["down"]
    gemv = work("ffn_gemv", B=3, N=DENSE.hidden, K=DENSE.ffn, weights=WEIGHTS[weights])
    assert down.work.bytes == DENSE.layers * gemv.bytes
    assert down.weight_bytes == DENSE.layers * (gemv.bytes_read - 3 * DENSE.ffn * 2)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_experts_have_the_bytes_of_the_operation(weights: str) -> None:
    """For gpt-oss-20b, whose 2880 columns are 22.5 groups of 128 and 90 groups of 32."""
    ops = step(MOE, weights=weights)
    read = ops["experts_gate_up"].weight_bytes + ops["experts_down"].weight_bytes
    fields = {"B": 1, "E": MOE.experts, "k": 1, "H": MOE.hidden, "F": MOE.expert_ffn, "weights": WEIGHTS[weights]}
    expert = OPS["moe_ffn"].case_from_dict(fields).expert_bytes
    assert read == pytest.approx(MOE.moe_layers * expected_experts(MOE, 3) * expert, rel=1e-9)


@pytest.mark.parametrize("kv", ["bf16", "fp8", "int8"])
def test_attention_reads_the_bytes_of_a_contiguous_cache(kv: str) -> None:
    """The operation also reads the lengths of the sequences, 4 B each. 1000 tokens have 63 scales."""
    found = step(DENSE, kv=kv)["attention"]
    fields = {"B": 3, "H_q": DENSE.heads, "H_kv": DENSE.kv_heads, "D": DENSE.head_dim, "T": 1000, "kv": kv}
    part = 2 * 3 * DENSE.kv_heads * 4 * 0.5 if kv != "bf16" else 0  # the last scale is for 8 tokens of 16
    assert found.work.bytes == DENSE.layers * (work("attention_decode", **fields).bytes - 4 * 3 - part)


@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_latent_attention_reads_the_bytes_of_a_contiguous_cache(kv: str) -> None:
    """In fp8 a token has 512 B of latents, a rotary key in 16 bits and a scale: 644 B."""
    found = step(LATENT, kv=kv)["attention"]
    least = work("mla_decode", B=3, H=LATENT.heads, T=1000, kv=kv)
    assert found.work.bytes == LATENT.layers * (least.bytes - 4 * 3)
    assert found.kv_bytes == LATENT.layers * 3 * 1000 * {"bf16": 1152, "fp8": 644}[kv]


def test_the_append_of_a_step_writes_what_the_operation_writes() -> None:
    found = step(DENSE)["kv_append"]
    least = work("kv_append", B=3, H_kv=DENSE.kv_heads, D=DENSE.head_dim, T=1000, page=0)
    assert found.work.bytes == DENSE.layers * (least.bytes - 4 * 3)


def test_the_flops_of_states_are_those_of_their_kernels() -> None:
    kinds = {"mamba": "mamba1", "mamba2": "mamba2", "gated delta rule": "gated_delta", "KDA": "kda"}
    assert {kind: sum(FLOPS[kinds[kind]]) for kind in STATE_FLOPS} == STATE_FLOPS
