"""A catalogue with a ceiling, whose largest case is in the middle, and an ordinary op. Both are made of `planted`'s."""

from __future__ import annotations

from dataclasses import replace

from kernels.op import Impl, Missing, Op
from tests.support import planted

ROOF = replace(
    planted.OP,
    name="roof",
    role="ceiling",
    cases=lambda suite: [planted.ToyCase(K=K) for K in (4096, 16384, 8192)],
)


def discover() -> dict[str, Op]:
    return {"roof": ROOF, "toy": planted.OP}


def implementations(name: str) -> tuple[tuple[Impl, ...], tuple[Missing, ...]]:
    return (planted.HONEST,), ()
