"""The same by torch, operator by operator as model code is written."""

from __future__ import annotations

from typing import Any

from kernels.common.random_inputs import BYTES
from kernels.latent_append.op import LatentCase, cache_of, q_of, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version


def stages(case: LatentCase, target: Target) -> tuple[Stage, ...]:
    """What passes between the operators stays in the L2."""
    size = BYTES[case.dtype] * case.B * (case.H * case.R + case.L)
    names = ("norm", "swap", "cos", "sin", "add", "cat", "index")
    return (
        Stage(name="angles", work=work(case)),
        *(Stage(name=name, work=Work(), l2_bytes=2 * size) for name in names),
    )


def prepare(case: LatentCase, inputs: Inputs, target: Target) -> Launch:
    import torch
    from torch.nn.functional import rms_norm

    memory, kv, lengths = inputs["memory"], inputs["kv"], inputs["lengths"]
    q_rope, cache, sequence = q_of(case, memory), cache_of(case, memory), torch.arange(case.B, device=kv.device)

    def turned(x: Any, cos: Any, sin: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def launch() -> Any:
        positions = lengths.long()
        cos, sin = (half.repeat(1, 2) for half in inputs["rotations"][positions].to(kv.dtype).chunk(2, dim=-1))
        q_rope.copy_(turned(inputs["q"][..., case.D :], cos[:, None], sin[:, None]))
        latent = rms_norm(kv[:, : case.L], (case.L,), inputs["weight"], case.epsilon)
        pages = inputs["block_table"].long()[sequence, positions // case.page] if case.page else sequence
        slots = positions % case.page if case.page else positions
        cache[pages, slots] = torch.cat([latent, turned(kv[:, case.L :], cos, sin)], dim=1)
        return memory

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
