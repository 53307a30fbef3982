"""What compiled kernels ask of a part's memories and tensor cores, at the sizes that are measured, without a GPU.

Kernels are compiled here and handed to the emulator. It executes some CTAs of each launch; their bytes and cycles stand
for those of all. A share is the time that a unit of an SM needs for these CTAs, over the time that DRAM needs for their
bytes: above 1 the unit is slower than the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from bench.devices import CAPABILITIES, find
from bench.errors import BadRequest, require
from bench.inspection.codegen.build import bind, compiled, refuse_interpreter
from bench.inspection.emulator import ptx
from bench.inspection.emulator.execute import Counts, Program, execute
from bench.inspection.emulator.memory import SECTOR, Fault
from bench.inspection.emulator.tensor_maps import TensorMap
from bench.inspection.targets import emulate_targets
from kernels.launch import KernelLaunch
from kernels.op import discover, implementations

LARGEST = 3 << 30
"""Cases with more compulsory bytes are left out, because the host holds the inputs three times."""


def program(launch: KernelLaunch, sm: int) -> Program:
    """Compile a launch for `sm` and bind its arguments, whose tensors must be on the host."""
    binary = compiled(launch, sm, assemble=False)
    _, signature, _, _ = bind(launch, sm)
    layouts = iter(getattr(binary.metadata, "tensordesc_meta", None) or ())
    arguments: list[Any] = []
    for value in (launch.args[name] for name, kind in signature.items() if kind != "constexpr"):
        if hasattr(value, "block_shape"):  # Triton passes a tensor map, then the tensor's shape and strides
            shape, strides = tuple(value.shape), tuple(value.strides)
            box, swizzle = tuple(value.block_shape), next(layouts)["swizzle"]
            arguments += [
                TensorMap(tensor=value.base, shape=shape, strides=strides, box=box, swizzle=swizzle),
                *shape,
                *strides,
            ]
        else:
            arguments.append(value)
    return Program(
        listing=ptx.parse(binary.asm["ptx"]),
        arguments=tuple(arguments),
        shared=binary.metadata.shared,
        grid=launch.grid,
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One launch. `touched` and `asked` are bytes; `shared` and `tensor` are shares (see the module)."""

    op: str
    impl: str
    case_id: str
    kernel: str = ""
    sm: int = 0
    ctas: int = 0
    grid: int = 0
    touched: int = 0
    asked: int = 0
    shared: float = 0.0
    conflicts: float = 1.0
    """Cycles of the banks over the fewest cycles in which they could deliver the bytes."""
    tensor: float = 0.0
    under_way: float = 0.0
    """`Counts.under_way`; 0 where no copy overlaps with the work, or where there is no `cp.async`."""
    error: str = ""


def cycles_per_byte(sm: int) -> float:
    """Clocks of an SM in which DRAM delivers one byte to it, at the clock for which the peak is published."""
    spec = find(CAPABILITIES[sm].part)
    assert spec.memory_bandwidth is not None
    clock = spec.peaks["mma_bf16"].value / (CAPABILITIES[sm].mma_flop["mma_bf16"] * spec.sm_count)
    return clock * spec.sm_count / spec.memory_bandwidth.value


def row_of(counts: Counts, launch: KernelLaunch, sm: int, ctas: int, **names: str) -> Row:
    touched = sum(counts.touched.values())
    memory = touched * cycles_per_byte(sm)
    least = sum(n for kind, n in counts.shared.items() if kind.endswith("least cycles"))
    cycles = sum(n for kind, n in counts.shared.items() if kind.endswith(" cycles")) - least
    grid = prod(launch.grid)
    return Row(
        **names,
        kernel=launch.kernel.fn.__name__,
        sm=sm,
        ctas=min(ctas, grid),
        grid=grid,
        touched=touched,
        asked=SECTOR * (counts.memory["load sectors"] + counts.memory["store sectors"]),
        shared=cycles / memory,
        conflicts=cycles / least if least else 1.0,
        tensor=counts.flop / CAPABILITIES[sm].mma_flop["mma_bf16"] / memory,
        under_way=counts.under_way,
    )


def survey(
    ops: Sequence[str] | None,
    impls: Sequence[str],
    suite: str,
    case: str,
    sm: int,
    ctas: int,
    progress: Callable[[str], None] = lambda what: None,
) -> list[Row]:
    """Execute `ctas` CTAs of each launch of our kernels, case by case. Launches without main streams run whole.

    Raises `BadRequest` if no kernel of ours has such a case.
    """
    require("architecture", [str(sm)], [str(known) for known in emulate_targets()])
    refuse_interpreter()
    found: list[Row] = []
    target = emulate_targets()[sm]
    for op in (discover()[name] for name in ops or discover()):
        for impl in implementations(op.name)[0]:
            if impl.build is None or (impls and impl.name not in impls):
                continue
            for shape in (s for s in op.cases(suite) if case in s.id and impl.supports(s, target) is None):
                names: dict[str, Any] = {"op": op.name, "impl": impl.name, "case_id": shape.id}
                if op.work(shape).bytes > LARGEST:
                    found.append(Row(**names, error=f"left out: its {op.work(shape).bytes / 1e9:.1f} GB are too many"))
                    continue
                progress(f"{op.name} {shape.id}")
                try:
                    for launch in impl.build(shape, op.inputs(shape, "cpu", 0), target).launches:
                        most = ctas if launch.streams else prod(launch.grid)
                        found.append(row_of(execute(program(launch, sm), ctas=most), launch, sm, most, **names))
                except (Fault, ptx.NotEmulated) as error:
                    found.append(Row(**names, error=f"{type(error).__name__}: {error}"))
    if not found:
        raise BadRequest("nothing to execute: no kernel of ours takes such a case; `decodebench list impls` shows them")
    return found


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("op", lambda r: r.op),
    ("impl", lambda r: r.impl),
    ("case", lambda r: r.case_id),
    ("kernel", lambda r: r.kernel),
    ("CTAs", lambda r: f"{r.ctas} of {r.grid}"),
    ("MB touched", lambda r: f"{r.touched / 1e6:.3f}"),
    ("asked/touched", lambda r: f"{r.asked / r.touched:.2f}"),
    ("shared/DRAM time", lambda r: f"{r.shared:.2f}"),
    ("bank conflicts", lambda r: f"{r.conflicts:.2f}"),
    ("tensor/DRAM time", lambda r: f"{r.tensor:.2f}"),
    ("KiB under way", lambda r: f"{r.under_way / 1024:.0f}"),
    ("", lambda r: r.error),
)


def table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of strings, ready to be printed. A row with an error has no numbers."""
    headers = tuple(header for header, _ in COLUMNS)
    named = ("op", "impl", "case", "")
    return headers, [
        tuple(value(row) if header in named or not row.error else "" for header, value in COLUMNS) for row in rows
    ]
