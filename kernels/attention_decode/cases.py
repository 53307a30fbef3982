"""The shapes of each suite: public models' layers, and axes swept one at a time around them. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kernels.attention_decode.op import AttentionCase
from kernels.models import MODELS


def layer(model: str, B: int, T: int, **more: Any) -> AttentionCase:
    """One layer of a model on one GPU."""
    shape = MODELS[model]
    return AttentionCase(model=model, B=B, T=T, H_q=shape.heads, H_kv=shape.kv_heads, D=shape.head_dim, **more)


def test() -> list[AttentionCase]:
    """Small and edgy, in fp16: the interpreter multiplies bf16 operands as integers."""

    def small(B: int, H_q: int, T: int, **more: Any) -> AttentionCase:
        return AttentionCase(B=B, H_q=H_q, H_kv=2, D=64, T=T, dtype="fp16", **more)

    return [
        small(2, 8, 200, lengths="ragged"),
        small(3, 2, 130, lengths="holes", page=16, layout="HND"),
        small(1, 16, 300, page=64),
        small(2, 4, 90, kv="fp8", page=16, lengths="ragged"),
        small(2, 4, 90, kv="int8", q_len=3, lengths="longtail"),
        small(2, 4, 200, window=50, sinks=3, softcap=2.0, page=8, lengths="ragged"),
        small(3, 4, 100, prefix=64, page=16, lengths="ragged"),
        # more query rows than one tile holds: two full ones, and Falcon-7B's 71 heads of one KV head
        small(2, 32, 70, q_len=8, page=16, lengths="ragged"),
        AttentionCase(B=2, H_q=71, H_kv=1, D=64, T=90, dtype="fp16", lengths="ragged"),
    ]


def smoke() -> list[AttentionCase]:
    """16 to 64 MB of KV each, for torch on a CPU; the paged one shows what torch refuses."""
    return [
        layer("llama-3.1-8b", 4, 1024, dtype="fp32"),
        layer("llama-3.1-8b", 8, 1024),
        layer("llama-2-7b", 1, 1024, dtype="fp32"),
        layer("llama-3.1-8b", 8, 1024, lengths="ragged", page=16),
    ]


def quick() -> list[AttentionCase]:
    """GQA at the batches and contexts of the claims, up to 1.1 GB of KV."""
    return [
        layer("llama-3.1-8b", 1, 4096),
        layer("llama-3.1-8b", 1, 131072),
        layer("llama-3.1-8b", 16, 8192),
        layer("llama-3.1-8b", 16, 8192, page=16),
        layer("llama-3.1-8b", 64, 4096),
        layer("llama-3.1-8b", 64, 4096, page=16),
        layer("llama-3.1-8b", 64, 4096, page=16, lengths="ragged"),
        layer("llama-3.1-70b", 1, 32768),
        layer("llama-3.1-70b", 32, 4096),
        layer("llama-3.1-70b", 32, 4096, page=16),
        layer("llama-3.1-70b", 32, 4096, page=16, kv="fp8"),
        # FLOPs alone: twice the query group, four times the queries, over the same KV
        layer("llama-3.1-8b", 32, 4096, page=16),
        layer("llama-3.1-70b", 32, 4096, page=16, q_len=4),
        layer("llama-2-7b", 16, 2048),
    ]


def full() -> list[AttentionCase]:
    """`quick`, and one axis at a time: batch, context, page, layout, lengths, model."""
    base = ("llama-3.1-8b", 32, 4096)
    return [
        *quick(),
        *(layer("llama-3.1-8b", B, 4096, page=16) for B in (1, 4, 8, 128, 256)),
        *(layer("llama-3.1-8b", 1, T) for T in (1024, 32768)),
        layer("llama-3.1-8b", 1, 131072, page=16),
        *(layer(*base, page=page) for page in (1, 4, 8, 32, 64, 256)),
        layer(*base, page=16, layout="HND"),
        layer(*base, page=16, order="ordered"),
        layer("llama-3.1-8b", 64, 32768, page=16, lengths="longtail"),
        layer("llama-2-7b", 32, 4096, page=16),
        layer("qwen2.5-7b", 32, 4096, page=16),
        layer("gpt-oss-120b", 64, 4096, page=16),
        layer("llama-3.1-405b", 16, 8192, page=16),
        *(layer(*base, page=16, kv=kv) for kv in ("fp8", "int8")),
        layer("llama-3.1-8b", 64, 8192, kv="fp8"),
        layer("llama-3.1-8b", 1, 131072, page=64, kv="fp8"),
        *(layer("llama-3.1-70b", 16, 8192, page=16, q_len=q_len) for q_len in (1, 4, 8)),
        layer("llama-3.1-405b", 16, 8192, page=16, q_len=8),
        *(layer("mistral-7b", 32, T, page=16, window=4096, sinks=4) for T in (8192, 32768)),
        layer("gpt-oss-120b", 64, 4096, page=16, window=128),
        layer("llama-3.1-8b", 64, 12288, page=16, prefix=8192),
        layer("llama-3.1-70b", 128, 8704, page=16, prefix=8192, lengths="ragged"),
        AttentionCase(B=32, H_q=16, H_kv=1, D=256, T=16384, page=16),
        AttentionCase(B=32, H_q=64, H_kv=1, D=128, T=16384, page=16),
    ]


CASES: Mapping[str, Callable[[], list[AttentionCase]]] = {
    "test": test,
    "smoke": smoke,
    "quick": quick,
    "full": full,
}
