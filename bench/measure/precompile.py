"""Compile a plan's kernels in parallel before the first is measured; the worker then finds them in Triton's cache.

One after the other, each when it is first launched, they would take minutes of a rented hour. Nothing is launched and
no GPU is touched. What goes wrong here is left to the worker, which meets it again and records it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure.worker import Job
from kernels.op import Target

if TYPE_CHECKING:
    from kernels.launch import KernelLaunch

PROCESSES = 12
"""At most: each holds torch and a compiler, about 1 GB."""

FEWEST_JOBS = 8
"""With fewer, starting the processes takes longer than it saves."""

LIMIT_S = 120.0
"""Then the run begins, whatever is missing; after a quarter of the run's budget, if that is sooner."""


def precompile(
    jobs: Sequence[Job],
    catalogue: str,
    target: Target,
    cores: int,
    tell: Callable[[str], None],
    budget_s: float | None = None,
) -> None:
    """Compile what the jobs launch on a GPU. Elsewhere, and for a handful of cases, does nothing."""
    distinct = list({(job.op, job.case.id): job for job in jobs}.values())
    if target.kind != "cuda" or len(distinct) < FEWEST_JOBS or "TRITON_INTERPRET" in os.environ:
        return
    begun = time.monotonic()
    ends = begun + (LIMIT_S if budget_s is None else min(LIMIT_S, budget_s / 4))
    context = get_context("spawn")
    shares = min(cores, PROCESSES)
    tell(f"compiling the kernels of {len(distinct)} cases in {shares} processes")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as claims:
        processes = [
            context.Process(
                target=compile_share, args=(distinct[share::shares], catalogue, target, claims), daemon=True
            )
            for share in range(shares)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(max(0.0, ends - time.monotonic()))
            lost = sum(process.exitcode != 0 for process in processes)
        finally:
            for process in processes:
                process.kill()
        count = len(os.listdir(claims))
    unfinished = f"; {lost} of {shares} processes did not finish" if lost else ""
    tell(f"{count} kernels took {time.monotonic() - begun:.0f} s{unfinished}")


def compile_share(jobs: Sequence[Job], catalogue: str, target: Target, claims: str) -> None:
    """In a process of its own: compile each kernel of these jobs that no other process has claimed.

    Triton 3.6 also has a C compiler make what passes a kernel its arguments, for every signature: a third of a second.
    """
    from triton.runtime import driver

    from bench.inspection.codegen.build import compiled, configuration

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    for launch in launches(jobs, catalogue, target):
        try:
            if claim(Path(claims), configuration(launch, target.sm)):
                binary = compiled(launch, target.sm)
                driver.active.launcher_cls(binary.src, binary.metadata)
        except Exception:  # the worker compiles it again and records what is wrong
            continue


def launches(jobs: Sequence[Job], catalogue: str, target: Target) -> Iterator[KernelLaunch]:
    """Of all our implementations of the jobs, built with `meta` inputs; what can't be built is left out."""
    registry = importlib.import_module(catalogue)
    ops = registry.discover()
    for job in jobs:
        op = ops[job.op]
        case = job.case
        for impl in registry.implementations(job.op)[0]:
            try:
                if impl.name in job.impls and impl.build and impl.supports(case, target) is None:
                    yield from impl.build(case, op.inputs(case, "meta", 0), target).launches
            except Exception:
                continue


def claim(directory: Path, configuration: str) -> bool:
    """True for the first process that asks."""
    try:
        (directory / hashlib.sha256(configuration.encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
