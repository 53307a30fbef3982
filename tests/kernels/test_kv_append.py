"""Appending a token writes each slot and touches no other, whatever the page, the layout and the strides are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.devices import DEVICES
from kernels.common import paging
from kernels.common.compare import compare
from kernels.common.integers import cdiv
from kernels.kv_append.op import (
    OP,
    AppendCase,
    background,
    cache_shape,
    poison_slots,
    slots,
    tokens_before,
    work,
)
from kernels.op import Target, implementations, total
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()
FOUND, MISSING = implementations("kv_append")
IMPLS = {impl.name: impl for impl in FOUND}
TINY = AppendCase(B=3, H_kv=2, D=16, T=20, page=4)


def test_everything_imports() -> None:
    assert not MISSING
    assert set(IMPLS) == {"triton", "torch", "numba"}


@pytest.mark.parametrize("impl", IMPLS.values(), ids=lambda impl: impl.name)
@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_torch_alone_refuses_idle_sequences(impl, case, target) -> None:
    if impl.name == "numba" and target.kind != "cpu":
        assert str(impl.supports(case, target)).startswith("needs a host")
    elif refusal := impl.supports(case, target):
        assert impl.name == "torch"
        assert case.idle
        assert "nowhere" in refusal


def test_test_cases_meet_the_edges() -> None:
    """They include the first slot of a new page, the last slot of a page, an empty sequence and an idle one."""
    met = set()
    for case in OP.cases("test"):
        for length in tokens_before(case, 0):
            page = case.tokens_per_page
            met |= {"idle"} if length < 0 else {length % page == 0 and length > 0, length % page == page - 1}
            met |= {"empty"} if length == 0 else set()
    assert met == {"idle", "empty", True, False}


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_strides_are_respected(layout: str, target) -> None:
    """K and V are cut from one fused projection, the cache has padded rows, the table is cut from a wider one."""
    case = dataclasses.replace(TINY, layout=layout)
    inputs = OP.inputs(case, target.device, 0)
    strided = dict(inputs)
    fused = torch.full((case.B, 6, case.H_kv, case.D), float("nan"), dtype=inputs["k"].dtype, device=target.device)
    fused[:, 4], fused[:, 5] = inputs["k"], inputs["v"]
    strided["k"], strided["v"] = fused[:, 4], fused[:, 5]
    shape = cache_shape(case)
    roomy = torch.zeros(*shape[:-1], case.D + 8, dtype=inputs["kv"].dtype, device=target.device)
    strided["kv"] = roomy[..., : case.D]
    strided["kv"].copy_(inputs["kv"])
    wide = torch.full((case.B, 40), -1, dtype=torch.int32, device=target.device)
    wide[:, : inputs["block_table"].shape[1]] = inputs["block_table"]
    strided["block_table"] = wide[:, : inputs["block_table"].shape[1]]
    expected = OP.reference(case, inputs)
    output = IMPLS["triton"].prepare(case, strided, target)()
    assert output.data_ptr() == roomy.data_ptr()
    assert compare(output, expected, OP.tolerance(case)).passed
    assert not roomy[..., case.D :].any()


@pytest.mark.parametrize("wrong", ["slot", "page"])
def test_a_write_to_a_wrong_place_shows(wrong: str, target) -> None:
    """The gate must see a write one slot too early, or to another sequence's page; neither is outside the cache."""
    inputs = OP.inputs(TINY, target.device, 0)
    launch = IMPLS["triton"].prepare(TINY, inputs, target)
    expected = OP.reference(TINY, inputs)
    poison_slots(TINY, inputs, launch())
    assert compare(launch(), expected, OP.tolerance(TINY)).passed
    changed = dict(inputs)
    if wrong == "slot":
        changed["lengths"] = (inputs["lengths"] - 1).clamp(min=0)
    else:
        changed["block_table"] = inputs["block_table"].flip(0).clamp(min=0)
    output = IMPLS["triton"].prepare(TINY, changed, target)()
    assert not compare(output, expected, OP.tolerance(TINY)).passed


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_poison_covers_the_slots_and_no_more(dtype: str) -> None:
    case = dataclasses.replace(TINY, dtype=dtype, layout="HND")
    inputs = OP.inputs(case, "cpu", 0)
    before = inputs["kv"].float()
    poison_slots(case, inputs, inputs["kv"])
    poisoned = inputs["kv"].float().isnan()
    assert int(poisoned.sum()) == 2 * case.B * case.H_kv * case.D
    assert torch.equal(inputs["kv"].float()[~poisoned], before[~poisoned])
    for b, physical, slot in slots(case, inputs).tolist():
        assert poisoned[:, physical, :, slot].all(), b


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 6),
    T=st.integers(1, 60),
    page=st.sampled_from([0, 1, 3, 16, 64]),
    layout=st.sampled_from(["NHD", "HND"]),
    drawn=st.sampled_from(["uniform", "ragged", "longtail"]),
    idle=st.integers(0, 2),
    seed=st.integers(0, 9),
)
def test_slots_are_distinct_and_inside(B, T, page, layout, drawn, idle, seed) -> None:
    """Every active sequence has its own slot; the reference changes these slots and nothing else."""
    layout, idle = layout if page else "NHD", min(idle, B - 1)
    case = AppendCase(B=B, H_kv=2, D=8, T=T, page=page, layout=layout, lengths=drawn, idle=idle, dtype="fp32")
    inputs = OP.inputs(case, "cpu", seed)
    found = slots(case, inputs).tolist()
    places = {(physical, slot) for _, physical, slot in found}
    assert len(found) == len(places) == B - idle
    reference = OP.reference(case, inputs)
    old = background(cache_shape(case), "fp32", "cpu")
    assert torch.equal(inputs["kv"], old)
    view = reference if layout == "NHD" else reference.transpose(2, 3)
    old = old if layout == "NHD" else old.transpose(2, 3)
    for b, physical, slot in found:
        assert torch.equal(view[0, physical, slot], inputs["k"][b])
        assert torch.equal(view[1, physical, slot], inputs["v"][b])
        view[:, physical, slot] = old[:, physical, slot]
    assert torch.equal(view, old)


@pytest.mark.parametrize("suite", ["smoke", "quick", "full", "test"])
def test_work_and_stages(suite: str) -> None:
    for case in OP.cases(suite):
        inputs = OP.inputs(case, "meta", 0)
        new = sum(inputs[name].numel() * inputs[name].element_size() for name in ("k", "v"))
        new = new // case.B * (case.B - case.idle)
        tables = 4 * case.B + (4 * (case.B - case.idle) if case.page else 0)
        assert (work(case).bytes_read, work(case).bytes_written) == (new + tables, new)
        for impl in FOUND:
            if impl.supports(case, H100) is None:
                assert total(impl.stages(case, H100)) == work(case)
        built = IMPLS["triton"].build(case, inputs, H100)
        (stage,) = IMPLS["triton"].stages(case, H100)
        assert built.launches[0].grid == (case.H_kv, case.B)
        assert stage.ctas == case.H_kv * case.B
        assert built.output.shape == cache_shape(case)
        assert built.output.numel() * built.output.element_size() < 150e6


def test_senseless_cases_raise() -> None:
    with pytest.raises(ValueError, match="idle"):
        dataclasses.replace(TINY, idle=3)
    with pytest.raises(ValueError, match="NHD"):
        dataclasses.replace(TINY, page=0, layout="HND")


@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_inputs_and_reference_do_as_loops_over_sequences_do(case: AppendCase) -> None:
    inputs, columns = OP.inputs(case, "cpu", 3), cdiv(case.T, case.page) if case.page else 0
    before = tokens_before(case, 3)
    assert inputs["lengths"].tolist() == before
    expected = background(cache_shape(case), case.dtype, "cpu").float()
    if case.page:
        every = [((0, case.T),)] * case.B
        table = paging.block_table(every, page=case.page, columns=columns + 1, seed=3).table
        for b, length in enumerate(before):
            table[b, length // case.page + 1 :] = paging.GARBAGE[0]
        assert torch.equal(inputs["block_table"], table)
    for half, name in enumerate("kv"):
        for b, length in enumerate(before):
            if length >= 0:
                page = table[b, length // case.page] if case.page else b
                paging.nhd(expected[half], case.layout)[page, length % case.tokens_per_page] = inputs[name][b].float()
    assert torch.equal(OP.reference(case, inputs).float(), expected)


def test_no_python_loop_over_sequences_draws_inputs() -> None:
    """A run draws them for hundreds of copies. With a loop, 512 sequences made more than 2,000 torch calls."""
    (case,) = [c for c in OP.cases("full") if c.B == 512]
    small = dataclasses.replace(case, B=4, T=1)
    calls = []
    for given_case in (small, dataclasses.replace(small, B=512)):
        with torch.profiler.profile() as profile:
            inputs = OP.inputs(given_case, "cpu", 0)
            OP.reference(given_case, inputs)
        calls.append(sum(event.count for event in profile.key_averages()))
    assert calls[0] == calls[1]
