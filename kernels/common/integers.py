"""Arithmetic of plans and sizes. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def size_text(n: int) -> str:
    """`64KiB`, `404B`: in the largest unit that divides n bytes."""
    units = ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB"), (1, "B"))
    return next(f"{n // unit}{name}" for unit, name in units if n % unit == 0)


def counted(sizes: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(how many, size) for each row of equal neighbours: `[3, 3, 2]` -> `((2, 3), (1, 2))`."""
    return tuple((len(list(equal)), size) for size, equal in groupby(sizes))
