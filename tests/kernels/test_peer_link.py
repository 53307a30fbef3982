"""The link between ranks: what is copied, who may measure it, and that collectives are predicted from it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.ceilings import Ceilings
from bench.machine import usable_cores
from bench.measure.gate import check
from bench.predict.roofline import measured_terms
from kernels.op import discover, implementations
from kernels.peer_link.op import OP, PeerCase
from tests.support.synthetic_run import TARGET, record

FOUND = {impl.name: impl for impl in implementations("peer_link")[0]}
HOST = dataclasses.replace(TARGET, kind="cpu", sm_count=2)


@pytest.mark.skipif(usable_cores() < 2, reason="two ranks need two cores")
def test_each_rank_of_a_host_has_what_the_next_one_held() -> None:
    case = PeerCase(ranks=2, size=1000, dtype="fp32")
    inputs = OP.inputs(case, "cpu", 7)
    launch = FOUND["shared"].prepare(case, inputs, HOST)
    assert torch.equal(launch()[0], inputs["x1"][0])
    inputs["x0"].fill_(3.0)
    assert torch.equal(launch()[1], inputs["x0"][0]), "what a rank holds is read in each launch"
    assert OP.reference(case, inputs).tolist() == [inputs["x1"][0].tolist(), inputs["x0"][0].tolist()]


@pytest.mark.skipif(usable_cores() < 3, reason="three ranks need three cores")
def test_three_ranks_pass_the_gate() -> None:
    case = OP.cases("test")[0]
    errors = check(OP, FOUND["shared"], case, dataclasses.replace(HOST, sm_count=3))
    assert errors.passed, errors.reason


@pytest.mark.skipif(usable_cores() < 2, reason="two ranks need two cores")
def test_two_ranks_pass_the_gate() -> None:
    errors = check(OP, FOUND["shared"], OP.cases("test")[1], HOST)
    assert errors.passed, errors.reason


@pytest.mark.parametrize("op", ["all_reduce", "all_to_all", "peer_link"])
def test_no_two_ranks_and_no_two_copies_hold_the_same(op: str) -> None:
    """Else a rank that reads the wrong one would not be noticed."""
    found = discover()[op]
    case = next(case for case in found.cases("test") if case.ranks == 3)  # type: ignore[attr-defined]
    held = [found.inputs(case, "cpu", seed)[f"x{r}"] for seed in (0, 1, 1000) for r in range(3)]
    distinct = {tuple(x.nan_to_num(0.0).flatten().tolist()) for x in held}
    assert len(distinct) == len(held)


@pytest.mark.parametrize(("size", "dtype"), [(6, "fp32"), (3, "bf16")])
def test_a_message_is_whole_elements(size: int, dtype: str) -> None:
    with pytest.raises(ValueError, match="whole elements"):
        PeerCase(ranks=2, size=size, dtype=dtype)  # type: ignore[arg-type]


def test_it_needs_another_rank() -> None:
    case = PeerCase(ranks=4, size=8)
    assert "needs a core for each of 4 ranks" in (FOUND["shared"].supports(case, HOST) or "")
    assert "needs NVIDIA GPUs" in (FOUND["torch"].supports(case, HOST) or "")


def linked() -> Ceilings:
    """10 us and 100 GB/s: 8 KB in 10.08 us, 32 MB in 330 us, which is more than any message of the suites."""
    points = {8_000: 10.08e-6, 32_000_000: 330e-6}
    times = [record("peer_link", "x", str(size), case={"size": size}, samples_s=[s] * 3) for size, s in points.items()]
    slower = record("peer_link", "y", "8", case={"size": 8_000}, samples_s=[1e-3] * 3)
    wrong = record("peer_link", "z", "9", case={"size": 8_000}, samples_s=[1e-9] * 3, status="wrong")
    read = record("stream", "triton", "r", case={"kind": "read"}, read=10**6, samples_s=[1e-6] * 3)
    found = Ceilings.from_records([*times, slower, wrong, read])
    assert found is not None
    return found


def test_latency_and_rate_of_the_link_are_measured() -> None:
    found = linked()
    assert found.peer_seconds(0) == pytest.approx(10e-6)
    assert found.peer_seconds(1_000_000) == pytest.approx(20e-6)
    assert found.peer_seconds(64_000_000) == pytest.approx(660e-6)


@pytest.mark.parametrize("op", ["all_reduce", "all_to_all"])
def test_collectives_are_predicted_from_the_link_of_the_run(op: str) -> None:
    """Every implementation says what crosses the link to one rank, on a host too."""
    found = linked()
    for case in [case for case in discover()[op].cases("full") if case.ranks == 2]:  # type: ignore[attr-defined]
        for impl in implementations(op)[0]:
            target = HOST if impl.name in ("gloo", "shared", "shared-one-shot", "shared-two-shot") else TARGET
            stages = impl.stages(case, target)
            (size,) = [stage.peer_bytes for stage in stages if stage.peer_bytes]
            terms = [measured_terms(stage, found, target).get("peers") for stage in stages]
            assert [each for each in terms if each is not None] == [pytest.approx(10e-6 + size / 100e9)]


def test_without_a_measured_link_the_term_is_not_known() -> None:
    read = record("stream", "triton", "r", case={"kind": "read"}, read=10**6, samples_s=[1e-6] * 3)
    found = Ceilings.from_records([read])
    assert found is not None
    assert found.peer_seconds(8) is None
