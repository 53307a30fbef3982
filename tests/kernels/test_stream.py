"""The memory ceilings: right sums and copies at odd sizes, honest bytes, refusals with reasons."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.devices import DEVICES
from bench.measure.gate import check, poisoned_run
from kernels.common.compare import compare
from kernels.op import Target, implementations, total
from kernels.stream.op import CHUNK, L2_SIZE, OP, GiB, StreamCase, chunk_sums, work
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()
FOUND, MISSING = implementations("stream")
IMPLS = {impl.name: impl for impl in FOUND}


def test_everything_imports() -> None:
    assert not MISSING
    assert set(IMPLS) == {"triton", "triton-async", "triton-tma", "torch", "torch-mv"}


def test_what_each_refuses(target) -> None:
    refused = {}
    for name, impl in IMPLS.items():
        reasons = {case.id: impl.supports(case, target) for case in OP.cases("test")}
        refused[name] = {case_id for case_id, reason in reasons.items() if reason}
        assert all(reason.split()[0] in ("needs", "another", "a") for reason in reasons.values() if reason)
    ids = {case.id for case in OP.cases("test")}
    reads = {i for i in ids if i.startswith("read")}
    ragged = {f"read-{4}B", f"read-{18 * 4 * CHUNK + 4 * 37}B"}
    assert refused["triton"] == set()
    assert refused["triton-async"] == ids - reads
    assert refused["triton-tma"] == ids - reads | ragged
    assert refused["torch"] == {i for i in ids if i.startswith("l2_read")} | ragged
    assert refused["torch-mv"] == ids - reads | ragged


@pytest.mark.parametrize("kind", ["read", "copy", "triad", "launch"])
def test_smoke_runs_on_a_cpu(kind: str) -> None:
    case = next(case for case in OP.cases("smoke") if case.kind == kind)
    small = case if kind == "launch" else dataclasses.replace(case, size=4 * 4 * CHUNK)
    assert IMPLS["torch"].supports(case, CPU) is None
    assert check(OP, IMPLS["torch"], small, CPU).passed
    assert "GPU" in IMPLS["triton"].supports(case, CPU)


def test_the_gate_catches_a_skipped_chunk(target) -> None:
    """A read that leaves out one of 4096 elements, or one chunk, must not be timed."""
    case = StreamCase(kind="read", size=8 * 4 * CHUNK)
    inputs = OP.inputs(case, target.device, 0)
    sums = OP.reference(case, inputs)
    short = sums.clone()
    short[3] -= inputs["x"][3 * CHUNK : 4 * CHUNK].median()
    assert not compare(short, sums, OP.tolerance(case)).passed
    launch = IMPLS["triton"].build(case, inputs, target)
    one_less = dataclasses.replace(launch.launches[0], grid=(case.chunks - 1,))
    broken = dataclasses.replace(launch, launches=(one_less,))
    assert not compare(poisoned_run(OP, case, inputs, broken), sums, OP.tolerance(case)).passed


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 3 * CHUNK + 5))
def test_chunk_sums_lose_nothing(n: int) -> None:
    x = torch.arange(n, dtype=torch.float32)
    sums = chunk_sums(x)
    assert sums.shape == (-(-n // CHUNK),)
    assert float(sums.sum()) == n * (n - 1) / 2
    assert float(sums[0]) == min(n, CHUNK) * (min(n, CHUNK) - 1) / 2


def test_l2_reference_reads_other_chunks_each_pass() -> None:
    case = StreamCase(kind="l2_read", size=3 * 4 * CHUNK, passes=5)
    x = torch.repeat_interleave(torch.tensor([1.0, 10.0, 100.0]), CHUNK)
    by_hand = torch.tensor([[1, 10, 100, 1, 10], [10, 100, 1, 10, 100], [100, 1, 10, 100, 1]]).sum(dim=1)
    assert torch.equal(OP.reference(case, {"x": x}), CHUNK * by_hand.double())


@pytest.mark.parametrize("suite", ["quick", "full", "test"])
def test_work_counts_real_tensors(suite: str) -> None:
    for case in OP.cases(suite):
        inputs = OP.inputs(case, "meta", 0)
        read = sum(t.numel() * t.element_size() for t in inputs.values())
        built = IMPLS["triton"].build(case, inputs, H100)
        written = built.output.numel() * built.output.element_size()
        assert (work(case).bytes_read, work(case).bytes_written) == (read, written)
        per_element = {"read": 1, "l2_read": case.passes, "triad": 2}.get(case.kind, 0)
        assert work(case).total_flops == per_element * inputs["x"].numel()
        for impl in FOUND:
            if impl.supports(case, H100) is None:
                stages = impl.stages(case, H100)
                assert total(stages) == work(case)
                assert stages[0].l2_bytes == (case.passes - 1) * case.size
        assert built.launches[0].grid == (IMPLS["triton"].stages(case, H100)[0].ctas,)


def test_persistent_grid_is_one_wave() -> None:
    big, small = StreamCase(kind="read", size=GiB), StreamCase(kind="read", size=2 * 4 * CHUNK)
    for name in ("triton-async", "triton-tma"):
        stage = IMPLS[name].stages(big, H100)[0]
        assert stage.ctas == stage.ctas_per_sm * H100.sm_count
        assert IMPLS[name].stages(small, H100)[0].ctas == 2
        built = IMPLS[name].build(big, OP.inputs(big, "meta", 0), H100)
        assert built.launches[0].grid == (stage.ctas,)


def test_l2_case_fits_an_h100_evenly() -> None:
    case = next(case for case in OP.cases("full") if case.kind == "l2_read")
    assert case.size == L2_SIZE < H100.l2_bytes / 3
    assert case.chunks % H100.sm_count == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "read", "size": 0},
        {"kind": "copy", "size": 6},
        {"kind": "read", "size": 4 * GiB + 4},
        {"kind": "launch", "size": 8},
        {"kind": "read", "size": 4, "passes": 2},
        {"kind": "l2_read", "size": 4 * CHUNK + 4, "passes": 2},
        {"kind": "l2_read", "size": 4 * CHUNK, "passes": 0},
    ],
)
def test_senseless_cases_raise(fields) -> None:
    with pytest.raises(ValueError, match=r"bytes|passes|element"):
        StreamCase(**fields)


def test_ids() -> None:
    assert StreamCase(kind="read", size=GiB).id == "read-1GiB"
    assert StreamCase(kind="read", size=64 << 10).id == "read-64KiB"
    assert StreamCase(kind="copy", size=20).id == "copy-20B"
    assert StreamCase(kind="l2_read", size=4 * CHUNK, passes=3).id == "l2_read-16KiB-x3"
