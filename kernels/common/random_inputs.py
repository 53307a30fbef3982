"""Seeded random inputs on any torch device. On `meta` they have shapes only, for code generation."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn", "int8": "int8"}
"""Short names used in case ids -> torch names."""

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, DTYPES[name])


class RandomInputs:
    """One stream of random values: `RandomInputs("cuda", seed=3).normal((B, K), "bf16")`."""

    def __init__(self, device: str, seed: int) -> None:
        import torch

        self.device = device
        self.python = random.Random(seed)
        """Draws small host-side tables, the same for every device."""
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(self, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> torch.Tensor:
        """Normal values times `scale`. 8-bit floats are drawn in bf16 and rounded."""
        import torch

        wanted = torch_dtype(dtype)
        if self.device == "meta":
            return torch.empty(shape, dtype=wanted, device="meta")
        drawn = wanted if wanted.itemsize > 1 else torch.bfloat16
        values = torch.empty(shape, dtype=drawn, device=self.device)
        values.normal_(generator=self._generator).mul_(scale)
        return values.to(wanted)

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

    def table(self, values: Any, dtype: str = "int32") -> torch.Tensor:
        """A host-side list as a tensor on this device (on `meta` its shape only)."""
        import torch

        return torch.tensor(values, dtype=getattr(torch, dtype)).to(self.device)
