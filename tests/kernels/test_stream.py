"""The memory ceilings: right sums and copies at odd sizes, honest bytes, refusals with reasons."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.devices import DEVICES
from bench.measure.gate import check, poisoned_run
from kernels.common.compare import compare
from kernels.op import Target, implementations, total
from kernels.stream.op import CHUNK, L2_SIZE, LINE, OP, GiB, StreamCase, chunk_sums, work
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()
FOUND, MISSING = implementations("stream")
IMPLS = {impl.name: impl for impl in FOUND}


def test_everything_imports() -> None:
    assert not MISSING
    assert set(IMPLS) == {"numba", "triton", "triton-async", "triton-tma", "torch", "torch-mv"}


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
    assert refused["torch"] == {i for i in ids if i.startswith(("l2_read", "chase"))} | ragged
    assert refused["torch-mv"] == ids - reads | ragged
    assert refused["numba"] == ids


@pytest.mark.parametrize("kind", ["read", "copy", "triad", "launch"])
def test_smoke_runs_on_a_cpu(kind: str) -> None:
    case = next(case for case in OP.cases("smoke") if case.kind == kind)
    small = case if kind == "launch" else dataclasses.replace(case, size=4 * 4 * CHUNK)
    assert IMPLS["torch"].supports(case, CPU) is None
    assert check(OP, IMPLS["torch"], small, CPU).passed
    assert check(OP, IMPLS["numba"], small, CPU).passed
    assert "GPU" in IMPLS["triton"].supports(case, CPU)


def test_a_host_computes_on_what_it_reads() -> None:
    """Each of 8 multiply-adds brings x nearer to 1: 4096 times 3 become 4096 (1 + 2 (1 - 2^-12)^8)."""
    case = StreamCase(kind="fma_read", size=6 * 4 * CHUNK, passes=8)
    assert work(case).total_flops == 17 * case.n
    by_hand = torch.full((6,), CHUNK * (1 + 2 * (1 - 2**-12) ** 8), dtype=torch.float64)
    assert torch.allclose(OP.reference(case, {"x": torch.full((case.n,), 3.0)}), by_hand)
    assert check(OP, IMPLS["numba"], case, CPU).passed
    assert {name for name, impl in IMPLS.items() if impl.supports(case, CPU) is None} == {"numba"}
    assert "for hosts" in IMPLS["triton"].supports(case, H100)
    assert "(2, 8, 16)" in IMPLS["numba"].supports(dataclasses.replace(case, passes=3), CPU)


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
    for case in (case for case in OP.cases(suite) if case.kind != "chase"):
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


CHASES = [case for case in OP.cases("test") if case.kind == "chase"]


def walk(case: StreamCase, x: torch.Tensor) -> list[list[int]]:
    """The places that the loads of each chain find, one step after the other."""
    walked = []
    for chain in range(case.chains):
        at, found = LINE * chain, []
        for _ in range(case.loads):
            at = int(x[at])
            found.append(at)
        walked.append(found)
    return walked


@pytest.mark.parametrize("case", CHASES, ids=lambda case: case.id)
def test_a_chase_meets_every_line_of_its_chain_before_any_comes_again(case: StreamCase) -> None:
    x = OP.inputs(case, "cpu", 0)["x"]
    walked = walk(case, x)
    each = case.size // 128 // case.chains
    for chain, found in enumerate(walked):
        assert len({LINE * chain, *found[: each - 1]}) == min(each, 1 + case.loads)
        assert all(at % LINE == 0 for at in found)
        assert found[each : 2 * each] == found[: max(0, min(each, case.loads - each))]
    assert len({at for found in walked for at in found}) == sum(len(set(found)) for found in walked), "no line in two"
    assert [found[-1] for found in walked] == OP.reference(case, {"x": x}).tolist()
    assert [found[-1] for found in walked] != [LINE * chain for chain in range(case.chains)]


@pytest.mark.parametrize("case", CHASES, ids=lambda case: case.id)
def test_a_chase_counts_a_sector_for_each_load(case: StreamCase) -> None:
    """32 bytes of DRAM for a line that is met for the first time, 32 bytes of a cache for one that was met before."""
    walked = walk(case, OP.inputs(case, "cpu", 0)["x"])
    # a chain reads the line where it stands, so of the places that it finds it does not read the last
    read = [[LINE * chain, *found[:-1]] for chain, found in enumerate(walked)]
    different = len({at for places in read for at in places})
    (stage,) = IMPLS["triton"].stages(case, H100)
    assert work(case).bytes_read == stage.work.bytes_read == 32 * different
    assert stage.l2_bytes == 32 * (case.chains * case.loads - different)
    again = "l1" if case.l1 else "l2"
    assert stage.loads_before == {"dram": different // case.chains, again: case.loads - different // case.chains}
    assert work(case).bytes_written == 4 * case.chains
    assert stage.ctas == case.chains


def test_a_chase_that_skips_a_load_or_reads_another_copy_fails_the_gate(target) -> None:
    case = CHASES[1]
    inputs, other = (OP.inputs(case, target.device, seed) for seed in (0, 1))
    ends = OP.reference(case, inputs)
    fewer = dataclasses.replace(case, loads=case.loads - 1)
    for wrong in (IMPLS["triton"].build(fewer, inputs, target), IMPLS["triton"].build(case, other, target)):
        assert not compare(poisoned_run(OP, case, inputs, wrong), ends, OP.tolerance(case)).passed


def test_chases_of_the_suites_take_caches_and_memory_apart() -> None:
    """Two over 16 MiB, which the L2 of every part of 40 MB holds, one of them without any second pass; and one over 4
    GiB without any."""
    quick = [case for case in OP.cases("quick") if case.kind == "chase"]
    assert [(case.size >> 20, case.loads / (case.lines / case.chains) > 1) for case in quick] == [
        (16, False),
        (16, True),
        (4096, False),
    ]
    full = [case for case in OP.cases("full") if case.kind == "chase"]
    assert {case.size // case.chains for case in full if case.l1} == {16 << 10}
    assert {case.id for case in quick} <= {case.id for case in full}
    for case in full:
        # four copies of the largest, and hundreds of the smallest, exceed the L2 of an H100 four times
        assert 4096 * work(case).bytes > 4 * H100.l2_bytes
        assert case.loads * 1e-6 < 0.02, "at most 20 ms a launch"


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
        {"kind": "chase", "size": 1024, "chains": 1},
        {"kind": "read", "size": 1024, "chains": 1, "loads": 1},
        {"kind": "chase", "size": 1024 + 64, "chains": 1, "loads": 1},
        {"kind": "chase", "size": 1024, "chains": 1, "loads": 16},
    ],
)
def test_senseless_cases_raise(fields) -> None:
    with pytest.raises(ValueError, match=r"bytes|passes|element|chain|size is 0"):
        StreamCase(**fields)


def test_ids() -> None:
    assert StreamCase(kind="read", size=GiB).id == "read-1GiB"
    assert StreamCase(kind="read", size=64 << 10).id == "read-64KiB"
    assert StreamCase(kind="copy", size=20).id == "copy-20B"
    assert StreamCase(kind="l2_read", size=4 * CHUNK, passes=3).id == "l2_read-16KiB-x3"
    assert StreamCase(kind="chase", size=GiB, chains=128, loads=5).id == "chase-1GiB-128x5"
    assert StreamCase(kind="chase", size=4096, chains=2, loads=5, l1=True).id == "chase-4KiB-2x5-l1"
