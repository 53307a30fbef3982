"""Latent attention's cases: DeepSeek's layers, and around them one axis at a time. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log
from typing import Annotated, Any, ClassVar

from kernels.common import nvfp4_cache, paging
from kernels.common.fields import TYPES, Count, Dtype, OneOf, cache_type
from kernels.common.random_inputs import BYTES
from kernels.models import MODELS
from kernels.op import Case

DEEPSEEK = MODELS["deepseek-v3"]


@dataclass(frozen=True, kw_only=True)
class MlaCase(Case):
    """`H` heads share a latent of `L` and a rotary key of `R`. `T` is the longest sequence; `lengths` and `seed` draw
    the others.

    - `page`: tokens a page, 0 for a contiguous cache
    - `kv`: type of the cached latents: `fp8` with a scale per token, `nvfp4`, or `dtype`, which becomes `""`
    - `q_len`: query tokens a sequence. They are its last tokens, causal among themselves
    - `scale`: the factor of the scores, 0 for (128 + R)^-1/2
    - `context`: sparse attention: T tokens are read of so many that each sequence has. The block table is the list of
      them, in any order: of tokens with `page` 1, of blocks with larger pages. 0: all tokens are read
    - `grown`: tokens that every sequence has gained since its length was drawn, as after so many steps
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"lengths": "uniform", "q_len": 1, "context": 0}

    B: int
    H: int
    T: int
    L: int = DEEPSEEK.kv_latent
    R: int = DEEPSEEK.rope_dim
    lengths: paging.Lengths = "uniform"
    seed: Count = 0
    page: Count = 0
    dtype: Dtype = "bf16"
    kv: Annotated[str, OneOf("", "fp8", "nvfp4", *TYPES)] = ""
    q_len: int = 1
    scale: float = 0.0
    context: Count = 0
    grown: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kv", cache_type(self.kv, self.dtype))
        if reason := paging.wrong_context(self.context, self.T, self.page):
            raise ValueError(reason)
        if self.grown >= self.T:
            raise ValueError(f"grown {self.grown}: fewer tokens than the T = {self.T} of each")
        if self.kv == "nvfp4" and self.L % nvfp4_cache.BLOCK:
            raise ValueError(f"L {self.L}: {nvfp4_cache.BLOCK} latents of an nvfp4 cache share a scale")

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"H{self.H}", f"L{self.L}+{self.R}", f"T{self.T}"]
        if self.lengths != "uniform":
            parts.append(self.lengths + (str(self.seed) if self.seed else ""))
        if self.q_len > 1:
            parts.append(f"q{self.q_len}")
        if self.page:
            parts.append(f"page{self.page}")
        if self.context:
            parts.append(f"of{self.context}")
        if self.scale:
            parts.append(f"scale{self.scale:.4g}")
        if self.grown:
            parts.append(f"grown{self.grown}")
        return "-".join([*parts, self.dtype] + ([f"kv{self.kv}"] if self.kv else []))

    @property
    def rows(self) -> int:
        """Query rows of one sequence; all of them share its tokens."""
        return self.q_len * self.H

    @property
    def softmax_scale(self) -> float:
        """The factor of the scores: `scale`, or (128 + R)^-1/2. A head is 128 + R wide before absorption."""
        return self.scale or (DEEPSEEK.head_dim + self.R) ** -0.5

    @property
    def token_bytes(self) -> int:
        if self.kv == "nvfp4":
            return int(self.L * nvfp4_cache.ELEMENT_BYTES) + self.R * BYTES[self.dtype]
        scale = BYTES["fp32"] if self.kv else 0
        return self.L * BYTES[self.kv or self.dtype] + self.R * BYTES[self.dtype] + scale


YARN_SCALE = (DEEPSEEK.head_dim + DEEPSEEK.rope_dim) ** -0.5 * (0.1 * log(40) + 1) ** 2
"""What DeepSeek-V3 multiplies its scores by: 192^-1/2 times the square of YaRN's mscale, for the `factor` 40 and the
`mscale_all_dim` 1 of its config.json (`softmax_scale` in its modeling_deepseek.py)."""


def sparse(B: int, H: int, context: int, **more: Any) -> MlaCase:
    """DeepSeek-V3.2 reads the 2,048 tokens that its indexer picks (`index_topk` of its config.json)."""
    return MlaCase(model="deepseek-v3.2", B=B, H=H, T=2048, page=1, context=context, **more)


def smoke() -> Iterable[MlaCase]:
    """For a CPU: 75 MB of cache."""
    yield MlaCase(B=8, H=16, T=4096, dtype="fp32")


def quick() -> Iterable[MlaCase]:
    """DeepSeek-V3's heads on one GPU of eight and all of them; short and long, contiguous and paged."""
    for B, H, T in ((1, 128, 8192), (32, 16, 4096), (32, 128, 4096)):
        yield MlaCase(model="deepseek-v3", B=B, H=H, T=T)
    yield MlaCase(model="deepseek-v3", B=64, H=16, T=8192, page=64, lengths="ragged")
    yield MlaCase(model="deepseek-v3", B=32, H=128, T=4096, kv="fp8")
    yield sparse(32, 16, 32768, kv="fp8")


def full() -> Iterable[MlaCase]:
    """Heads from one GPU of eight to all; batches, contexts, lengths; contiguous and in pages of 64; fp8."""
    for H in (16, 32, 64, 128):
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192)
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, page=64)
    for B in (1, 4, 16, 64, 128):
        yield MlaCase(model="deepseek-v3", B=B, H=128, T=4096, page=64)
    for T in (1024, 16384, 65536):
        yield MlaCase(model="deepseek-v3", B=8, H=128, T=T, page=64)
    for kind in ("ragged", "longtail"):
        yield MlaCase(model="deepseek-v3", B=64, H=16, T=16384, page=64, lengths=kind)
    for H in (16, 128):
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, kv="fp8")
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, page=64, kv="fp8")
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, page=64, kv="nvfp4")
    yield MlaCase(model="deepseek-v3", B=64, H=16, T=16384, page=64, lengths="ragged", kv="fp8")
    yield MlaCase(model="deepseek-v3", B=32, H=128, T=8192, page=64, scale=YARN_SCALE)
    yield from (sparse(B, 128, 131072, kv=kv) for B in (1, 8) for kv in ("", "fp8"))
    yield from (sparse(64, H, 32768, kv="fp8") for H in (16, 128))
    # more arithmetic over the same latents: twice and four times the queries
    for H, q_len in ((16, 4), (128, 2)):
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, page=64, q_len=q_len)


def test() -> Iterable[MlaCase]:
    """Small and edgy: one token, odd lengths, few heads, two tiles of heads, pages smaller and larger than a block.

    Some drafts are longer than their sequence, and in some the first query sees nothing of the last block.
    """

    def small(B: int, H: int, T: int, **more: Any) -> MlaCase:
        return MlaCase(B=B, H=H, T=T, L=64, R=16, dtype="fp16", **more)

    for kv in ("", "fp8"):
        yield small(1, 16, 1, kv=kv)
        yield small(2, 5, 70, lengths="ragged", kv=kv)
        yield small(1, 80, 70, kv=kv)
        yield small(3, 16, 100, page=64, lengths="holes", kv=kv)
        yield small(2, 32, 80, page=16, lengths="ragged", kv=kv)
        if not kv:
            yield small(1, 16, 150, page=128)
    yield small(2, 40, 65, page=64, q_len=2, lengths="holes")
    yield small(2, 16, 90, page=16, scale=0.2, lengths="ragged")
    yield small(3, 16, 66, q_len=4, lengths="holes")
    yield small(2, 16, 70, page=16, q_len=3, lengths="holes", kv="fp8")
    yield small(3, 16, 100, page=64, lengths="holes", kv="nvfp4")
    yield small(2, 40, 65, page=8, q_len=2, lengths="ragged", kv="nvfp4")
    yield from (small(2, 16, 70, page=1, context=200, lengths="ragged", kv=kv) for kv in ("", "fp8"))


def cases(suite: str) -> list[MlaCase]:
    return list({"smoke": smoke, "quick": quick, "full": full, "test": test}[suite]())
