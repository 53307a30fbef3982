"""A KV cache in NVFP4, the format of Blackwell's serving: 0.5625 bytes an element.

Codes are e2m1, two of a byte, the low half first; 16 neighbouring elements of a token share an e4m3 scale, and all
tokens of a tensor share one fp32 scale. codes [.., D / 2] uint8, scale [.., D / 16] e4m3, whole [1] fp32:
x = e2m1(code) scale whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.common.marks import Slots
from kernels.common.quantization import E2M1, RMS_CODES, unpack_nibbles
from kernels.common.random_inputs import RandomInputs, torch_dtype, writable

if TYPE_CHECKING:
    import torch

BLOCK = 16
ELEMENT_BYTES = 0.5 + 1 / BLOCK
ORDINARY_SCALE = 2.0
"""The scale of ordinary elements. That of the largest marked one, 226 times as large or emphasised, is up to 448."""


def draw_cache(draw: RandomInputs, shape: tuple[int, ...], std: float) -> tuple[torch.Tensor, ...]:
    """Codes, scales and the scale of all, of elements `shape [.., D]` with about this standard deviation."""
    *vectors, D = shape
    codes = draw.integers(0, 256, (*vectors, D // 2), "uint8")
    # kernels multiply elements with it exactly, so it need not err to one side
    scale = draw.scales((*vectors, D // BLOCK), ORDINARY_SCALE, 1.25, one_sided=False).to(torch_dtype("fp8"))
    return codes, scale, draw.scales((1,), std / RMS_CODES["nvfp4"] / ORDINARY_SCALE)


def decoded(codes: torch.Tensor, scale: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """[.., D] in fp32."""
    import torch

    values = torch.tensor([*E2M1, *(-x for x in E2M1)], device=codes.device)[unpack_nibbles(codes).long()]
    return values * (scale.float() * whole).repeat_interleave(BLOCK, dim=-1)


def encoded_blocks(values: torch.Tensor, exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks [.., 16] of multiples of the scale of all -> codes [.., 8] and scales [..] in e4m3.

    The scale is no less than the largest needs, and such that `exact` [..], one of the values, errs by the rounding of
    the scale only.
    """
    import torch

    magnitudes = torch.tensor(E2M1, device=values.device)
    largest = values.abs().amax(-1).clamp(min=1e-3)
    share = 6 * exact.abs() / largest
    step = magnitudes[1:][torch.searchsorted(magnitudes[1:], share, right=True).sub(1).clamp(min=0)]
    scale = torch.where(share > 0, torch.maximum(exact.abs() / step, largest / 6), largest / 6)
    scale = scale.clamp(2.0**-9, 448).to(torch_dtype("fp8"))
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    code = torch.bucketize((values / scale.float()[..., None]).abs(), middles) + 8 * (values < 0)
    return (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8), scale


@dataclass(frozen=True, kw_only=True)
class Nvfp4Slots(Slots):
    """A view of codes `[pages, page, heads, D / 2]`, `blocks [pages, page, heads, D / 16]` and the scale of all.

    An element that is written takes its block with it, so its neighbours are rounded again.
    """

    blocks: torch.Tensor
    whole: torch.Tensor

    def _write(self, at: Any, values: torch.Tensor, exact: torch.Tensor) -> None:
        codes, scale = encoded_blocks(values / self.whole, exact / self.whole)
        self.stored.unflatten(-1, (-1, 8))[at] = codes
        writable(self.blocks)[at] = writable(scale)

    def put(self, where: tuple[Any, Any, Any], dims: Any, values: torch.Tensor) -> None:
        import torch

        *where_, dims, values = torch.broadcast_tensors(*where, torch.as_tensor(dims, device=values.device), values)
        at = (*where_, dims // BLOCK)
        scale = writable(self.blocks)[at].view(self.blocks.dtype)
        held = decoded(self.stored.unflatten(-1, (-1, 8))[at], scale[..., None], self.whole)
        held.scatter_(-1, dims[..., None] % BLOCK, values[..., None])
        self._write(at, held, values)

    def fill(self, first: int, count: int, value: torch.Tensor) -> None:
        import torch

        for block in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
            dims = torch.arange(block * BLOCK, (block + 1) * BLOCK, device=value.device)
            held = torch.where((dims >= first) & (dims < first + count), value, 0.0)
            self._write((slice(None), slice(None), slice(None), block), held, value)
