"""A right kernel passes the gate, whatever the seed: our kernels for hosts, and Triton kernels under the interpreter.

Every run tries two seeds of each kernel elsewhere (`tests/kernels/test_ops.py`) and more of right kernels in torch
(`test_systematic_errors.py`). `pytest -m exhaustive` tries 100 here.
"""

from __future__ import annotations

from collections import Counter
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


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [name for name in OPS if any(i.name == "numba" for i in implementations(name)[0])])
def test_kernels_for_hosts(name: str) -> None:
    """Where small cases are in fp16, they are tried in bf16."""
    op, impl = OPS[name], our(OPS[name], "numba")
    cases = dict.fromkeys(map(in_bf16, supported(op, impl, HOST, "test")))
    assert sum((alarms(op, impl, case, HOST) for case in cases), Counter()) == {}


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["attention_decode", "mla_decode"])
def test_interpreted_kernels_whose_sequences_are_judged_one_by_one(name: str, target: Target) -> None:
    op, impl = OPS[name], our(OPS[name], "triton")
    cases = [replace(case, B=4) for case in op.cases("test") if case.lengths != "uniform" and not case.context][:4]
    assert sum((alarms(op, impl, case, target) for case in cases), Counter()) == {}
