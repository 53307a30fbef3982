"""`planted`'s operation with an implementation that hangs in every case, before one that is right."""

from __future__ import annotations

from kernels.op import Impl, Missing, Op
from tests.support import planted

IMPLS = (planted.impl("hangs", planted.hanging), planted.impl("steady", planted.honest))


def discover() -> dict[str, Op]:
    return {"toy": planted.OP}


def implementations(name: str) -> tuple[tuple[Impl, ...], tuple[Missing, ...]]:
    return IMPLS, ()
