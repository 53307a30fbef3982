"""What a user could call instead of ours: two batched matrix products around a softmax, in torch."""

from __future__ import annotations

from kernels.draw import BYTES
from kernels.mla_decode.op import MlaCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work


def stages(case: MlaCase, target: Target) -> tuple[Stage, ...]:
    """The latents twice, for scores and for values; the scores in between, from the L2 where they fit."""
    again = case.B * case.T * case.token_bytes
    scores = 4 * BYTES[case.dtype] * case.B * case.H * case.T
    return (Stage(name="bmm, softmax, bmm", work=work(case) + Work(bytes_read=again), l2_bytes=scores),)


def supports(case: MlaCase, target: Target) -> str | None:
    if case.kv:
        return "multiplies 16-bit latents; torch has no bmm that scales fp8 ones by token"
    if case.page:
        return "takes no block table; needs a contiguous cache"
    if case.lengths != "uniform":
        return "takes no lengths (a mask would still read what lies beyond them); needs uniform ones"
    return None


def bmm(case: MlaCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.baddbmm` and `bmm` with the heads as rows: cuBLAS on a GPU, oneDNN or MKL on a CPU."""
    import torch

    cache = inputs["cache"]
    q = cache.new_empty(case.B, case.H, case.L + case.R)
    scores = cache.new_empty(case.B, case.H, case.T)
    weights = torch.empty_like(scores)
    o = torch.empty_like(inputs["q_latent"])
    keys, values = cache.transpose(1, 2), cache[:, :, : case.L]

    def launch() -> torch.Tensor:
        torch.cat([inputs["q_latent"], inputs["q_rope"]], dim=-1, out=q)
        torch.baddbmm(scores, q, keys, beta=0, alpha=case.scale, out=scores)
        torch.softmax(scores, dim=-1, out=weights)
        return torch.bmm(weights, values, out=o)

    return launch


def torch_version() -> str:
    import torch

    return f"torch {torch.__version__}"


IMPLS = (Impl(name="torch", stages=stages, prepare=bmm, supports=supports, version=torch_version),)
