"""Clocks are compared with ours fairly, and a wrong timer is found."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator

import pytest

from bench import machine
from bench.operate import clocks, selfcheck
from bench.operate.clocks import OURS, Missing, Other, Subject
from bench.operate.selfcheck import SelfCheck, compare
from kernels.op import discover


class Silent:
    """A timer that times nothing: the fake clocks read the subject's name."""

    outputs: list = []  # noqa: RUF012
    closed = 0

    def sample(self) -> float:
        raise AssertionError("fake clocks do not sample")

    def close(self) -> None:
        Silent.closed += 1


TRUE = {"empty": 2e-6, "long": 500e-6, "brief": 190e-6}
"""Seconds that the kernels of these names really take."""


def subject(name: str) -> Subject:
    return Subject(name=name, turn=lambda: None, timer=Silent(), floor=name == "empty")


def clock(adds: float = 0.0, factor: float = 1.0):
    return lambda subject: TRUE[subject.name] * factor + adds


def rows(theirs, ours=None, errs="") -> dict[str, selfcheck.Row]:
    found = compare(
        (subject(name) for name in TRUE),
        {"theirs": Other(theirs, "a known cause", errs)},
        our_clock=ours or clock(),
    )
    return {row.subject: row for row in found}


def test_clocks_that_agree() -> None:
    found = rows(clock())
    assert found["long"].disagreement == 0
    assert found["long"].within is True
    assert found["long"].mark == "ok"
    assert SelfCheck(device="x", rows=tuple(found.values())).exit_code == 0


def test_a_latency_per_launch_is_explained_by_the_floor() -> None:
    found = rows(clock(adds=15e-6))
    assert found["long"].disagreement == pytest.approx(0.03)
    assert found["long"].without_floor == pytest.approx(0.0, abs=1e-12)
    assert found["long"].within is True
    assert found["empty"].without_floor is None, "the floor explains itself"


def test_a_wrong_scale_is_not_explained_by_the_floor() -> None:
    found = rows(clock(factor=1.10))
    assert found["long"].disagreement == pytest.approx(0.10)
    assert found["long"].without_floor == pytest.approx(0.10 - 0.1 * 2e-6 / 500e-6)
    outcome = SelfCheck(device="x", rows=tuple(found.values()))
    assert outcome.exit_code == 1
    assert "+10.0%" in outcome.verdict
    assert any(line.startswith("BEYOND") for line in outcome.lines())


@pytest.mark.parametrize(("errs", "factor"), [("up", 1.4), ("down", 0.9)])
def test_a_one_sided_clock_accuses_ours_only_on_the_side_on_which_it_cannot_err(errs: str, factor: float) -> None:
    """do_bench leaves a dirty L2 and gives up to 40% more; torch's profiler leaves out the gaps and gives less."""
    there = rows(clock(factor=factor), errs=errs)
    assert (there["long"].within, there["long"].mark) == (None, "one-sided")
    outcome = SelfCheck(device="x", rows=tuple(there.values()))
    assert "1 by one-sided clocks differ to the side on which they must" in outcome.verdict
    back = rows(clock(factor=2 - factor), errs=errs)
    assert (back["long"].within, back["long"].mark) == (False, "BEYOND")
    assert rows(clock(), errs=errs)["long"].within is True


def test_the_clocks_that_err_to_one_side_say_so() -> None:
    sides = {name: other.errs for name, other in clocks.GPU_CLOCKS.items()}
    assert sides == {"do_bench": "up", "do_bench_cudagraph": "", "torch profiler": "down", "NVBench": "up"}
    for other in clocks.GPU_CLOCKS.values():
        assert bool(other.errs) == other.note.startswith("one-sided")


def test_short_kernels_and_unsteady_times_are_shown_but_not_judged() -> None:
    assert rows(clock(factor=2))["brief"].mark == "short"
    turns: Iterator[float] = iter([1.0, 1.0, 1.2] * 10)
    unsteady = rows(clock(), ours=lambda subject: TRUE[subject.name] * next(turns))
    assert unsteady["long"].resolution == pytest.approx(0.2)
    assert unsteady["long"].mark == "unsteady"
    outcome = SelfCheck(device="x", rows=tuple(unsteady.values()))
    assert outcome.exit_code == 1, "what could not be judged has not passed"
    assert outcome.verdict.startswith("x: nothing could be judged; 1 was too unsteady to judge, the largest ")
    assert outcome.verdict.endswith("check again on an idle machine")
    short = SelfCheck(device="x", rows=(rows(clock())["brief"],))
    assert short.verdict == "x: nothing could be judged: the kernels are too short, or no other clock can be used"


def test_the_verdict_counts_what_was_too_unsteady_and_says_what_to_do() -> None:
    steady = rows(clock())["long"]
    shaky = [dataclasses.replace(steady, within=None, resolution=0.2, without_floor=d) for d in (0.1, -0.993)]
    missing = dataclasses.replace(steady, within=None, theirs_s=None, disagreement=None)
    short = dataclasses.replace(steady, within=None, ours_s=5e-6, disagreement=2.0)
    outcome = SelfCheck(device="x", rows=(steady, steady, *shaky, missing, short))
    assert outcome.verdict == (
        "x: 2 of 2 steady comparisons within 2%; the largest is +0.0% (theirs on long); 2 were too unsteady to judge, "
        "the largest -99.3% (theirs on long): check again on an idle machine"
    )
    assert outcome.exit_code == 0
    assert "unsteady" not in SelfCheck(device="x", rows=(steady, missing, short)).verdict


def test_the_median_of_the_rounds_is_compared() -> None:
    turns = iter([1.0, 9.0, 1.0] * 10)
    found = rows(lambda subject: TRUE[subject.name] * next(turns))
    assert found["long"].disagreement == 0


def test_a_clock_that_is_missing_or_fails_is_named_and_not_asked_again() -> None:
    asked = []

    def missing(subject: Subject) -> float:
        asked.append(subject.name)
        raise Missing("No module named 'cuda'; pip install cuda-bench")

    def broken(subject: Subject) -> float:
        raise ZeroDivisionError("division by zero")

    found = compare([subject("long")], {"a": Other(missing, ""), "b": Other(broken, "")}, our_clock=clock())
    assert asked == ["long"]
    assert [row.theirs_s for row in found] == [None, None]
    assert found[0].note == "No module named 'cuda'; pip install cuda-bench"
    assert found[1].note == "ZeroDivisionError: division by zero"
    outcome = SelfCheck(device="x", rows=tuple(found), skipped={"attention_decode": "no case"})
    text = "\n".join(outcome.lines())
    assert "a: not used: No module" in text
    assert "attention_decode: not timed: no case" in text
    json.dumps(outcome.as_dict())


def test_timers_are_closed() -> None:
    before = Silent.closed
    rows(clock())
    assert Silent.closed == before + len(TRUE)


def test_nvbench_is_named_as_missing_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(Missing, match="pip install cuda-bench"):
        clocks.NVBench()(subject("long"))


def test_cases_are_chosen_by_size_and_refused_where_nothing_supports_them() -> None:
    target = machine.cpu_target()
    stream = discover()["stream"]
    assert selfcheck.nearest(stream, "smoke", 70 << 20, target).size == 64 << 20
    with pytest.raises(Missing, match="no implementation"):
        selfcheck.make_subject(stream, stream.case_type(kind="l2_read", size=1 << 14), machine.cpu_target())


def test_real_clocks_of_the_host_time_the_same_sleep() -> None:
    """They time a sleep, which is steady also on a shared host."""

    def nap() -> None:
        time.sleep(0.005)

    from bench.measure.timing import HostTimer

    napping = Subject(name="nap", turn=nap, timer=HostTimer([nap]))
    found = compare([napping], clocks.CPU_CLOCKS, rounds=1)
    assert {row.clock for row in found} == set(clocks.CPU_CLOCKS)
    for row in found:
        assert row.theirs_s == pytest.approx(row.ours_s, rel=0.5)
        assert 0.005 <= row.theirs_s < 0.05, "a busy machine wakes late"


def test_a_subject_takes_turns_over_its_copies() -> None:
    stream = discover()["stream"]
    made = selfcheck.make_subject(stream, stream.case_type(kind="copy", size=1 << 16), machine.cpu_target())
    first, second, third = made.turn(), made.turn(), made.turn()
    assert first.data_ptr() == third.data_ptr() != second.data_ptr()
    assert clocks.ours(made) > 0


@pytest.mark.cuda
def test_clocks_of_a_gpu_agree_on_a_long_read() -> None:
    stream = discover()["stream"]
    target = machine.gpu_target()
    made = selfcheck.make_subject(stream, stream.case_type(kind="read", size=1 << 30), target)
    found = compare([made], clocks.GPU_CLOCKS)
    assert any(row.theirs_s is not None for row in found)
    for row in found:
        assert row.clock != OURS
        if row.disagreement is not None and not row.errs:
            assert abs(row.disagreement) < 0.10
