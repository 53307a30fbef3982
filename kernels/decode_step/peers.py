"""The step from torch's parts: matrix products, norms, and `scaled_dot_product_attention` over gathered pages.

The same steps are peers of their own: compiled by torch as one graph, and with FlashInfer's attention over pages.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from kernels.attention_decode.op import AttentionCase
from kernels.attention_decode.op import lengths as lengths_of
from kernels.common import flashinfer_needs, paging
from kernels.decode_step import compose
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import Part
from kernels.decode_step.sequence import Sequence
from kernels.launch import PartedLaunch
from kernels.mla_decode.op import MlaCase
from kernels.mla_decode.op import lengths as latent_lengths_of
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version

if TYPE_CHECKING:
    import torch

NAMES: dict[str, tuple[str, ...]] = {name: ("torch",) for name in compose.OPS if name not in compose.ATTENTION}
NAMES["moe_ffn"] = ("torch-grouped", "torch-gather")


def seen_by(case: AttentionCase | MlaCase, device: torch.device, window: int = 0) -> torch.Tensor:
    """[B, T]: which tokens each sequence sees."""
    import torch

    place, length = torch.arange(case.T, device=device), torch.tensor(drawn(case), device=device)[:, None]
    return (place < length) & (place >= length - window if window else True)


def drawn(case: AttentionCase | MlaCase) -> tuple[int, ...]:
    return lengths_of(case) if isinstance(case, AttentionCase) else latent_lengths_of(case)


def gathered(case: AttentionCase | MlaCase, stored: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """A cache [pages, page, ...] as [B, T, ...]."""
    if not case.page:
        return stored
    return stored[table[:, : -(-case.T // case.page)].long()].flatten(1, 2)[:, : case.T]


def attention(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
    """Pages are gathered into [B, H_kv, T, D]. A mask hides what a sequence does not see; without one torch takes its
    fast path. That knows no learned sinks, so with them it is two products around a softmax, as in transformers."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, table = inputs["q"].transpose(1, 2), inputs["block_table"]
    seen = seen_by(case, q.device, case.window)
    mask = None if bool(seen.all()) else seen[:, None, None]
    hidden = ~seen[:, None, None]

    def tokens(name: str) -> torch.Tensor:
        return gathered(case, paging.nhd(inputs[name], case.layout), table).transpose(1, 2)

    def with_sinks(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows = q.view(case.B, case.H_kv, case.group, case.D)
        scores = (rows @ k.transpose(2, 3) * case.softmax_scale).float().masked_fill(hidden, float("-inf"))
        sinks = inputs["sink_logits"].view(1, case.H_kv, case.group, 1).expand(case.B, -1, -1, -1)
        shares = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., : case.T]
        return (shares.to(v.dtype) @ v).view(case.B, 1, case.H_q, case.D)

    def launch() -> torch.Tensor:
        k, v = tokens("k"), tokens("v")
        if case.sink_logits:
            return with_sinks(k, v)
        grouped = case.group > 1
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=case.softmax_scale, enable_gqa=grouped)
        return o.transpose(1, 2)

    return launch


def latent_attention(case: MlaCase, inputs: Inputs, target: Target) -> Launch:
    """Two batched products around a softmax, over gathered latents."""
    import torch

    q = inputs["q_latent"].new_empty(case.B, case.H, case.L + case.R)
    hidden = ~seen_by(case, q.device)[:, None]

    def launch() -> torch.Tensor:
        torch.cat([inputs["q_latent"][:, 0], inputs["q_rope"][:, 0]], dim=-1, out=q)
        cached = gathered(case, inputs["cache"], inputs["block_table"])
        scores = (q @ cached.transpose(1, 2) * case.softmax_scale).float().masked_fill(hidden, float("-inf"))
        return (scores.softmax(-1).to(q.dtype) @ cached[..., : case.L])[:, None]

    return launch


def attention_stages(part: Part) -> tuple[Stage, ...]:
    """Pages are read, written to a copy, and read again from it."""
    work = part.work
    copies = Work(bytes_read=work.bytes_read, bytes_written=work.bytes_read)
    return (Stage(name="gather", work=copies), Stage(name="sdpa", work=work))


ATTENTION: dict[str, Callable[..., Launch]] = {"attention_decode": attention, "mla_decode": latent_attention}
STAGES = dict.fromkeys(ATTENTION, attention_stages)


def prepare(case: StepCase, inputs: Inputs, target: Target) -> PartedLaunch:
    sequence = Sequence(NAMES, target, ATTENTION)
    return sequence.launch(compose.Composition(case, inputs, sequence).logits())


def stages(case: StepCase, target: Target) -> tuple[Stage, ...]:
    return compose.stages(case, NAMES, target, STAGES)


def supports(case: StepCase, target: Target) -> str | None:
    return compose.refusal(case, NAMES, target)


# ---- compiled by torch


MOST_TRACED = {"cuda": 4, "cpu": 1}
"""Layers. A measured run has some minutes for all that it compiles, and a host's compiler is slower."""


def traced(case: StepCase, inputs: Inputs, target: Target, backend: str) -> Launch:
    """The whole step as one graph of torch's compiler, which may merge what lies between two products."""
    import torch

    step = prepare(case, inputs, target)

    def run() -> torch.Tensor:
        for _, call in step.parts:
            call()
        return step.output

    launch = torch.compile(run, dynamic=False, fullgraph=True, backend=backend)
    launch()
    return launch


def compiled(case: StepCase, inputs: Inputs, target: Target) -> Launch:
    return traced(case, inputs, target, "inductor")


def compiled_supports(case: StepCase, target: Target) -> str | None:
    if target.kind == "cuda" and target.sm < 80:
        return "is compiled for NVIDIA GPUs of sm_80 or later"
    if target.kind == "cpu" and not shutil.which(os.environ.get("CXX", "c++")):
        return "torch compiles for a host with a C++ compiler; none is named c++ or by $CXX here"
    if target.kind not in MOST_TRACED:
        return "is compiled for NVIDIA GPUs and for hosts"
    if case.measured_layers > (most := MOST_TRACED[target.kind]):
        return f"torch compiles at most {most} layers here, not {case.measured_layers}: each takes seconds"
    return supports(case, target)


# ---- with FlashInfer's attention

WITH_FLASHINFER = NAMES | dict.fromkeys(compose.ATTENTION, ("flashinfer",))


def with_flashinfer(case: StepCase, inputs: Inputs, target: Target) -> Launch:
    sequence = Sequence(WITH_FLASHINFER, target)
    return sequence.launch(compose.Composition(case, inputs, sequence).logits())


def flashinfer_stages(case: StepCase, target: Target) -> tuple[Stage, ...]:
    return compose.stages(case, WITH_FLASHINFER, target)


def flashinfer_supports(case: StepCase, target: Target) -> str | None:
    return compose.refusal(case, WITH_FLASHINFER, target)


IMPLS = (
    Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),
    Impl(
        name="torch-compiled",
        stages=stages,
        prepare=compiled,
        supports=compiled_supports,
        version=torch_version,
        by_torch_compile=True,
    ),
    Impl(
        name="torch, flashinfer",
        stages=flashinfer_stages,
        prepare=with_flashinfer,
        supports=flashinfer_supports,
        version=flashinfer_needs.version,
    ),
)
