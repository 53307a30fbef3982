"""What a layer does while it reads a prompt of T tokens: the same weights and the same cache, T tokens at once.

| kind | computes | intensity in 16 bits |
|---|---|---|
| `gemm` | y[T, N] = x[T, K] W[N, K]^T | about T FLOP/B while T is far below N and K |
| `attention` | O = softmax(Q K^T / sqrt(D) + causal) V, each prompt alone | T / (1 + H_kv / H_q) / 2 FLOP/B |

q, k and v are the heads of one x [B, T, H_q + 2 H_kv, D], as the fused projection leaves them; o is [B, T, H_q, D].
Query head h reads KV head h // (H_q / H_kv), and token t sees tokens 0 to t. Decode does both for one new token: what
is bound by arithmetic here is bound by memory there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kernels.common.compare import rounded
from kernels.common.fields import Count, Dtype
from kernels.common.outliers import mark_columns, outliers
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

SLICE = 1 << 26
"""Elements that the reference holds in fp32 beside the inputs: 256 MiB of scores, or of weights in fp32."""


@dataclass(frozen=True, kw_only=True)
class PrefillCase(Case):
    """`gemm` has T, N and K, and B = 1, since prompts are laid end to end; `attention` has B, T, H_q, H_kv and D.

    For a `gemm`, `layer` names the projection of `model`; like `model`, it is not part of the id.
    """

    kind: Literal["gemm", "attention"]
    T: int
    B: int = 1
    N: Count = 0
    K: Count = 0
    H_q: Count = 0
    H_kv: Count = 0
    D: Count = 0
    dtype: Dtype = "bf16"
    layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        gemm, attention = (self.N, self.K), (self.H_q, self.H_kv, self.D)
        mine, other = (gemm, attention) if self.kind == "gemm" else (attention, gemm)
        if min(mine) < 1 or any(other) or (self.kind == "gemm" and self.B != 1):
            raise ValueError("a gemm has T, N and K, an attention B, T, H_q, H_kv and D; nothing else, none zero")
        if self.kind == "attention" and self.H_q % self.H_kv:
            raise ValueError(f"H_q {self.H_q} is no multiple of H_kv {self.H_kv}")

    @property
    def id(self) -> str:
        if self.kind == "gemm":
            return f"gemm-T{self.T}-N{self.N}-K{self.K}-{self.dtype}"
        return f"attention-B{self.B}-T{self.T}-Hq{self.H_q}-Hkv{self.H_kv}-D{self.D}-{self.dtype}"


def projection(model: str, layer: str, T: int) -> PrefillCase:
    """`qkv` is the one matrix that servers make of q, k and v; `gate` has the same shape as `up`."""
    shape = MODELS[model]
    N = {"qkv": (shape.heads + 2 * shape.kv_heads) * shape.head_dim, "gate": shape.ffn}[layer]
    return PrefillCase(kind="gemm", model=model, layer=layer, T=T, N=N, K=shape.hidden)


def attention(model: str, T: int, B: int = 1) -> PrefillCase:
    shape = MODELS[model]
    return PrefillCase(kind="attention", model=model, B=B, T=T, H_q=shape.heads, H_kv=shape.kv_heads, D=shape.head_dim)


def cases(suite: str) -> list[PrefillCase]:
    """Prompts of 512 to 8192 tokens. The ridge of an H100 is 295 FLOP/B; only attention over 512 tokens is below it."""
    if suite == "smoke":
        return [
            PrefillCase(kind="gemm", T=256, N=1024, K=1024, dtype="fp32"),
            PrefillCase(kind="attention", T=256, H_q=8, H_kv=2, D=64, dtype="fp32"),
        ]
    if suite == "quick":
        return [
            *(projection("llama-3.1-70b", "gate", T) for T in (512, 2048)),
            *(attention("llama-3.1-8b", T) for T in (2048, 8192)),
        ]
    if suite == "full":
        return [
            *(projection("llama-3.1-70b", "gate", T) for T in (512, 2048, 8192)),
            projection("llama-3.1-8b", "qkv", 2048),
            projection("llama-3.1-8b", "gate", 2048),
            *(attention("llama-3.1-8b", T) for T in (512, 2048, 8192)),
            attention("llama-3.1-8b", 2048, B=4),
            attention("llama-3.1-70b", 8192),
        ]
    return [
        PrefillCase(kind="gemm", T=33, N=40, K=72, dtype="fp32"),
        PrefillCase(kind="gemm", T=48, N=65, K=64, dtype="bf16"),
        PrefillCase(kind="attention", T=37, B=2, H_q=6, H_kv=2, D=16, dtype="fp32"),
        PrefillCase(kind="attention", T=1, B=2, H_q=4, H_kv=4, D=32, dtype="fp32"),
        PrefillCase(kind="attention", T=70, H_q=4, H_kv=1, D=64, dtype="bf16"),
    ]


def inputs(case: PrefillCase, device: str, seed: int) -> Inputs:
    """`gemm`: x ~ N(0, 1) with outlier columns, w ~ N(0, 1/K).

    `attention`: k, v ~ N(0, 1). Query i is 2 N(0, 1) plus what makes its scores with tokens i and i + 1 larger by
    2 + ln(i + 1). The scores with the i tokens before have a standard deviation of 2, so together these have as much of
    the softmax as token i. If token i is lost or doubled, half of row i changes, or a third. Token i + 1, which row i
    must not see, would change it as much.
    """
    draw = RandomInputs(device, seed)
    if case.kind == "gemm":
        x = draw.normal((case.T, case.K), case.dtype)
        mark_columns(x, outliers(draw, case.K))
        return {"x": x, "w": draw.normal((case.N, case.K), case.dtype, scale=case.K**-0.5)}
    x = draw.normal((case.B, case.T, case.H_q + 2 * case.H_kv, case.D), case.dtype)
    x[:, :, : case.H_q].mul_(2.0)
    if device != "meta":
        attend_to_neighbours(case, x)
    return {"x": x}


def attend_to_neighbours(case: PrefillCase, x: torch.Tensor) -> None:
    """Add to each query k / ||k||^2 of its own token and of the next, times 2 + ln(i + 1) and sqrt(D)."""
    import torch

    q, k, _ = heads(case, x)
    for b in range(case.B):
        wanted = (2 + torch.arange(1, case.T + 1, device=x.device).log()) * case.D**0.5
        unit = k[b].float()
        unit /= (unit * unit).sum(dim=-1, keepdim=True)
        unit[:-1] += unit[1:].clone()
        q[b] += (unit * wanted[:, None, None]).repeat_interleave(case.H_q // case.H_kv, dim=1).to(x.dtype)


def heads(case: PrefillCase, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views q, k and v, each `[B, T, heads, D]`, of an attention's x."""
    return x.split((case.H_q, case.H_kv, case.H_kv), dim=2)


def reference(case: PrefillCase, inputs: Inputs) -> torch.Tensor:
    """Computed in fp32, in slices of N or of the queries, so that neither weights nor scores are held whole."""
    import torch

    if case.kind == "gemm":
        x = inputs["x"].float()
        return torch.cat([x @ w.float().T for w in inputs["w"].split(max(1, SLICE // case.K))], dim=1)
    q, k, v = heads(case, inputs["x"].float())
    o = torch.empty_like(q)
    rows = max(1, SLICE // (case.H_q * case.T))
    for b in range(case.B):
        for first in range(0, case.T, rows):
            end = min(first + rows, case.T)
            grouped = q[b, first:end].unflatten(1, (case.H_kv, -1))  # [rows, H_kv, H_q / H_kv, D]
            s = torch.einsum("ihgd,thd->hgit", grouped, k[b, :end]) * case.D**-0.5
            later = torch.ones(end - first, end, dtype=torch.bool, device=s.device).triu(first + 1)
            p = torch.softmax(s.masked_fill_(later, float("-inf")), dim=-1)
            o[b, first:end] = torch.einsum("hgit,thd->ihgd", p, v[b, :end]).flatten(1, 2)
    return o


def work(case: PrefillCase) -> Work:
    """Operands and results once. A gemm has 2 T N K FLOP. Attention has 4 D for each head and each of the
    B T (T + 1) / 2 pairs of a query and a token that it sees."""
    size = BYTES[case.dtype]
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_bf16"
    if case.kind == "gemm":
        return Work(
            flops={pipe: 2 * case.T * case.N * case.K},
            bytes_read=size * (case.T + case.N) * case.K,
            bytes_written=size * case.T * case.N,
        )
    tokens = case.B * case.T * case.D * size
    return Work(
        flops={pipe: 4 * case.D * case.H_q * case.B * (case.T * (case.T + 1) // 2)},
        bytes_read=tokens * (case.H_q + 2 * case.H_kv),
        bytes_written=tokens * case.H_q,
    )


def tolerance(case: PrefillCase) -> Tolerance:
    if case.kind == "gemm":
        return rounded(
            case.dtype, terms="K terms", max_units=4, rms_units=1, roundings=1, why="one rounding of y to its type"
        )
    why = "probabilities and o are each rounded to their type once"
    return rounded(case.dtype, terms="T terms", max_units=8, rms_units=1, why=why)


OP = Op(
    name="prefill",
    title="prefill",
    role="contrast",
    about="a layer reading a prompt: projections and causal attention, as the contrast to decode",
    formula="y[T,N] = x[T,K] W[N,K]^T; O = softmax(Q K^T / sqrt(D) + causal) V",
    case_type=PrefillCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
)
