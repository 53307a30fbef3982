"""What a user could call instead of ours: two batched matrix products around a softmax, in torch."""

from __future__ import annotations

from kernels.draw import BYTES
from kernels.mla_decode.op import MlaCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work


def stages(case: MlaCase, target: Target) -> tuple[Stage, ...]:
    """The latents twice, for scores and for values; the scores in between, from the L2 where they fit."""
    again = case.B * case.T * case.token_bytes
    scores = 4 * BYTES[case.dtype] * case.B * case.rows * case.T
    return (Stage(name="bmm, softmax, bmm", work=work(case) + Work(bytes_read=again), l2_bytes=scores),)


def supports(case: MlaCase, target: Target) -> str | None:
    if case.kv:
        return "multiplies 16-bit latents; torch has no bmm that scales fp8 ones by token"
    if case.page:
        return "takes no block table; needs a contiguous cache"
    if case.lengths != "uniform":
        return "takes no lengths (a mask would still read what lies beyond them); needs uniform ones"
    if case.q_len > case.T:
        return "its softmax knows no query that sees nothing; needs a token for every query"
    return None


def bmm(case: MlaCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.baddbmm` and `bmm` with queries and heads as rows: cuBLAS on a GPU, oneDNN or MKL on a CPU."""
    import torch

    cache = inputs["cache"]
    q = cache.new_empty(case.B, case.q_len, case.H, case.L + case.R)
    rows = q.view(case.B, case.rows, case.L + case.R)
    scores = cache.new_empty(case.B, case.rows, case.T)
    by_query = scores.view(case.B, case.q_len, case.H, case.T)
    unseen = [by_query[:, i, :, case.T - case.q_len + 1 + i :] for i in range(case.q_len - 1)]
    weights = torch.empty_like(scores)
    o = torch.empty_like(inputs["q_latent"])
    keys, values = cache.transpose(1, 2), cache[:, :, : case.L]

    def launch() -> torch.Tensor:
        torch.cat([inputs["q_latent"], inputs["q_rope"]], dim=-1, out=q)
        torch.baddbmm(scores, rows, keys, beta=0, alpha=case.scale, out=scores)
        for tail in unseen:
            tail.fill_(float("-inf"))
        torch.softmax(scores, dim=-1, out=weights)
        torch.bmm(weights, values, out=o.view(case.B, case.rows, case.L))
        return o

    return launch


def torch_version() -> str:
    import torch

    return f"torch {torch.__version__}"


IMPLS = (Impl(name="torch", stages=stages, prepare=bmm, supports=supports, version=torch_version),)
