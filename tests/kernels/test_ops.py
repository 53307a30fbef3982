"""Every implementation of every operation against its reference, on every `test` case, and the promises of each op."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.devices import find
from bench.measure.copies import tensor_bytes
from bench.measure.gate import check
from kernels.op import SUITES, Impl, Op, Target, discover, implementations, total

OPS = discover()
PAIRS = [(op, impl) for op in OPS.values() for impl in implementations(op.name)[0]]
HOST = Target(kind="cpu", name="host", sm_count=2, l2_bytes=1 << 20)
H200 = find("h200").target()


def named(value: Any) -> str:
    return str(getattr(value, "name", value))


@pytest.mark.parametrize("op", OPS.values(), ids=named)
def test_nothing_of_an_op_is_missing_here(op: Op) -> None:
    found, missing = implementations(op.name)
    assert not missing
    assert found, "an op needs an implementation"
    assert len({impl.name for impl in found}) == len(found)


def home(impl: Impl, target: Target) -> Target:
    """Without a GPU, Triton kernels are interpreted; everything else runs on the host."""
    return target if impl.build or target.kind == "cuda" else HOST


def in_bf16(case: Any) -> Any:
    """The same case with bf16 in the place of fp16, for inputs and weights."""
    return replace(case, **{name: "bf16" for name, value in case.as_dict().items() if value == "fp16"})


def in_16_bits(cases: Iterable[Any], where: Target) -> Iterator[Any]:
    """The cases, and on a GPU the fp16 cases in bf16 too. (The interpreter multiplies bf16 operands as integers.)"""
    for case in cases:
        yield case
        if where.kind == "cuda" and getattr(case, "dtype", "") == "fp16":
            yield in_bf16(case)


def gates() -> Iterator[Any]:
    """(op, implementation, cases): Triton kernels, which may be interpreted, get a test for each case."""
    for op, impl in PAIRS:
        for cases in ([case] for case in op.cases("test")) if impl.build else [op.cases("test")]:
            yield pytest.param(op, impl, cases, id="-".join([op.name, impl.name, *(c.id for c in cases if impl.build)]))


def measured_if_none_is_small(op: Op, impl: Impl, where: Target) -> list[Any]:
    """The smallest case that is measured on a GPU, for a peer that refuses every small case (it takes no lengths)."""
    if supported(op, impl, where, "test"):
        return []
    return sorted(supported(op, impl, where, "smoke", "quick"), key=lambda case: op.work(case).bytes)[:1]


def supported(op: Op, impl: Impl, where: Target, *suites: str) -> list[Any]:
    cases = in_16_bits([case for suite in suites for case in op.cases(suite)], where)
    return [case for case in cases if impl.supports(case, where) is None]


def compiled_once(cases: list[Any]) -> list[Any]:
    """The cases for CPU kernels, which are compiled for seconds for each pair of types: quantized weights with bf16.

    Cases without quantization show how fp16 is loaded and stored.
    """
    return list(dict.fromkeys(in_bf16(case) if getattr(case, "quantized", False) else case for case in cases))


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize(("op", "impl", "cases"), list(gates()))
def test_implementations_pass_the_gate(op: Op, impl: Impl, cases: list[Any], target: Target) -> None:
    where = home(impl, target)
    cases = compiled_once(cases) if impl.ours and where is HOST else cases
    reasons, passed = set(), 0
    large = [] if impl.build or where.kind != "cuda" else measured_if_none_is_small(op, impl, where)
    for case in [*in_16_bits(cases, where), *large]:
        refusal = impl.supports(case, where)
        if refusal:
            reasons.add(refusal)
            continue
        errors = check(op, impl, case, where)
        assert errors.passed, f"{case.id}: {errors.reason}"
        passed += 1
    if not passed:
        pytest.skip(f"refuses here: {'; '.join(sorted(reasons))}")


def test_every_gate_is_checked_by_pytest_m_cuda() -> None:
    """Without a GPU the same tests are interpreted, so the mark alone skips none of them."""
    (mark,) = [m for m in test_implementations_pass_the_gate.pytestmark if m.name == "cuda"]
    assert mark.kwargs == {"interpreted": True}
    covered = {(p.values[0].name, p.values[1].name) for p in gates()}
    assert covered == {(op.name, impl.name) for op, impl in PAIRS}


@pytest.mark.parametrize(("op", "impl"), [pair for pair in PAIRS if pair[1].build], ids=named)
def test_each_kernel_of_ours_is_checked_in_bf16_on_a_gpu(op: Op, impl: Impl) -> None:
    """Where an operation has a 16-bit type at all, one of the cases that a GPU checks is in bf16."""
    checked = supported(op, impl, H200, "test")
    assert checked
    types = {getattr(case, "dtype", "") for case in checked}
    if types & {"fp16", "bf16"}:
        assert "bf16" in types


@pytest.mark.parametrize("name", ["torch-flash", "torch-efficient", "torch-math"])
def test_a_peer_that_takes_no_lengths_is_checked_on_a_case_that_is_measured(name: str) -> None:
    op = OPS["attention_decode"]
    impl = next(impl for impl in implementations(op.name)[0] if impl.name == name)
    (case,) = measured_if_none_is_small(op, impl, H200)
    assert case.dtype == "bf16"
    assert impl.supports(case, H200) is None


@pytest.mark.parametrize("op", OPS.values(), ids=named)
def test_small_cases_in_fp16_exist_in_bf16(op: Op) -> None:
    for case in op.cases("test"):
        if getattr(case, "dtype", "") == "fp16":
            twin = in_bf16(case)
            shapes = {name: t.shape for name, t in op.inputs(case, "meta", 1).items() if torch.is_tensor(t)}
            inputs = op.inputs(twin, "meta", 1)
            assert twin.dtype == "bf16"
            assert twin.id != case.id
            assert shapes == {name: t.shape for name, t in inputs.items() if torch.is_tensor(t)}
            assert op.work(twin) == op.work(case)


@pytest.mark.parametrize("op", OPS.values(), ids=named)
def test_cases_are_distinct_and_survive_a_record(op: Op) -> None:
    for suite in (*SUITES, "test"):
        cases = op.cases(suite)
        assert cases or suite == "smoke", f"{op.name} has no {suite} case"
        assert len({case.id for case in cases}) == len(cases)
        for case in cases:
            assert op.case_from_dict(case.as_dict()) == case


@pytest.mark.parametrize("op", OPS.values(), ids=named)
def test_inputs_follow_their_seed(op: Op) -> None:
    case = op.cases("test")[0]
    first, again, other = (op.inputs(case, "cpu", seed) for seed in (1, 1, 2))
    assert same(first, again)
    if tensor_bytes(first) > 64:
        assert not same(first, other)
    shapes = {name: value.shape for name, value in op.inputs(case, "meta", 1).items() if torch.is_tensor(value)}
    assert shapes == {name: value.shape for name, value in first.items() if torch.is_tensor(value)}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = [name for name, value in one.items() if torch.is_tensor(value)]
    return all(
        torch.equal(one[n].contiguous().view(torch.uint8), other[n].contiguous().view(torch.uint8)) for n in tensors
    )


@pytest.mark.parametrize(("op", "impl"), PAIRS, ids=named)
def test_no_implementation_claims_to_move_less_than_is_compulsory(op: Op, impl: Impl, target: Target) -> None:
    where = home(impl, target)
    for suite in ("smoke", "quick"):
        for case in op.cases(suite):
            if impl.supports(case, where) is None:
                assert total(impl.stages(case, where)).bytes >= 0.999 * op.work(case).bytes, case.id
