"""A right kernel passes the gate, whatever the seed: our kernels for hosts, and Triton kernels under the interpreter.

Every run tries two seeds of each kernel elsewhere (`tests/kernels/test_ops.py`) and more of right kernels in torch
(`test_systematic_errors.py`). `pytest -m exhaustive` tries 100 here, one test for each case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kernels.common.compare import compare
from kernels.op import Impl, Op, Target, discover, implementations
from tests.kernels.test_ops import HOST, in_bf16, supported

SEEDS = 100
OPS = discover()


def our(op: Op, name: str) -> Impl:
    return next(impl for impl in implementations(op.name)[0] if impl.name == name)


def alarms(op: Op, impl: Impl, case: Any, target: Target) -> Counter[str]:
    """What the gate says of a right kernel, and how often."""
    found: Counter[str] = Counter()
    for seed in range(SEEDS):
        inputs = op.inputs(case, target.device, seed)
        output = op.decoded(case, impl.prepare(case, inputs, target)())
        errors = compare(output, op.reference(case, inputs), op.tolerance(case))
        found[f"{case.id}: {errors.reason}"] += not errors.passed
    return +found


def cases_for_hosts() -> Iterator[Any]:
    """Each small case of each of our kernels for hosts; where it is in fp16, it is tried in bf16."""
    for name, op in OPS.items():
        for impl in implementations(name)[0]:
            if impl.name == "numba":
                for case in dict.fromkeys(map(in_bf16, supported(op, impl, HOST, "test"))):
                    yield pytest.param(op, impl, case, id=f"{name}-{case.id}")


def interpreted_cases() -> Iterator[Any]:
    for name in ("attention_decode", "mla_decode"):
        cases = [case for case in OPS[name].cases("test") if case.lengths != "uniform" and not case.context][:4]
        for case in (replace(case, B=4) for case in cases):
            yield pytest.param(OPS[name], our(OPS[name], "triton"), case, id=f"{name}-{case.id}")


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("op", "impl", "case"), list(cases_for_hosts()))
def test_kernels_for_hosts(op: Op, impl: Impl, case: Any) -> None:
    assert alarms(op, impl, case, HOST) == {}


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("op", "impl", "case"), list(interpreted_cases()))
def test_interpreted_kernels_whose_sequences_are_judged_one_by_one(
    op: Op, impl: Impl, case: Any, target: Target
) -> None:
    assert alarms(op, impl, case, target) == {}
