"""The step from our kernels. The launches of all layers follow each other in one CUDA graph."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.decode_step import compose
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import Part
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target

NAMES = dict.fromkeys(compose.OPS, ("triton",))


@triton.jit
def look_up_kernel(tokens, table, x, H, factor, BLOCK_H: tl.constexpr):
    """x[b] = factor table[tokens[b]]; table [V, H], x [B, H]."""
    b = tl.program_id(1)
    offs_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = offs_h < H
    token = tl.load(tokens + b)
    row = tl.load(table + token * H + offs_h, mask=mask, other=0.0)
    tl.store(x + b * H + offs_h, row.to(tl.float32) * factor, mask=mask)


@triton.jit
def choose_kernel(logits, out, V, stride_logits_b, BLOCK_V: tl.constexpr):
    """out[b] = the first v with the largest logits[b, v]."""
    b = tl.program_id(0)
    offs_v = tl.arange(0, BLOCK_V)
    best = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK_V,), tl.int64)
    for first in tl.range(0, V, BLOCK_V, num_stages=3):
        at = first + offs_v
        row = tl.load(logits + b * stride_logits_b + at, mask=at < V, other=float("-inf")).to(tl.float32)
        where = tl.where(row > best, at, where)
        best = tl.maximum(best, row)
    largest = tl.max(best)
    tl.store(out + b, tl.min(tl.where(best == largest, where, V)))


class Ours:
    """Collects the launches of all parts."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.launches: list[KernelLaunch] = []

    def run(self, part: Part, given: Inputs) -> torch.Tensor:
        impl, why = compose.chosen(part, NAMES, self.target)
        assert impl, why
        assert impl.build
        built = impl.build(part.case, given, self.target)
        self.launches += built.launches
        return built.output

    def look_up(self, tokens: torch.Tensor, table: torch.Tensor, factor: float) -> torch.Tensor:
        B, H = len(tokens), table.shape[1]
        x = torch.empty(B, H, dtype=table.dtype, device=table.device)
        self.launches.append(
            KernelLaunch(
                kernel=look_up_kernel,
                grid=(triton.cdiv(H, 1024), B),
                args={"tokens": tokens, "table": table, "x": x, "H": H, "factor": float(factor)},
                constexprs={"BLOCK_H": 1024},
                why_few_in_flight="a step looks up a row a sequence: the launch decides, not the memory",
            )
        )
        return x

    def choose(self, logits: torch.Tensor, out: torch.Tensor) -> None:
        B, V = logits.shape
        self.launches.append(
            KernelLaunch(
                kernel=choose_kernel,
                grid=(B,),
                args={"logits": logits, "out": out, "V": V, "stride_logits_b": logits.stride(0)},
                constexprs={"BLOCK_V": min(4096, triton.next_power_of_2(V))},
                num_warps=16,
                why_few_in_flight="one CTA reads a sequence's logits, which the LM head has left in the L2",
            )
        )


def build(case: StepCase, inputs: Inputs, target: Target) -> Built:
    kernels = Ours(target)
    logits = compose.Composition(case, inputs, kernels).logits()
    return Built(launches=tuple(kernels.launches), output=logits)


def stages(case: StepCase, target: Target) -> tuple[Stage, ...]:
    return compose.stages(case, NAMES, target)


def supports(case: StepCase, target: Target) -> str | None:
    return compose.refusal(case, NAMES, target)


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
