"""The parts that kernels are compiled for and executed on where there is none: one of each compute capability."""

from __future__ import annotations

from bench.devices import CAPABILITIES, find
from bench.inspection.emulator import TENSOR_CORES
from kernels.op import Target


def compile_targets() -> dict[int, Target]:
    """What code generation compiles for, by compute capability times ten."""
    return {sm: find(row.part).target() for sm, row in CAPABILITIES.items() if row.part}


def emulate_targets() -> dict[int, Target]:
    """Those of them whose kernels the emulator can execute."""
    return {sm: target for sm, target in compile_targets().items() if CAPABILITIES[sm].mma in TENSOR_CORES}
