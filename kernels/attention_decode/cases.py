"""Attention's cases: layers of public models, and around them one axis at a time. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from kernels.common import nvfp4_cache, paging
from kernels.common.fields import TYPES, Count, Dtype, OneOf, cache_type
from kernels.common.integers import next_power_of_2
from kernels.common.paging import Layout, Lengths, Order
from kernels.common.random_inputs import BYTES
from kernels.models import attention_heads
from kernels.op import Case


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """`T` is the longest sequence in tokens, with those of this step; `lengths` and `seed` draw the other sequences.

    - `page`: tokens a page, 0 for a contiguous cache; `layout` is `NHD` or `HND`; pages are shuffled unless `order` is
      `ordered`
    - `kv`: type of the cache: `fp8` or `int8`, both with scales, `nvfp4` (see `kernels/common/nvfp4_cache.py`), or
      `dtype`, which becomes `""`
    - `q_len`: query tokens a sequence. They are its last tokens, causal among themselves (a draft to verify)
    - `window`: each query sees the last `window` tokens, its own included, and the first `sinks`; 0 for all tokens
    - `scale`: the factor of q k^T, 0 for D^-1/2
    - `softcap`: scores s become softcap tanh(s / softcap); 0 for no cap
    - `sink_logits`: each query head has one more logit, learned and not capped, in the denominator of its softmax
    - `prefix`: the first tokens of all sequences, kept once, in pages that every block table points to
    - `grown`: tokens that every sequence has gained since its length was drawn, as after so many steps
    - `context`: sparse attention: T tokens are read of so many that each sequence has. The block table is the list of
      them, in any order: of tokens with `page` 1, of blocks with larger pages. 0: all tokens are read. All KV heads
      read the same; where each has a list of its own, a case has one KV head and a sequence for each
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"lengths": "uniform", "window": 0, "prefix": 0, "q_len": 1, "context": 0}

    B: int
    H_q: int
    H_kv: int
    D: int
    T: int
    lengths: Lengths = "uniform"
    seed: Count = 0
    page: Count = 0
    layout: Layout = "NHD"
    order: Order = "shuffled"
    dtype: Dtype = "bf16"
    kv: Annotated[str, OneOf("", "fp8", "int8", "nvfp4", *TYPES)] = ""
    q_len: int = 1
    window: Count = 0
    sinks: Count = 0
    scale: float = 0.0
    softcap: float = 0.0
    sink_logits: bool = False
    prefix: Count = 0
    grown: Count = 0
    context: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kv", cache_type(self.kv, self.dtype))
        if self.H_q % self.H_kv:
            raise ValueError(f"H_q {self.H_q} is no multiple of H_kv {self.H_kv}")
        if self.kv == "nvfp4" and self.D % nvfp4_cache.BLOCK:
            raise ValueError(f"D {self.D}: {nvfp4_cache.BLOCK} elements of an nvfp4 cache share a scale")
        if self.prefix and (not self.page or self.prefix % self.page or self.window or self.prefix >= self.T):
            raise ValueError(
                f"prefix {self.prefix}: a shared prefix is whole pages (here of {self.page}), fewer than T = {self.T} "
                f"tokens, and has no window (here {self.window})"
            )
        if self.grown and self.grown >= self.T - self.prefix:
            raise ValueError(f"grown {self.grown}: fewer tokens than the T - prefix = {self.T - self.prefix} of each")
        if reason := paging.wrong_context(self.context, self.T, self.page):
            raise ValueError(reason)
        if self.context and (self.window or self.prefix):
            raise ValueError(f"context {self.context}: a list of tokens has no window and no prefix")
        if self.sinks and not self.window:
            raise ValueError(f"sinks {self.sinks}: sinks need a window")

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"Hq{self.H_q}", f"Hkv{self.H_kv}", f"D{self.D}", f"T{self.T}"]
        if self.lengths != "uniform":
            parts.append(self.lengths + (str(self.seed) if self.seed else ""))
        if self.q_len > 1:
            parts.append(f"q{self.q_len}")
        if self.page:
            parts.append(f"page{self.page}")
        if self.layout != "NHD":
            parts.append(self.layout)
        if self.order != "shuffled":
            parts.append(self.order)
        if self.window:
            parts.append(f"window{self.window}" + (f"+{self.sinks}" if self.sinks else ""))
        if self.scale:
            parts.append(f"scale{self.scale:.4g}")
        if self.softcap:
            parts.append(f"cap{self.softcap:g}")
        if self.sink_logits:
            parts.append("sinklogits")
        if self.prefix:
            parts.append(f"prefix{self.prefix}")
        if self.grown:
            parts.append(f"grown{self.grown}")
        if self.context:
            parts.append(f"of{self.context}")
        parts.append(self.dtype)
        if self.kv:
            parts.append(f"kv{self.kv}")
        return "-".join(parts)

    @property
    def softmax_scale(self) -> float:
        return self.scale or self.D**-0.5

    @property
    def width(self) -> int:
        """Dims of a head as our kernels hold them: a power of two, at least the 64 rows of a wgmma."""
        return max(64, next_power_of_2(self.D))

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.H_q // self.H_kv

    @property
    def rows(self) -> int:
        """Query rows of one sequence that share a KV head."""
        return self.q_len * self.group

    @property
    def tokens_per_page(self) -> int:
        """Tokens a page; a contiguous cache is one page of T tokens per sequence."""
        return self.page or self.T

    @property
    def kv_bytes(self) -> float:
        """Bytes of one element of the cache; those of nvfp4 with the scale of its block."""
        return nvfp4_cache.ELEMENT_BYTES if self.kv == "nvfp4" else BYTES[self.kv or self.dtype]

    @property
    def code_bytes(self) -> float:
        """The same without the scale."""
        return 0.5 if self.kv == "nvfp4" else self.kv_bytes

    @property
    def token_scales(self) -> bool:
        """Whether the scales of the cache are fp32, each for some tokens of a head."""
        return self.kv in ("fp8", "int8")


def layer(model: str, B: int, T: int, **more: Any) -> AttentionCase:
    """One layer of a model on one GPU."""
    H_q, H_kv, D = attention_heads(model)
    return AttentionCase(model=model, B=B, T=T, H_q=H_q, H_kv=H_kv, D=D, **more)


GEMMA_2 = {"scale": 144**-0.5, "softcap": 50.0}
"""`query_pre_attn_scalar` and `attn_logit_softcapping` in config.json of google/gemma-2-27b, whose scale is not
128^-1/2."""


def test() -> list[AttentionCase]:
    """Small and edgy, in fp16, since the interpreter multiplies bf16 operands as integers."""

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
        small(2, 6, 130, scale=0.05, softcap=50.0, sink_logits=True, page=8, lengths="holes"),
        AttentionCase(B=2, H_q=6, H_kv=2, D=80, T=90, page=16, dtype="fp16", lengths="ragged"),
        AttentionCase(B=1, H_q=4, H_kv=2, D=112, T=130, kv="fp8", dtype="fp16"),
        AttentionCase(B=1, H_q=4, H_kv=2, D=192, T=70, page=16, dtype="fp16"),
        AttentionCase(B=2, H_q=4, H_kv=1, D=512, T=70, page=16, dtype="fp16", lengths="ragged"),
        *(small(2, 4, 90, page=page, context=300, lengths="ragged") for page in (1, 64)),
        # more query rows than one tile holds: two full tiles, and Falcon-7B's 71 query heads of one KV head
        small(2, 32, 70, q_len=8, page=16, lengths="ragged"),
        AttentionCase(B=2, H_q=71, H_kv=1, D=64, T=90, dtype="fp16", lengths="ragged"),
    ]


def smoke() -> list[AttentionCase]:
    """16 to 64 MB of KV each, for a CPU: groups of 1, 2, 4 and 8 heads over one cache, and what torch refuses."""
    return [
        *(AttentionCase(B=4, H_q=8 * group, H_kv=8, D=128, T=1024, dtype="fp32") for group in (1, 2, 8)),
        layer("llama-3.1-8b", 4, 1024, dtype="fp32"),
        layer("llama-3.1-8b", 4, 1024, dtype="fp32", page=16),
        *(AttentionCase(B=4, H_q=8 * group, H_kv=8, D=128, T=2048, dtype="fp32") for group in (1, 2)),
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
        layer("llama-3.1-8b", 64, 4096, page=16),
        layer("llama-3.1-8b", 64, 4096, page=16, lengths="ragged"),
        layer("llama-3.1-70b", 32, 4096, page=16),
        layer("llama-3.1-70b", 32, 4096, page=16, kv="fp8"),
        # more FLOPs over the same KV: twice the query group, four times the queries
        layer("llama-3.1-8b", 32, 4096, page=16),
        layer("llama-3.1-70b", 32, 4096, page=16, q_len=4),
        layer("llama-2-7b", 16, 2048),
        layer("gemma-2-27b", 32, 4096, page=16, **GEMMA_2),
        # every second layer of gpt-oss has a window, and all have sinks (`ModelConfig` of gpt_oss/torch/model.py)
        layer("gpt-oss-120b", 64, 4096, page=16, sink_logits=True),
    ]


def full() -> list[AttentionCase]:
    """`quick`, then one axis at a time: batch, context, page, layout, lengths, model.

    The largest have 34 and 69 GB of KV. Each takes two copies in memory: an H100 holds the first, an H200 both.
    """
    base = ("llama-3.1-8b", 32, 4096)
    return [
        *quick(),
        layer("llama-3.1-8b", 64, 4096),
        layer("llama-3.1-70b", 1, 32768),
        *(layer("llama-3.1-8b", B, 4096, page=16) for B in (1, 4, 8, 128, 256)),
        layer("llama-3.1-8b", 1, 1024),
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
        *(layer("llama-3.1-70b", B, T, page=page, kv="nvfp4") for B, T, page in ((1, 131072, 64), (64, 8192, 0))),
        layer(*base, page=16, kv="nvfp4"),
        layer("llama-3.1-8b", 64, 131072),
        layer("llama-3.1-8b", 256, 131072, kv="fp8"),
        *(layer("llama-3.1-70b", 16, 8192, page=16, q_len=q_len) for q_len in (1, 4, 8)),
        layer("llama-3.1-405b", 16, 8192, page=16, q_len=8),
        *(layer("mistral-7b", 32, T, page=16, window=4096, sinks=4) for T in (8192, 32768)),
        layer("gpt-oss-120b", 64, 4096, page=16, window=128),
        layer("llama-3.1-8b", 64, 12288, page=16, prefix=8192),
        layer("llama-3.1-70b", 128, 8704, page=16, prefix=8192, lengths="ragged"),
        *(layer("phi-2", 32, 2048, page=16, kv=kv) for kv in ("", "fp8")),
        layer("phi-3-mini", 32, 4096, page=16),
        layer("nemotron-4-340b", 32, 4096, page=16),
        # Gemma 4 has a scale of 1, since it normalises queries and keys (`Gemma4TextAttention` of transformers)
        layer("gemma-4-31b", 32, 4096, page=16, scale=1.0),
        *(layer("llama-3.1-8b", 32, 2048, page=page, context=32768) for page in (1, 64, 128)),
        # native sparse attention (arXiv 2502.11089): 16 blocks of 64 tokens for each of 4 KV heads, whose group is 16
        AttentionCase(B=4 * 32, H_q=16, H_kv=1, D=128, T=1024, page=64, context=65536),
        AttentionCase(B=32, H_q=16, H_kv=1, D=256, T=16384, page=16),
        AttentionCase(B=32, H_q=64, H_kv=1, D=128, T=16384, page=16),
    ]


SUITES: Mapping[str, Callable[[], list[AttentionCase]]] = {
    "test": test,
    "smoke": smoke,
    "quick": quick,
    "full": full,
}
