"""The memory that inputs may take, and when garbage must be collected to get it back."""

from __future__ import annotations

import gc

from bench import machine
from kernels.op import Target

SHORT_SHARE = 1 / 8
"""Between two cases, memory is short if less than this share of the host's is available, or if more than this share of
the GPU's is still allocated: then inputs of an earlier case are held by a cycle of references."""


def free_memory(target: Target) -> int:
    """Bytes that a case's inputs may take: what the GPU has free, or half of what the host has."""
    if target.kind != "cuda":
        return machine.memory_bytes() // 2
    import torch

    free, _total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def memory_is_short(target: Target) -> bool:
    if target.kind != "cuda":
        return machine.available_bytes() < SHORT_SHARE * machine.memory_bytes()
    import torch

    return torch.cuda.memory_allocated() > SHORT_SHARE * torch.cuda.mem_get_info()[1]


def collect_if_memory_is_short(target: Target) -> None:
    """A collection may take 0.3 s, as long as three cases are sampled, so it is left out while nothing needs it."""
    if memory_is_short(target):
        gc.collect()
