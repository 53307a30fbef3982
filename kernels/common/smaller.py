"""A smaller case with the same inner loops, which the caches of a host's cores can hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from kernels.common.integers import cdiv
from kernels.op import Case

CaseT = TypeVar("CaseT", bound=Case)


def fewer(case: CaseT, n: int, **least: int) -> CaseT:
    """About 1/n of a case: its fields become smaller in turn, each a multiple of its least value.

    The first field becomes as small as it may before the second one changes.

    >>> from kernels.ffn_gemv.op import GemvCase
    >>> fewer(GemvCase(B=1, N=4096, K=4096, dtype="fp32"), 64, N=32).N
    64
    """
    for name, low in least.items():
        now = getattr(case, name)
        to = min(now, max(low, now // n // low * low))
        case, n = replace(case, **{name: to}), cdiv(n * to, now)
    return case
