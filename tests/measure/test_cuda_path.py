"""A measurement on a pretended GPU: capture, replay, rotation, and the cheats that they catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.measure import timing
from bench.measure.case import Settings, measure
from kernels.op import Impl, Inputs, Launch, Target
from tests.support import fake_cuda, planted
from tests.support.heard import Heard


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.pretend(monkeypatch)
    monkeypatch.setattr(timing, "GRAPH_SECONDS", 1e-4)
    planted.SHARED.clear()


def measured(*impls: Impl, **settings: Any) -> Heard:
    heard = Heard()
    measure(planted.OP, planted.ToyCase(), impls, fake_cuda.GPU, Settings(cap_s=0.1, **settings), heard)
    return heard


def test_an_honest_implementation_goes_through_graphs_of_cold_copies() -> None:
    heard = measured(planted.HONEST, aa=True)
    record = heard.records["honest"]
    assert (record.status, record.reason) == ("ok", None)
    assert record.rotation["copies"] * record.rotation["touched_bytes"] >= 4 * fake_cuda.GPU.l2_bytes
    assert record.rotation["cold"]
    assert len(record.samples_s) >= timing.MIN_SAMPLES
    assert len(record.isolated_s) == 20
    assert "aa" in heard.notes


@pytest.mark.parametrize("name", planted.CHEATS)
def test_a_wrong_result_gets_no_time(name: str) -> None:
    records = measured(planted.impl(name, planted.CHEATS[name]), planted.HONEST).records
    assert records[name].status == "wrong"
    assert records[name].samples_s == []
    assert records["honest"].status == "ok"


def test_a_wrong_result_is_no_resolution() -> None:
    heard = measured(planted.impl("lazy", planted.idle_when_timed), planted.HONEST, aa=True)
    assert heard.records["lazy"].status == "wrong"
    assert "aa" not in heard.notes


def test_the_twin_is_at_work_under_the_name_of_its_implementation() -> None:
    heard = measured(planted.HONEST, aa=True)
    assert "aa" in heard.notes
    assert {impl for impl, _ in heard.entered} <= {"", "honest"}


def outside_the_graph(case: planted.ToyCase, inputs: Inputs, target: Target) -> Launch:
    """Computes on the host, which a capture does not see, so that replays do nothing."""
    y = planted.output(case, inputs)

    def launch() -> torch.Tensor:
        y.numpy()[:] = inputs["x"].numpy() @ inputs["w"].numpy()[:, None]
        return y

    return launch


@pytest.mark.parametrize("aa", [False, True])
def test_work_that_a_graph_does_not_hold_is_caught(aa: bool) -> None:
    records = measured(planted.impl("outside", outside_the_graph), aa=aa).records
    assert records["outside"].status == "wrong"
    assert "after timing" in (records["outside"].reason or "")
