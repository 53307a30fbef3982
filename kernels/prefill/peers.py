"""Prefill is what libraries do best: cuBLAS and flash attention through torch. Nothing here is ours."""

from __future__ import annotations

from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version
from kernels.prefill.op import PrefillCase, heads, work


def stages(case: PrefillCase, target: Target) -> tuple[Stage, ...]:
    """One library call, assumed to move only the compulsory bytes and to compute no masked pair."""
    return (Stage(name=case.kind, work=work(case)),)


def prepare(case: PrefillCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.mm` (cuBLAS; oneDNN or MKL on a CPU), or `scaled_dot_product_attention`, which allocates o."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    x = inputs["x"]
    if case.kind == "gemm":
        w_t = inputs["w"].T
        y = torch.empty(case.T, case.N, dtype=x.dtype, device=x.device)
        return lambda: torch.mm(x, w_t, out=y)
    q, k, v = (part.transpose(1, 2) for part in heads(case, x))  # [B, heads, T, D]
    gqa = case.H_q != case.H_kv
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa).transpose(1, 2)


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
