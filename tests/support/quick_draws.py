"""Inputs in a fraction of the time: ordinary values are taken from one block of normal values, from another place for
each seed. Marks, scales and whatever else is drawn stay as they are.

torch gets one thread, since on a busy machine two wait for each other at every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from kernels.common.random_inputs import RandomInputs

BLOCK = (1 << 20) - 3
"""An odd number, or the rows of a matrix would repeat: with 16,384 columns only 64 of 1,024 rows would differ."""

drawn = RandomInputs.normal
"""As it is without this module."""


@cache
def block(dtype: str, scale: float) -> torch.Tensor:
    return drawn(RandomInputs("cpu", 0), (BLOCK,), dtype, scale)


@contextmanager
def quick_draws() -> Iterator[None]:
    def normal(self: RandomInputs, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> torch.Tensor:
        count = torch.Size(shape).numel()
        if count < BLOCK // 4 or self.device != "cpu":
            return drawn(self, shape, dtype, scale)
        first = self.python.randrange(BLOCK)
        values = block(dtype, scale)
        return torch.cat([values[first:], *[values] * (count // BLOCK), values[:first]])[:count].view(shape)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RandomInputs, "normal", normal)
        yield
    torch.set_num_threads(threads)


def seeds_or_100(few: int) -> pytest.MarkDecorator:
    """The test's `seeds`: a few in every run, and 100 if exhaustive tests are asked for."""
    return pytest.mark.parametrize(
        "seeds", [pytest.param(few, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.exhaustive)]
    )
