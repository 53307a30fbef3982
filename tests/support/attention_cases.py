"""Small cases of decode attention that several tests walk through."""

from __future__ import annotations

from typing import Any

from kernels.attention_decode.op import AttentionCase


def small(**fields: Any) -> AttentionCase:
    return AttentionCase(**({"B": 1, "H_q": 4, "H_kv": 1, "D": 64, "T": 100, "dtype": "fp16"} | fields))


SHAPES = [
    small(H_q=2, H_kv=2, T=1),
    small(H_q=4, T=130),
    small(H_q=16, H_kv=2, T=65, B=3),
    small(H_q=16, T=200, D=128, B=2),
    small(H_q=2, T=70, D=256),
    small(H_q=5, T=40, B=5, lengths="ragged"),
    small(B=3, T=130, lengths="holes"),
    small(T=64, page=64),
    small(T=63, page=64, layout="HND"),
    small(T=65, page=64),
    small(T=16, page=16),
    small(T=17, page=16, layout="HND", H_kv=2),
    small(T=15, page=16),
    small(T=33, page=1),
    small(T=100, page=3),
    small(T=300, page=256, B=2, lengths="ragged"),
    small(B=5, T=90, page=8, lengths="holes", H_q=8),
    small(B=3, T=129, page=128, lengths="holes", D=128, order="ordered"),
    small(layout="HND", H_kv=2, B=2, T=77, lengths="ragged"),
    small(D=80, H_kv=2, T=90, page=16),
    small(D=96, H_kv=2, B=2, T=70, lengths="ragged"),
    small(D=192, H_kv=2, T=70, layout="HND", page=16),
    small(D=512, B=2, T=70, page=8, lengths="holes"),
    small(D=48, T=40),
]
"""The kernel's axes and edges: groups, head sizes, pages, layouts, ragged and empty sequences."""

VARIANTS = [
    small(kv="fp8", B=2, H_kv=2, H_q=8, T=90, lengths="ragged"),
    small(kv="fp8", page=8, layout="HND", H_kv=2, T=70),
    small(kv="fp8", page=64, D=128, T=100),
    small(kv="int8", B=3, page=16, T=90, lengths="holes"),
    small(kv="int8", layout="HND", H_kv=2, T=37),
    small(q_len=2, T=66, page=16),
    small(q_len=8, H_q=2, B=2, T=70, lengths="ragged"),
    small(q_len=4, B=4, T=40, lengths="holes", page=8),
    small(window=64, T=200, page=16),
    small(window=10, sinks=4, B=3, T=90, lengths="ragged"),
    small(window=500, sinks=4, T=70),
    small(window=30, sinks=70, T=150),
    small(window=33, sinks=2, q_len=3, kv="int8", B=2, T=150, page=16, lengths="ragged"),
    small(softcap=1.5, T=90),
    small(prefix=32, page=16, B=2, T=60, lengths="ragged"),
    small(scale=0.05, softcap=50.0, T=90),
    small(sink_logits=True, B=3, H_q=6, H_kv=2, T=300, page=16, lengths="holes"),
    small(D=80, H_kv=2, kv="fp8", T=90, page=16),
    small(D=192, kv="int8", T=70, softcap=3.0),
    small(D=512, kv="fp8", B=2, T=90, lengths="ragged", sink_logits=True),
    small(sink_logits=True, window=20, kv="fp8", q_len=3, B=2, T=90, lengths="ragged"),
    small(kv="nvfp4", B=2, H_kv=2, H_q=8, T=90, lengths="ragged"),
    small(kv="nvfp4", page=8, layout="HND", H_kv=2, T=70, D=128, softcap=2.0),
    small(kv="nvfp4", page=64, B=3, T=100, D=192, q_len=3, lengths="holes"),
]
"""Caches of 8 and 4 bits, drafts, windows with sinks, soft caps, other scales, sink logits, shared prefixes read for
each sequence."""

TILED = [
    small(H_q=65, T=130),
    small(H_q=96, T=70, D=128, page=16),
    small(H_q=16, q_len=8, B=3, T=90, lengths="holes", page=8),
    small(H_q=32, H_kv=2, q_len=8, T=70, kv="fp8", page=16),
    small(H_q=40, q_len=4, T=60, kv="int8", window=20, sinks=2),
    small(H_q=40, T=70, D=256),
    small(H_q=20, T=70, D=512),
    small(H_q=72, B=2, T=50, prefix=16, page=16, softcap=1.0, sink_logits=True),
]
"""More than 64 query rows of one KV head, in two or three tiles, the last of them full or nearly empty."""

CASCADES = [
    small(prefix=64, page=16, B=3, T=100, lengths="ragged"),
    small(prefix=64, page=64, B=2, H_q=6, H_kv=2, T=80, lengths="holes"),
    small(prefix=48, page=16, B=6, H_q=16, T=60, layout="HND"),
    small(prefix=150, page=3, B=1, H_q=2, T=152),
    small(prefix=32, page=8, B=5, q_len=4, H_q=8, T=50, lengths="holes"),
    small(prefix=64, page=32, B=2, T=90, kv="int8"),
    small(prefix=256, page=64, B=3, D=128, T=300, kv="fp8", softcap=2.0),
    small(prefix=64, page=16, B=3, D=96, T=100, lengths="ragged"),
    small(prefix=64, page=16, B=3, T=300, H_q=6, H_kv=2, sink_logits=True, scale=0.2, lengths="holes"),
]
"""Shared prefixes read once for a tile of sequences."""

PLANNED = [
    small(B=7, H_kv=2, T=1000, lengths="longtail"),
    small(B=5, T=700, lengths="holes", page=16),
    small(T=64 * 40),
    small(B=300, T=65),
    small(B=2, H_kv=2, T=1),
    small(B=3, T=900, window=200, sinks=5, q_len=3, lengths="ragged"),
    small(B=3, H_q=142, H_kv=2, T=900, lengths="ragged"),
]
"""Work lists that are cut in many ways."""

COUNTED = [
    small(B=3, H_q=8, H_kv=2, T=90, lengths="ragged"),
    small(B=3, T=90, lengths="holes", page=16),
    small(B=2, T=60, page=24, layout="HND", dtype="bf16"),
    small(B=3, T=90, lengths="ragged", kv="int8", page=24),
    small(B=2, T=90, lengths="ragged", kv="fp8", H_kv=2),
    small(B=3, T=90, lengths="ragged", kv="nvfp4", H_kv=2, page=16),
    small(B=3, T=90, lengths="ragged", kv="int8", page=4, window=21, sinks=3, q_len=3),
    small(B=3, T=90, lengths="holes", window=40, q_len=2, page=16),
    small(B=3, T=90, lengths="ragged", prefix=32, page=16, kv="fp8"),
    small(B=2, H_q=40, q_len=4, T=90, lengths="ragged", page=16, kv="int8"),
]
"""Cases whose live bytes can be counted in their tensors."""
