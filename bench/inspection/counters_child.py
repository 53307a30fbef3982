"""The process that ncu profiles: it launches each chosen case once, inside an NVTX range that names it."""

from __future__ import annotations

import gc
import json
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bench import machine
from bench.errors import describe
from bench.inspection.counters import NO_TIME, Choice
from bench.inspection.ncu import MARK
from kernels.op import Impl, Op, Target, Work, discover, implementations, total

LARGEST = 1 << 30
"""The largest case of an operation up to this many compulsory bytes is counted. That is far more than any L2 holds."""


WAITING = "ncu runs one kernel at a time, and the kernels of several GPUs wait for each other"
"""Why launches of several ranks are not counted."""


def pick(op: Op, impl: Impl, choice: Choice, target: Target) -> list[Any]:
    """For each kind and precision, the supported case with the most compulsory bytes up to `LARGEST`.

    Operations without element types, such as `stream`, tell their cases apart by `kind`.
    """
    best: dict[tuple[str, str], Any] = {}
    for case in op.of_suite(choice.suite):
        size = op.work(case).bytes
        if choice.case not in case.id or size > LARGEST or impl.supports(case, target) is not None:
            continue
        key = (str(case.as_dict().get("kind", "")), case.precision)
        known = best.get(key)
        if known is None or size > op.work(known).bytes:
            best[key] = case
    return list(best.values())


def choose(choice: Choice, target: Target) -> list[tuple[Op, Impl, Any]]:
    """What is counted: the ops take turns, so that each has some if the time ends early."""
    groups = [
        [
            (op, impl, case)
            for impl in implementations(op.name)[0]
            if not choice.impls or impl.name in choice.impls
            for case in pick(op, impl, choice, target)
            if (op.name, impl.name, case.id) not in choice.done
        ]
        for op in discover().values()
        if not choice.ops or op.name in choice.ops
    ]
    return [launch for turn in zip_longest(*groups) for launch in turn if launch]


def launch_profiled(op: Op, impl: Impl, case: Any, target: Target, index: int) -> str | None:
    """Prepare and warm up before ncu looks, then launch once. Returns what went wrong, if anything did."""
    import torch

    try:
        launch = impl.prepare(case, op.inputs(case, target.device, 0), target)
        launch()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        try:
            with torch.cuda.nvtx.range(f"{MARK}{index}"):
                launch()
                torch.cuda.synchronize()
        finally:
            torch.cuda.profiler.stop()
    except Exception as fault:
        return describe(fault)
    return None


def child(plan: Path) -> None:
    """Launch every chosen case, and append to `<plan>.done` what was launched, or why it was not.

    ncu writes nothing before its child has ended, so no case begins after half of the time allowed.
    """
    import torch

    began = time.monotonic()
    given = json.loads(plan.read_text())
    fields = given["choice"]
    lists = {"ops": tuple(fields["ops"]), "impls": tuple(fields["impls"]), "done": tuple(map(tuple, fields["done"]))}
    choice = Choice(**{**fields, **lists})
    target = machine.gpu_target()
    machine.keep_products_exact()
    chosen = choose(choice, target)
    with (plan.parent / f"{plan.name}.done").open("a") as done:
        for index, (op, impl, case) in enumerate(chosen):
            error: str | None = NO_TIME
            declared = Work()
            if getattr(case, "ranks", 1) > 1:
                error = WAITING
            elif time.monotonic() - began < given["budget_s"]:
                error = launch_profiled(op, impl, case, target, index)
                declared = total(impl.stages(case, target))
            entry = {
                "index": index,
                "op": op.name,
                "impl": impl.name,
                "case_id": case.id,
                "error": error,
                "declared_read": declared.bytes_read,
                "declared_written": declared.bytes_written,
            }
            done.write(json.dumps(entry) + "\n")
            done.flush()
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    child(Path(sys.argv[1]))
