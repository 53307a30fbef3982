"""What the machine did while a case ran: a GPU by NVML, polled from a thread; a host by the times of its cores."""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType
from typing import Any

from bench import machine
from bench.devices.driver import LIVE, POWER_CAP, SLOWDOWNS, TOTALS, GpuSession, clock_reasons
from bench.measure import cores

ENERGY_WINDOW_S = 0.5
"""Energy over a shorter window is not taken for power, because the driver's counter moves in steps of up to 0.1 s."""


class Sampler:
    """Polls NVML from a thread while a case runs: `with Sampler(gpu) as sampler: ...`, then `sampler.summary()`.

    Without a GPU no thread is started, and the summary is `{}`.
    """

    def __init__(self, gpu: GpuSession | None, interval_s: float = 0.03) -> None:
        self.gpu, self.interval_s = gpu, interval_s
        self.samples: list[dict[str, Any]] = []
        self.unavailable: dict[str, str] = {}
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        if self.gpu is not None:
            self._before = self.gpu.read(TOTALS, self.unavailable)
            self._began = time.monotonic()
            self._thread = threading.Thread(target=self._poll, args=(self.gpu,), name="nvml", daemon=True)
            self._thread.start()
        return self

    def _poll(self, gpu: GpuSession) -> None:
        while True:
            self.samples.append(gpu.read(LIVE, self.unavailable))
            if self._done.wait(self.interval_s):
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.gpu is not None and self._thread is not None:
            self._done.set()
            self._thread.join()
            self._took = time.monotonic() - self._began
            self._after = self.gpu.read(TOTALS, self.unavailable)

    def summary(self) -> dict[str, Any]:
        """Hz, W, J, degrees Celsius. Where NVML refuses, the value is None and `unavailable` says why.

        `clock_reasons` lists every reason that was seen. `throttled` is True if one of them is a slowdown,
        `power_capped` if one of them is the power cap. ECC counts, PCIe replays and NVLink errors are those that were
        new. `energy_j` is the board's energy while the sampler was open, idle gaps included. `power_w` is the mean
        power, and `power_from` says how it was found: `instant` readings, `energy` over the window, or the driver's
        `average` of a second.
        """
        if self._thread is None:
            return {}
        masks = self._column("clock_reasons")
        mask = 0
        for seen in masks:
            mask |= seen
        gained = {
            name: None if self._before[name] is None or after is None else after - self._before[name]
            for name, after in self._after.items()
        }
        power, power_from = self._power(gained.get("energy_j"))
        return {
            "samples": len(self.samples),
            "duration_s": self._took,
            "sm_clock_hz": spread(self._column("sm_clock_hz")),
            "memory_clock_hz": spread(self._column("memory_clock_hz")),
            "power_w": power,
            "power_from": power_from,
            "temperature_c": max(self._column("temperature_c"), default=None),
            "clock_reasons": clock_reasons(mask) if masks else None,
            "throttled": any(mask & bit for bit in SLOWDOWNS) if masks else None,
            "power_capped": bool(mask & POWER_CAP) if masks else None,
            **gained,
            "unavailable": dict(self.unavailable),
        }

    def _power(self, energy_j: float | None) -> tuple[float | None, str | None]:
        """The mean power in W and how it was found, from the most telling source that the driver offers."""
        if instant := self._column("power_instant_w"):
            return statistics.fmean(instant), "instant"
        if energy_j and self._took >= ENERGY_WINDOW_S:
            return energy_j / self._took, "energy"
        if average := self._column("power_w"):
            return statistics.fmean(average), "average"
        return None, None

    def _column(self, name: str) -> list[Any]:
        return [sample[name] for sample in self.samples if sample[name] is not None]


DISTURBED = 0.1
"""A case is disturbed if others had more than this share of the usable cores while it was sampled."""


class HostSampler(Sampler):
    """Reads the times of the usable cores before and after a case."""

    def __init__(self) -> None:
        super().__init__(None)

    def __enter__(self) -> HostSampler:
        self._start, self._clocks = cores.cpu_times(), cores.cpu_clocks_hz()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end = cores.cpu_times()
        self._clocks += cores.cpu_clocks_hz()

    def summary(self) -> dict[str, Any]:
        """`{"host": ..., "disturbed": bool}`; empty where Linux does not tell.

        `others` and `stolen` are shares of the usable cores' time: what other programs had, and what the hypervisor
        gave to other machines. `load` is the load average, `clock_hz` the cores' clocks before and after.
        """
        if self._start is None or self._end is None:
            return {}
        a, b = self._start, self._end
        whole = max(1e-9, (b.clock_s - a.clock_s) * machine.usable_cores())
        others = min(1.0, max(0.0, (b.busy_s - a.busy_s - (b.own_s - a.own_s)) / whole))
        stolen = min(1.0, max(0.0, (b.stolen_s - a.stolen_s) / whole))
        host = {
            "duration_s": b.clock_s - a.clock_s,
            "others": others,
            "stolen": stolen,
            "load": cores.load_average(),
            "clock_hz": spread(self._clocks),
        }
        return {"host": host, "disturbed": others + stolen > DISTURBED}


def spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
