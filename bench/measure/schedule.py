"""What a run measures, and in which order. Pure: no process, no file, no clock."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from bench.devices import DeviceSpec
from bench.errors import BadRequest, require
from bench.measure.settings import Settings
from bench.measure.worker import Job
from bench.records import Record
from bench.run import Run
from kernels.op import SUITES, SWEEPS, Op

T = TypeVar("T")

HANG_S = 180.0
"""A worker that takes no step for this long hangs: no compilation, reference or sample of ours takes that long."""


Retuned = tuple[str, str, str, Mapping[str, int]]
"""Operation, implementation, case id, configuration."""


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
    retuned: tuple[Retuned, ...] = ()
    """What was tuned while the run went on. A case whose record has another configuration is measured again."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): of the cases that are no ceilings, those whose place in the order is i modulo n."""
    argv: tuple[str, ...] = ()
    catalogue: str = "kernels.op"
    """The module that knows ops and implementations."""


def request_from(fields: Mapping[str, Any]) -> Request:
    """The request whose `asdict` went through JSON, which turns tuples into lists."""
    found: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Request(**found)


DEFAULT_SUITES = {"cuda": "quick", "cpu": "smoke"}
"""By kind of target, the suite of a run where the user names none."""

CAPS = {"smoke": 0.4, "quick": 0.5, "full": 1.0, SWEEPS: 1.0}
"""Default sampling seconds per implementation and case."""


def check_names(request: Request, ops: Mapping[str, Op]) -> None:
    require("op", request.ops, ops)
    require("suite", [] if request.suite is None else [request.suite], (*SUITES, SWEEPS))
    if request.repeat < 1:
        raise BadRequest("--repeat counts passes: 1 or more")


def resolve_request(request: Request, earlier: Run) -> Request:
    """Fill in what the user left open from the run that is resumed. BadRequest where he asks for something else."""
    asked = earlier.header.get("request") or {}
    if lacking := [name for name in ("suite", "ops", "impls", "case", "repeat") if name not in asked]:
        raise BadRequest(f"can't resume {earlier.path}: its first line does not say what was asked ({lacking[0]})")
    for name, option in (("suite", "--suite"), ("ops", "--op"), ("impls", "--impl"), ("case", "--case")):
        given, kept = as_words(getattr(request, name)), as_words(asked[name])
        if given and given != kept:
            began = f"with {option} {kept}" if kept else f"without {option}"
            raise BadRequest(f"the run began {began}: with {option} {given} it would be another run")
    shard = tuple(asked.get("shard", (0, 1)))
    if request.shard not in ((0, 1), shard):
        raise BadRequest(f"the run began as shard {shard[0] + 1}/{shard[1]}: it can't go on as another one")
    return dataclasses.replace(
        request,
        shard=shard,
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
    by_torch_compile: Mapping[str, Collection[str]] = MappingProxyType({}),
    *,
    on_host: bool = False,
) -> tuple[list[Job], int]:
    """The jobs that are left, in order, and how many (op, case, repetition) an earlier process of the run has done.

    Ceilings come first, because predictions are made from them. In `full`, those of `quick` come first, then the other
    cases of `quick`, then the rest, ceilings among them. On a host the ceilings are those of `smoke` in every suite,
    because a product of 8192 x 8192 takes minutes there.

    The ops take turns. Each begins with its largest case, then takes its smallest, the middle one, and so on by halves,
    so that a run that is cut short has covered the range.
    Implementations `by_torch_compile` (by operation) come last: each of their shapes takes seconds to compile.
    """
    chosen = [op for name, op in ops.items() if not request.ops or name in request.ops]
    if request.ops and not all(op.is_ceiling for op in chosen):
        chosen = [op for op in ops.values() if op.is_ceiling and op not in chosen] + chosen
    before = (*earlier.records, *earlier.repeats) if earlier else ()
    chosen = [op for op in chosen if op.name in request.ops or not op.is_ceiling or has_use(op, chosen, request)]
    again = outdated(before, request.retuned)
    finished = {
        (*r.key, r.repeat) for r in before if r.status != "skipped" and (r.op, r.case_id, r.repeat) not in again
    }
    cap_s = request.cap_s or CAPS[request.suite or "smoke"]
    jobs: list[Job] = []
    done = 0
    for repeat in range(request.repeat):
        settings = Settings(cap_s=cap_s, seed=1000 * repeat, repeat=repeat, run_id=run_id, spec=spec)
        last: list[Job] = []
        for op, case in shard_of(ordered(chosen, request, on_host), request.shard):
            names = [n for n in impls[op.name] if not request.impls or n in request.impls or op.is_ceiling]
            left = [n for n in names if (op.name, n, case.id, repeat) not in finished]
            if names and not left:
                done += 1
            slow = by_torch_compile.get(op.name, ())
            for queue, these in (
                (jobs, [n for n in left if n not in slow]),
                (last, [n for n in left if n in slow]),
            ):
                if these:
                    queue.append(Job(op=op.name, case=case, impls=tuple(these), settings=settings))
        jobs += last
    asked = any(request.case in job.case.id and (not request.ops or job.op in request.ops) for job in jobs)
    if not asked and not done and request.shard == (0, 1):  # a shard may have nothing but ceilings
        named = f" with {request.case!r} in its id" if request.case else ""
        chosen_impls = f" for {', '.join(request.impls)}" if request.impls else ""
        raise BadRequest(f"nothing to measure: suite {request.suite} has no case{named}{chosen_impls}")
    return jobs, done


def has_use(ceiling: Op, ops: Iterable[Op], request: Request) -> bool:
    """Whether the run has a case that is predicted from a ceiling: that of a link serves what crosses links alone."""
    if not ceiling.link_bytes:
        return True
    return any(op.link_bytes and cases_of(op, request.suite or "smoke") for op in ops if not op.is_ceiling)


def outdated(records: Iterable[Record], retuned: Iterable[Retuned]) -> set[tuple[str, str, int]]:
    """(op, case id, repetition) of records whose implementation has got another configuration since."""
    configs = {(op, impl, case): dict(config) for op, impl, case, config in retuned}
    return {
        (r.op, r.case_id, r.repeat)
        for r in records
        if r.is_timed and r.key in configs and (r.config.get("tuned") or {}) != configs[r.key]
    }


def ordered(ops: Sequence[Op], request: Request, on_host: bool) -> list[tuple[Op, Any]]:
    """Each (op, case) of one repetition, in the order of measuring."""
    suite = request.suite or "smoke"
    early = "quick" if suite in ("full", SWEEPS) else suite
    ceilings = "smoke" if on_host else early
    found = [(op, case) for op in ops if op.is_ceiling for case in cases_of(op, ceilings)]
    for is_early in (True, False):
        queues = []
        for op in ops:
            if op.is_ceiling and (is_early or on_host):
                continue
            ids = {case.id for case in cases_of(op, early)}
            wanted = [case for case in cases_of(op, suite) if (case.id in ids) is is_early]
            wanted = [case for case in wanted if op.is_ceiling or request.case in case.id]
            by_size = sorted(wanted, key=lambda case: -op.work(case).bytes)
            queues.append([(op, by_size[i]) for i in halving(len(by_size))])
        found += round_robin(queues)
    return found


def shard_of(cases: Sequence[tuple[Op, Any]], shard: tuple[int, int]) -> list[tuple[Op, Any]]:
    """All ceilings, which every prediction needs, and every n-th of the other cases."""
    index, count = shard
    others = [each for each in cases if not each[0].is_ceiling]
    mine = {(op.name, case.id) for op, case in others[index::count]}
    return [(op, case) for op, case in cases if op.is_ceiling or (op.name, case.id) in mine]


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
    cases = [*op.cases("quick"), *op.cases("full")] if suite == "full" else op.of_suite(suite)
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
