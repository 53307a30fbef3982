"""Which configurations are worth GPU time. The host finds out by compiling them; no GPU is needed.

For every tunable implementation, the cases of a suite fall into shape classes. The case with the most bytes, up to
`MOST_BYTES`, stands for its class. Its reasoned configuration and all candidates are compiled for the part. A candidate
falls if

- it cannot be planned or compiled, or spills registers;
- fewer of its CTAs fit on an SM than its plan counts on;
- it compiles to the same binaries as a candidate before it;
- it has fewer bytes in flight than the part needs, and fewer than the reasoned configuration has.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BadRequest, describe, require
from bench.inspection.codegen.build import configuration, refuse_interpreter, report_of
from bench.inspection.codegen.judge import KernelReport, problems
from bench.inspection.codegen.pool import KILLED, compile_each
from bench.inspection.targets import compile_targets
from kernels.op import SUITES, Config, Impl, Op, Target, config_text

DEFAULT: Config = ()
"""Nothing is overridden: the plan reasons every field."""

SAME = "the same as"

MOST_BYTES = 8 << 30
"""A case with more takes longer to draw than to tune, so it comes behind the others of its class."""


@dataclass(frozen=True, kw_only=True)
class ShapeClass:
    """The cases of a suite that share one configuration of one implementation, most bytes first, but those with more
    than `MOST_BYTES` last."""

    op: str
    impl: str
    name: str
    cases: tuple[Any, ...]
    configs: tuple[Config, ...]
    """The reasoned one first."""
    bytes: int = 0
    """Compulsory bytes of all its cases."""

    @property
    def label(self) -> str:
        return f"{self.op} {self.impl} [{self.name}]"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration of one shape class, to be compiled for one part."""

    catalogue: str
    op: str
    impl: str
    case: Any
    target: Target


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of a trial: a report for each launch, or the reason why there is none."""

    reports: tuple[KernelReport, ...] = ()
    binaries: tuple[str, ...] = ()
    """One text for each launch; equal texts mean the same binary over the same grid."""
    declared: tuple[int, ...] = ()
    """For each launch, the CTAs per SM that the implementation's stages count on."""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A shape class on one part: which configurations are worth timing, and why the others are not."""

    shape_class: ShapeClass
    sm: int
    survivors: tuple[Config, ...]
    fallen: tuple[tuple[Config, str], ...]
    error: str = ""
    """Why even the reasoned configuration cannot run; then no configuration survives."""

    def lines(self) -> list[str]:
        head = f"{self.shape_class.label} sm_{self.sm}, {self.shape_class.cases[0].id}: "
        if self.error:
            return [head + self.error]
        survived = ", ".join(config_text(c) for c in self.survivors)
        body = f"{len(self.survivors)} of {len(self.shape_class.configs)} survive: {survived}"
        return [head + body, *fallen_lines(self.fallen)]

    def as_dict(self) -> dict[str, Any]:
        return {
            "op": self.shape_class.op,
            "impl": self.shape_class.impl,
            "shape_class": self.shape_class.name,
            "case_id": self.shape_class.cases[0].id,
            "sm": self.sm,
            "survivors": [dict(config) for config in self.survivors],
            "fallen": [{"config": dict(config), "reason": reason} for config, reason in self.fallen],
            "error": self.error,
        }


def fallen_lines(fallen: Sequence[tuple[Config, str]]) -> list[str]:
    """One line for each candidate; those that compile to what another one does are only counted."""
    told = [f"    {config_text(config)}: {why}" for config, why in fallen if not why.startswith(SAME)]
    same = len(fallen) - len(told)
    return told + ([f"    {same} more compile to what another does"] if same else [])


def config_of(fields: Iterable[tuple[str, int]]) -> Config:
    return tuple(sorted(fields))


def tunable(catalogue: str, ops: Sequence[str], impls: Sequence[str]) -> list[tuple[Op, Impl]]:
    """The tunable implementations among those asked for. BadRequest for an unknown name, or where there are none."""
    registry = importlib.import_module(catalogue)
    known: dict[str, Op] = registry.discover()
    require("op", ops, known)
    asked = [op for op in known.values() if not ops or op.name in ops]
    found = [(op, impl) for op in asked for impl in registry.implementations(op.name)[0] if impl.tuning]
    require("tunable implementation", impls, dict.fromkeys(impl.name for _, impl in found))
    chosen = [(op, impl) for op, impl in found if not impls or impl.name in impls]
    if not chosen:
        raise BadRequest(f"nothing can be tuned in {', '.join(ops) or 'any op'}")
    return chosen


def shape_classes(chosen: Iterable[tuple[Op, Impl]], suite: str, target: Target) -> list[ShapeClass]:
    """All shape classes of the suite that the part supports and that have a candidate."""
    require("suite", [suite], SUITES)
    reasoned = dataclasses.replace(target, config=DEFAULT)
    found = []
    for op, impl in chosen:
        assert impl.tuning
        members: dict[str, list[Any]] = {}
        for case in op.cases(suite):
            if impl.supports(case, reasoned) is None:
                members.setdefault(impl.tuning.shape_class(case), []).append(case)
        for name, cases in members.items():
            cases.sort(key=lambda case: (op.work(case).bytes > MOST_BYTES, -op.work(case).bytes))
            tried = (config_of(c.items()) for c in impl.tuning.candidates(cases[0], reasoned))
            configs = tuple(dict.fromkeys([DEFAULT, *tried]))
            if len(configs) > 1:
                size = sum(op.work(case).bytes for case in cases)
                shape_class = ShapeClass(
                    op=op.name, impl=impl.name, name=name, cases=tuple(cases), configs=configs, bytes=size
                )
                found.append(shape_class)
    return found


def compile_trial(trial: Trial) -> Compiled:
    """In a process of the pool: build with `meta` inputs, compile every launch, and read the listings."""
    refuse_interpreter()
    registry = importlib.import_module(trial.catalogue)
    op = registry.discover()[trial.op]
    impl = next(i for i in registry.implementations(trial.op)[0] if i.name == trial.impl)
    target, names = trial.target, {"op": trial.op, "impl": trial.impl, "case_id": trial.case.id}
    try:
        built = impl.build(trial.case, op.inputs(trial.case, "meta", 0), target)
    except Exception as error:  # a plan that refuses a configuration is a result here
        return Compiled(error=f"can't be planned: {describe(error)}")
    reports = [report_of(launch, target, **names) for launch in built.launches]
    if broken := next((r.error for r in reports if r.error), ""):
        return Compiled(error=broken)
    binaries = tuple(f"{configuration(launch, target.sm)} {launch.grid}" for launch in built.launches)
    declared = tuple(stage.ctas_per_sm for stage in impl.stages(trial.case, target))
    return Compiled(reports=tuple(reports), binaries=binaries, declared=declared)


def prune(
    classes: Sequence[ShapeClass],
    target: Target,
    catalogue: str,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Pruned]:
    """Compile and judge classes on one part, each as soon as its configurations are compiled, in the given order.

    While the caller works with one, every process of the pool compiles one configuration of the next and then waits.
    BadRequest for a part whose limits are not known.
    """
    if target.sm not in compile_targets():
        known = ", ".join(f"sm_{sm}" for sm in compile_targets())
        raise BadRequest(
            f"what an SM of sm_{target.sm} holds is not known here, so nothing can be pruned; known: {known}"
        )
    try:
        refuse_interpreter()
    except RuntimeError as error:
        raise BadRequest(str(error)) from error
    trials = {
        (shape_class.label, config): Trial(
            catalogue=catalogue,
            op=shape_class.op,
            impl=shape_class.impl,
            case=shape_class.cases[0],
            target=dataclasses.replace(target, config=config),
        )
        for shape_class in classes
        for config in shape_class.configs
    }
    compiled: dict[Trial, Compiled] = {}
    waiting = deque(classes)
    for trial, made in compile_each(compile_trial, list(trials.values()), workers):
        compiled[trial] = made or Compiled(error=KILLED)
        progress(len(compiled), len(trials))
        while waiting and all(trials[waiting[0].label, config] in compiled for config in waiting[0].configs):
            first = waiting.popleft()
            yield judge(first, target.sm, {config: compiled[trials[first.label, config]] for config in first.configs})


def judge(shape_class: ShapeClass, sm: int, compiled: dict[Config, Compiled]) -> Pruned:
    """Which configurations survive, given what the compiler made of each. Pure."""
    default = compiled[DEFAULT]
    if default.error:
        return Pruned(shape_class=shape_class, sm=sm, survivors=(), fallen=(), error=default.error)
    survivors, fallen = [DEFAULT], []
    seen = {default.binaries: DEFAULT}
    for config in shape_class.configs[1:]:
        made = compiled[config]
        twin = seen.get(made.binaries)
        reason = made.error or (f"{SAME} {config_text(twin)}" if twin is not None else worse(made, default))
        if reason:
            fallen.append((config, reason))
        else:
            survivors.append(config)
            seen[made.binaries] = config
    return Pruned(shape_class=shape_class, sm=sm, survivors=tuple(survivors), fallen=tuple(fallen))


FATAL = ("does not fit", "spills")
FEW = "few bytes in flight"
CROWDED = "too many CTAs"


def worse(made: Compiled, default: Compiled) -> str:
    """What rules a candidate out; empty if nothing does.

    Spills and misfits always do. Any other problem does if the default does not have it. Few bytes in flight do unless
    the default has as few.
    """
    excused = {kind(p) for p in wrong_with(default)} - set(FATAL)
    if in_flight(made) < in_flight(default):
        excused -= {FEW}
    return "; ".join(p for p in wrong_with(made) if kind(p) not in excused)


def wrong_with(made: Compiled) -> list[str]:
    """The problems of all launches, and each launch of which fewer CTAs fit than its plan counts on."""
    found = [p for r in made.reports for p in problems(r)]
    if len(made.declared) == len(made.reports):
        found += [
            f"{CROWDED}: {r.kernel} counts on {declared} CTAs per SM, {r.ctas_per_sm} fit"
            for declared, r in zip(made.declared, made.reports, strict=True)
            if 0 < r.ctas_per_sm < declared
        ]
    return found


def kind(problem: str) -> str:
    return problem.split(":")[0]


def in_flight(made: Compiled) -> int:
    """Bytes in flight per SM of the launch that streams: the one that has the most."""
    return max((r.bytes_in_flight for r in made.reports), default=0)
