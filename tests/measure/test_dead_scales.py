"""Scales of weights that no live element uses are poison: those beside the last group of a row, and of experts not hit.

Rows of codes, scales and zero points lie in wider ones. What is beside them is NaN, or the largest where a type has no
NaN. A kernel that takes a group too many into account gives NaN, even where it has set x to zero.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.common.compare import compare
from kernels.common.quantization import FORMATS, dequantize
from kernels.common.random_inputs import writable
from kernels.ffn_gemv import op as ffn_gemv
from kernels.ffn_gemv.op import GemvCase
from kernels.moe_ffn import op as moe_ffn
from kernels.moe_ffn.op import MoeCase
from kernels.op import Impl, Inputs, Target, implementations

HOST = Target(kind="cpu", name="host")
GROUPED = {format: kind for format, kind in FORMATS.items() if kind.group_k}


PACKED = {"nvfp4": 0x7E, "mxfp4": 127, "mxfp8": 127}
"""Kernels that pack these scales refuse NaN and what fp16 has no room for: the largest, and 1 in the place of 2^-5.
The scale of a whole matrix of nvfp4 is NaN."""
OURS = {
    name: [impl for impl in implementations(name)[0] if impl.ours and impl.build] for name in ("ffn_gemv", "moe_ffn")
}


def fill(tensor: torch.Tensor) -> None:
    """NaN, which is 0xFF in e4m3 and e8m0; all bits of codes and zero points."""
    if tensor.dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor.fill_(float("nan"))
    else:
        tensor.view(torch.uint8).fill_(0xFF)


def widened(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """The same values with so many dead columns beside them and a dead row below."""
    wide = tensor.new_empty(tensor.shape[0] + 1, tensor.shape[1] + columns)
    fill(wide)
    writable(wide)[: tensor.shape[0], : tensor.shape[1]] = writable(tensor)
    return wide


def gemv_case(format: str) -> GemvCase:
    """The last group of a row has 10 columns."""
    return GemvCase(B=3, N=70, K=2 * FORMATS[format].group_k + 10, dtype="fp16", weights=format)


def among_dead(inputs: Inputs, format: str) -> tuple[Inputs, Inputs]:
    """Inputs whose weights are views among what is dead, and all of that: one group of columns more."""
    kind = FORMATS[format]
    wide = {
        name: widened(inputs[name], kind.group_k * kind.bits // 8 if name == "w" else 1)
        for name in ("w", "w_scale", "w_zero")
        if name in inputs
    }
    views = {name: tensor[: inputs[name].shape[0], : inputs[name].shape[1]] for name, tensor in wide.items()}
    return inputs | views, inputs | wide


def supported(case: Any, impl: Impl, target: Target) -> Target:
    where = target if impl.build else HOST
    if reason := impl.supports(case, where):
        pytest.skip(reason)
    return where


@pytest.mark.parametrize("impl", OURS["ffn_gemv"], ids=lambda impl: impl.name)
@pytest.mark.parametrize("format", GROUPED)
def test_groups_beside_the_last_one_of_a_row_are_not_used(format: str, impl: Impl, target: Target) -> None:
    case = gemv_case(format)
    where = supported(case, impl, target)
    inputs = ffn_gemv.inputs(case, where.device, 0)
    launch = impl.prepare(case, among_dead(inputs, format)[0], where)
    errors = compare(launch(), ffn_gemv.reference(case, inputs), ffn_gemv.tolerance(case))
    assert errors.passed, errors.reason


@pytest.mark.parametrize("format", GROUPED)
def test_a_group_too_many_shows_although_its_x_is_zero(format: str) -> None:
    case = gemv_case(format)
    inputs = ffn_gemv.inputs(case, "cpu", 0)
    right = ffn_gemv.reference(case, inputs)
    _, wide = among_dead(inputs, format)
    columns = FORMATS[format].group_k
    x = torch.cat([inputs["x"].float(), torch.zeros(case.B, columns)], dim=1)
    w = dequantize(format, wide, 0, case.N)[:, : case.K + columns]
    assert compare(x[:, : case.K] @ w[:, : case.K].T, right, ffn_gemv.tolerance(case)).passed
    assert not compare(x @ w.T, right, ffn_gemv.tolerance(case)).passed


def experts(format: str) -> MoeCase:
    return MoeCase(B=2, E=6, k=2, H=64, F=48, dtype="fp16", weights=format)


def poisoned(case: MoeCase, inputs: Inputs, dead: list[int]) -> Inputs:
    """All that belongs to these experts is poison."""
    found = {name: tensor.clone() for name, tensor in inputs.items()}
    for name, tensor in found.items():
        if name.startswith("w_"):
            mine = writable(tensor).view(case.experts, -1)
            for e in dead:
                fill(mine[e])
                if name.endswith("_scale") and case.weights in PACKED:
                    mine[e] = PACKED[case.weights]
    return found


@pytest.mark.parametrize("impl", OURS["moe_ffn"], ids=lambda impl: impl.name)
@pytest.mark.parametrize("format", FORMATS)
def test_scales_of_experts_that_no_token_is_routed_to_are_not_used(format: str, impl: Impl, target: Target) -> None:
    case = experts(format)
    where = supported(case, impl, target)
    inputs = moe_ffn.inputs(case, where.device, 0)
    ids = inputs["topk_ids"].flatten().tolist()
    expected = moe_ffn.reference(case, inputs)
    for dead, passes in ((sorted(set(range(case.E)) - set(ids)), True), ([ids[0]], False)):
        found = impl.prepare(case, poisoned(case, inputs, dead), where)()
        assert compare(found, expected, moe_ffn.tolerance(case)).passed == passes
