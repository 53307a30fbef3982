"""One case, all its implementations: prediction -> inputs -> gate -> interleaved timing -> gate again -> Records.

This runs inside a worker process (`worker.py`). What one implementation does wrong is not raised; it becomes the
record of that implementation. A fault that spoils the process raises `Broken`, so that the worker can be replaced.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import describe
from bench.measure import parts
from bench.measure.attempts import sample_calmly
from bench.measure.copies import DoesNotFit, draw_copies
from bench.measure.core import InCache, cores_of_parts, in_cache
from bench.measure.flags import allocates, flags_of, waits
from bench.measure.gate import Contents, check_copies, check_prepared
from bench.measure.memory import collect_if_memory_is_short
from bench.measure.roof import ReadRoof
from bench.measure.settings import Listener, Settings
from bench.measure.timing import (
    AIM,
    HOST_AIM,
    GraphTimer,
    HostTimer,
    Rotation,
    Sampling,
    SpoiltCapture,
    Timer,
    host_flush,
    isolated_times,
)
from bench.predict.roofline import Prediction, predict_from_ceilings, predict_from_datasheet
from bench.records import Record, now
from kernels.common import tuned
from kernels.common.compare import Errors
from kernels.launch import Built
from kernels.op import Impl, Inputs, Launch, Op, Stage, Target


class Broken(Exception):
    """The process cannot be used any more. The listener has the records made so far."""


@dataclass(kw_only=True)
class Entrant:
    """One implementation on its way through the measurement of one case."""

    impl: Impl
    stages: Sequence[Stage]
    prediction: dict[str, Any]
    launches: list[Launch] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    timer: Timer | None = None
    twin: Timer | None = None
    """A second timer of the same launches, for the implementation that is timed twice."""
    core: InCache | None = None
    """On a host, the same kernel in the caches of its cores."""


def measure(op: Op, case: Any, impls: Sequence[Impl], target: Target, settings: Settings, listener: Listener) -> None:
    """Measure one case with every given implementation. The listener gets exactly one record of each."""
    Measurement(op, case, target, settings, listener).run(impls)


class Measurement:
    """The state of one case being measured."""

    def __init__(self, op: Op, case: Any, target: Target, settings: Settings, listener: Listener) -> None:
        self.op, self.case, self.target = op, case, target
        self.settings, self.listener = settings, listener
        self.copies: list[Inputs] = []
        self.contents: Contents | None = None
        self.spoilt = False
        self.isolated = 0
        self.roof: ReadRoof | None = None
        self.rotation: Rotation | None = None

    def run(self, impls: Sequence[Impl]) -> None:
        entrants = [entrant for impl in impls if (entrant := self.admit(impl))]
        if not entrants:
            return
        try:
            self.draw_inputs()
        except DoesNotFit as lack:
            for entrant in entrants:
                self.emit(entrant.impl, entrant, status="refused", reason=str(lack))
            return
        except Exception as error:
            for entrant in entrants:
                self.fail(entrant, f"inputs: {describe(error)}", error)
            return
        if not self.settings.timed:
            for entrant in entrants:
                self.survives(entrant, self.check)
            entrants = []
        ready = [entrant for entrant in entrants if self.survives(entrant, self.gate)]
        if ready:
            self.listener.entering("", "the roof")
            self.roof = self.settings.roof()
        timed = [entrant for entrant in ready if self.survives(entrant, self.make_timer)]
        if self.settings.aa and timed and not self.survives(timed[0], self.make_twin):
            timed = timed[1:]
        if timed:
            self.time(timed)
        self.copies, self.contents = [], None
        collect_if_memory_is_short(self.target)
        if self.spoilt:
            raise Broken("a spoilt capture keeps torch from freeing memory")

    def admit(self, impl: Impl) -> Entrant | None:
        """Refuse what is not supported here; report the prediction of the others before anything is measured."""
        self.listener.entering(impl.name, "support")
        try:
            refusal = impl.supports(self.case, self.target)
            if refusal:
                self.emit(impl, status="refused", reason=refusal)
                return None
            stages = tuple(impl.stages(self.case, self.target))
            prediction = self.predict(stages)
        except Exception as error:
            self.emit(impl, status="failed", reason=describe(error))
            return None
        names = {"op": self.op.name, "impl": impl.name, "case_id": self.case.id}
        run = {"run_id": self.settings.run_id, "repeat": self.settings.repeat}
        self.listener.prediction({**run, **names, **prediction})
        return Entrant(impl=impl, stages=stages, prediction=prediction)

    def predict(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """The predictions from the datasheet and from the measured ceilings.

        The second is None for the ceilings themselves and while no ceilings are known. Both are None where bytes cross
        to the host and the link's rate is not known.
        """
        settings = self.settings
        datasheet = predict_from_datasheet(stages, settings.spec) if settings.spec else None
        measured = None
        if settings.ceilings and not self.op.is_ceiling:
            measured = predict_from_ceilings(stages, settings.ceilings, self.target)
        return {"datasheet": usable(datasheet), "measured": usable(measured), "at": now()}

    def draw_inputs(self) -> None:
        """Draw the rotating copies, and the values to which the gate changes the first one. Raises `DoesNotFit`."""
        self.listener.entering("", "inputs")
        settings = self.settings
        drawn = draw_copies(
            self.op,
            self.case,
            self.target,
            seed=settings.seed,
            repeat=settings.repeat,
            memory_bytes=settings.memory_bytes,
            timed=settings.timed,
        )
        self.copies, self.rotation = drawn.copies, drawn.rotation
        self.contents = Contents(self.op, self.case, self.copies[0], drawn.fresh)
        self.contents.reference()  # before anything runs on these inputs

    def survives(self, entrant: Entrant, step: Callable[[Entrant], str | None]) -> bool:
        """Run one step. A wrong result or an exception ends the entrant with its record, and frees what it holds."""
        self.listener.entering(entrant.impl.name, step.__name__)
        try:
            wrong = step(entrant)
        except Exception as error:
            self.spoilt |= isinstance(error, SpoiltCapture)
            self.fail(entrant, describe(error), error)
            wrong = describe(error)
        if wrong:
            entrant.launches, entrant.timer = [], None
        return wrong is None

    def gate(self, entrant: Entrant) -> str | None:
        """Prepare all copies and check the first. A wrong result is recorded with its error and without a time."""
        entrant.launches = [entrant.impl.prepare(self.case, copy, self.target) for copy in self.copies]
        assert self.contents
        errors = check_prepared(self.contents, entrant.launches[0], self.target)
        if not errors.passed:
            self.emit(entrant.impl, entrant, status="wrong", reason=errors.reason, error=error_dict(errors))
        elif allocates(entrant.launches[0], self.target):
            entrant.flags.append("allocates")
        return errors.reason

    def check(self, entrant: Entrant) -> str | None:
        """The gate alone: record the verdict, and keep nothing of what was prepared."""
        wrong = self.gate(entrant)
        if wrong is None:
            self.emit(entrant.impl, entrant, status="ok")
        entrant.launches = []
        return wrong

    def make_timer(self, entrant: Entrant) -> None:
        entrant.timer = self.timer_of(entrant)
        entrant.core = in_cache(self.op, self.case, entrant.impl, self.target, self.roof.empty if self.roof else None)

    def make_twin(self, entrant: Entrant) -> None:
        entrant.twin = self.timer_of(entrant)

    def timer_of(self, entrant: Entrant) -> Timer:
        assert self.rotation
        if self.target.kind == "cuda":
            return GraphTimer(entrant.launches)
        roof = self.roof
        swept = roof is not None and roof.size >= self.rotation.flush_bytes
        return HostTimer(entrant.launches, host_flush(0 if swept else self.rotation.flush_bytes))

    def time(self, entrants: list[Entrant]) -> None:
        """Sample all in turns under telemetry, again if it was throttled or disturbed, then check every copy's output.

        Telemetry is of the whole case: all its implementations in turn, and the spin kernels between them.
        """
        timers = {e.impl.name: e.timer for e in entrants if e.timer}
        at_fault = {name: name for name in timers}
        first = entrants[0]
        if first.twin:
            timers[f"{first.impl.name} again"] = first.twin
            at_fault[f"{first.impl.name} again"] = first.impl.name
        # from here to the check only samples launch, so what none of them writes stays poisoned and shows
        for entrant in entrants:
            assert entrant.timer
            for copy, output in zip(self.copies, entrant.timer.outputs, strict=True):
                self.op.poison(self.case, copy, output)
        samplings, telemetry = sample_calmly(
            timers,
            self.settings.telemetry,
            attempts=1 + self.settings.retries,
            roof=self.roof,
            cores={e.impl.name: e.core for e in entrants if e.core},
            cap_s=self.settings.cap_s,
            aim=AIM if self.target.kind == "cuda" else HOST_AIM,
            entering=lambda name: self.listener.entering(at_fault[name], "timing"),
        )
        measured_at = now()
        self.listener.entering(first.impl.name, "final check")
        outputs = [e.timer.outputs for e in entrants if e.timer]
        assert self.contents
        found = check_copies(self.op, self.case, self.copies, outputs, {0: self.contents.reference()})
        for entrant, errors in zip(entrants, found, strict=True):
            sampling = samplings[entrant.impl.name]
            entrant.flags += self.flags(entrant, sampling, telemetry)
            self.emit(
                entrant.impl,
                entrant,
                status="ok" if errors.passed else "wrong",
                reason=errors.reason,
                error=error_dict(errors),
                # a wrong result has no time
                samples_s=sampling.samples_s if errors.passed else [],
                core=entrant.core.as_dict() if entrant.core and errors.passed else {},
                ranks_s=sampling.ranks_s if errors.passed else [],
                roof=self.beside(sampling) if errors.passed else {},
                isolated_s=self.isolate(entrant) if errors.passed else [],
                parts=self.parts(entrant) if errors.passed else [],
                stop=sampling.stop,
                telemetry=telemetry,
                measured_at=measured_at,
            )
        if first.twin and found[0].passed:
            self.note_aa(first.impl.name, samplings)
        for timer in timers.values():
            timer.close()

    def beside(self, sampling: Sampling) -> dict[str, Any]:
        """For the record: the reads around each sample."""
        if self.roof is None:
            return {}
        return {"bytes": self.roof.size, "before_s": sampling.before_s, "after_s": sampling.after_s}

    def isolate(self, entrant: Entrant) -> list[float]:
        if self.target.kind != "cuda":
            return []
        self.listener.entering(entrant.impl.name, "isolated")
        self.isolated += 1
        return isolated_times(entrant.launches, self.isolated - 1)

    def parts(self, entrant: Entrant) -> list[dict[str, Any]]:
        """Of our implementations, what each part of a step takes."""
        calls = parts.calls_of(entrant.launches[0], entrant.stages) if entrant.impl.ours else ()
        if not calls:
            return []
        self.listener.entering(entrant.impl.name, "parts")
        cores = cores_of_parts(entrant.impl, self.case, self.target, self.roof.empty if self.roof else None)
        return parts.sample(calls, self.target, self.roof, self.settings.cap_s, cores)

    def note_aa(self, name: str, samplings: Mapping[str, Sampling]) -> None:
        both = [samplings[name], samplings[f"{name} again"]]
        note = {"note": "aa", "op": self.op.name, "impl": name, "case_id": self.case.id}
        roofs = {"roof": [self.beside(each) for each in both]} if self.roof else {}
        self.listener.note({**note, "samples_s": [each.samples_s for each in both], **roofs})

    def flags(self, entrant: Entrant, sampling: Sampling, telemetry: Mapping[str, Any]) -> list[str]:
        """What a reader must know of this time."""
        assert self.rotation
        waited = getattr(entrant.timer, "waited", False) or waits(entrant.launches[0], sampling.samples_s, self.target)
        return flags_of(
            sampling,
            telemetry,
            self.rotation,
            self.target,
            work_bytes=self.op.work(self.case).bytes,
            fastest_read=self.fastest_read(),
            waited=waited,
        )

    def config(self, impl: Impl, launches: Sequence[Launch]) -> dict[str, Any]:
        """How a kernel of ours is launched, and which fields of that were tuned offline for this part."""
        if not isinstance(launches[0], Built):
            return {}
        tuned_fields = None
        if impl.tuning:
            tuned_fields = tuned.lookup(self.op.name, impl.name, self.target.name, impl.tuning.shape_class(self.case))
        return {"tuned": tuned_fields, "launches": [launch.config for launch in launches[0].launches]}

    def fastest_read(self) -> float | None:
        """B/s that compulsory traffic cannot exceed: the fastest read seen, or for a ceiling the datasheet's number."""
        settings = self.settings
        if not self.op.is_ceiling:
            return settings.ceilings.best_read if settings.ceilings else None
        bandwidth = settings.spec.memory_bandwidth if settings.spec else None
        return bandwidth.value if bandwidth else None

    def fail(self, entrant: Entrant, reason: str, error: Exception) -> None:
        self.emit(entrant.impl, entrant, status="failed", reason=reason)
        if self.target.kind == "cuda":
            recover_device(error)

    def emit(self, impl: Impl, entrant: Entrant | None = None, **fields: Any) -> None:
        """Report one record, with all that is known of the entrant."""
        stages = [dataclasses.asdict(stage) for stage in entrant.stages] if entrant else []
        self.listener.record(
            Record(
                op=self.op.name,
                impl=impl.name,
                ours=impl.ours,
                case_id=self.case.id,
                case=self.case.as_dict(),
                version=version(impl) if entrant else "",
                work=dataclasses.asdict(self.op.work(self.case)),
                stages=stages,
                prediction=entrant.prediction if entrant else {},
                rotation=self.rotation.as_dict() if self.rotation else {},
                flags=entrant.flags if entrant else [],
                config=self.config(impl, entrant.launches) if entrant and entrant.launches else {},
                seed=self.settings.seed,
                repeat=self.settings.repeat,
                run_id=self.settings.run_id,
                **fields,
            )
        )


def version(impl: Impl) -> str:
    """The library behind an implementation, for a record. A library without metadata still gets its time."""
    try:
        return impl.version() if impl.version else ""
    except Exception as error:
        return f"unknown ({describe(error)})"


def usable(prediction: Prediction | None) -> dict[str, Any] | None:
    """A prediction for a record, None without the memory's or a link's term: it would come from the wrong roof."""
    if prediction is None or {"memory_bandwidth", "host_bandwidth", "link_bandwidth"} & set(prediction.missing):
        return None
    return dataclasses.asdict(prediction)


def error_dict(errors: Errors) -> dict[str, Any]:
    """Metrics for a record. What is not finite (the error of a NaN) has no number in JSON and becomes None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in vars(errors).items()
    }


def recover_device(error: Exception) -> None:
    """After a fault on a GPU, free what can be freed. Raises `Broken` if the context is lost."""
    import torch

    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception as lost:
        raise Broken(describe(lost)) from error
