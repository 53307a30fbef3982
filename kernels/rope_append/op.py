"""Between the product that gives Q, K and V and attention: QK-norm, rotation, and the write into the cache.

qkv [B, H_q + 2 H_kv, D] holds the heads of Q, then of K, then of V, of one token a sequence, without the bias
[H_q + 2 H_kv, D] that some models add. Each head of Q and K is normalized (x / sqrt(mean(x^2) + epsilon) w, where the
model does so) and rotated: of its first R dims, x[i] and x[i + R/2] become x[i] cos - x[i + R/2] sin and
x[i + R/2] cos + x[i] sin, with cos and sin of the token's position and of i. K and V then go to the slot of the cache
that `kernels/kv_append` tells, Q to q [B, H_q, D].

q and the cache are rows of D elements of one tensor, `memory`: first the B H_q rows of q, then those of the cache. The
rest of the cache stays as it was.

A cache in 8 bits holds codes: K / scale and V / scale, rounded, at most 448 (fp8, e4m3) or 127 (int8) in size. The
scales are those of `kernels/attention_decode`, k_scale and v_scale fp32 [pages, groups, H_kv], and are given: servers
calibrate them before. `memory` is then bytes, those of q and then the codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common import paging
from kernels.common.compare import rounded
from kernels.common.fields import TYPES, Count, Dtype, OneOf, cache_type
from kernels.common.integers import cdiv
from kernels.common.quantization import SCALE_GROUP
from kernels.common.random_inputs import BYTES, LARGEST, RandomInputs, torch_dtype
from kernels.kv_append import op as kv_append
from kernels.models import attention_heads
from kernels.op import EXACT, Case, Inputs, Op, Result, Tolerance, Work
from kernels.rmsnorm.op import EPSILON

if TYPE_CHECKING:
    import torch

CODES_PER_UNIT = {"fp8": 32.0, "int8": 16.0}
"""Codes that stand for a key of 1: keys up to 14 and up to 8 have one."""

THETA = 10000.0
"""`rope_theta` of Llama 2. Which angles there are decides nothing here."""


@dataclass(frozen=True, kw_only=True)
class RopeCase(Case):
    """The cache is that of `kernels/kv_append`, in `dtype` or in `kv`. `rotary` is R, 0 for all D dims."""

    PLAIN: ClassVar[Mapping[str, Any]] = {"rotary": 0}

    B: int
    H_q: int
    H_kv: int
    D: int
    T: int
    page: Count = 16
    layout: paging.Layout = "NHD"
    lengths: paging.Lengths = "ragged"
    bias: bool = False
    qk_norm: bool = False
    rotary: Count = 0
    dtype: Dtype = "bf16"
    epsilon: float = EPSILON
    kv: Annotated[str, OneOf("", *LARGEST, *TYPES)] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.R % 2 or self.R > self.D:
            raise ValueError(f"rotary {self.rotary}: an even number of the D = {self.D} dims")
        object.__setattr__(self, "kv", cache_type(self.kv, self.dtype))
        assert self.append

    @property
    def R(self) -> int:
        return self.rotary or self.D

    @property
    def id(self) -> str:
        parts = [f"Hq{self.H_q}", *(["bias"] if self.bias else []), *(["norm"] if self.qk_norm else [])]
        parts += [f"R{self.rotary}"] if self.rotary else []
        parts += [f"eps{self.epsilon:g}"] if self.epsilon != EPSILON else []
        return "-".join([*parts, self.append.id, *([f"kv{self.kv}"] if self.kv else [])])

    @property
    def append(self) -> kv_append.AppendCase:
        """The write of the same tokens into the same cache."""
        names = ("B", "H_kv", "D", "T", "page", "layout", "lengths", "dtype")
        return kv_append.AppendCase(**{name: getattr(self, name) for name in names})

    @property
    def heads(self) -> int:
        return self.H_q + 2 * self.H_kv

    @property
    def q_rows(self) -> int:
        return self.B * self.H_q

    @property
    def rows(self) -> int:
        """Rows of q and of the cache."""
        return self.q_rows + prod(kv_append.cache_shape(self.append)[:-1])

    @property
    def memory_shape(self) -> tuple[int, ...]:
        if not self.kv:
            return (self.rows, self.D)
        return (self.D * (self.q_rows * BYTES[self.dtype] + self.rows - self.q_rows),)

    @property
    def scale_shape(self) -> tuple[int, int, int]:
        """Pages, groups of tokens in a page, and heads."""
        pages = kv_append.cache_shape(self.append)[1]
        return pages, cdiv(self.append.tokens_per_page, SCALE_GROUP), self.H_kv


def of_model(model: str, B: int, **more: Any) -> RopeCase:
    """The cache is no larger than a comparison needs: the bytes depend on B alone."""
    H_q, H_kv, D = attention_heads(model)
    return RopeCase(model=model, B=B, H_q=H_q, H_kv=H_kv, D=D, T=64, **more)


def cases(suite: str) -> list[RopeCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [of_model("qwen3-32b", 64, qk_norm=True)]
    if suite == "full":
        return [
            *(of_model("llama-3.1-8b", B) for B in (1, 16, 64, 256)),
            *(of_model("qwen3-32b", B, qk_norm=True) for B in (1, 64, 256)),
            of_model("gpt-oss-20b", 64, bias=True),
            of_model("phi-2", 64, rotary=32),
            of_model("llama-3.1-8b", 64, kv="fp8"),
        ]
    return [
        RopeCase(B=3, H_q=4, H_kv=2, D=32, T=40, dtype="fp32"),
        RopeCase(B=2, H_q=3, H_kv=1, D=48, T=20, page=4, layout="HND", qk_norm=True, epsilon=1e-3, dtype="fp16"),
        RopeCase(B=3, H_q=2, H_kv=2, D=20, T=33, page=0, rotary=8, bias=True, dtype="fp16"),
        RopeCase(B=3, H_q=4, H_kv=2, D=32, T=70, page=32, kv="fp8", dtype="fp16"),
        RopeCase(B=2, H_q=2, H_kv=1, D=16, T=40, page=0, kv="int8", dtype="fp16"),
    ]


def rotations(positions: int, frequencies: Sequence[float], device: str) -> torch.Tensor:
    """fp32 [positions, R]: the cosines of a position times each of the R/2 frequencies, then the sines."""
    import torch

    if device == "meta":
        return torch.empty(positions, 2 * len(frequencies), device=device)
    angle = torch.arange(positions, device=device)[:, None] * torch.tensor(frequencies, device=device)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def frequencies(R: int, theta: float) -> list[float]:
    """theta^(-2i/R) of each pair."""
    return [theta ** (-i / R) for i in range(0, R, 2)]


def plain_rotations(positions: int, R: int, device: str) -> torch.Tensor:
    """Angles of Llama 2."""
    return rotations(positions, frequencies(R, THETA), device)


def inputs(case: RopeCase, device: str, seed: int) -> Inputs:
    """qkv ~ N(0, 1), heads of Q and K times 1 to 2 so that no norm leaves them; weights of norms ~ 1 + N(0, 1) / 4.

    `q_weight` and `k_weight` are [0] without a norm, `bias` without a bias. Lengths and table are those of
    `kernels/kv_append`.
    """
    import torch

    draw = RandomInputs(device, seed)
    append = case.append
    given = kv_append.inputs(append, device, seed)
    memory = torch.zeros(case.memory_shape, dtype=torch.uint8 if case.kv else torch_dtype(case.dtype), device=device)
    stored = kv_append.background(kv_append.cache_shape(append), case.kv or case.dtype, device)
    paging.poisonable(cache_of(case, memory))[0].copy_(paging.poisonable(stored)[0])
    made: Inputs = {"qkv": draw.normal((case.B, case.heads, case.D), case.dtype), "memory": memory}
    for name in ("q_weight", "k_weight"):
        made[name] = draw.normal((case.D if case.qk_norm else 0,), case.dtype, scale=0.25).add_(1)
    made["bias"] = draw.normal((case.heads if case.bias else 0, case.D), case.dtype)
    if device != "meta":
        made["qkv"] *= 1 + torch.arange(case.heads, device=device)[None, :, None] % 2
    made["rotations"] = plain_rotations(case.T, case.R, device)
    if case.kv:
        made |= dict(zip(("k_scale", "v_scale"), scales(case, device), strict=True))
    return made | {name: given[name] for name in ("block_table", "lengths")}


def scales(case: RopeCase, device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of keys and of values, the same for every seed. Those of neighbouring groups and heads differ by a
    quarter."""
    import torch

    pages, groups, heads = (torch.arange(n, device=device) for n in case.scale_shape)
    odd = (pages[:, None, None] + groups[:, None] + heads) % 2
    k = (1 + odd / 4) / CODES_PER_UNIT[case.kv]
    return k, k.flip(0).contiguous() * 0.75


def q_of(case: RopeCase, memory: torch.Tensor) -> torch.Tensor:
    """q [B, H_q, D], a view."""
    if case.kv:
        memory = memory[: case.q_rows * case.D * BYTES[case.dtype]].view(torch_dtype(case.dtype)).view(-1, case.D)
    return memory[: case.q_rows].view(case.B, case.H_q, case.D)


def cache_of(case: RopeCase, memory: torch.Tensor) -> torch.Tensor:
    """The cache as `kernels/kv_append` has it, a view."""
    shape = kv_append.cache_shape(case.append)
    if case.kv:
        return memory[case.q_rows * case.D * BYTES[case.dtype] :].view(torch_dtype(case.kv)).view(shape)
    return memory[case.q_rows :].view(shape)


def widened(case: RopeCase, codes: torch.Tensor, k_scale: torch.Tensor, v_scale: torch.Tensor) -> torch.Tensor:
    """What the codes of a cache stand for, in fp32 and in its layout."""

    wide = codes.float()
    for half, scale in zip(wide, (k_scale, v_scale), strict=True):
        by_token = scale.repeat_interleave(SCALE_GROUP, 1)[:, : case.append.tokens_per_page]
        paging.nhd(half, case.layout).mul_(by_token[..., None])
    return wide


def rounded_to(kind: str, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x as a cache in 8 bits holds it, in fp32: the nearest code times its scale."""
    import torch

    code = (x / scale).clamp(-LARGEST[kind], LARGEST[kind]).float()
    return (code.round() if kind == "int8" else code.to(torch.float8_e4m3fn).float()) * scale


def decoded(case: RopeCase, found: torch.Tensor) -> torch.Tensor:
    """Rows of q, and of the cache in what its codes stand for."""
    import torch

    if not case.kv:
        return found
    cache = widened(case, cache_of(case, found), *scales(case, found.device))
    return torch.cat([q_of(case, found).flatten(0, 1).float(), cache.view(-1, case.D)])


def rotated(case: RopeCase, inputs: Inputs, x: torch.Tensor, weight: str) -> torch.Tensor:
    """Heads x [B, H, D] in fp64, normalized and rotated."""
    import torch

    if case.qk_norm:
        x = x * (x.square().mean(-1, keepdim=True) + case.epsilon).rsqrt() * inputs[weight].double()
    cos, sin = inputs["rotations"].double()[inputs["lengths"].long()][:, None].chunk(2, dim=-1)
    first, second, rest = x.split([case.R // 2, case.R // 2, case.D - case.R], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def reference(case: RopeCase, inputs: Inputs) -> torch.Tensor:
    """fp64. The cache as it was, with each new token put in its place."""
    import torch

    qkv, append = inputs["qkv"].double(), case.append
    if case.bias:
        qkv = qkv + inputs["bias"].double()
    q, k, v = qkv.split([case.H_q, case.H_kv, case.H_kv], dim=1)
    q, k = rotated(case, inputs, q, "q_weight"), rotated(case, inputs, k, "k_weight")
    kv = kv_append.background(kv_append.cache_shape(append), case.kv or case.dtype, qkv.device)
    kv = (widened(case, kv, inputs["k_scale"], inputs["v_scale"]) if case.kv else kv).double()
    b, physical, slot = kv_append.slots(append, inputs).T
    for half, (name, new) in enumerate((("k_scale", k), ("v_scale", v))):
        if case.kv:
            new = rounded_to(case.kv, new, inputs[name][physical, slot // SCALE_GROUP][..., None].double())
        paging.nhd(kv[half], case.layout)[physical, slot] = new[b].double()
    return torch.cat([q.flatten(0, 1), kv.reshape(-1, case.D)])


def poison(case: RopeCase, inputs: Inputs, output: torch.Tensor) -> None:
    """NaN in q and in the slots that must be written, and nowhere else."""
    q_of(case, output).fill_(float("nan"))
    kv_append.poison_slots(case.append, inputs, cache_of(case, output))


def work(case: RopeCase) -> Work:
    """Q, K and V once, in and out; angles, scales, lengths and table entries of each token, bias and norms once."""
    append, size = kv_append.work(case.append), BYTES[case.dtype]
    q, turned = size * case.q_rows * case.D, case.B * (case.H_q + case.H_kv) * case.D
    weights = size * case.D * (2 * case.qk_norm + case.heads * case.bias)
    return Work(
        flops={"fma_fp32": (7 if case.qk_norm else 3) * turned},
        bytes_read=append.bytes_read + q + 4 * case.B * (case.R + 2 * case.H_kv * bool(case.kv)) + weights,
        bytes_written=append.bytes_written * BYTES[case.kv or case.dtype] // size + q,
    )


def tolerance(case: RopeCase) -> Tolerance:
    if case.kv:
        why = "a value next to a border may get the next code: an eighth of it in fp8, a 127th of the largest in int8"
        return Tolerance(max_rel=0.15, rms_rel=0.02, why=why)
    return of_16_bits(case)


def of_16_bits(case: RopeCase) -> Tolerance:
    why = "one rounding of q and k to their type, which peers also make of the normalized head and of each product"
    return rounded(case.dtype, terms="D terms", max_units=8, rms_units=1.5, slope_units=0.25, why=why)


def results(case: RopeCase, inputs: Inputs) -> list[Result]:
    """q, the new tokens, and the cache that was there before."""
    codes = Tolerance(max_rel=0.15, rms_rel=0.1, differing=0.003, why="a value next to a border may get the next code")
    new, old = kv_append.rows_of(case.append, inputs)
    return [
        Result("q", lambda y: y[: case.q_rows], of_16_bits(case)),
        Result("the new tokens", lambda y: y[case.q_rows :][new], codes if case.kv else of_16_bits(case)),
        Result("the old cache", lambda y: y[case.q_rows :][old], EXACT),
    ]


OP = Op(
    name="rope_append",
    title="RoPE and append",
    role="decode",
    about="QK-norm, rotation and the write into the cache, in one",
    formula="q, k = rotate(norm(q)), rotate(norm(k)); cache[slot(b)] = (k[b], v[b])",
    case_type=RopeCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("qkv", "memory", "block_table", "lengths"),
    poison=poison,
    decoded=decoded,
    results=results,
)
