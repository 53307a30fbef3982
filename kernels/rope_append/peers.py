"""The same by torch: norms and rotations operator by operator, and the write of `kernels/kv_append`."""

from __future__ import annotations

from typing import Any

from kernels.common.random_inputs import BYTES
from kernels.kv_append import peers as kv_append
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.rope_append.op import RopeCase, cache_of, q_of, work


def stages(case: RopeCase, target: Target) -> tuple[Stage, ...]:
    """Norms, halves, products and sums of Q and of K; what passes between them stays in the L2."""
    heads = case.B * (case.H_q + case.H_kv) * case.D * BYTES[case.dtype]
    least, appended = work(case), kv_append.work(case.append).bytes
    first = Work(flops=least.flops, bytes_read=max(0, least.bytes - appended))
    names = [*(["norm"] if case.qk_norm else []), "swap", "cos", "sin", "add", "copy"]
    return (
        Stage(name="angles", work=first),
        *(Stage(name=name, work=Work(), l2_bytes=2 * heads) for name in names),
        *kv_append.stages(case.append, target),
    )


def turned(case: RopeCase, x: Any, weight: Any, cos: Any, sin: Any) -> Any:
    """Heads [B, H, D], as model code turns them; cos and sin are [B, 1, R]."""
    import torch

    if len(weight):
        x = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, case.epsilon)
    part, rest = x.split([case.R, case.D - case.R], dim=-1)
    first, second = part.chunk(2, dim=-1)
    part = part * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([part, rest], dim=-1) if rest.shape[-1] else part


def heads_of(case: RopeCase, inputs: Inputs) -> tuple[Any, Any, Any]:
    """q and k, turned, and v."""
    qkv = inputs["qkv"] + inputs["bias"] if case.bias else inputs["qkv"]
    cos, sin = inputs["rotations"][inputs["lengths"]].to(qkv.dtype)[:, None].chunk(2, dim=-1)
    cos, sin = cos.repeat(1, 1, 2), sin.repeat(1, 1, 2)
    q, k, v = qkv.split([case.H_q, case.H_kv, case.H_kv], dim=1)
    return turned(case, q, inputs["q_weight"], cos, sin), turned(case, k, inputs["k_weight"], cos, sin), v


def prepare(case: RopeCase, inputs: Inputs, target: Target) -> Launch:
    qkv, memory = inputs["qkv"], inputs["memory"]
    q, (k, v) = q_of(case, memory), qkv.new_empty(2, case.B, case.H_kv, case.D)
    given = {"k": k, "v": v, "kv": cache_of(case, memory)}
    append = kv_append.prepare(case.append, inputs | given, target)

    def launch() -> Any:
        found_q, found_k, found_v = heads_of(case, inputs)
        q.copy_(found_q)
        k.copy_(found_k)
        v.copy_(found_v)
        append()
        return memory

    return launch


def supports(case: RopeCase, target: Target) -> str | None:
    return "torch has no operator that writes a cache in 8 bits by scales" if case.kv else None


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
