"""Compile what would run, without a GPU: every Triton kernel in every configuration of the measured cases.

Triton's own launcher code binds the signature (types, divisibility, constants), so the binary inspected here is the one
that a launch would compile. Kernels must not be interpreted in this process.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from math import prod
from typing import Any

from bench.devices import CAPABILITIES, bytes_in_flight_needed
from bench.errors import BadRequest, describe
from bench.inspection.codegen import disassemble, issue, parse
from bench.inspection.codegen.judge import KernelReport, Stream
from bench.inspection.codegen.pool import KILLED, compile_each
from bench.inspection.emulator import ptx
from bench.inspection.targets import compile_targets
from bench.machine import usable_cores
from kernels.launch import KernelLaunch
from kernels.op import SUITES, Impl, Op, Target, discover, implementations

BATCH = 8
"""Configurations that one process compiles before it disassembles them together."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One configuration to compile for a part: launch number `index` of an implementation's case."""

    op: str
    impl: str
    case: Any
    target: Target
    index: int
    cases: int = 0
    """How many cases share the configuration."""

    def failed(self, error: str) -> KernelReport:
        sm, part = self.target.sm, self.target.name
        return KernelReport(op=self.op, impl=self.impl, kernel="", case_id=self.case.id, sm=sm, part=part, error=error)


def refuse_interpreter() -> None:
    """Raise `BadRequest` if kernels are interpreted in this process: then they cannot be compiled."""
    from triton import knobs

    if knobs.runtime.interpret:
        raise BadRequest(
            "TRITON_INTERPRET is set, so Triton kernels are interpreted here and cannot be compiled: "
            "unset it and start again"
        )


def bind(launch: KernelLaunch, sm: int) -> tuple[Any, dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """Options, signature, constants and attributes, as `kernel[grid](...)` itself derives them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", sm, 32))
    kernel = launch.kernel
    arguments = {**launch.args, **launch.constexprs, **launch.options}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(**arguments)
    return kernel._pack_args(backend, arguments, bound, specialization, options)


def configuration(launch: KernelLaunch, sm: int) -> str:
    """A text that is equal for launches that compile to the same binary."""
    _, signature, constants, attributes = bind(launch, sm)
    name = (launch.kernel.fn.__module__, launch.kernel.fn.__qualname__)
    return repr((name, signature, constants, attributes, launch.options))


def compiled(launch: KernelLaunch, sm: int, *, assemble: bool = True) -> Any:
    """Triton's compiled kernel, with its listings in `.asm`. Unless `assemble`, they end with the PTX.

    That PTX does not name lines of the source. Its instructions are the same, and compiling takes a sixth less. The
    assembler orders some instructions otherwise without them, so what is assembled has them, as in a launch.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options, signature, constants, attributes = bind(launch, sm)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    with knobs.runtime.scope(), knobs.compilation.scope():
        if not assemble:
            knobs.runtime.add_stages_inspection_hook = without_assembler
            knobs.compilation.disable_line_info = True
        return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options.__dict__)


def without_assembler(backend: Any = None, stages: dict[str, Any] | None = None, *_: Any) -> tuple[str, str]:
    """Triton calls it once for a part of the key in its cache, and once with the stages of compiling."""
    if stages:
        stages["cubin"] = lambda ptx, metadata: b""
    return "without assembler", ""


def stream_of(name: str, accesses: list[parse.Access], threads: list[parse.PtxAccess], at: set[int]) -> Stream:
    """How one main argument is moved, and the narrowest access that a thread makes to it."""
    hows = {access.how for access in accesses if name in access.args}
    reads = hows - {"store"} or hows
    if not reads:
        return Stream(name=name, how=None, width=0)
    how = next(h for h in ("load", "cp.async", "tma", "store") if h in reads)  # the weakest way counts
    widths = [a.width for a in threads if a.parameters & at and (a.how == "store") == (how == "store") and a.width]
    return Stream(name=name, how=how, width=0 if how == "tma" else min(widths, default=0))


def in_flight(
    launch: KernelLaunch,
    accesses: list[parse.Access],
    threads: list[parse.PtxAccess],
    streams: Sequence[Stream],
    at: dict[str, set[int]],
    sass: Sequence[parse.Instruction],
    cta_threads: int,
) -> int:
    """Bytes that one CTA keeps under way in its main streams: pipelined tiles, and plain loads that wait together.

    SASS does not tell which argument a plain load reads. So of the waiting loads of each width, the share counts that
    the PTX attributes to the main streams.
    """
    total = parse.pipelined_bytes(accesses, launch.streams)
    main = set().union(*(at[s.name] for s in streams if s.how == "load"), set())
    for width in {s.width for s in streams if s.how == "load" and s.width}:
        loads = [a for a in threads if a.how == "load" and a.width == width]
        share = sum(bool(a.parameters & main) for a in loads) / len(loads)
        total += int(parse.sass_waiting_bytes(sass, width) * cta_threads * share)
    return total


def inspect(launch: KernelLaunch, target: Target, binary: Any, sass: Sequence[parse.Instruction]) -> dict[str, Any]:
    """The fields of a `KernelReport` that come from the listings of a compiled kernel."""
    ttgir = binary.asm["ttgir"]
    listing = ptx.parse(binary.asm["ptx"])
    usage = disassemble.usage(binary.asm["cubin"])
    arguments = parse.ttgir_arguments(ttgir)
    pointers = [i for i, (_, kind, _) in enumerate(arguments) if "tt.ptr" in kind or "tensordesc" in kind]
    at = {name: {i for i in pointers if arguments[i][2] == name} for name in launch.streams}
    accesses = parse.ttgir_accesses(ttgir)
    threads = parse.ptx_accesses(listing, pointers)
    streams = tuple(stream_of(name, accesses, threads, at[name]) for name in launch.streams)
    cta_threads = listing.threads
    shared = binary.metadata.shared
    capability = CAPABILITIES[target.sm]
    fits = capability.ctas_per_sm(
        registers=usage.registers, threads=cta_threads, shared=shared, tmem_columns=binary.metadata.tmem_size
    )
    resident = min(fits, -(-prod(launch.grid) // target.sm_count))
    return {
        "registers": usage.registers,
        "shared_bytes": shared,
        "stack_bytes": usage.stack,
        "spill_instructions": parse.sass_spills(sass),
        "threads": cta_threads,
        "ctas_per_sm": fits,
        "streams": streams,
        "mma": parse.sass_mma(sass),
        "bytes_in_flight": resident * in_flight(launch, accesses, threads, streams, at, sass, cta_threads),
        "bytes_needed": bytes_in_flight_needed(target.sm) if launch.streams else 0,
        "slots_per_byte": issue.slots_per_byte(
            sass,
            listing,
            threads,
            frozenset().union(*at.values()),
            tma_bytes=next((a.tile_bytes for a in accesses if a.how == "tma" and a.args & set(launch.streams)), 0),
        ),
    }


def last_line(error: BaseException) -> str:
    """The exception's type and the last line of its message: Triton puts the reason there, below the source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:300]


def described(
    launch: KernelLaunch, target: Target, *, op: str, impl: str, case_id: str, cases: int = 1
) -> KernelReport:
    """What is known of a launch before it is compiled."""
    constants = [f"{name}={value}" for name, value in launch.constexprs.items()]
    return KernelReport(
        op=op,
        impl=impl,
        kernel=launch.kernel.fn.__name__,
        case_id=case_id,
        cases=cases,
        sm=target.sm,
        part=target.name,
        config=" ".join([*constants, f"warps={launch.num_warps}"]),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        grid_ctas=prod(launch.grid),
        slots_declared=launch.slots_per_byte,
        wants_mma=launch.wants_mma,
        why_narrow=launch.why_narrow,
        why_few_in_flight=launch.why_few_in_flight,
    )


def report_of(
    launch: KernelLaunch, target: Target, *, op: str, impl: str, case_id: str, cases: int = 1
) -> KernelReport:
    """Compile one launch and judge it; a compiler's refusal becomes the report's `error`."""
    return reports_of([(launch, described(launch, target, op=op, impl=impl, case_id=case_id, cases=cases))], target)[0]


def reports_of(asked: Sequence[tuple[KernelLaunch, KernelReport]], target: Target) -> list[KernelReport]:
    """Compile launches for one part, and complete what is known of each. One disassembler reads all of them."""
    refuse_interpreter()
    binaries: dict[int, Any] = {}
    done = [report for _, report in asked]
    for at, (launch, report) in enumerate(asked):
        started = time.perf_counter()
        try:
            binaries[at] = compiled(launch, target.sm)
        except Exception as error:  # any refusal of the compiler is a result here
            done[at] = replace(report, error=f"does not compile: {last_line(error)}")
        else:
            done[at] = replace(report, seconds=time.perf_counter() - started)
    try:
        listings = disassemble.sass([binary.asm["cubin"] for binary in binaries.values()], target.sm)
        for sass, (at, binary) in zip(listings, binaries.items(), strict=True):
            done[at] = replace(done[at], **inspect(asked[at][0], target, binary, sass))
    except (LookupError, ValueError, StopIteration, subprocess.CalledProcessError) as error:
        if len(asked) > 1:  # read each alone, so that only those at fault have the error
            return [report for one in asked for report in reports_of([one], target)]
        return [replace(done[0], error=f"its listings were not understood: {describe(error)}")]
    return done


def run_tasks(tasks: Sequence[Task]) -> list[KernelReport]:
    """In a process of the pool: rebuild launches for one part from their names, compile them and judge them."""
    asked = []
    for task in tasks:
        impl = next(i for i in implementations(task.op)[0] if i.name == task.impl)
        launch = launches(discover()[task.op], impl, task.case, task.target)[task.index]
        known = described(launch, task.target, op=task.op, impl=task.impl, case_id=task.case.id, cases=task.cases)
        asked.append((launch, known))
    return reports_of(asked, tasks[0].target)


def launches(op: Op, impl: Impl, case: Any, target: Target) -> Sequence[KernelLaunch]:
    """The kernels that an implementation with `build` launches for a case."""
    assert impl.build is not None
    return impl.build(case, op.inputs(case, "meta", 0), target).launches


def collect(
    ops: Sequence[str] | None, targets: Sequence[Target], suites: Sequence[str]
) -> tuple[list[Task], list[KernelReport]]:
    """The distinct configurations of all measured cases, and the cases that could not even be planned.

    Of the cases that share a configuration, the one with the largest grid stands for all.
    """
    refuse_interpreter()
    found: dict[tuple[str, str, int, str], tuple[int, Task]] = {}
    failed: list[KernelReport] = []
    for op in (discover()[name] for name in ops or discover()):
        cases = {case.id: case for suite in suites for case in op.cases(suite)}
        for impl, case, target in product(implementations(op.name)[0], cases.values(), targets):
            if impl.build is None or impl.supports(case, target) is not None:
                continue
            fresh = Task(op=op.name, impl=impl.name, case=case, target=target, index=0)
            try:
                for index, launch in enumerate(launches(op, impl, case, target)):
                    key = (op.name, impl.name, target.sm, configuration(launch, target.sm))
                    size = prod(launch.grid)
                    grid, task = found.get(key, (-1, fresh))
                    if size > grid:
                        task = replace(fresh, index=index, cases=task.cases)
                    found[key] = (max(size, grid), replace(task, cases=task.cases + 1))
            except Exception as error:  # a broken plan is a result here
                failed.append(fresh.failed(f"can't be planned: {describe(error)}"))
    return [task for _, task in found.values()], failed


def reports(
    ops: Sequence[str] | None = None,
    sms: Sequence[int] | None = None,
    suites: Sequence[str] = SUITES,
    progress: Callable[[int, int, KernelReport], None] = lambda done, total, report: None,
) -> list[KernelReport]:
    """Compile every configuration for the capabilities `sms`, and call `progress(done, total, report)` after each."""
    known = compile_targets()
    tasks, finished = collect(ops, [known[sm] for sm in sms or known], suites)
    total = len(tasks) + len(finished)
    batches = batched(tasks, usable_cores())
    while batches:
        alone: list[tuple[Task, ...]] = []
        for batch, made in compile_each(run_tasks, batches, usable_cores()):
            if made is None and len(batch) > 1:
                alone += [(task,) for task in batch]
                continue
            for report in made or [task.failed(KILLED) for task in batch]:
                finished.append(report)
                progress(len(finished), total, report)
        batches = alone
    return sorted(finished, key=lambda r: (r.op, r.impl, r.kernel, r.config, r.sm))


def batched(tasks: Sequence[Task], workers: int) -> list[tuple[Task, ...]]:
    """Tasks for one part together, `BATCH` at the most, and few enough that each worker gets several batches."""
    size = max(1, min(BATCH, len(tasks) // (4 * workers)))
    by_sm = groupby(sorted(tasks, key=lambda task: task.target.sm), key=lambda task: task.target.sm)
    kinds = [tuple(group) for _, group in by_sm]
    return [kind[at : at + size] for kind in kinds for at in range(0, len(kind), size)]
