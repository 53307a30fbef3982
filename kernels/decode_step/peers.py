"""The step from torch's parts: matrix products, norms, and `scaled_dot_product_attention` over gathered pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.attention_decode.op import AttentionCase
from kernels.attention_decode.op import lengths as lengths_of
from kernels.common import paging
from kernels.decode_step import compose
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import Part
from kernels.decode_step.sequence import Sequence
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version

if TYPE_CHECKING:
    import torch

OPS = ("rmsnorm", "ffn_gemv", "rope_append", "ffn_block", "silu_mul", "router")
NAMES = dict.fromkeys(OPS, ("torch",)) | {"moe_ffn": ("torch-grouped", "torch-gather")}


def attention(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
    """Pages are gathered into [B, H_kv, T, D]. A mask hides what a sequence does not see; without one torch takes its
    fast path."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    T, q, device = case.T, inputs["q"].transpose(1, 2), inputs["q"].device
    table = inputs["block_table"][:, : -(-T // case.page)].long() if case.page else None
    place, length = torch.arange(T, device=device), torch.tensor(lengths_of(case), device=device)[:, None]
    seen = (place < length) & (place >= length - case.window if case.window else True)
    mask = None if bool(seen.all()) else seen[:, None, None]

    def tokens(name: str) -> torch.Tensor:
        stored = paging.nhd(inputs[name], case.layout)
        whole = stored[table].flatten(1, 2)[:, :T] if table is not None else stored
        return whole.transpose(1, 2)

    def launch() -> torch.Tensor:
        k, v = tokens("k"), tokens("v")
        grouped = case.group > 1
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=case.softmax_scale, enable_gqa=grouped)
        return o.transpose(1, 2)

    return launch


def attention_stages(part: Part) -> tuple[Stage, ...]:
    """Pages are read, written to a copy, and read again from it."""
    work = part.work
    copies = Work(bytes_read=work.bytes_read, bytes_written=work.bytes_read)
    return (Stage(name="gather", work=copies), Stage(name="sdpa", work=work))


def prepare(case: StepCase, inputs: Inputs, target: Target) -> Launch:
    sequence = Sequence(NAMES, target, {"attention_decode": attention})
    return sequence.launch(compose.Composition(case, inputs, sequence).logits())


def stages(case: StepCase, target: Target) -> tuple[Stage, ...]:
    return compose.stages(case, NAMES, target, {"attention_decode": attention_stages})


def supports(case: StepCase, target: Target) -> str | None:
    return compose.refusal(case, NAMES, target)


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
