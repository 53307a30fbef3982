"""Page reads: every live token once and no dead one, whatever the page, the layout, the order and the strides are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.devices import DEVICES
from kernels.common.compare import compare
from kernels.op import Target, implementations, total
from kernels.paged_read.op import CHUNK, OP, PagedReadCase, kv_bytes, lengths, table_bytes, work
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()
FOUND, MISSING = implementations("paged_read")
IMPLS = {impl.name: impl for impl in FOUND}
TINY = PagedReadCase(B=2, H_kv=2, D=32, T=70, page=16, lengths="ragged")


def test_everything_imports() -> None:
    assert not MISSING
    assert set(IMPLS) == {"triton", "torch", "numba"}


@pytest.mark.parametrize("impl", IMPLS.values(), ids=lambda impl: impl.name)
@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_torch_alone_refuses_and_says_what_it_needs(impl, case, target) -> None:
    if impl.name == "numba" and target.kind != "cpu":
        assert str(impl.supports(case, target)).startswith("needs a host")
    elif refusal := impl.supports(case, target):
        assert impl.name == "torch"
        assert refusal.startswith("needs")


def test_torch_runs_what_it_can() -> None:
    """It runs whole pages of uniform lengths in every layout, and the whole smoke suite."""
    ran = {case.id for case in OP.cases("test") if IMPLS["torch"].supports(case, CPU) is None}
    assert ran == {case.id for case in OP.cases("test") if case.T == 128}
    assert all(IMPLS["torch"].supports(case, CPU) is None for case in OP.cases("smoke"))


def test_refusals_say_why() -> None:
    assert IMPLS["triton"].supports(dataclasses.replace(TINY, D=48), H100) is None
    assert "sm_80" in IMPLS["triton"].supports(dataclasses.replace(TINY, dtype="fp8"), dataclasses.replace(H100, sm=80))
    whole = dataclasses.replace(TINY, T=192, lengths="uniform")
    assert "fp8" in IMPLS["torch"].supports(dataclasses.replace(whole, dtype="fp8"), CPU)
    assert "chunks" in IMPLS["torch"].supports(dataclasses.replace(whole, page=48), CPU)
    assert IMPLS["torch"].supports(whole, CPU) is None


def test_strides_are_respected(target) -> None:
    """K and V are halves of one tensor with padding for each head, and the table is cut from a wider one."""
    inputs = OP.inputs(TINY, target.device, 0)
    pages, page, heads, D = inputs["k"].shape
    both = torch.full((pages, 2, page, heads, D + 16), float("nan"), dtype=inputs["k"].dtype, device=target.device)
    strided = dict(inputs)
    for i, name in enumerate(("k", "v")):
        both[:, i, :, :, :D] = inputs[name]
        strided[name] = both[:, i, :, :, :D]
    wide = torch.full((TINY.B, 40), -1, dtype=torch.int32, device=target.device)
    wide[:, : inputs["block_table"].shape[1]] = inputs["block_table"]
    strided["block_table"] = wide[:, : inputs["block_table"].shape[1]]
    assert not strided["k"].is_contiguous()
    assert not strided["block_table"].is_contiguous()
    output = IMPLS["triton"].prepare(TINY, strided, target)()
    assert compare(output, OP.reference(TINY, inputs), OP.tolerance(TINY)).passed


def test_the_gate_catches_one_wrong_page(target) -> None:
    """Two pages of a sequence are swapped between chunks: the sums differ and must be refused."""
    case = dataclasses.replace(TINY, lengths="uniform", T=128)
    inputs = OP.inputs(case, target.device, 0)
    expected = OP.reference(case, inputs)
    wrong = dict(inputs)
    wrong["block_table"] = inputs["block_table"].clone()
    wrong["block_table"][0, [0, 7]] = inputs["block_table"][0, [7, 0]]
    output = IMPLS["triton"].prepare(case, wrong, target)()
    assert not compare(output, expected, OP.tolerance(case)).passed


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 4),
    T=st.integers(3, 200),
    page=st.sampled_from([0, 1, 3, 16, 64, 100]),
    layout=st.sampled_from(["NHD", "HND"]),
    order=st.sampled_from(["shuffled", "ordered"]),
    drawn=st.sampled_from(["uniform", "ragged", "longtail", "holes"]),
    seed=st.integers(0, 5),
)
def test_reference_against_plain_indexing(B, T, page, layout, order, drawn, seed) -> None:
    """The reference finds each live token where the table says; here token by token."""
    layout = layout if page else "NHD"
    case = PagedReadCase(
        B=B, H_kv=2, D=8, T=T, page=page, layout=layout, order=order, lengths=drawn, seed=seed, dtype="fp32"
    )
    inputs = OP.inputs(case, "cpu", seed)
    k = inputs["k"].double() if layout == "NHD" else inputs["k"].double().transpose(1, 2)
    v = inputs["v"].double() if layout == "NHD" else inputs["v"].double().transpose(1, 2)
    expected = torch.zeros(B, case.chunks, 2, dtype=torch.float64)
    for b, length in enumerate(inputs["lengths"].tolist()):
        for t in range(length):
            where = (inputs["block_table"][b, t // page], t % page) if page else (b, t)
            expected[b, t // CHUNK] += k[where].sum(-1) + v[where].sum(-1)
    torch.testing.assert_close(OP.reference(case, inputs), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("suite", ["smoke", "quick", "full", "test"])
def test_work_and_stages(suite: str) -> None:
    for case in OP.cases(suite):
        row = case.H_kv * case.D * {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1}[case.dtype]
        assert kv_bytes(case) == row * sum(lengths(case))
        pages = sum(len(range(0, n, case.page)) for n in lengths(case)) if case.page else 0
        assert work(case).bytes_read == 2 * kv_bytes(case) + 4 * pages + 4 * case.B
        assert work(case).total_flops == 2 * sum(lengths(case)) * case.H_kv * case.D
        assert total(IMPLS["triton"].stages(case, H100)) == work(case)


def test_real_tensors_hold_the_bytes() -> None:
    """With uniform lengths in whole pages, the live bytes are those of the tensors without the spare pages."""
    case = PagedReadCase(B=3, H_kv=2, D=16, T=128, page=16)
    inputs = OP.inputs(case, "cpu", 0)
    live = inputs["k"].isfinite().all(dim=(1, 2, 3))
    assert kv_bytes(case) == inputs["k"][live].numel() * 2
    assert int(live.sum()) * 4 == table_bytes(case)
    built = IMPLS["triton"].build(case, OP.inputs(case, "meta", 0), H100)
    assert work(case).bytes_written == built.output.numel() * 4
    (stage,) = IMPLS["triton"].stages(case, H100)
    x, y, z = built.launches[0].grid
    assert stage.ctas == x * y * z == built.output.numel()


def test_torch_stages_count_the_copy() -> None:
    """The gathered copy is written and read again: 3 times the compulsory bytes if the L2 does not hold it."""
    case = next(case for case in OP.cases("full") if case.page == 16)
    moved = total(IMPLS["torch"].stages(case, H100))
    assert moved.bytes == pytest.approx(3 * work(case).bytes, rel=0.01)
    assert moved.flops == work(case).flops
    small = dataclasses.replace(case, B=1, T=1024)
    stages = IMPLS["torch"].stages(small, H100)
    assert total(stages).bytes == pytest.approx(2 * work(small).bytes, rel=0.01)
    assert sum(stage.l2_bytes for stage in stages) == pytest.approx(work(small).bytes, rel=0.01)
    contiguous = dataclasses.replace(case, page=0)
    assert total(IMPLS["torch"].stages(contiguous, H100)) == work(contiguous)
