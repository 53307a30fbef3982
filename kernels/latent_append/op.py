"""What multi-head latent attention does between its products and attention: norm, rotation, write into the cache.

q [B, H, D + R] holds the queries, each with its rotary part behind; kv [B, L + R] holds the latent and the rotary key
that all heads share. The latent is normalized (x / sqrt(mean(x^2) + epsilon) w), both rotary parts are rotated like the
heads of `kernels/rope_append`, and latent and key go to the slot of the cache [pages, page, L + R] that
`kernels/kv_append` tells. The rotated parts of the queries go to q_rope [B, H, R].

q_rope and the cache are rows of R elements of one tensor, `memory`: first the B H rows of q_rope, then those of the
cache, of which a token has 1 + L / R. The rest of the cache stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kernels.common import paging
from kernels.common.compare import rounded
from kernels.common.fields import Count, Dtype
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.kv_append import op as kv_append
from kernels.models import MODELS
from kernels.op import EXACT, Case, Inputs, Op, Result, Tolerance, Work
from kernels.rmsnorm.op import EPSILON
from kernels.rope_append.op import plain_rotations

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LatentCase(Case):
    """`T`, `page` and `lengths` are those of `kernels/kv_append`; `D` is the part of a query that is not rotated."""

    PLAIN: ClassVar[Mapping[str, Any]] = {}

    B: int
    H: int
    D: int
    L: int
    R: int
    T: int
    page: Count = 16
    lengths: paging.Lengths = "ragged"
    dtype: Dtype = "bf16"
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.R % 2 or self.L % self.R:
            raise ValueError(f"R {self.R}: an even number that divides L = {self.L}, since both lie in rows of R")
        assert self.append

    @property
    def append(self) -> kv_append.AppendCase:
        """A write of as many tokens, which tells their slots."""
        names = ("B", "T", "page", "lengths", "dtype")
        return kv_append.AppendCase(H_kv=1, D=1, **{name: getattr(self, name) for name in names})

    @property
    def id(self) -> str:
        parts = [f"B{self.B}-H{self.H}-D{self.D}-L{self.L}+{self.R}-T{self.T}", self.lengths]
        parts.append(f"page{self.page}" if self.page else "contiguous")
        parts += [f"eps{self.epsilon:g}"] if self.epsilon != EPSILON else []
        return "-".join([*parts, self.dtype])

    @property
    def q_rows(self) -> int:
        return self.B * self.H

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        pages, page = kv_append.cache_shape(self.append)[1:3]
        return pages, page, self.L + self.R

    @property
    def rows(self) -> int:
        """Rows of `memory`."""
        pages, page, width = self.cache_shape
        return self.q_rows + pages * page * width // self.R


def cases(suite: str) -> list[LatentCase]:
    """The caches are no larger than a comparison needs: the bytes depend on B alone."""
    if suite in ("quick", "full"):
        shape = MODELS["deepseek-v3"]
        sizes: dict[str, Any] = {"H": shape.heads, "D": shape.head_dim, "L": shape.kv_latent, "R": shape.rope_dim}
        return [LatentCase(model=shape.name, B=64, T=64, page=64, epsilon=1e-6, **sizes)]
    if suite == "test":
        return [
            LatentCase(B=3, H=4, D=16, L=32, R=8, T=20, page=4, dtype="fp16", epsilon=1e-3),
            LatentCase(B=2, H=3, D=24, L=48, R=16, T=9, page=0, dtype="fp32"),
        ]
    return []


def inputs(case: LatentCase, device: str, seed: int) -> Inputs:
    """q, kv ~ N(0, 1), latents times 2 so that no norm leaves them; weights of the norm ~ 1 + N(0, 1) / 4."""
    import torch

    draw, width = RandomInputs(device, seed), case.D + case.R
    given = kv_append.inputs(case.append, device, seed)
    memory = torch.zeros(case.rows, case.R, dtype=torch_dtype(case.dtype), device=device)
    cache_of(case, memory).copy_(kv_append.background(case.cache_shape, case.dtype, device))
    made: Inputs = {
        "q": draw.normal((case.B, case.H, width), case.dtype),
        "kv": draw.normal((case.B, case.L + case.R), case.dtype),
        "weight": draw.normal((case.L,), case.dtype, scale=0.25).add_(1),
        "memory": memory,
        "rotations": plain_rotations(case.T, case.R, device),
    }
    made["kv"][:, : case.L].mul_(2)
    return made | {name: given[name] for name in ("block_table", "lengths")}


def q_of(case: LatentCase, memory: torch.Tensor) -> torch.Tensor:
    """q_rope [B, H, R], a view."""
    return memory[: case.q_rows].view(case.B, case.H, case.R)


def cache_of(case: LatentCase, memory: torch.Tensor) -> torch.Tensor:
    """The cache [pages, page, L + R], a view."""
    return memory[case.q_rows : case.rows].view(case.cache_shape)


def reference(case: LatentCase, inputs: Inputs) -> torch.Tensor:
    """fp64. The cache as it was, with each new token put in its place."""
    import torch

    cos, sin = inputs["rotations"].double()[inputs["lengths"].long()].chunk(2, dim=-1)

    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    q = turned(inputs["q"].double()[..., case.D :], cos[:, None], sin[:, None])
    latent, key = inputs["kv"].double().split([case.L, case.R], dim=1)
    latent = latent * (latent.square().mean(-1, keepdim=True) + case.epsilon).rsqrt() * inputs["weight"].double()
    cache = kv_append.background(case.cache_shape, case.dtype, q.device).double()
    b, physical, slot = kv_append.slots(case.append, inputs).T
    cache[physical, slot] = torch.cat([latent, turned(key, cos, sin)], dim=1)[b]
    return torch.cat([q.flatten(0, 1), cache.view(-1, case.R)])


def poison(case: LatentCase, inputs: Inputs, output: torch.Tensor) -> None:
    """NaN in q_rope and in the slots that must be written, and nowhere else."""
    q_of(case, output).fill_(float("nan"))
    _, physical, slot = kv_append.slots(case.append, inputs).T
    cache_of(case, output)[physical, slot] = float("nan")


def work(case: LatentCase) -> Work:
    """Rotary parts of queries, latents and keys once, in and out; angles, weights, lengths and table entries once."""
    size, rotary = BYTES[case.dtype], case.B * case.H * case.R
    token = case.B * (case.L + case.R)
    return Work(
        flops={"fma_fp32": 3 * rotary + 4 * token},
        bytes_read=size * (rotary + token + case.L) + 4 * case.B * (case.R + 1 + bool(case.page)),
        bytes_written=size * (rotary + token),
    )


def tolerance(case: LatentCase) -> Tolerance:
    why = "one rounding to the type, which peers also make of the normalized latent and of each product"
    return rounded(case.dtype, terms="R terms", max_units=8, rms_units=1.5, slope_units=0.25, why=why)


def results(case: LatentCase, inputs: Inputs) -> list[Result]:
    """q_rope, the new tokens, and the cache that was there before."""
    new, old = kv_append.rows_of(case.append, inputs)
    # of the two caches that `kv_append` writes, the first
    tokens = len(old) // 2 + len(new) // 2

    def cache(y: torch.Tensor) -> torch.Tensor:
        return y[case.q_rows :].reshape(tokens, case.L + case.R)

    new, old = new[new < tokens], old[old < tokens]
    return [
        Result("q_rope", lambda y: y[: case.q_rows], tolerance(case)),
        Result("latents", lambda y: cache(y)[new, : case.L], tolerance(case)),
        Result("rotary keys", lambda y: cache(y)[new, case.L :], tolerance(case)),
        Result("the old cache", lambda y: cache(y)[old], EXACT),
    ]


OP = Op(
    name="latent_append",
    title="latents and append",
    role="decode",
    about="norm of the latent, rotation of the rotary parts and the write into the cache of MLA, in one",
    formula="cache[slot(b)] = (norm(latent[b]), rotate(key[b])); q_rope = rotate(q_rope)",
    case_type=LatentCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("q", "kv", "memory", "block_table", "lengths"),
    poison=poison,
    results=results,
)
