"""Execute one compiled kernel on the host: place its tensors in the emulated memory and run the CTAs of its grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from random import Random
from typing import Any

import numpy as np
import torch

from bench.inspection.emulator import arithmetic, matrices, movement, tensor_maps
from bench.inspection.emulator.machine import Machine, Step
from bench.inspection.emulator.memory import SECTOR, GlobalMemory
from bench.inspection.emulator.ptx import Instruction, Listing, NotEmulated
from bench.inspection.emulator.tensor_maps import TensorMap

CTAS_TOGETHER, CTAS_BY_TURNS = 32, 8
"""How many CTAs run at a time. Together, more hardly cost more; by turns, each step goes through all threads."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled kernel and what it is launched with."""

    listing: Listing
    arguments: tuple[Any, ...]
    """In the order of the kernel's parameters: tensors on the host, `TensorMap`s, integers and fp32 numbers."""
    shared: int
    """Bytes of shared memory of each CTA."""
    grid: tuple[int, ...]

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        for value in self.arguments:
            if torch.is_tensor(value):
                yield value
            elif isinstance(value, TensorMap):
                yield value.tensor


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a launch asked of the memories, and which instructions its warps executed.

    - `touched`: bytes of the distinct 32-byte sectors loaded and stored: the traffic that a perfect cache leaves
    - `memory`: bytes and sectors asked for, such as `load bytes` and `store sectors`
    - `shared`: cycles of the banks by kind of access, and the `least` cycles that so many bytes need
    - `executed`: PTX instructions by name, once per warp
    - `flop`: FLOP of the tensor cores, padding included
    - `turns`: for each PTX instruction, the most turns that a warp made, without leaving it, of a loop around one
    - `under_way`: bytes still on their way to a CTA after a wait for others; the lower quartile over all waits
    """

    touched: dict[str, int]
    memory: Counter[str]
    shared: Counter[str] = field(default_factory=Counter)
    executed: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    flop: int = 0
    under_way: float = 0.0


MAKERS = movement.MAKERS | tensor_maps.MAKERS | matrices.MAKERS
"""What makes the step of an instruction, by the beginning of its opcode."""


def make_step(m: Machine, ins: Instruction) -> Step:
    """The step that executes an instruction: arithmetic by its types, others by the longest known beginning."""
    step = arithmetic.step_for(m, ins)
    if step is not None:
        return step
    parts = ins.opcode.split(".")
    for n in range(len(parts), 0, -1):
        if maker := MAKERS.get(".".join(parts[:n])):
            return maker(m, ins)
    raise NotEmulated(ins.text)


def placed(program: Program, memory: GlobalMemory) -> dict[str, Any]:
    """The arguments under the names of the kernel's parameters: tensors as addresses, floats as their fp32 bits."""
    values = list(program.arguments)
    for i, value in enumerate(values):
        if torch.is_tensor(value):
            values[i] = memory.address(value)
        elif isinstance(value, float):
            values[i] = int(np.float32(value).view(np.uint32))
    names = program.listing.parameters
    values += [0] * (len(names) - len(values))  # pointers to scratch memory, which our kernels do not use
    return dict(zip(names, values, strict=True))


def execute(program: Program, *, seed: int | None = None, ctas: int | None = None) -> Counts:
    """Run the kernel; its tensors are changed as a GPU would change them.

    With a `seed`, warps and CTAs take turns in an order drawn from it, and copies and products happen at moments drawn
    from it; without one, all go together, and copies and products happen as late as possible. `ctas` runs only that
    many CTAs, the first of the grid, to count what they do.

    Raises `Fault` where a GPU would, and `NotEmulated` for an instruction that the emulator does not know.
    """
    memory = GlobalMemory(program.tensors)
    arguments = placed(program, memory)
    x, y, z = (*program.grid, 1, 1, 1)[:3]
    places = islice(((i, j, k) for k, j, i in product(range(z), range(y), range(x))), ctas)
    random = None if seed is None else Random(seed)
    shared: Counter[str] = Counter()
    executed: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    flop = 0
    under_way: list[float] = []
    with np.errstate(all="ignore"):
        while batch := list(islice(places, CTAS_TOGETHER if random is None else CTAS_BY_TURNS)):
            machine = Machine(program.listing, memory, arguments, program.shared, batch, (x, y, z))
            machine.run(make_step, random)
            shared += machine.shared.counts
            executed += machine.executed
            turns |= machine.loops.around()
            flop += machine.flop
            under_way += machine.under_way
    memory.write_back()
    touched = {kind: int(np.count_nonzero(n)) * SECTOR for kind, n in memory.sectors.items()}
    return Counts(
        touched=touched,
        memory=memory.counts,
        shared=shared,
        executed=executed,
        turns=turns,
        flop=flop,
        under_way=float(np.percentile(under_way, 25)) if under_way else 0.0,
    )
