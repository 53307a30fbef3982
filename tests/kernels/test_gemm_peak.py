"""The arithmetic ceilings: right products, chains of exactly K steps, honest FLOPs, refusals with reasons."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.devices import DEVICES
from kernels.common.compare import compare
from kernels.gemm_peak.op import FMA_A, FMA_B, OP, PeakCase, work
from kernels.op import SUITES, Target, implementations, total
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
A100 = Target(kind="cuda", name="A100", sm=80, sm_count=108, l2_bytes=40 << 20, smem_per_sm=164 << 10)
H100 = DEVICES["h100-sxm"].target()
FOUND, MISSING = implementations("gemm_peak")
IMPLS = {impl.name: impl for impl in FOUND}


def test_everything_imports() -> None:
    assert not MISSING
    assert set(IMPLS) == {"triton", "torch", "torch-addmm", "torch-scaled"}


@pytest.mark.parametrize("suite", [*SUITES, "test"])
def test_every_case_runs_somewhere(suite: str) -> None:
    """On a Hopper GPU each case has exactly the expected implementations; on a CPU smoke cases have one."""
    expected = {
        ("fma", "fp32"): {"triton"},
        ("gemm", "fp32"): {"torch", "torch-addmm"},
        ("gemm", "bf16"): {"torch", "torch-addmm"},
        ("gemm", "fp8"): {"torch-scaled"},
    }
    for case in OP.cases(suite):
        able = {name for name, impl in IMPLS.items() if impl.supports(case, H100) is None}
        assert able == expected[case.kind, case.dtype]
        if suite == "smoke":
            assert IMPLS["torch"].supports(case, CPU) is None


def test_refusals_say_why() -> None:
    fp8 = PeakCase(M=64, N=64, K=64, dtype="fp8")
    fma = PeakCase(kind="fma", M=64, K=64, dtype="fp32")
    assert "sm_89" in IMPLS["torch-scaled"].supports(fp8, A100)
    assert "sm_89" in IMPLS["torch-scaled"].supports(fp8, CPU)
    assert "fp8, not fp32" in IMPLS["torch-scaled"].supports(dataclasses.replace(fp8, dtype="fp32"), H100)
    assert "_scaled_mm" in IMPLS["torch"].supports(fp8, H100)
    assert "cuBLASLt" in IMPLS["torch-addmm"].supports(fp8, CPU)
    assert "GPU" in IMPLS["triton"].supports(fma, CPU)
    for name in ("torch", "torch-addmm", "torch-scaled"):
        assert "registers" in IMPLS[name].supports(fma, H100)


def test_addmm_computes_the_same_product() -> None:
    """The call of the cuBLASLt peer, on the host: a bias of zeros changes nothing."""
    case = PeakCase(M=48, N=80, K=33, dtype="fp32")
    inputs = OP.inputs(case, "cpu", 0)
    output = IMPLS["torch-addmm"].prepare(case, inputs, CPU)()
    assert compare(output, OP.reference(case, inputs), OP.tolerance(case)).passed


@pytest.mark.parametrize("K", [1, 33, 4096])
def test_closed_form_is_k_steps(K: int) -> None:
    case = PeakCase(kind="fma", M=64, K=K, dtype="fp32")
    inputs = OP.inputs(case, "cpu", 0)
    y = inputs["a"].double()
    for _ in range(K):
        y = FMA_A * y + FMA_B
    torch.testing.assert_close(OP.reference(case, inputs), y, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", [c for c in OP.cases("full") if c.kind == "fma"], ids=lambda c: c.id)
def test_a_lost_step_is_caught(case) -> None:
    """One step too few of 8192 must fail. The right number of steps, each rounded to fp32, must pass."""
    small = dataclasses.replace(case, M=2048)
    inputs = OP.inputs(small, "cpu", 0)
    y = inputs["a"]
    for step in range(small.K):
        if step == small.K - 1:
            lost = y
        y = (FMA_A * y.double() + FMA_B).float()
    expected = OP.reference(small, inputs)
    assert compare(y, expected, OP.tolerance(small)).passed
    assert not compare(lost, expected, OP.tolerance(small)).passed


@settings(max_examples=30, deadline=None)
@given(
    M=st.integers(1, 300),
    N=st.integers(1, 300),
    K=st.integers(1, 300),
    dtype=st.sampled_from(["fp32", "bf16", "fp8"]),
)
def test_work_counts_real_tensors(M: int, N: int, K: int, dtype: str) -> None:
    case = PeakCase(M=M, N=N, K=K, dtype=dtype)
    inputs = OP.inputs(case, "meta", 0)
    assert work(case).bytes_read == sum(t.numel() * t.element_size() for t in inputs.values())
    assert work(case).bytes_written == M * N * {"fp32": 4, "bf16": 2, "fp8": 2}[dtype]
    assert work(case).total_flops == 2 * M * N * K
    assert OP.case_from_dict(case.as_dict()) == case
    assert total(IMPLS["torch"].stages(case, H100)) == work(case)


def test_fma_work_and_grid() -> None:
    case = next(case for case in OP.cases("quick") if case.kind == "fma")
    inputs = OP.inputs(case, "meta", 0)
    built = IMPLS["triton"].build(case, inputs, H100)
    (stage,) = IMPLS["triton"].stages(case, H100)
    assert built.launches[0].grid == (stage.ctas,) == (stage.ctas_per_sm * H100.sm_count,)
    assert stage.work == work(case)
    assert work(case).flops == {"fma_fp32": 2 * case.M * case.K}
    moved = sum(t.numel() * t.element_size() for t in (inputs["a"], built.output))
    assert work(case).bytes == moved
    assert work(case).intensity == case.K / 4


def test_squares_are_bound_by_arithmetic() -> None:
    """Above 600 FLOP/B, twice the ridge of an H100 in bf16 (989 TFLOP/s over 3.35 TB/s), memory cannot be the bound."""
    for suite in ("quick", "full"):
        assert all(work(case).intensity > 600 for case in OP.cases(suite))


def test_senseless_cases_raise() -> None:
    with pytest.raises(ValueError, match="fma"):
        PeakCase(kind="fma", M=4, K=4, dtype="bf16")
    with pytest.raises(ValueError, match="fma"):
        PeakCase(kind="fma", M=4, N=2, K=4, dtype="fp32")
