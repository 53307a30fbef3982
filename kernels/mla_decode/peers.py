"""What a user could call instead of our kernels: two batched matrix products around a softmax, in torch."""

from __future__ import annotations

from kernels.common.random_inputs import BYTES
from kernels.mla_decode.op import MlaCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version


def wide_scores(case: MlaCase, target: Target) -> bool:
    """Are the scores of 16-bit operands kept in fp32? torch has a kernel for this on GPUs only.

    A score between 4 and 8, rounded to bf16, is off by up to 1/64, and so is its weight. This is more than the
    tolerance allows.
    """
    return target.kind == "cuda" and case.dtype != "fp32"


def stages(case: MlaCase, target: Target) -> tuple[Stage, ...]:
    """The latents are read twice, for scores and for values. The scores in between stay in the L2 where they fit."""
    again = case.B * case.T * case.token_bytes
    size = BYTES[case.dtype]
    passes = 4 * BYTES["fp32"] + 2 * size if wide_scores(case, target) else 4 * size
    scores = passes * case.B * case.rows * case.T
    return (Stage(name="bmm, softmax, bmm", work=work(case) + Work(bytes_read=again), l2_bytes=scores),)


def supports(case: MlaCase, target: Target) -> str | None:
    if case.kv:
        return "multiplies 16-bit latents; torch has no bmm that scales fp8 or nvfp4 latents"
    if case.page:
        return "takes no block table; needs a contiguous cache"
    if case.lengths != "uniform":
        return "takes no lengths (with a mask it would still read what lies beyond them); needs uniform ones"
    if case.q_len > case.T:
        return "its softmax knows no query that sees nothing; needs a token for every query"
    return None


def bmm(case: MlaCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.baddbmm` and `bmm`, with queries and heads as rows: cuBLAS on a GPU, oneDNN or MKL on a CPU."""
    import torch

    cache, wide = inputs["cache"], wide_scores(case, target)
    out_dtype = {"out_dtype": torch.float32} if wide else {}
    q = cache.new_empty(case.B, case.q_len, case.H, case.L + case.R)
    rows = q.view(case.B, case.rows, case.L + case.R)
    weights = cache.new_empty(case.B, case.rows, case.T)
    scores = torch.empty_like(weights, dtype=torch.float32 if wide else None)
    softmax = torch.empty_like(scores) if wide else weights
    by_query = scores.view(case.B, case.q_len, case.H, case.T)
    unseen = [by_query[:, i, :, case.T - case.q_len + 1 + i :] for i in range(case.q_len - 1)]
    o = torch.empty_like(inputs["q_latent"])
    keys, values = cache.transpose(1, 2), cache[:, :, : case.L]

    def launch() -> torch.Tensor:
        torch.cat([inputs["q_latent"], inputs["q_rope"]], dim=-1, out=q)
        torch.baddbmm(scores, rows, keys, **out_dtype, beta=0, alpha=case.softmax_scale, out=scores)
        for tail in unseen:
            tail.fill_(float("-inf"))
        torch.softmax(scores, dim=-1, out=softmax)
        if wide:
            weights.copy_(softmax)
        torch.bmm(weights, values, out=o.view(case.B, case.rows, case.L))
        return o

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=bmm, supports=supports, version=torch_version),)
