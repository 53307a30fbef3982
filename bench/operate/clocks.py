"""The clocks that `selfcheck` compares: ours, and those that others wrote."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.measure.timing import Timer, sample_interleaved
from kernels.op import Launch

OURS = "decodebench"
CAP_S = 0.3
"""Seconds that a clock spends on a subject in one round, if the clock takes such a limit."""


class Missing(RuntimeError):
    """A clock that cannot be used here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is timed. `turn` launches on the next copy of the inputs; `timer` is our own timer over the same copies."""

    name: str
    turn: Launch
    timer: Timer
    floor: bool = False
    """An empty kernel: its time is what a clock adds to each launch."""


Clock = Callable[[Subject], float]
"""Seconds per launch."""


@dataclass(frozen=True)
class Other:
    """A clock that others wrote. `note` is the known cause of its disagreement.

    A one-sided clock must give more (`errs` is `up`) or less (`down`) than the kernel takes, also after its floor is
    subtracted. Only a difference to the other side says that ours is wrong.
    """

    clock: Clock
    note: str
    errs: Literal["", "up", "down"] = ""


def ours(subject: Subject) -> float:
    samples = sample_interleaved({OURS: subject.timer}, cap_s=CAP_S)[OURS].samples_s
    return statistics.median(samples)


def triton_do_bench(subject: Subject) -> float:
    import triton.testing

    return triton.testing.do_bench(subject.turn, warmup=10, rep=50, return_mode="median") / 1e3


def triton_cudagraph(subject: Subject) -> float:
    import triton.testing

    return triton.testing.do_bench_cudagraph(subject.turn, rep=20, return_mode="median") / 1e3


def torch_profiler(subject: Subject, launches: int = 24) -> float:
    """The durations of all device events, divided by the number of launches."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    subject.turn()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(launches):
            subject.turn()
        torch.cuda.synchronize()
    spans = [e.time_range.elapsed_us() for e in profiled.events() if e.device_type == DeviceType.CUDA]
    if not spans:
        raise Missing("the profiler saw no kernel")
    return sum(spans) / 1e6 / launches


class NVBench:
    """NVBench's own loop: an L2 flush, a blocking kernel, one launch between two events. Gives the median sample.

    NVBench keeps every registered benchmark for good. What is registered here therefore holds the subject only for the
    time of a call.
    """

    def __init__(self) -> None:
        self._borrowed: dict[str, Launch] = {}
        self._numbers = itertools.count()

    def __call__(self, subject: Subject) -> float:
        try:
            from cuda import bench
            from cuda.bench.results import BenchmarkResult
        except ImportError as error:
            raise Missing(f"{error}; pip install cuda-bench") from None
        import torch

        name = f"decodebench_{next(self._numbers)}"
        self._borrowed[name] = subject.turn

        def benchmark(state: Any) -> None:
            def launch(given: Any) -> None:
                with torch.cuda.stream(torch.cuda.ExternalStream(given.get_stream().addressof())):
                    self._borrowed[name]()

            state.exec(launch, batched=False)

        bench.register(benchmark).set_name(name)
        device = str(torch.cuda.current_device())
        try:
            with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
                file = str(Path(folder) / "nvbench.json")
                options = ["--devices", device, "--timeout", "5", "--benchmark", name, "--jsonbin", file]
                bench.run_all_benchmarks(["decodebench", "--quiet", *options])
                medians = BenchmarkResult.from_json(file)[name].centers(statistics.median)
        finally:
            del self._borrowed[name]
        found = [seconds for seconds in medians.values() if seconds is not None]
        if not found:
            raise Missing("NVBench kept no sample (it discards throttled ones)")
        return float(found[0])


def torch_timer(subject: Subject) -> float:
    import torch
    from torch.utils.benchmark import Timer as TorchTimer

    timer = TorchTimer("turn()", globals={"turn": subject.turn}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=CAP_S).median


def python_timeit(subject: Subject) -> float:
    timer = timeit.Timer(subject.turn)
    count = min(10_000, max(5, int(CAP_S / max(1e-6, timer.timeit(1)))))
    return statistics.median(timer.repeat(repeat=count, number=1))


GPU_CLOCKS: dict[str, Other] = {
    "do_bench": Other(
        triton_do_bench,
        "one-sided, gives more: two events around each launch; it clears the L2 by writing, and up to 50 MB of dirty "
        "lines are written back while the kernel runs",
        "up",
    ),
    "do_bench_cudagraph": Other(
        triton_cudagraph, "a graph of launches like ours, with the start of the graph in it; events a replay apart"
    ),
    "torch profiler": Other(
        torch_profiler,
        "one-sided, gives less: device timestamps of the kernels alone, without the ramp and the gaps between kernels",
        "down",
    ),
    "NVBench": Other(
        NVBench(),
        "one-sided, gives more: one launch between events behind a blocking kernel, the L2 cleared by writing as with "
        "do_bench",
        "up",
    ),
}
CPU_CLOCKS: dict[str, Other] = {
    "torch Timer": Other(torch_timer, "blocks of launches: what interrupts one of them is in it"),
    "timeit": Other(python_timeit, "one launch at a time, as ours, without Python's garbage collector"),
}
