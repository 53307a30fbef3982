"""Seeded random inputs on any torch device. On `meta` they have shapes only, for code generation."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn", "int8": "int8"}
"""Short names used in case ids -> torch names."""

LARGEST = {"fp8": 448, "int8": 127}
"""The largest value of each 8-bit type; int8's is that of symmetric quantization."""

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}

DRAWN_AT_ONCE = 1 << 28
"""8-bit values that are drawn at once, so that their 16-bit form takes 512 MiB at most. A cache may fill a GPU."""


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, DTYPES[name])


def writable(stored: torch.Tensor) -> torch.Tensor:
    """A view that torch can index on every device: fp8 as bytes."""
    import torch

    return stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored


def encoded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values as `writable` stores them; what an 8-bit type can't hold becomes its largest or least value."""
    import torch

    if dtype == torch.int8:
        return values.round().clamp(-127, 127).to(dtype)
    if dtype == torch.float8_e4m3fn:
        return values.float().clamp(-448, 448).to(dtype).view(torch.uint8)
    return values.to(dtype)


class RandomInputs:
    """One stream of random values: `RandomInputs("cuda", seed=3).normal((B, K), "bf16")`."""

    def __init__(self, device: str, seed: int) -> None:
        import torch

        self.device = device
        self.seed = seed
        self.python = random.Random(seed)
        """Draws small host-side tables, the same for every device."""
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(self, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> torch.Tensor:
        """Normal values times `scale`. 8-bit types are drawn in bf16 and rounded, within their range."""
        import torch

        wanted = torch_dtype(dtype)
        if self.device == "meta":
            return torch.empty(shape, dtype=wanted, device="meta")
        if wanted.itemsize > 1:
            return torch.empty(shape, dtype=wanted, device=self.device).normal_(generator=self._generator).mul_(scale)
        values = torch.empty(shape, dtype=wanted, device=self.device)
        for part in values.view(-1).split(DRAWN_AT_ONCE):
            drawn = torch.empty(part.shape, dtype=torch.bfloat16, device=self.device)
            drawn.normal_(generator=self._generator).mul_(scale).clamp_(-LARGEST[dtype], LARGEST[dtype])
            part.copy_(drawn.round_() if dtype == "int8" else drawn)
        return values

    def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: str = "int32") -> torch.Tensor:
        """Uniform integers from `[low, high)`."""
        import torch

        wanted = getattr(torch, dtype)
        if self.device == "meta":
            return torch.empty(shape, dtype=wanted, device="meta")
        return torch.randint(low, high, shape, generator=self._generator, device=self.device, dtype=wanted)

    def permutation(self, n: int) -> torch.Tensor:
        """The numbers from 0 to n - 1 in random order, int64."""
        import torch

        return torch.randperm(n, generator=self._generator, device=self.device)

    def scales(self, shape: tuple[int, ...], unit: float, step: float = 2.0, one_sided: bool = True) -> torch.Tensor:
        """fp32 scales for groups along every axis of `shape`: 2^n and 2^n step in turn, or up to a tenth more.

        So neighbours along any axis differ by step / 1.1 at least, and the scale of another group shows. 2^n is the
        power of two next to `unit`.

        `one_sided`: all scales have the same in the 16 bits that bf16 lacks, just under half of bf16's last bit for an
        even seed, and just over for an odd one. So scales that are rounded to bf16 err by 0.27 to 0.37%, all to the
        same side, and results err with them.
        """
        import torch

        if self.device == "meta":
            return torch.empty(shape, device="meta")
        odd = torch.zeros((), dtype=torch.int64, device=self.device)
        for axis, count in enumerate(shape):
            odd = odd + torch.arange(count, device=self.device).view([-1] + [1] * (len(shape) - 1 - axis))
        least = torch.where(odd % 2 == 0, 1.0, step) * 2.0 ** round(math.log2(unit))
        drawn = torch.empty(shape, device=self.device).uniform_(1.0, 1.1, generator=self._generator).mul_(least)
        if one_sided:
            drawn.view(torch.int32).bitwise_and_(-(1 << 16)).bitwise_or_(0x8800 if self.seed % 2 else 0x7800)
        return drawn

    def table(self, values: Any, dtype: str = "int32") -> torch.Tensor:
        """A host-side list as a tensor on this device (on `meta` its shape only)."""
        import torch

        return torch.tensor(values, dtype=getattr(torch, dtype)).to(self.device)
