"""Compile the kernels of a schedule in parallel before the first is measured. The worker finds them in Triton's cache.

If each were compiled when it is first launched, they would take minutes of a rented hour. Nothing is launched here, and
no GPU is touched. Failures are left to the worker, which meets them again and records them.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.inspection.codegen.pool import compile_each
from bench.measure.worker import Job
from kernels.op import Target

if TYPE_CHECKING:
    from kernels.launch import KernelLaunch

PROCESSES = 12
"""The most processes: each holds torch and a compiler, about 1 GB."""

FEWEST_JOBS = 8
"""With fewer jobs, starting the processes takes longer than it saves."""

LIMIT_S = 120.0
"""The run begins after this time, or after a quarter of its budget if that is less, whatever is still missing."""


def precompile(
    jobs: Sequence[Job],
    catalogue: str,
    target: Target,
    cores: int,
    tell: Callable[[str], None],
    budget_s: float | None = None,
) -> None:
    """Compile what the jobs launch on a GPU. Do nothing on another target, or for a handful of cases."""
    distinct = list({(job.op, job.case.id): job for job in jobs}.values())
    if target.kind != "cuda" or len(distinct) < FEWEST_JOBS or "TRITON_INTERPRET" in os.environ:
        return
    begun = time.monotonic()
    limit = LIMIT_S if budget_s is None else min(LIMIT_S, budget_s / 4)
    workers = min(cores, PROCESSES)
    tell(f"compiling the kernels of {len(distinct)} cases in {workers} processes")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as claims:
        work = partial(compile_case, catalogue, target, Path(claims))
        done = [count for _, count in compile_each(work, distinct, workers, limit) if count is not None]
    left = len(distinct) - len(done)
    unfinished = f"; {left} of {len(distinct)} cases did not finish" if left else ""
    tell(f"{sum(done)} kernels took {time.monotonic() - begun:.0f} s{unfinished}")


def compile_case(catalogue: str, target: Target, claims: Path, job: Job) -> int:
    """In a process of its own: compile the kernels of a job that no other process has claimed. Returns their number.

    For every signature, Triton 3.6 also has a C compiler build the launcher that passes a kernel its arguments. That
    takes a third of a second, so it is done here too.
    """
    from triton.runtime import driver

    from bench.inspection.codegen.build import compiled, configuration

    count = 0
    for launch in launches(job, catalogue, target):
        try:
            if claim(claims, configuration(launch, target.sm)):
                count += 1
                binary = compiled(launch, target.sm)
                driver.active.launcher_cls(binary.src, binary.metadata)
        except Exception:  # the worker compiles it again and records what is wrong
            continue
    return count


def launches(job: Job, catalogue: str, target: Target) -> Iterator[KernelLaunch]:
    """What the job's implementations launch, built with `meta` inputs. What cannot be built is left out."""
    registry = importlib.import_module(catalogue)
    op = registry.discover()[job.op]
    for impl in registry.implementations(job.op)[0]:
        try:
            if impl.name in job.impls and impl.build and impl.supports(job.case, target) is None:
                yield from impl.build(job.case, op.inputs(job.case, "meta", 0), target).launches
        except Exception:
            continue


def claim(directory: Path, configuration: str) -> bool:
    """True for the first process that asks for a configuration."""
    try:
        (directory / hashlib.sha256(configuration.encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
