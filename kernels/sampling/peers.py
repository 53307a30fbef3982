"""What most engines do in torch: sort the logits, add up the sorted weights, filter, add up again, search.

FlashInfer's samplers are no peers: they draw their own random numbers, so that nothing can tell whether they are right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common.random_inputs import BYTES
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.sampling.op import SamplingCase, work

if TYPE_CHECKING:
    import torch


def stages(case: SamplingCase, target: Target) -> tuple[Stage, ...]:
    """Sorted values with 8-byte positions pass four times if there is a filter by k or p; then fp32 and fp64 rows."""
    least = work(case)
    if not case.temperature:
        return (Stage(name="argmax", work=least),)
    row = case.B * case.V
    sorting = row * (BYTES[case.dtype] + 8) * 4 if case.k or case.p else 0
    passes = row * (4 * 4 + 3 * 8)
    moved = Work(bytes_read=sorting + passes, bytes_written=sorting + passes)
    return (Stage(name="sort, sums", work=least + moved),)


def prepare(case: SamplingCase, inputs: Inputs, target: Target) -> Launch:
    """Sums over a vocabulary are in fp64: a host adds them up one after the other."""
    import torch

    logits, u = inputs["logits"], inputs["u"]
    token = torch.empty(case.B, dtype=torch.int32, device=logits.device)

    def greedy() -> torch.Tensor:
        return token.copy_(logits.argmax(dim=1))

    def draw() -> torch.Tensor:
        x = logits.float() / case.temperature
        weights = torch.exp(x - x.amax(dim=1, keepdim=True))
        least = torch.full_like(x[:, :1], float("-inf"))
        if case.k or case.p:
            ordered = x.sort(dim=1, descending=True).values
            if case.k:
                least = ordered[:, case.k - 1 : case.k]
            if case.p:
                tail = torch.exp(ordered - ordered[:, :1]).masked_fill_(ordered < least, 0.0)
                ends = tail.cumsum(dim=1, dtype=torch.float64)
                place = (ends < inputs["p"][:, None] * ends[:, -1:]).sum(dim=1, keepdim=True)
                least = ordered.gather(1, place)
        weights.masked_fill_(x < least, 0.0)
        if case.min_p:
            weights.masked_fill_(weights < inputs["min_p"][:, None], 0.0)
        ends = weights.cumsum(dim=1, dtype=torch.float64)
        return token.copy_((ends <= u[:, None] * ends[:, -1:]).sum(dim=1))

    return draw if case.temperature else greedy


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
