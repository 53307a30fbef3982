"""A catalogue to tune. A matrix product on the CPU has configurations that are fast, slow, wrong or deadly. A Triton
kernel has configurations that cannot be planned or compiled, spill, or keep few bytes in flight.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Impl, Inputs, Launch, Missing, Op, Stage, Target, Tuning
from tests.support.planted import OP as TOY
from tests.support.planted import ToyCase, one_pass, output, work, write


def configurable(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    """Its configuration says whether it does the work `repeats` times, gives `wrong` results, or `dies`."""
    config = dict(target.config or (("repeats", 4),))
    y = output(case, inputs)

    def launch() -> torch.Tensor:
        if config.get("dies"):
            os._exit(7)
        for _ in range(config.get("repeats", 4)):
            write(inputs, y)
        return y.add_(1.0) if config.get("wrong") else y

    return launch


def toy_candidates(case: ToyCase, target: Target) -> Iterator[dict[str, int]]:
    yield {"repeats": 1}
    yield {"repeats": 300}
    yield {"wrong": 1}
    yield {"dies": 1}


@dataclass(frozen=True, kw_only=True)
class Plan:
    block_k: int = 256
    num_warps: int = 4
    num_stages: int = 5


@triton.jit
def row_sums(w, y, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr):
    """y[n] = sum over k of w[n, k]."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        sums += tl.load(w + offs_n[:, None] * K + k + offs_k[None, :]).to(tl.float32)
    tl.store(y + offs_n, tl.sum(sums, axis=1))


def build(case: ToyCase, inputs: Inputs, target: Target) -> Built:
    p = replace(Plan(), **dict(target.config or ()))
    n = k = 4096
    w = torch.empty(n, k, dtype=torch.bfloat16, device="meta")
    y = torch.empty(n, device="meta")
    launch = KernelLaunch(
        kernel=row_sums,
        grid=(n // 16,),
        args={"w": w, "y": y, "K": k},
        constexprs={"BLOCK_N": 16, "BLOCK_K": p.block_k, "STAGES": p.num_stages},
        num_warps=p.num_warps,
        num_stages=p.num_stages,
        streams=("w",),
    )
    return Built(launches=(launch,), output=y)


CANDIDATES = {
    "good": {"num_stages": 4},
    "same": {"num_warps": 4},
    "shallow": {"num_stages": 1},
    "odd block": {"block_k": 100},
    "no such field": {"block_m": 1},
    "spilling": {"block_k": 512, "num_stages": 2, "num_warps": 1},
}


def stages(case: ToyCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="row_sums", work=work(case)),)


def by_size(case: Any) -> str:
    return "small" if case.K < 16384 else "large"


HOST = Impl(
    name="host",
    stages=one_pass,
    prepare=configurable,
    tuning=Tuning(op="toy", shape_class=by_size, candidates=toy_candidates),
)
COMPILED = triton_impl(
    name="compiled",
    build=build,
    stages=stages,
    tuning=Tuning(op="toy", shape_class=lambda case: "all", candidates=lambda case, target: CANDIDATES.values()),
)
PLAIN = Impl(name="plain", stages=one_pass, prepare=configurable)


def discover() -> dict[str, Op]:
    return {"toy": TOY}


def implementations(name: str) -> tuple[tuple[Impl, ...], tuple[Missing, ...]]:
    return (HOST, COMPILED, PLAIN), ()
