"""FlashInfer's MLA over a paged latent cache. Its plan and page list are made as in attention_decode's adapter."""

from __future__ import annotations

from kernels.common import flashinfer_needs, page_lists
from kernels.common.integers import cdiv
from kernels.mla_decode.op import MlaCase, lengths, work
from kernels.op import Impl, Inputs, Launch, Stage, Target

LATENT, ROPE = 512, 64
"""DeepSeek's widths, the only ones that FlashInfer compiles its MLA kernels for."""


def stages(case: MlaCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes. Partials of splits stay in the L2, and the library does not tell how many there are."""
    attention = Stage(name="attention", work=work(case))
    if not case.page:
        return (attention,)
    return flashinfer_needs.refresh_stage(sum(cdiv(n, case.page) for n in lengths(case))), attention


def supports(case: MlaCase, target: Target) -> str | None:
    if missing := flashinfer_needs.missing(target):
        return missing
    if case.dtype == "fp32":
        return "takes fp16 and bf16"
    if case.kv:
        return "takes latents and rotary keys of one type, and no scales beside them"
    if min(lengths(case)) < case.q_len:
        return "needs a token in every sequence for each of its queries"
    if (case.L, case.R) != (LATENT, ROPE):
        return f"has kernels for a latent of {LATENT} and a rotary key of {ROPE}, not of {case.L} and {case.R}"
    return None


def decode(case: MlaCase, inputs: Inputs, target: Target) -> Launch:
    """`BatchMLAPagedAttentionWrapper`, which itself chooses FlashAttention 3 on Hopper and 2 elsewhere."""
    import flashinfer
    import torch

    q_latent, q_rope, cache = inputs["q_latent"], inputs["q_rope"], inputs["cache"]
    if case.page:
        pages = page_lists.paged(lengths(case), case.page, inputs["block_table"])
    else:
        pages = page_lists.contiguous(lengths(case), case.T, cache.device)
        cache = cache.view(-1, pages.page, case.L + case.R)
    workspace = torch.zeros(flashinfer_needs.WORKSPACE_BYTES, dtype=torch.uint8, device=cache.device)
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace, backend="auto")
    wrapper.plan(
        torch.arange(case.B + 1, dtype=torch.int32, device=cache.device) * case.q_len,
        pages.indptr,
        pages.indices,
        inputs["lengths"],
        case.H,
        case.L,
        case.R,
        pages.page,
        case.q_len > 1,  # causal; a single query is the newest token, which sees all
        case.softmax_scale,
        q_latent.dtype,
        cache.dtype,
    )
    latent, rope = cache[:, :, : case.L], cache[:, :, case.L :]
    o = torch.empty_like(q_latent)

    def launch() -> torch.Tensor:
        pages.refresh()
        wrapper.run(q_latent.flatten(0, 1), q_rope.flatten(0, 1), latent, rope, out=o.flatten(0, 1))
        return o

    return launch


IMPLS = (Impl(name="flashinfer", stages=stages, prepare=decode, supports=supports, version=flashinfer_needs.version),)
