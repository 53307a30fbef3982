"""Sampling and the timers, with clocks that the test moves by hand and events that replay a recording."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.measure import timing
from bench.measure.timing import (
    FEWEST_SAMPLES,
    ISOLATED,
    MIN_SAMPLES,
    GraphTimer,
    HostTimer,
    SpoiltCapture,
    host_flush,
    isolated_times,
    sample_interleaved,
    spin_cycles,
)
from tests.support import DATA, fake_cuda


class Clock:
    """Advances only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_sample_is_one_launch_on_the_next_copy_without_the_sweep() -> None:
    clock, order = Clock(), []

    def launch(k: int) -> int:
        order.append(k)
        clock.now += 3.0
        return k

    def flush() -> None:
        clock.now += 100.0

    timer = HostTimer([lambda: launch(0), lambda: launch(1)], flush, clock, clock)
    order.clear()
    assert [timer.sample() for _ in range(3)] == [3.0, 3.0, 3.0]
    assert order == [0, 1, 0]
    assert timer.outputs == [0, 1]
    assert not timer.waited


def test_a_process_that_does_not_compute_waits() -> None:
    wall, busy = Clock(), Clock()
    wall.now = busy.now = 10.0  # what the process did before does not count

    def launch() -> None:
        wall.now += 1.0
        busy.now += 0.1

    timer = HostTimer([launch], clock=wall, busy_clock=busy)
    timer.sample()
    assert timer.waited


def test_a_sweep_writes_every_byte_each_time_and_none_where_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[torch.Tensor] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, **more: buffers.append(zeros(*args, **more)) or buffers[-1])
    host_flush(0)()
    assert not buffers
    sweep = host_flush(1 << 12)
    sweep()
    sweep()
    (buffer,) = buffers
    assert buffer.nbytes == 1 << 12
    assert torch.equal(buffer, torch.full_like(buffer, 2.0))


RECORDED = [
    float(value)
    for line in (DATA / "cuda_event_times.txt").read_text().splitlines()
    for value in re.findall(r"(?:max|min): ([\d.]+)", line)
]
"""What `torch.cuda.Event.elapsed_time` gave on a real GPU, in ms."""


class Events:
    """Stands for torch's events and spin: keeps what was queued in order, and replays recorded times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queued: list[Any] = []
        self.spins: list[int] = []
        self.replies = list(RECORDED)
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "_sleep", self.spin)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def spin(self, cycles: int) -> None:
        self.queued.append("spin")
        self.spins.append(cycles)

    def event(self, enable_timing: bool = False) -> Any:
        assert enable_timing, "torch refuses elapsed_time otherwise"
        event = SimpleNamespace()

        def elapsed_time(end: Any) -> float:
            assert self.queued.index(event) < self.queued.index(end)
            return self.replies.pop(0)

        def record() -> None:
            self.queued.append(event)

        def synchronize() -> None:
            assert event in self.queued
            self.queued.append("wait")

        event.record, event.synchronize, event.elapsed_time = record, synchronize, elapsed_time
        return event


def test_recorded_event_times_are_milliseconds_in_steps_of_32_ns() -> None:
    """So on that GPU a launch of 3 µs is known to 1%, and a replay of milliseconds to 1e-5. CUDA gives float32."""
    assert len(RECORDED) == 20
    for value in RECORDED:
        ticks = value * 1e6 / 32
        assert abs(ticks - round(ticks)) * 32 < 1e6 * value * 2**-23, value
    assert min(RECORDED) == pytest.approx(8.736e-3)
    assert max(RECORDED) == pytest.approx(84.48172760009766)


def test_isolated_launches_are_each_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events(monkeypatch)
    launches = [lambda k=k: events.queued.append(k) for k in range(3)]
    times = isolated_times(launches)
    assert len(times) == ISOLATED == 20
    assert times == pytest.approx([value / 1e3 for value in RECORDED])
    assert times[-1] == pytest.approx(8.736e-6)
    assert events.queued[0] == 0, "one launch to see how long the host needs"
    rest = events.queued[1:]
    assert len(rest) == 20 * 5
    for index in range(20):
        spin, start, launched, end, wait = rest[5 * index : 5 * index + 5]
        assert (spin, launched, wait) == ("spin", (index + 1) % 3, "wait")
        assert start is not end


@pytest.mark.parametrize("copies", [2, 3, 50, 200])
def test_isolated_launches_of_all_implementations_rotate_as_one(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    """A copy is read again only after all others. Else the next implementation could find 21 of 50 copies cached."""
    queued: list[int] = []
    launches = [lambda k=k: queued.append(k) for k in range(copies)]
    for turn in range(4):
        Events(monkeypatch)
        isolated_times(launches, turn)
    assert queued == [index % copies for index in range(4 * 21)]


def test_a_sample_of_a_graph_is_the_time_between_events_over_its_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events(monkeypatch)
    timer = GraphTimer.__new__(GraphTimer)
    timer._graph = SimpleNamespace(replay=lambda: events.queued.append("replay"))
    timer._start, timer._end = events.event(enable_timing=True), events.event(enable_timing=True)
    timer._count, timer._spin = 400, 1_000_000
    assert [timer.sample() for _ in RECORDED] == pytest.approx([value / 1e3 / 400 for value in RECORDED])
    assert events.queued[:5] == ["spin", timer._start, "replay", timer._end, "wait"]
    assert len(events.queued) == 5 * len(RECORDED)


@pytest.mark.parametrize(("estimate", "rounds"), [(1e-4, 14), (1e-5, 134), (5e-3, 1)])
def test_a_graph_lasts_four_milliseconds_and_holds_every_copy_as_often(
    monkeypatch: pytest.MonkeyPatch, estimate: float, rounds: int
) -> None:
    """14 rounds of 3 copies at 0.1 ms last 4.2 ms. Of long launches one round is enough."""
    fake_cuda.pretend(monkeypatch)
    monkeypatch.setattr(GraphTimer, "_estimate", staticmethod(lambda launches: estimate))
    seen: list[int] = []
    timer = GraphTimer([lambda k=k: seen.append(k) or k for k in range(3)])
    assert seen == [0, 1, 2] * rounds
    assert timer._count == 3 * rounds
    assert timer.outputs == [0, 1, 2]


@pytest.mark.parametrize(("copies", "probed", "milliseconds", "estimate"), [(10, 8, 0.08, 1e-5), (3, 3, 0.0, 1e-6)])
def test_a_launch_is_estimated_from_up_to_eight_after_all_were_warmed_up(
    monkeypatch: pytest.MonkeyPatch, copies: int, probed: int, milliseconds: float, estimate: float
) -> None:
    fake_cuda.pretend(monkeypatch)
    events = Events(monkeypatch)
    events.replies = [milliseconds]
    monkeypatch.setattr(timing, "spin_cycles", lambda queue: 1000)
    launches = [lambda k=k: events.queued.append(k) for k in range(copies)]
    assert GraphTimer._estimate(launches) == pytest.approx(estimate)
    warm, (spin, _start, *timed, _end) = events.queued[:copies], events.queued[copies:]
    assert (warm, spin, timed) == (list(range(copies)), "spin", list(range(probed)))
    assert events.spins == [1000 * probed]


def test_a_spin_outlasts_queueing_twice_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host took 1 ms, so the spin is 2 ms and 0.2 ms at 2 GHz."""
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: setattr(clock, "now", clock.now + 5.0))
    assert spin_cycles(lambda: setattr(clock, "now", clock.now + 1e-3)) == pytest.approx(4_400_000, rel=1e-6)


class Streams:
    """Stands for torch's current stream and its capture. As in torch, the end of an invalidated capture raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.valid = "default", True
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)

    @contextlib.contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def capture(self, graph: Any) -> Iterator[None]:
        before, self.current = self.current, "capture"
        try:
            yield
        finally:
            if not self.valid:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.current = before


def test_what_is_captured_last_are_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, seen = Streams(monkeypatch), []
    timer = GraphTimer.__new__(GraphTimer)
    timer._graph = None
    timer._capture([lambda: seen.append(streams.current) or len(seen)], rounds=3)
    assert (seen, timer.outputs, streams.current) == (["capture"] * 3, [3], "default")


@pytest.mark.parametrize("spoils", [True, False])
def test_a_launch_that_cannot_be_captured_tells_why_and_leaves_the_stream(
    monkeypatch: pytest.MonkeyPatch, spoils: bool
) -> None:
    streams = Streams(monkeypatch)

    def launch() -> None:
        streams.valid = not spoils
        raise ValueError("the launch's own error")

    timer = GraphTimer.__new__(GraphTimer)
    timer._graph = None
    with pytest.raises(SpoiltCapture if spoils else ValueError, match="the launch's own error"):
        timer._capture([launch], rounds=1)
    assert streams.current == "default"


def test_a_launch_that_spoils_its_capture_without_a_word_is_told_by_the_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams(monkeypatch)
    timer = GraphTimer.__new__(GraphTimer)
    timer._graph = None
    with pytest.raises(SpoiltCapture, match="previous error"):
        timer._capture([lambda: setattr(streams, "valid", False)], rounds=1)


class Scripted:
    """A timer with given samples, each of which takes a second of the test's clock."""

    def __init__(self, clock: Clock, samples: list[float], takes: float = 1.0) -> None:
        self.clock, self.samples, self.takes, self.taken = clock, samples, takes, 0
        self.outputs: list[object] = []

    def sample(self) -> float:
        value = self.samples[self.taken % len(self.samples)]
        self.taken += 1
        self.clock.now += self.takes
        return value

    def close(self) -> None: ...


def test_sampling_stops_when_the_median_is_known() -> None:
    clock = Clock()
    result = sample_interleaved({"steady": Scripted(clock, [2.0])}, cap_s=1e9, clock=clock)["steady"]
    assert result.converged
    assert len(result.samples_s) == MIN_SAMPLES


@pytest.mark.parametrize(("spread", "stop"), [(0.004, "converged"), (0.006, "time cap")])
def test_a_median_is_known_when_it_is_known_within_half_a_percent(spread: float, stop: str) -> None:
    """The samples are two values in turn. The median of any resample is one of them, or between them."""
    clock = Clock()
    timer = Scripted(clock, [1 - spread, 1 + spread])
    assert sample_interleaved({"timer": timer}, cap_s=40.0, clock=clock)["timer"].stop == stop


def test_a_noisy_timer_runs_to_its_cap_and_says_so() -> None:
    clock = Clock()
    noisy = Scripted(clock, [1.0, 2.0])
    result = sample_interleaved({"noisy": noisy}, cap_s=50.0, clock=clock)["noisy"]
    assert result.stop == "time cap"
    assert 50 <= len(result.samples_s) <= 70


@pytest.mark.parametrize(("takes", "taken"), [(100.0, FEWEST_SAMPLES), (10.0, FEWEST_SAMPLES), (6.0, 9)])
@pytest.mark.parametrize(("samples", "stop"), [([1.0, 2.0], "time cap"), ([2.0], "converged")])
def test_a_slow_timer_ends_at_its_cap_with_six_samples_and_is_noisy_only_if_its_median_is_unknown(
    takes: float, taken: int, samples: list[float], stop: str
) -> None:
    clock = Clock()
    result = sample_interleaved({"slow": Scripted(clock, samples, takes)}, cap_s=50.0, clock=clock)["slow"]
    assert (len(result.samples_s), result.stop) == (taken, stop)


def test_two_timers_take_turns() -> None:
    clock, order = Clock(), []
    timers = {"a": Scripted(clock, [1.0]), "b": Scripted(clock, [5.0])}
    sample_interleaved(timers, cap_s=1e9, entering=order.append, clock=clock)
    assert order[:6] == ["a", "b", "a", "b", "a", "b"]


def test_very_short_launches_end_at_the_sample_cap() -> None:
    clock = Clock()
    result = sample_interleaved({"tiny": Scripted(clock, [1.0, 2.0], takes=1e-9)}, cap_s=1e9, clock=clock)["tiny"]
    assert result.stop == "sample cap"


@pytest.mark.cuda
def test_the_graph_timer_agrees_with_isolated_launches_of_a_long_kernel() -> None:
    copies = [torch.randn(1 << 26, device="cuda") for _ in range(2)]
    outputs = [torch.empty_like(copy) for copy in copies]
    launches = [lambda x=x, y=y: torch.mul(x, 2.0, out=y) for x, y in zip(copies, outputs, strict=True)]
    timer = GraphTimer(launches)
    replayed = sorted(timer.sample() for _ in range(15))[7]
    isolated = sorted(isolated_times(launches))[10]
    assert replayed == pytest.approx(isolated, rel=0.1)
    assert torch.equal(timer.outputs[1], copies[1] * 2.0)


def test_the_samples_of_ranks_are_kept_and_the_slowest_counts() -> None:
    times = iter([[3e-6, 1e-6], [1e-6, 2e-6]] * 100)

    class Launch:
        seconds: list[float]

        def __call__(self) -> None:
            self.seconds = next(times)

    found = sample_interleaved({"ours": HostTimer([Launch()]), "alone": HostTimer([lambda: None])}, cap_s=0.0)
    assert found["ours"].samples_s == [max(each) for each in found["ours"].ranks_s]
    assert found["ours"].ranks_s[:2] == [[1e-6, 2e-6], [3e-6, 1e-6]]
    assert found["alone"].ranks_s == []
