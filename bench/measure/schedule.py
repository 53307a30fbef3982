"""What a run measures, and in which order. Pure: no process, no file, no clock."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.devices import DeviceSpec
from bench.errors import BadRequest, require
from bench.measure.case import Settings
from bench.measure.worker import Job
from bench.run import Run
from kernels.op import SUITES, Op

T = TypeVar("T")

HANG_S = 180.0
"""A worker that takes no step for this long hangs: no compilation, reference or sample of ours takes that long."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked to be measured."""

    device: str = "auto"
    suite: str | None = None
    """None: that of `DEFAULT_SUITES`."""
    ops: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    case: str = ""
    """Only cases whose id contains this."""
    repeat: int = 1
    budget_s: float | None = None
    cap_s: float | None = None
    """Sampling seconds per implementation and case; None: by suite."""
    hang_s: float = HANG_S
    hanging: tuple[tuple[str, str, str], ...] = ()
    """(op, implementation, why) of what is known to hang. It is recorded as refused and not tried."""
    argv: tuple[str, ...] = ()
    catalogue: str = "kernels.op"
    """The module that knows ops and implementations."""


DEFAULT_SUITES = {"cuda": "quick", "cpu": "smoke"}
"""By kind of target, the suite of a run where the user names none."""

CAPS = {"smoke": 0.3, "quick": 0.5, "full": 1.0}
"""Default sampling seconds per implementation and case."""


def check_names(request: Request, ops: Mapping[str, Op]) -> None:
    require("op", request.ops, ops)
    require("suite", [] if request.suite is None else [request.suite], SUITES)
    if request.repeat < 1:
        raise BadRequest("--repeat counts passes: 1 or more")


def resolve_request(request: Request, earlier: Run) -> Request:
    """Fill in what the user left open from the run that is resumed. BadRequest where he asks for something else."""
    asked = earlier.header["request"]
    for name, option in (("suite", "--suite"), ("ops", "--op"), ("impls", "--impl"), ("case", "--case")):
        given, kept = as_words(getattr(request, name)), as_words(asked[name])
        if given and given != kept:
            began = f"with {option} {kept}" if kept else f"without {option}"
            raise BadRequest(f"the run began {began}: with {option} {given} it would be another run")
    return dataclasses.replace(
        request,
        suite=asked["suite"],
        ops=tuple(asked["ops"]),
        impls=tuple(asked["impls"]),
        case=asked["case"],
        repeat=max(request.repeat, asked["repeat"]),
    )


def as_words(asked: str | Sequence[str] | None) -> str:
    """An option's value as it is typed: several names with commas between them."""
    return asked if isinstance(asked, str) else ",".join(asked or ())


def schedule_jobs(
    request: Request,
    ops: Mapping[str, Op],
    impls: Mapping[str, Mapping[str, bool]],
    earlier: Run | None,
    run_id: str,
    spec: DeviceSpec | None,
) -> tuple[list[Job], int]:
    """The jobs that are left, in order, and how many (op, case, repetition) an earlier process of the run has done.

    Ceilings come first, because predictions are made from them. In `full`, the cases of `quick` follow. The ops take
    turns. Each begins with its largest case, then takes its smallest, the middle one, and so on by halves, so that a
    run that is cut short has covered the range.
    """
    chosen = [op for name, op in ops.items() if not request.ops or name in request.ops]
    if request.ops and not all(op.is_ceiling for op in chosen):
        chosen = [op for op in ops.values() if op.is_ceiling and op not in chosen] + chosen
    before = (*earlier.records, *earlier.repeats) if earlier else ()
    finished = {(*r.key, r.repeat) for r in before if r.status != "skipped"}
    cap_s = request.cap_s or CAPS[request.suite or "smoke"]
    jobs: list[Job] = []
    done = 0
    for repeat in range(request.repeat):
        for op, case in ordered(chosen, request):
            names = [n for n in impls[op.name] if not request.impls or n in request.impls or op.is_ceiling]
            left = tuple(n for n in names if (op.name, n, case.id, repeat) not in finished)
            if names and not left:
                done += 1
            if left:
                jobs.append(
                    Job(
                        op=op.name,
                        case=case,
                        impls=left,
                        settings=Settings(cap_s=cap_s, seed=1000 * repeat, repeat=repeat, run_id=run_id, spec=spec),
                    )
                )
    asked = any(request.case in job.case.id and (not request.ops or job.op in request.ops) for job in jobs)
    if not asked and not done:
        named = f" with {request.case!r} in its id" if request.case else ""
        chosen_impls = f" for {', '.join(request.impls)}" if request.impls else ""
        raise BadRequest(f"nothing to measure: suite {request.suite} has no case{named}{chosen_impls}")
    return jobs, done


def ordered(ops: Sequence[Op], request: Request) -> list[tuple[Op, Any]]:
    """Each (op, case) of one repetition, in the order of measuring."""
    suite = request.suite or "smoke"
    found = [(op, case) for op in ops if op.is_ceiling for case in cases_of(op, suite)]
    for of_quick in (True, False):
        queues = []
        for op in ops:
            if op.is_ceiling:
                continue
            quick = {case.id for case in op.cases("quick")} if suite == "full" else set()
            wanted = [case for case in cases_of(op, suite) if request.case in case.id]
            wanted = [case for case in wanted if (case.id in quick) is of_quick]
            by_size = sorted(wanted, key=lambda case: -op.work(case).bytes)
            queues.append([(op, by_size[i]) for i in halving(len(by_size))])
        found += round_robin(queues)
    return found


def round_robin(groups: Iterable[Iterable[T]]) -> list[T]:
    """The first of each group, then the second of each that has one, and so on.

    >>> "".join(round_robin(["abc", "d", "ef"]))
    'adebfc'
    """
    queues = [deque(group) for group in groups]
    found: list[T] = []
    while any(queues):
        found += [queue.popleft() for queue in queues if queue]
    return found


def cases_of(op: Op, suite: str) -> list[Any]:
    """A suite's cases; `full` holds all of `quick`'s."""
    cases = [*op.cases("quick"), *op.cases("full")] if suite == "full" else op.cases(suite)
    return list({case.id: case for case in cases}.values())


def halving(count: int) -> list[int]:
    """Indices 0, last, middle, quarters...: each next one lies in the middle of the widest gap.

    >>> halving(5)
    [0, 4, 2, 1, 3]
    """
    if count < 2:
        return list(range(count))
    order = [0, count - 1]
    gaps = deque([(0, count - 1)])
    while gaps:
        low, high = gaps.popleft()
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return order
