"""FlashInfer's batch decode over a paged cache, with and without tensor cores.

Its plan depends only on lengths and is made once, outside the measured time. The pages change from step to step. So
each launch flattens the block table into FlashInfer's list, inside the measured time: this is one kernel of a few
microseconds, which the layers of a model would share. A contiguous cache is seen as pages of 16 tokens in order.
"""

from __future__ import annotations

from collections.abc import Callable

from kernels.attention_decode.op import AttentionCase, lengths, work
from kernels.common import flashinfer_needs, page_lists
from kernels.common.integers import cdiv
from kernels.op import Impl, Inputs, Launch, Stage, Target

GROUPS = (1, 2, 3, 4, 8)
"""The numbers of query heads per KV head that the kernel without tensor cores has (DISPATCH_GQA_GROUP_SIZE)."""

WIDTHS = (64, 128, 256)
"""Head dimensions of its kernels."""


def workspace_bytes(case: AttentionCase, target: Target) -> int:
    """The recommended size, or what FlashInfer's plan with tensor cores asks for if that is more.

    The plan cuts the sequences into pieces, at most (2 SMs / KV heads) of them. For each piece it keeps a tile of rows
    for every query head, though one tile holds all heads of a group. A row is D fp32 values and a sum. Tiles have 16,
    64 or 128 rows (`PrefillPlan`, `FA2DetermineCtaTileQ`). The kernel without tensor cores needs less.
    """
    tile = next((rows for rows in (16, 64) if case.group <= rows), 128)
    return max(flashinfer_needs.WORKSPACE_BYTES, 4 * case.group * 2 * target.sm_count * tile * (case.D + 1))


def stages(case: AttentionCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes. Partials of splits stay in the L2, and the library does not tell how many there are."""
    attention = Stage(name="attention", work=work(case))
    if not case.page:
        return (attention,)
    return flashinfer_needs.refresh_stage(sum(cdiv(n, case.page) for n in lengths(case))), attention


def supports(tensor_cores: bool) -> Callable[[AttentionCase, Target], str | None]:
    def check(case: AttentionCase, target: Target) -> str | None:
        if missing := flashinfer_needs.missing(target):
            return missing
        if case.dtype == "fp32":
            return "takes fp16 and bf16"
        if case.kv == "nvfp4":
            return "its decode for all parts takes no nvfp4 cache"
        if case.kv:
            return f"takes one scale for a whole {case.kv} cache, not one for every 16 tokens of a head"
        if case.q_len > 1:
            return "its decode takes one query token a sequence"
        if case.window:
            return "reads the whole block table, which here leads nowhere outside the window"
        if case.sink_logits:
            return "its decode has no sinks in its softmax"
        if 0 in lengths(case):
            return "needs a token in every sequence"
        if case.D not in WIDTHS:
            return f"has kernels for heads of {', '.join(map(str, WIDTHS))}, not of {case.D}"
        if not case.page and case.layout == "HND":
            return "sees a contiguous cache as pages, which needs tokens before heads (NHD)"
        if not tensor_cores and case.group not in GROUPS:
            return f"has kernels without tensor cores for groups of {', '.join(map(str, GROUPS))}, not of {case.group}"
        return None

    return check


def decode(tensor_cores: bool) -> Callable[[AttentionCase, Inputs, Target], Launch]:
    def prepare(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
        import flashinfer
        import torch

        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        if case.page:
            pages = page_lists.paged(lengths(case), case.page, inputs["block_table"])
        else:
            pages = page_lists.contiguous(lengths(case), case.T, q.device)
            k, v = (cache.view(-1, pages.page, case.H_kv, case.D) for cache in (k, v))
        workspace = torch.zeros(workspace_bytes(case, target), dtype=torch.uint8, device=q.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, case.layout, use_tensor_cores=tensor_cores)
        # the wrapper keeps `indices` itself, since they are on its device: it reads what `refresh` writes
        wrapper.plan(
            pages.indptr,
            pages.indices,
            pages.last_page_len,
            case.H_q,
            case.H_kv,
            case.D,
            pages.page,
            logits_soft_cap=case.softcap or None,
            sm_scale=case.softmax_scale,
            q_data_type=q.dtype,
            kv_data_type=k.dtype,
        )
        o = torch.empty_like(q)

        def launch() -> torch.Tensor:
            pages.refresh()
            wrapper.run(q[:, 0], (k, v), out=o[:, 0])
            return o

        return launch

    return prepare


IMPLS = tuple(
    Impl(
        name=name,
        stages=stages,
        prepare=decode(tensor_cores),
        supports=supports(tensor_cores),
        version=flashinfer_needs.version,
    )
    for name, tensor_cores in (("flashinfer", False), ("flashinfer-tc", True))
)
