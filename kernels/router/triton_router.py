"""One CTA of one warp per token: its scores stay in registers, and the largest is taken k times."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.router.op import RouterCase, output, work


@triton.jit
def allowed_groups(chosen_by, offs_e, E, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr):
    """-inf for the experts of all but the `TOP_GROUPS` best groups."""
    of_group = tl.full(chosen_by.shape, float("-inf"), tl.float32)
    each = E // GROUPS
    for g in range(GROUPS):
        mine = offs_e // each == g
        scores = tl.where(mine, chosen_by, float("-inf"))
        best = tl.max(scores)
        second = tl.max(tl.where(offs_e == tl.argmax(scores, axis=0), float("-inf"), scores))
        of_group = tl.where(mine, best + second, of_group)
    kept = tl.full(chosen_by.shape, float("-inf"), tl.float32)
    for _ in range(TOP_GROUPS):
        best_group = of_group == tl.max(of_group)
        kept = tl.where(best_group, chosen_by, kept)
        of_group = tl.where(best_group, float("-inf"), of_group)
    return kept


@triton.jit
def router_kernel(
    logits,  # [B, E]
    bias,  # [E] or None
    ids,  # [B, k] int32
    weights,  # [B, k] fp32
    E,
    k,
    scaling,
    stride_logits_b,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    b = tl.program_id(0)
    offs_e, offs_k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    mask = offs_e < E
    row = tl.load(logits + b * stride_logits_b + offs_e, mask=mask, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-row))
        chosen_by = tl.where(mask, scores + tl.load(bias + offs_e, mask=mask, other=0.0), float("-inf"))
    else:
        if bias is not None:
            row += tl.load(bias + offs_e, mask=mask, other=0.0).to(tl.float32)
        scores = tl.exp(row - tl.max(row))
        chosen_by = tl.where(mask, scores, float("-inf"))
    if GROUPS > 0:
        chosen_by = allowed_groups(chosen_by, offs_e, E, GROUPS, TOP_GROUPS)
    found = tl.zeros((BLOCK_K,), tl.int32)
    taken = tl.zeros((BLOCK_K,), tl.float32)
    for j in range(k):
        best = tl.argmax(chosen_by, axis=0)
        found = tl.where(offs_k == j, best, found)
        taken = tl.where(offs_k == j, tl.sum(tl.where(offs_e == best, scores, 0.0)), taken)
        chosen_by = tl.where(offs_e == best, float("-inf"), chosen_by)
    if RENORMALIZE:
        total = tl.sum(taken)
    elif SIGMOID:
        total = 1.0
    else:
        total = tl.sum(scores)
    mask_k = offs_k < k
    tl.store(ids + b * k + offs_k, found, mask=mask_k)
    tl.store(weights + b * k + offs_k, taken * (scaling / total), mask=mask_k)


def build(case: RouterCase, inputs: Inputs, target: Target) -> Built:
    logits = inputs["logits"]
    whole, ids, weights = output(case, logits.device)
    launch = KernelLaunch(
        kernel=router_kernel,
        grid=(case.B,),
        args={
            "logits": logits,
            "bias": inputs["bias"] if case.has_bias else None,
            "ids": ids,
            "weights": weights,
            "E": case.E,
            "k": case.k,
            "scaling": float(case.scaling),
            "stride_logits_b": logits.stride(0),
        },
        constexprs={
            "SIGMOID": case.score == "sigmoid",
            "RENORMALIZE": case.renormalize,
            "GROUPS": case.groups,
            "TOP_GROUPS": case.top_groups,
            "BLOCK_E": triton.next_power_of_2(max(2, case.E)),
            "BLOCK_K": triton.next_power_of_2(max(2, case.k)),
        },
        num_warps=1,
        num_stages=1,
        why_few_in_flight="a token has some hundred logits: the launch decides, not the memory",
    )
    return Built(launches=(launch,), output=whole)


def stages(case: RouterCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes; the other CTAs find the bias in the L2."""
    again = (case.B - 1) * 4 * case.E if case.has_bias else 0
    return (Stage(name="router", work=work(case), l2_bytes=again, ctas=case.B, ctas_per_sm=32),)


IMPLS = (triton_impl(name="triton", build=build, stages=stages),)
