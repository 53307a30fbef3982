"""One element lost, doubled or misplaced, and a result that is off by 1%, fail the gate of every smaller operation.

The faults are put into the decoded output of a right implementation, among what it must write. Operations between
several parts are not launched: their reference, rounded to their type, stands for a right result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.all_reduce.op import OP as ALL_REDUCE
from kernels.all_to_all.op import OP as ALL_TO_ALL
from kernels.common.compare import compare
from kernels.common.random_inputs import torch_dtype
from kernels.op import Op, Target, discover, implementations

HOST = Target(kind="cpu", name="host", sm_count=2)
BETWEEN_PARTS = (ALL_REDUCE.name, ALL_TO_ALL.name)
ON_ONE_PART = (
    "head_gemv",
    "index_score",
    "kv_append",
    "latent_append",
    "paged_read",
    "rmsnorm",
    "rope_append",
    "router",
    "sampling",
    "short_conv",
    "silu_mul",
    "topk",
)


def right_output(op: Op, case: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A right result in numbers, and where it has to be written."""
    if op.name in BETWEEN_PARTS:
        y = op.reference(case, inputs).to(torch_dtype(case.dtype)).float()
        return y, torch.ones_like(y, dtype=torch.bool)
    impl = next(i for i in implementations(op.name)[0] if not i.build and i.supports(case, HOST) is None)
    launch = impl.prepare(case, inputs, HOST)
    first = launch()
    kept = op.decoded(case, first).clone()
    op.poison(case, inputs, first)
    written = ~(op.decoded(case, first) == kept)
    right = op.decoded(case, launch()).double()
    return right, written & right.isfinite()


def faults(right: torch.Tensor, written: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each in the largest element that is written and differs from the next one of its row."""
    rows, ok = (x.reshape(-1, x.shape[-1] if x.ndim else 1) for x in (right, written))
    size = torch.where(ok & (rows != rows.roll(-1, 1)), rows.double().abs(), -1.0)
    r, c = divmod(int(size.argmax()), rows.shape[1])
    found = {name: rows.clone() for name in ("lost", "doubled", "misplaced", "off by 1%")}
    found["lost"][r, c] = 0
    found["doubled"][r, c] *= 2
    found["misplaced"][r] = rows[r].roll(1)
    found["off by 1%"] = torch.where(ok, rows * 1.01, rows)
    return {name: y.view_as(right) for name, y in found.items()}


def case_of(op: Op) -> Any:
    """The case with the most to write, among the small ones that a host can compute: in 16 bits where there is one. A
    cache in 8 bits is left out, since its tolerance is a whole code."""
    fit = [
        c for c in op.cases("test") if not getattr(c, "kv", "") and getattr(c, "activations", "") not in ("fp8", "int8")
    ]
    fit = [c for c in fit if getattr(c, "dtype", "bf16") != "fp32"] or fit
    if op.name not in BETWEEN_PARTS:
        fit = [c for c in fit if any(not i.build and i.supports(c, HOST) is None for i in implementations(op.name)[0])]
    return max(fit, key=lambda c: op.work(c).bytes_written)


@pytest.mark.parametrize("name", [*ON_ONE_PART, *BETWEEN_PARTS])
def test_one_element_and_all_of_them(name: str) -> None:
    op = discover()[name]
    case = case_of(op)
    inputs = op.inputs(case, "cpu", 0)
    expected, tolerance = op.reference(case, inputs), op.tolerance(case)
    right, written = right_output(op, case, inputs)
    errors = compare(right, expected, tolerance)
    assert errors.passed, errors.reason
    for what, y in faults(right, written).items():
        assert not compare(y, expected, tolerance).passed, (case.id, what)
