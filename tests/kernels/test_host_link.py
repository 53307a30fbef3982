"""The host's link: what crosses it, from where to where; a host refuses to time it, but its copies run everywhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bench.ceilings import Ceilings
from bench.devices import DEVICES, find
from bench.measure.case import Settings, measure
from bench.measure.gate import check, poisoned_run
from bench.predict.roofline import predict_from_datasheet
from bench.records import Record
from kernels.common.compare import compare
from kernels.host_link.op import (
    BLOCK_BYTES,
    BLOCK_BYTES_ALL_LAYERS,
    OP,
    LinkCase,
    work,
)
from kernels.models import kv_bytes_per_token, model
from kernels.op import SUITES, Target, implementations, total

CPU = Target(kind="cpu", name="cpu", l2_bytes=1 << 20)
H100 = DEVICES["h100-sxm"].target()
FOUND, MISSING = implementations("host_link")
IMPLS = {impl.name: impl for impl in FOUND}
COPIED = {suite: [case for case in OP.cases(suite) if case.kind != "chase"] for suite in (*SUITES, "test")}
PAIRS = [
    (impl, case)
    for impl in FOUND
    for case in OP.cases("test")
    if (impl.name == "triton") == (case.kind == "chase") and (case.swaps or impl.name != "torch-staged")
]
OUT = LinkCase(kind="swap_out", page_bytes=32, pages=5)
BACK = dataclasses.replace(OUT, kind="swap_in")


def test_everything_imports_and_copies_are_not_ours() -> None:
    assert not MISSING
    assert [impl.name for impl in FOUND if impl.ours] == ["triton"]
    assert set(IMPLS) == {"triton", "torch", "torch-staged"}


@pytest.mark.parametrize(("impl", "case"), PAIRS, ids=lambda value: getattr(value, "name", None) or value.id)
def test_gate(impl, case, target) -> None:
    """On a host the same launches copy within its memory. Such copies are not timed, but they must be right."""
    errors = check(OP, impl, case, target if target.kind == "cuda" or impl.ours else CPU)
    assert errors.passed, errors


def test_a_host_refuses_and_says_why() -> None:
    for impl in FOUND:
        for case in (case for suite in SUITES for case in COPIED[suite]):
            assert "NVIDIA GPU" in impl.supports(case, CPU)
    plain, chase = LinkCase(kind="d2h", page_bytes=64), OP.cases("full")[-1]
    assert IMPLS["triton"].supports(chase, H100) is None
    assert "copy engines" in IMPLS["triton"].supports(plain, H100)
    assert "no copy waits" in IMPLS["torch"].supports(chase, H100)
    assert IMPLS["torch"].supports(plain, H100) is None
    assert "pages to gather" in IMPLS["torch-staged"].supports(plain, H100)
    assert IMPLS["torch-staged"].supports(OUT, H100) is None


@pytest.mark.parametrize("wrong", [{"page_bytes": 6}, {"page_bytes": 0}, {"pages": 0}, {"kind": "h2d"}])
def test_cases_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"whole fp32 values|is one page|is 0: expected"):
        dataclasses.replace(OUT, **wrong)


def test_the_reference_by_plain_indexing() -> None:
    inputs = OP.inputs(OUT, "cpu", 3)
    sent = OP.reference(OUT, inputs)
    assert sent.isfinite().all()
    for i, page in enumerate(inputs["table"].tolist()):
        assert torch.equal(sent[i], inputs["x"][page])
    inputs = OP.inputs(BACK, "cpu", 3)
    back = OP.reference(BACK, inputs)
    for page in range(10):
        where = (inputs["table"] == page).nonzero().flatten()
        assert torch.equal(back[page], inputs["x"][where[0]]) if len(where) else back[page].isnan().all()


def test_pages_are_distinct_shuffled_and_the_others_poisoned() -> None:
    large = dataclasses.replace(OUT, pages=50)
    inputs = OP.inputs(large, "cpu", 0)
    listed = inputs["table"].tolist()
    assert len(set(listed)) == 50
    assert listed != sorted(listed)
    assert torch.equal(OP.inputs(large, "cpu", 1)["table"], inputs["table"])
    assert inputs["x"].shape == (100, 8)
    named = torch.zeros(100, dtype=torch.bool)
    named[inputs["table"]] = True
    assert torch.equal(inputs["x"].isfinite().all(dim=1), named)
    assert inputs["x"].isnan().all(dim=1).sum() == 50


@pytest.mark.parametrize("impl", [impl for impl in FOUND if not impl.ours], ids=lambda impl: impl.name)
def test_out_and_back_again(impl) -> None:
    """One swap leaves pages on the host, and the other brings them back to the same places: the pool is as before."""
    pool = OP.inputs(OUT, "cpu", 1)
    sent = impl.prepare(OUT, pool, CPU)()
    back = impl.prepare(BACK, {"x": sent, "table": pool["table"]}, CPU)()
    torch.testing.assert_close(back, pool["x"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("impl", FOUND, ids=lambda impl: impl.name)
@pytest.mark.parametrize("case", [OUT, BACK], ids=lambda case: case.id)
def test_one_page_in_a_wrong_place_is_refused(impl, case) -> None:
    inputs = OP.inputs(case, "cpu", 0)
    wrong = {**inputs, "table": inputs["table"].clone()}
    wrong["table"][:2] = inputs["table"][:2].flip(0)
    output = poisoned_run(OP, case, wrong, impl.prepare(case, wrong, CPU))
    assert not compare(output, OP.reference(case, inputs), OP.tolerance(case)).passed


def test_a_page_beyond_the_list_that_is_written_is_refused() -> None:
    inputs = OP.inputs(BACK, "cpu", 0)
    output = OP.reference(BACK, inputs)
    other = next(page for page in range(10) if page not in inputs["table"].tolist())
    output[other] = 0.0
    assert not compare(output, OP.reference(BACK, inputs), OP.tolerance(BACK)).passed


def test_work_and_stages_by_hand() -> None:
    """160 B leave or enter the device's memory once. Gathered first, they are written and read again, in the L2 if
    small."""
    for case, read, written in ((OUT, 160, 0), (BACK, 0, 160)):
        assert (work(case).bytes_read, work(case).bytes_written) == (read, written)
        paged = IMPLS["torch"].stages(case, H100)
        assert [stage.link_bytes for stage in paged] == [32] * 5
        assert total(paged) == work(case)
        small = IMPLS["torch-staged"].stages(case, H100)
        assert total(small) == work(case)
        assert [sum(values) for values in zip(*((s.link_bytes, s.l2_bytes) for s in small), strict=True)] == [160, 160]
        large = IMPLS["torch-staged"].stages(case, dataclasses.replace(H100, l2_bytes=100))
        assert total(large).bytes == 3 * 160
        assert sum(stage.link_bytes for stage in large) == 160
    assert [s.name for s in IMPLS["torch-staged"].stages(OUT, H100)] == ["gather", "copy"]
    assert [s.name for s in IMPLS["torch-staged"].stages(BACK, H100)] == ["copy", "scatter"]


def test_every_case_is_bound_by_the_link_of_an_h100() -> None:
    """64 MiB at 64 GB/s take 1.05 ms; the device's memory would take 20 us."""
    h100 = find("h100-sxm")
    for case in (case for suite in SUITES for case in COPIED[suite]):
        prediction = predict_from_datasheet(IMPLS["torch"].stages(case, H100), h100)
        assert prediction.bound == "link"
        assert prediction.seconds == pytest.approx(case.size / 64e9)


def test_a_chase_asks_for_a_sector_at_a_time() -> None:
    case = OP.cases("full")[-1]
    (stage,) = IMPLS["triton"].stages(case, H100)
    assert stage.link_bytes == 32 * case.loads
    assert work(case).bytes == 4
    for wrong in ({"loads": 0}, {"page_bytes": 200}, {"kind": "h2d"}):
        with pytest.raises(ValueError, match=r"loads|size"):
            dataclasses.replace(case, **wrong)  # type: ignore[arg-type]


def test_pages_are_those_of_the_model() -> None:
    shape = model("llama-3.1-8b")
    assert 16 * kv_bytes_per_token(shape, 2) == BLOCK_BYTES_ALL_LAYERS
    assert BLOCK_BYTES_ALL_LAYERS / shape.layers == BLOCK_BYTES


def test_a_plain_copy_is_the_largest_of_every_suite() -> None:
    """The largest case is measured first. It gives the rate from which the others are predicted."""
    for suite in SUITES:
        first = max(OP.cases(suite), key=lambda case: work(case).bytes)
        assert not first.swaps


class Kept:
    """A listener that keeps the records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        self.records.append(record)

    def entering(self, impl: str, phase: str) -> None: ...
    def prediction(self, line: dict[str, Any]) -> None: ...
    def note(self, line: dict[str, Any]) -> None: ...


def test_a_run_on_a_host_holds_refusals_alone() -> None:
    kept = Kept()
    measure(OP, OUT, FOUND, CPU, Settings(), kept)
    assert [(r.status, r.samples_s) for r in kept.records] == [("refused", [])] * 3


@pytest.mark.cuda
def test_copies_run_in_a_graph_and_predict_the_swaps(target) -> None:
    kept = Kept()
    for kind in ("h2d", "d2h"):
        case = LinkCase(kind=kind, page_bytes=1 << 20)
        inputs = OP.inputs(case, "cuda", 0)
        output = IMPLS["torch"].prepare(case, inputs, target)()
        assert (output if case.to_host else inputs["x"]).is_pinned()
        assert (inputs["x"] if case.to_host else output).is_cuda
        measure(OP, case, [IMPLS["torch"]], target, Settings(cap_s=0.05), kept)
    rate = max(r.bytes / (r.seconds or 1.0) for r in kept.records)
    ceilings = Ceilings(read_points=((1 << 20, 2e-6),), best_read=1e12, host_bandwidth=rate)
    for kind in ("swap_out", "swap_in"):
        case = LinkCase(kind=kind, page_bytes=1 << 16, pages=16)
        peers = [impl for impl in FOUND if not impl.ours]
        measure(OP, case, peers, target, Settings(cap_s=0.05, ceilings=ceilings), kept)
    assert [r.status for r in kept.records] == ["ok"] * 6, [r.reason for r in kept.records]
    assert not any("impossible" in r.flags for r in kept.records)
    assert all(r.prediction["measured"]["bound"] == "link" for r in kept.records[2:])
