"""xformers' split-KV decode in Triton, over a contiguous cache or pages of a multiple of 64 tokens."""

from __future__ import annotations

from importlib import metadata

from kernels.attention_decode.op import AttentionCase, lengths, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, needs

BLOCK_N = 64
"""Tokens of one block of its kernel; a page holds a multiple of it."""

MAX_Q = 16
"""Query tokens a sequence that its causal kernel takes."""

WIDTHS = (16, 32, 64, 128, 256, 512)


def stages(case: AttentionCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes. Partials of splits stay in the L2, and the library does not tell how many there are."""
    return (Stage(name="split, merge", work=work(case)),)


def supports(case: AttentionCase, target: Target) -> str | None:
    if target.kind != "cuda" or target.sm < 80:
        return "needs an NVIDIA GPU of sm_80 or later"
    if missing := needs("xformers"):
        return missing
    if case.dtype == "fp32" or case.kv:
        return "takes fp16 and bf16 caches, and 8 bits only in a packing of its own"
    if case.page % BLOCK_N:
        return f"needs pages of a multiple of {BLOCK_N} tokens"
    if case.layout == "HND":
        return "takes tokens before heads (NHD) only"
    if case.window or case.softcap or case.sink_logits:
        return "has neither a window over pages, nor a soft cap on scores, nor sinks in its softmax"
    if 0 in lengths(case):
        return "needs a token in every sequence"
    if case.D not in WIDTHS or case.q_len > MAX_Q:
        return f"takes heads of {', '.join(map(str, WIDTHS))} and up to {MAX_Q} query tokens"
    return None


def decode(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
    """The split-KV operator, called directly. It reads the block table as it is, and allocates partials and o.

    q is `[1, B q_len, H_kv, group, D]`; k and v are `[1, tokens, H_kv, group, D]` with a stride of 0 over the group,
    which tells the operator that the query heads of a group share their KV head.

    `memory_efficient_attention_forward` would first insist on xformers' C++ extension, which loads only with the torch
    and CUDA that it was built for (0.0.35: 2.10, 12.8). This operator is written in Triton and does not need it.
    """
    import torch
    from xformers.ops import fmha

    bias_module = fmha.attn_bias
    queries, keys = [case.q_len] * case.B, list(lengths(case))
    device = inputs["q"].device
    if case.page:
        bias = bias_module.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            queries, keys, inputs["block_table"], case.page, device=device
        )
    else:
        bias = bias_module.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            queries, case.T, keys, device=device
        )
    q = inputs["q"].view(1, case.B * case.q_len, case.H_kv, case.group, case.D)
    k, v = (inputs[name].view(1, -1, case.H_kv, 1, case.D).expand(-1, -1, -1, case.group, -1) for name in ("k", "v"))

    def launch() -> torch.Tensor:
        arguments = fmha.Inputs(query=q, key=k, value=v, attn_bias=bias, scale=case.softmax_scale)
        o, _ = fmha.triton_splitk.FwOp.apply(arguments, needs_gradient=False)
        return o.reshape(case.B, case.q_len, case.H_q, case.D)

    return launch


def version() -> str:
    """The installed version. Nothing is imported, so a record of a failed import has it too."""
    return f"xformers {metadata.version('xformers')}"


IMPLS = (Impl(name="xformers", stages=stages, prepare=decode, supports=supports, version=version),)
