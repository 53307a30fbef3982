"""What a user could call instead of our kernels: torch."""

from __future__ import annotations

from kernels.attention_decode.op import AttentionCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version


def one_pass(case: AttentionCase, target: Target) -> tuple[Stage, ...]:
    """A library call, assumed to move only the compulsory bytes."""
    return (Stage(name="sdpa", work=work(case)),)


def dense_only(case: AttentionCase, target: Target) -> str | None:
    """`scaled_dot_product_attention` takes whole tensors in the type of the query."""
    if case.page:
        return "takes no block table; needs a contiguous cache"
    if case.lengths != "uniform":
        return "takes no lengths (with a mask it would still read, and spread, what lies beyond); needs uniform ones"
    if case.kv:
        return f"takes no scales; needs a cache in {case.dtype}"
    if case.softcap:
        return "has no soft cap on scores"
    if case.sink_logits:
        return "has no sinks in its softmax"
    if case.window and (case.sinks or case.q_len > 1):
        return "has a window only as a slice of the cache: without sinks and for one query token"
    return None


def sdpa(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
    """torch picks the kernel: flash attention or cuDNN on a GPU, its own flash attention on a CPU. It allocates o."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q = inputs["q"].transpose(1, 2)  # [B, H_q, q_len, D]
    k, v = (inputs[name] if case.layout == "HND" else inputs[name].transpose(1, 2) for name in ("k", "v"))
    if case.window:
        k, v = k[:, :, -case.window :], v[:, :, -case.window :]
    mask = None
    if case.q_len > 1:
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(case.q_len, case.T)

    def launch() -> torch.Tensor:
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=case.softmax_scale, enable_gqa=case.group > 1)
        return o.transpose(1, 2)

    return launch


IMPLS = (Impl(name="torch", stages=one_pass, prepare=sdpa, supports=dense_only, version=torch_version),)
