"""The measurement cannot be fooled: each planted cheat is caught, and without the guard it would get a time."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import bench.measure.case
from bench.ceilings import Ceilings
from bench.devices import DeviceSpec, Quantity
from bench.measure.case import Broken, Measurement, Settings, measure, recover_device
from bench.measure.flags import allocates
from bench.measure.gate import late_write
from bench.measure.timing import HostTimer, Rotation, Sampling, SpoiltCapture
from kernels.common.compare import Errors, compare
from kernels.op import Impl, Inputs, Op, Target
from tests.conftest import gpu_target
from tests.support import planted
from tests.support.heard import Heard

CPU = Target(kind="cpu", name="cpu", sm_count=2, l2_bytes=1 << 16)
SETTINGS = Settings(cap_s=0.02)
HONEST_TOO = planted.impl("honest too", planted.honest)


def measured(*impls: Impl, settings: Settings = SETTINGS, target: Target = CPU, op: Op = planted.OP) -> Heard:
    heard = Heard()
    measure(op, planted.ToyCase(), impls, target, settings, heard)
    return heard


def test_an_honest_implementation_gets_its_samples() -> None:
    record = measured(planted.HONEST).records["honest"]
    assert record.status == "ok"
    assert len(record.samples_s) >= 12
    assert record.rotation["copies"] == 2
    assert record.error is not None
    assert record.error["max_rel"] < 1e-3


@pytest.mark.parametrize("name", planted.CHEATS)
def test_a_wrong_result_gets_no_time(name: str) -> None:
    planted.SHARED.clear()
    records = measured(planted.impl(name, planted.CHEATS[name]), planted.HONEST).records
    assert records[name].status == "wrong"
    assert records[name].reason
    assert records[name].samples_s == []
    assert records["honest"].status == "ok"


@pytest.mark.parametrize("name", ["in prepare", "last call"])
def test_each_implementation_sees_its_inputs_change(name: str) -> None:
    """Also one that is not first: its inputs begin with the values to which the gate of the first one changed them."""
    records = measured(planted.HONEST, planted.impl(name, planted.CHEATS[name]), HONEST_TOO).records
    assert [records[n].status for n in ("honest", name, "honest too")] == ["ok", "wrong", "ok"]


def test_of_what_inputs_change_to_only_that_is_kept_and_drawn_once() -> None:
    drawn: list[int] = []

    def counted(case: Any, device: str, seed: int) -> Inputs:
        drawn.append(seed)
        return planted.inputs(case, device, seed)

    heard = Heard()
    measurement = Measurement(replace(planted.OP, inputs=counted), planted.ToyCase(), CPU, SETTINGS, heard)
    measurement.draw_inputs()
    assert measurement.contents
    assert list(measurement.contents.fresh) == ["x"]
    assert len(drawn) == len(set(drawn)) == 3, "two copies"
    measurement.run([planted.HONEST, HONEST_TOO])
    assert len(drawn) == 6
    assert {record.status for record in heard.records.values()} == {"ok"}


@pytest.mark.parametrize("shape", ["columns last", "rows last"])
def test_a_transposed_output_is_looked_at_for_late_writes(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    output = torch.full((3, 5), float("nan"), dtype=torch.bfloat16)
    output = output.T if shape == "rows last" else output
    target = Target(kind="cuda", name="gpu", sm=90)
    assert late_write(output, target) is None
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: output.zero_())
    assert "late write" in (late_write(output, target) or "")


def test_a_spoilt_capture_ends_the_process_after_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(self: Measurement, entrant: Any) -> str | None:
        if entrant.impl.name == "spoils":
            raise SpoiltCapture("RuntimeError: operation not permitted when stream is capturing")
        return honest_timer(self, entrant)

    honest_timer = Measurement.make_timer
    monkeypatch.setattr(Measurement, "make_timer", spoilt)
    heard = Heard()
    with pytest.raises(Broken):
        measure(
            planted.OP,
            planted.ToyCase(),
            [planted.impl("spoils", planted.honest), planted.HONEST],
            CPU,
            SETTINGS,
            heard,
        )
    assert {name: record.status for name, record in heard.records.items()} == {"spoils": "failed", "honest": "ok"}
    assert "not permitted when stream is capturing" in (heard.records["spoils"].reason or "")


@pytest.mark.parametrize("name", ["in prepare", "last call"])
def test_without_changing_inputs_in_place_stale_results_would_pass(name: str) -> None:
    trusting = replace(planted.OP, volatile=())
    assert measured(planted.impl(name, planted.CHEATS[name]), op=trusting).records[name].status == "ok"


def test_a_launch_that_spoils_its_inputs_is_compared_with_what_they_were() -> None:
    """Zeros are right for inputs that are zero. They were not zero when the launch got them."""
    records = measured(planted.impl("destroys", planted.destroying)).records
    assert records["destroys"].status == "wrong"


def test_each_reference_is_computed_once_for_all_implementations() -> None:
    calls: list[Any] = []

    def counting(case: Any, inputs: Any) -> Any:
        calls.append(inputs)
        return planted.reference(case, inputs)

    records = measured(planted.HONEST, HONEST_TOO, op=replace(planted.OP, reference=counting)).records
    copies = records["honest"].rotation["copies"]
    assert len(calls) == copies + 1, "the first copy has two contents"


@pytest.mark.parametrize("name", ["warm copy", "lazy when timed"])
def test_without_the_check_after_timing_these_would_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.SHARED.clear()

    def trusting(op: Any, case: Any, copies: Any, outputs: Any, known: Any) -> list[Errors]:
        truth = op.reference(case, copies[0])
        return [compare(truth, truth, op.tolerance(case)) for _ in outputs]

    monkeypatch.setattr(bench.measure.case, "check_copies", trusting)
    assert measured(planted.impl(name, planted.CHEATS[name])).records[name].status == "ok"


def test_a_launch_that_sleeps_is_flagged() -> None:
    records = measured(planted.impl("sleeps", planted.sleeping), planted.HONEST).records
    assert "waited" in records["sleeps"].flags
    assert "waited" not in records["honest"].flags


@pytest.mark.parametrize("prepare", [planted.raising, planted.out_of_memory])
def test_an_exception_costs_its_implementation_only(prepare: Any) -> None:
    records = measured(planted.impl("raises", prepare), planted.HONEST).records
    assert records["raises"].status == "failed"
    assert records["raises"].reason
    assert records["honest"].status == "ok"


def test_a_version_that_cannot_be_told_costs_no_record() -> None:
    """The same for a success and for a failure, whose records are written in the same way."""

    def untold() -> str:
        raise PackageNotFoundError("nameless")

    good, bad = (
        replace(planted.impl(name, prepare), version=untold)
        for name, prepare in (("good", planted.honest), ("bad", planted.raising))
    )
    records = measured(good, bad).records
    assert {name: record.status for name, record in records.items()} == {"good": "ok", "bad": "failed"}
    for record in records.values():
        assert record.version == "unknown (PackageNotFoundError: No package metadata was found for nameless)"
    told = measured(replace(planted.HONEST, version=lambda: "toys 1.0")).records["honest"]
    assert told.version == "toys 1.0"


def test_faster_than_the_read_roof_is_impossible() -> None:
    slow_roof = Ceilings(read_points=((1 << 20, 1.0),), best_read=float(1 << 20))
    record = measured(planted.HONEST, settings=Settings(cap_s=0.02, ceilings=slow_roof)).records["honest"]
    assert "impossible" in record.flags
    fast_roof = Ceilings(read_points=((1 << 20, 1e-9),), best_read=1e15)
    record = measured(planted.HONEST, settings=Settings(cap_s=0.02, ceilings=fast_roof)).records["honest"]
    assert "impossible" not in record.flags


GPU = Target(kind="cuda", name="gpu", sm=90, l2_bytes=1 << 20)
TOY_BYTES = planted.OP.work(planted.ToyCase()).bytes
MILLION = Quantity(value=1e6, unit="B/s", kind="datasheet", source="test")
SHEET = DeviceSpec(key="toy", name="toy", vendor="test", year=2026, memory_bandwidth=MILLION)


def flags(
    *,
    target: Target = CPU,
    seconds: float = 1.0,
    converged: bool = True,
    waited: bool = False,
    touched: int = 1 << 20,
    telemetry: dict[str, Any] | None = None,
    op: Op = planted.OP,
    launch: Any = lambda: None,
    **settings: Any,
) -> list[str]:
    measurement = Measurement(op, planted.ToyCase(), target, Settings(**settings), Heard())
    measurement.rotation = Rotation(copies=4, bytes_per_copy=1 << 20, touched_bytes=touched, cache_bytes=1 << 20)
    entrant: Any = SimpleNamespace(timer=SimpleNamespace(waited=waited), launches=[launch])
    sampling = Sampling(samples_s=[seconds] * 3, stop="converged" if converged else "time cap")
    return measurement.flags(entrant, sampling, telemetry or {})


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({}, []),
        ({"converged": False}, ["noisy"]),
        ({"telemetry": {"throttled": False, "power_capped": False}}, []),
        ({"telemetry": {"throttled": True, "power_capped": None}}, ["throttled"]),
        ({"telemetry": {"throttled": None, "power_capped": True}}, ["power-capped"]),
        ({"touched": (1 << 20) - 1}, ["warm"]),
        ({"touched": 4096}, ["warm"]),
        ({"touched": 4095}, []),
        ({"waited": True}, ["waited"]),
        ({"converged": False, "waited": True}, ["noisy", "waited"]),
    ],
)
def test_each_doubt_has_its_flag(what: dict[str, Any], expected: list[str]) -> None:
    assert flags(**what) == expected


@pytest.mark.parametrize(("target", "margin"), [(CPU, 1.5), (GPU, 1.02)])
def test_impossible_is_what_exceeds_the_fastest_read_by_more_than_a_margin(target: Target, margin: float) -> None:
    """The fastest read counts, not the roof; for a ceiling, the datasheet. Without these, nothing is judged."""
    seen = Ceilings(read_points=((1 << 20, 1.0),), best_read=1e6)
    ceiling = replace(planted.OP, role="ceiling")
    for share, expected in ((0.99, []), (1.01, ["impossible"])):
        seconds = TOY_BYTES / (share * margin * 1e6)
        assert flags(target=target, seconds=seconds, ceilings=seen) == expected
        assert flags(target=target, seconds=seconds, ceilings=seen, op=ceiling) == []
        assert flags(target=target, seconds=seconds, spec=SHEET, op=ceiling) == expected
        assert flags(target=target, seconds=seconds, spec=replace(SHEET, memory_bandwidth=None), op=ceiling) == []
        assert flags(target=target, seconds=seconds, spec=SHEET) == []


def test_a_call_that_outlasts_its_launch_on_a_gpu_waited() -> None:
    """By more than 10 ms. On a host the timer itself sees a launch that sleeps."""
    assert flags(target=GPU, seconds=1e-3, launch=lambda: time.sleep(0.02)) == ["waited"]
    assert flags(target=GPU, seconds=1.0, launch=lambda: time.sleep(0.02)) == []
    assert flags(target=CPU, seconds=1e-3, launch=lambda: time.sleep(0.02)) == []


def test_a_warm_launch_that_takes_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"allocation.all.allocated": 7}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: dict(taken))

    def greedy() -> None:
        taken["allocation.all.allocated"] += 1

    assert allocates(greedy, GPU)
    assert not allocates(lambda: None, GPU)
    assert not allocates(greedy, CPU), "a host's allocator is not watched"


def test_a_gpu_that_no_longer_answers_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: freed.append("synchronized"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("emptied"))
    recover_device(ValueError("out of memory"))
    assert freed == ["synchronized", "emptied"]

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(Broken, match="illegal memory access") as caught:
        recover_device(ValueError("the first fault"))
    assert str(caught.value.__cause__) == "the first fault"


def test_predictions_come_before_the_measurement_and_ignore_it() -> None:
    ceilings = Ceilings(read_points=((1 << 20, 1e-4),))
    heard = measured(planted.HONEST, settings=Settings(cap_s=0.02, ceilings=ceilings))
    kinds = [kind if kind != "entering" else content[1] for kind, content in heard.lines]
    assert kinds.index("prediction") < kinds.index("gate") < kinds.index("timing") < kinds.index("record")
    predicted = heard.records["honest"].prediction
    line = next(content for kind, content in heard.lines if kind == "prediction")
    assert predicted["measured"] == line["measured"]
    work = planted.OP.work(planted.ToyCase())
    assert predicted["measured"]["seconds"] == pytest.approx(work.bytes / (1 << 20) * 1e-4)


def test_a_refusal_is_a_record() -> None:
    refusing = planted.impl("absent", planted.honest, lambda case, target: "needs sm_90")
    record = measured(refusing).records["absent"]
    assert (record.status, record.reason, record.samples_s) == ("refused", "needs sm_90", [])


def test_the_same_launch_entered_twice_is_noted() -> None:
    heard = measured(planted.HONEST, settings=Settings(cap_s=0.02, aa=True))
    note = next(content for kind, content in heard.lines if kind == "note")
    assert note["note"] == "aa"
    assert all(len(samples) >= 12 for samples in note["samples_s"])
    assert list(heard.records) == ["honest"]


def test_a_fault_of_the_twin_is_that_of_its_own_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in one record. The marker names it while its twin is made, in case the process dies."""
    made: list[Any] = []
    at_work: list[str] = []

    def timer(launches: Any, flush: Any) -> HostTimer:
        made.append(launches)
        at_work.append(heard.entered[-1][0])
        if made.count(launches) == 2:
            raise RuntimeError("not a second time")
        return HostTimer(launches, flush)

    monkeypatch.setattr(bench.measure.case, "HostTimer", timer)
    heard = Heard()
    impls = [planted.impl("frail", planted.honest), planted.HONEST]
    measure(planted.OP, planted.ToyCase(), impls, CPU, replace(SETTINGS, aa=True), heard)
    assert at_work == ["frail", "honest", "frail"]
    records = [content for kind, content in heard.lines if kind == "record"]
    assert [(r.impl, r.status, r.reason) for r in records] == [
        ("frail", "failed", "RuntimeError: not a second time"),
        ("honest", "ok", None),
    ]
    assert "aa" not in heard.notes


def test_isolated_launches_take_turns_over_all_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    monkeypatch.setattr(bench.measure.case, "isolated_times", lambda launches, turn: turns.append(turn) or [1.0])
    measurement = Measurement(planted.OP, planted.ToyCase(), replace(CPU, kind="cuda"), SETTINGS, Heard())
    entrants: list[Any] = [SimpleNamespace(impl=planted.HONEST, launches=[])] * 3
    assert [measurement.isolate(entrant) for entrant in entrants] == [[1.0]] * 3
    assert turns == [0, 1, 2]


class Throttling:
    """A telemetry sampler that reports throttling the first `times` times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.opened = 0

    def __call__(self) -> Throttling:
        self.opened += 1
        return self

    def __enter__(self) -> Throttling:
        return self

    def __exit__(self, *_: object) -> None:
        self.left -= 1

    def summary(self) -> dict[str, Any]:
        return {"throttled": self.left >= 0}


@pytest.mark.parametrize(("times", "opened", "flagged"), [(0, 1, False), (1, 2, False), (9, 3, True)])
def test_a_throttled_case_is_measured_again_and_kept(times: int, opened: int, flagged: bool) -> None:
    telemetry: Any = Throttling(times)
    record = measured(planted.HONEST, settings=Settings(cap_s=0.02, telemetry=telemetry)).records["honest"]
    assert telemetry.opened == opened
    assert ("throttled" in record.flags) == flagged
    assert record.samples_s


@pytest.mark.cuda
def test_a_write_after_returning_is_caught() -> None:
    record = measured(planted.impl("late", planted.late_writer), target=gpu_target()).records["late"]
    assert record.status in ("wrong", "failed")


@pytest.mark.cuda
def test_an_allocating_launch_is_flagged() -> None:
    record = measured(planted.impl("allocates", planted.allocating), target=gpu_target()).records["allocates"]
    assert "allocates" in record.flags


@pytest.mark.cuda
def test_a_sleeping_launch_is_flagged_on_a_gpu() -> None:
    few = replace(gpu_target(), l2_bytes=1 << 20)  # each copy sleeps
    record = measured(planted.impl("sleeps", planted.sleeping), target=few).records["sleeps"]
    assert "waited" in record.flags
    assert torch.cuda.is_available()
