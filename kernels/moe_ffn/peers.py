"""What a user could call instead of our kernels: torch's grouped matrix product, or a gather of the experts hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common.gated import by_torch, halves
from kernels.common.random_inputs import BYTES
from kernels.moe_ffn.op import MoeCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version

UNPACKED = "torch multiplies experts in the type of the activations; none of its operators unpacks these weights"

if TYPE_CHECKING:
    import torch

GATHER_BYTES = 4 << 30
"""Bytes of copied experts above which the gather refuses."""


def grouped_stages(case: MoeCase, target: Target) -> tuple[Stage, ...]:
    """Assumed to read every expert hit once. The intermediates of all pairs are written and read in between."""
    size = BYTES[case.dtype]
    between = size * case.pairs * (case.H + 2 * case.matrices * case.F + 2 * case.H)
    return (Stage(name="grouped_mm", work=work(case), l2_bytes=2 * between),)


def biased(inputs: Inputs, name: str, product: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """The product of each pair, with the bias of its expert if there is one."""
    return product + inputs[name][experts] if name in inputs else product


def grouped_supports(case: MoeCase, target: Target) -> str | None:
    if case.quantized:
        return UNPACKED
    if case.dtype != "bf16":
        return f"torch's grouped_mm multiplies bf16, not {case.dtype}"
    if case.H % 8 or case.F % 8:
        return "torch's grouped_mm wants rows of a multiple of 16 bytes"
    if target.kind == "cuda" and target.sm // 10 not in (9, 10):
        return f"on sm_{target.sm} torch's grouped_mm reads the offsets on the host; its kernel is for sm_90 and sm_100"
    return None


def grouped(case: MoeCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.nn.functional.grouped_mm` over the pairs, sorted by expert on the device. It allocates temporaries."""
    import torch
    from torch.nn.functional import grouped_mm

    x, ids, weights = inputs["x"], inputs["topk_ids"], inputs["topk_weights"]
    w_gate_up, w_down = inputs["w_gate_up"].transpose(1, 2), inputs["w_down"].transpose(1, 2)
    experts = torch.arange(case.experts, device=x.device, dtype=torch.int32)[:, None]
    out = torch.empty(case.pairs, case.H, dtype=torch.float32, device=x.device)
    y = torch.empty_like(x)

    def launch() -> torch.Tensor:
        flat = ids.flatten()
        order = flat.argsort()
        ends = (flat <= experts).sum(dim=1, dtype=torch.int32)
        first = grouped_mm(x[order // case.width], w_gate_up, offs=ends)
        gate, up = halves(case.activation, biased(inputs, "b_gate_up", first, flat[order]))
        down = biased(inputs, "b_down", grouped_mm(by_torch(case.activation, gate, up), w_down, offs=ends), flat[order])
        out[order] = down.float() * weights.flatten()[order, None]
        return y.copy_(out.view(case.rows, case.width, case.H).sum(dim=1))

    return launch


def gather_stages(case: MoeCase, target: Target) -> tuple[Stage, ...]:
    """Each pair's expert is read, written to a copy, and read again from the copy."""
    copies = case.pairs * case.expert_bytes
    minimum = work(case)
    return (
        Stage(
            name="gather and bmm",
            work=minimum + Work(bytes_read=2 * copies - minimum.bytes_read, bytes_written=copies)
            if 2 * copies > minimum.bytes_read
            else minimum,
        ),
    )


def gather_supports(case: MoeCase, target: Target) -> str | None:
    if case.quantized:
        return UNPACKED
    copies = case.pairs * case.expert_bytes
    if copies > GATHER_BYTES:
        return f"would copy {copies / 1e9:.0f} GB of experts, one for each of {case.pairs} pairs"
    return None


def gather(case: MoeCase, inputs: Inputs, target: Target) -> Launch:
    """The simple way, which needs no sort: copy each pair's expert, then three batched matrix-vector products."""
    import torch

    x, ids, weights = inputs["x"], inputs["topk_ids"], inputs["topk_weights"]
    y = torch.empty_like(x)

    def launch() -> torch.Tensor:
        flat = ids.flatten()
        each = x.repeat_interleave(case.width, dim=0)[:, :, None]
        first = torch.bmm(inputs["w_gate_up"][flat], each)[..., 0]
        gate, up = halves(case.activation, biased(inputs, "b_gate_up", first, flat))
        second = torch.bmm(inputs["w_down"][flat], by_torch(case.activation, gate, up)[..., None])[..., 0]
        down = biased(inputs, "b_down", second, flat).view(case.rows, case.width, case.H)
        return y.copy_((down.float() * weights[:, :, None]).sum(dim=1))

    return launch


IMPLS = (
    Impl(
        name="torch-grouped", stages=grouped_stages, prepare=grouped, supports=grouped_supports, version=torch_version
    ),
    Impl(name="torch-gather", stages=gather_stages, prepare=gather, supports=gather_supports, version=torch_version),
)
