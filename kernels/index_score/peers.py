"""The same by torch: keys are gathered and made bf16, which holds every e4m3; a product, then ReLU and the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.index_score.op import IndexCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version

if TYPE_CHECKING:
    import torch


def stages(case: IndexCase, target: Target) -> tuple[Stage, ...]:
    """Wide keys are written and read; H products a token in fp32 are written, and read twice."""
    tokens, least = case.B * case.T, work(case)
    pipe = "fma_fp32" if target.kind == "cpu" else "mma_bf16"
    products = Work(flops={pipe: least.flops["mma_fp8"]})
    fp32 = {"fma_fp32": least.flops["fma_fp32"]}
    wide = (4 if target.kind == "cpu" else 2) * tokens * case.D
    moved = Work(bytes_read=least.bytes_read, bytes_written=wide)
    scores = 4 * tokens * case.H
    return (
        Stage(name="gather", work=moved),
        Stage(name="bmm", work=products + Work(bytes_read=wide, bytes_written=scores)),
        Stage(name="relu", work=Work(bytes_read=scores, bytes_written=scores)),
        Stage(name="weights", work=Work(flops=fp32, bytes_read=scores, bytes_written=least.bytes_written)),
    )


def supports(case: IndexCase, target: Target) -> str | None:
    return None if case.lengths == "uniform" else "needs sequences of equal length: torch takes no lengths"


def prepare(case: IndexCase, inputs: Inputs, target: Target) -> Launch:
    """On a host keys are widened to fp32: products of bf16 are slow there."""
    import torch

    wide = torch.float32 if target.kind == "cpu" else torch.bfloat16
    keys, scale, table = inputs["keys"].view(torch.uint8), inputs["key_scale"], inputs["block_table"]
    columns = table.shape[1] - 1
    y = torch.empty(case.B, case.T, device=scale.device)

    def launch() -> torch.Tensor:
        k, s = keys, scale
        if case.page:
            pages = table[:, :columns].long()
            k, s = keys[pages].flatten(1, 2)[:, : case.T], scale[pages].flatten(1, 2)[:, : case.T]
        k = k.view(torch.float8_e4m3fn).to(wide)
        q = inputs["q"].to(wide).transpose(1, 2)
        products = torch.bmm(k, q) if wide == torch.float32 else torch.bmm(k, q, out_dtype=torch.float32)
        torch.bmm(products.relu_(), inputs["w"][:, :, None], out=y[:, :, None])
        return y.mul_(s)

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
