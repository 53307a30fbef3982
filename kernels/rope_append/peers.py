"""The same by torch: norms and rotations operator by operator, or compiled, and the write of `kernels/kv_append`."""

from __future__ import annotations

from functools import cache
from typing import Any

from kernels.common.random_inputs import BYTES
from kernels.kv_append import peers as kv_append
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.rmsnorm.op import EPSILON
from kernels.rope_append.op import RopeCase, cache_of, q_of, work


def write(case: RopeCase) -> tuple[Stage, ...]:
    return kv_append.stages(case.append, Target(kind="cuda", name=""))


def one_pass(case: RopeCase, target: Target) -> tuple[Stage, ...]:
    """One kernel that turns the heads, and the write."""
    appended = kv_append.work(case.append).bytes
    turned = work(case)
    rest = Work(flops=turned.flops, bytes_read=max(0, turned.bytes - appended))
    return (Stage(name="turn", work=rest), *write(case))


def stages(case: RopeCase, target: Target) -> tuple[Stage, ...]:
    """Norms, halves, products and sums of Q and of K; what passes between them stays in the L2."""
    heads = case.B * (case.H_q + case.H_kv) * case.D * BYTES[case.dtype]
    first, *rest = one_pass(case, target)
    names = [*(["norm"] if case.qk_norm else []), "swap", "cos", "sin", "add", "copy"]
    return (first, *(Stage(name=name, work=Work(), l2_bytes=2 * heads) for name in names), *rest)


def turned(x: Any, weight: Any, cos: Any, sin: Any, R: int) -> Any:
    """Heads [B, H, D], as model code turns them; cos and sin are [B, 1, R]."""
    import torch

    if len(weight):
        x = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, EPSILON)
    part, rest = x.split([R, x.shape[-1] - R], dim=-1)
    first, second = part.chunk(2, dim=-1)
    part = part * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([part, rest], dim=-1) if rest.shape[-1] else part


def heads_of(qkv: Any, rotations: Any, lengths: Any, q_weight: Any, k_weight: Any, H_q: int, H_kv: int, R: int) -> Any:
    """q and k, turned."""
    cos, sin = rotations[lengths].to(qkv.dtype)[:, None].chunk(2, dim=-1)
    cos, sin = cos.repeat(1, 1, 2), sin.repeat(1, 1, 2)
    q, k = qkv[:, :H_q], qkv[:, H_q : H_q + H_kv]
    return turned(q, q_weight, cos, sin, R), turned(k, k_weight, cos, sin, R)


def launch_of(case: RopeCase, inputs: Inputs, target: Target, function: Any) -> Launch:
    qkv, memory = inputs["qkv"], inputs["memory"]
    q, k = q_of(case, memory), qkv.new_empty(case.B, case.H_kv, case.D)
    given = {"k": k, "v": qkv[:, case.H_q + case.H_kv :], "kv": cache_of(case, memory)}
    append = kv_append.prepare(case.append, inputs | given, target)
    names = ("qkv", "rotations", "lengths", "q_weight", "k_weight")

    def launch() -> Any:
        found_q, found_k = function(*(inputs[name] for name in names), case.H_q, case.H_kv, case.R)
        q.copy_(found_q)
        k.copy_(found_k)
        append()
        return memory

    return launch


def prepare(case: RopeCase, inputs: Inputs, target: Target) -> Launch:
    return launch_of(case, inputs, target, heads_of)


@cache
def compiled() -> Any:
    import torch

    return torch.compile(heads_of, dynamic=False, fullgraph=True)


def prepare_compiled(case: RopeCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    launch = launch_of(case, inputs, target, compiled())
    with torch._dynamo.config.patch(recompile_limit=1 << 10):
        launch()
    return launch


def supports_compiled(case: RopeCase, target: Target) -> str | None:
    fits = target.kind == "cuda" and target.sm >= 80
    return None if fits else "is compiled for NVIDIA GPUs of sm_80 or later"


IMPLS = (
    Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),
    Impl(
        name="torch-compiled",
        stages=one_pass,
        prepare=prepare_compiled,
        supports=supports_compiled,
        by_torch_compile=True,
        version=torch_version,
    ),
)
