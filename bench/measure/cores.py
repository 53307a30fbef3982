"""What the host's cores have done, by Linux's `/proc`: for whom, and at which clock."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bench import machine


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Seconds since the start: of the clock, and of all usable cores together."""

    clock_s: float
    busy_s: float
    """All programs, without what the hypervisor gave to other machines."""
    stolen_s: float
    """Time that a core was ready and the hypervisor gave it to another machine."""
    own_s: float
    """All threads of this process."""


def cpu_times(stat: Path = Path("/proc/stat"), cpus: Collection[int] | None = None) -> CpuTimes | None:
    """What the cores have done so far; None where Linux does not tell."""
    wanted = {f"cpu{cpu}" for cpu in (machine.affinity() if cpus is None else cpus)}
    lines = [line.split() for line in stat.read_text().splitlines()] if stat.is_file() else []
    # user, nice, system, idle, iowait, irq, softirq, steal; the two guest columns behind them are in user and nice
    found = [[int(field) for field in fields[1:9]] for fields in lines if fields and fields[0] in wanted]
    if not found or any(len(fields) < 8 for fields in found):
        return None
    tick = 1 / os.sysconf("SC_CLK_TCK")
    busy = sum(sum(fields[:3]) + sum(fields[5:7]) for fields in found)
    return CpuTimes(
        clock_s=time.monotonic(),
        busy_s=busy * tick,
        stolen_s=sum(fields[7] for fields in found) * tick,
        own_s=time.process_time(),
    )


def cpu_clocks_hz(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[float]:
    """The present clock of each core; empty where Linux does not tell."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return [1e6 * float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", text, re.MULTILINE)]


def load_average() -> float | None:
    """Programs that were ready to run, averaged over a minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
