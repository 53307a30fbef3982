"""What is wrong with a compiled kernel: does it fit, does it spill, are its loads wide and many enough?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.devices import CAPABILITIES
from bench.inspection.codegen.parse import How

NARROW = 16
"""Bytes that a thread should load at once: the widest load instruction up to sm_90 (`LDG.E.128`)."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How one main argument is moved. `width` is in bytes per thread and instruction, 0 for TMA."""

    name: str
    how: How | None
    width: int

    def __str__(self) -> str:
        if self.how is None:
            return f"{self.name} not found"
        return f"{self.name} {self.how}" + (f" {self.width} B" if self.width else "")


@dataclass(frozen=True, kw_only=True)
class KernelReport:
    """One kernel in one configuration, compiled for one part. Sizes are in bytes; stack and spills are per thread.

    `cases` counts the cases that share the configuration; `case_id` is the one with the largest grid. If nothing could
    be compiled, `error` holds the reason and all numbers are 0.
    """

    op: str
    impl: str
    kernel: str
    case_id: str
    cases: int = 1
    sm: int
    part: str
    config: str = ""
    num_warps: int = 0
    num_stages: int = 0
    grid_ctas: int = 0
    registers: int = 0
    shared_bytes: int = 0
    stack_bytes: int = 0
    spill_instructions: int = 0
    threads: int = 0
    ctas_per_sm: int = 0
    """How many fit, by registers, shared memory, threads and tensor memory."""
    streams: tuple[Stream, ...] = ()
    mma: str = ""
    bytes_in_flight: int = 0
    """Per SM, in the main streams, with as many CTAs as fit and as the grid gives to an SM."""
    bytes_needed: int = 0
    slots_per_byte: float = 0.0
    """Instructions of a thread that the main loop issues for each byte of the main streams; 0 without such a loop."""
    slots_declared: float = 0.0
    """The same as the launch declares it for sm_90, and as predictions use it; 0 where it does not."""
    wants_mma: bool = False
    why_narrow: str = ""
    why_few_in_flight: str = ""
    seconds: float = 0.0
    error: str = ""


_SASS_OF = {"mma": r"[HIQD]MMA", "wgmma": r"[HIQ]GMMA", "tcgen05": r"UTC[HQOI]MMA"}
"""The SASS instructions that a tensor-core instruction of PTX becomes."""


def problems(report: KernelReport) -> list[str]:
    """What is wrong with a kernel, in words. A stated reason excuses loads that are narrow or few."""
    if report.error:
        return [report.error]
    found = []
    if report.ctas_per_sm == 0:
        found.append(
            f"does not fit: {report.shared_bytes} B of shared memory, {report.registers} registers, "
            f"{report.threads} threads"
        )
    if report.spill_instructions or report.stack_bytes:
        found.append(f"spills: {report.spill_instructions} local loads and stores, {report.stack_bytes} B of stack")
    for stream in report.streams:
        if stream.how is None:
            found.append(f"no access of {stream.name} found")
        elif stream.how != "tma" and stream.width < NARROW and not report.why_narrow:
            found.append(f"narrow: {stream} a thread, wanted {NARROW} B or TMA")
    reads = any(stream.how not in (None, "store") for stream in report.streams)
    if reads and report.bytes_in_flight < report.bytes_needed and not report.why_few_in_flight:
        found.append(
            f"few bytes in flight: {report.bytes_in_flight / 1024:.0f} KiB per SM, "
            f"wanted {report.bytes_needed / 1024:.0f} KiB"
        )
    wanted = CAPABILITIES[report.sm].mma
    if report.wants_mma and not re.match(_SASS_OF[wanted], report.mma):
        found.append(f"no {wanted}: the tensor-core instruction is {report.mma or 'absent'}")
    return found


MOST_ASTRAY = 0.1
"""Share by which declared issue slots may differ from those that are counted."""


def misdeclared(report: KernelReport) -> str | None:
    """What is wrong with the issue slots that a launch declares for sm_90; None where nothing is, or none are."""
    declared, found = report.slots_declared, report.slots_per_byte
    if report.sm != 90 or not declared or abs(declared - found) <= MOST_ASTRAY * found:
        return None
    return f"declares {declared:.2f} issue slots a byte, the main loop has {found:.2f}"


COLUMNS: tuple[tuple[str, Callable[[KernelReport], object]], ...] = (
    ("op", lambda r: r.op),
    ("impl", lambda r: r.impl),
    ("kernel", lambda r: r.kernel),
    ("configuration", lambda r: r.config),
    ("sm", lambda r: r.sm),
    ("cases", lambda r: r.cases),
    ("regs", lambda r: r.registers),
    ("shared KiB", lambda r: f"{r.shared_bytes / 1024:.1f}"),
    ("spills", lambda r: r.spill_instructions),
    ("CTAs/SM", lambda r: r.ctas_per_sm),
    ("main streams", lambda r: ", ".join(map(str, r.streams))),
    ("tensor core", lambda r: r.mma.split(".F")[0]),
    ("in flight KiB", lambda r: f"{r.bytes_in_flight / 1024:.0f}"),
    ("wanted KiB", lambda r: f"{r.bytes_needed / 1024:.0f}"),
    ("issue slots/B", lambda r: f"{r.slots_per_byte:.2f}" if r.slots_per_byte else ""),
    ("verdict", lambda r: "; ".join(problems(r)) or "ok"),
)


def main_table(reports: Sequence[KernelReport]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of strings, ready to be printed."""
    rows = [tuple(str(value(report)) for _, value in COLUMNS) for report in reports]
    return tuple(header for header, _ in COLUMNS), rows
