"""One launch on the emulated part: compile it as it would be for a GPU, place its tensors, execute its CTAs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice, product
from random import Random
from typing import Any

import numpy as np
import torch

from bench.inspection.codegen.build import bind, compiled
from bench.inspection.emulator import arithmetic, matrices, movement, tensor_maps
from bench.inspection.emulator.machine import Machine, Step
from bench.inspection.emulator.memory import SECTOR, GlobalMemory
from bench.inspection.emulator.ptx import Instruction, Listing, NotEmulated, parse
from kernels.launch import KernelLaunch

CTAS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a launch asked of the memories, and which instructions its warps executed.

    `touched`: bytes of the distinct 32-byte sectors loaded and stored, what a perfect cache leaves of the traffic.
    `memory`: bytes and sectors asked for, `load bytes`, `store sectors`. `shared`: cycles of the banks by kind of
    access, and the `least` that so many bytes need. `executed`: PTX instructions by name, once per warp. `flop`: of the
    tensor cores, padding included. `under_way`: bytes of a CTA that are still on their way when it goes on with those
    that it waited for; a quarter of its waits leave less.
    """

    touched: dict[str, int]
    memory: Counter[str]
    shared: Counter[str] = field(default_factory=Counter)
    executed: Counter[str] = field(default_factory=Counter)
    flop: int = 0
    under_way: float = 0.0


MAKERS = movement.MAKERS | tensor_maps.MAKERS | matrices.MAKERS
"""By the beginning of an opcode."""


def make_step(m: Machine, ins: Instruction) -> Step:
    """What executes the instruction: arithmetic by its types, others by the longest beginning that is known."""
    step = arithmetic.step_for(m, ins)
    if step is not None:
        return step
    parts = ins.opcode.split(".")
    for n in range(len(parts), 0, -1):
        if maker := MAKERS.get(".".join(parts[:n])):
            return maker(m, ins)
    raise NotEmulated(ins.text)


def arguments_of(
    launch: KernelLaunch, sm: int, binary: Any, listing: Listing, memory: GlobalMemory
) -> dict[str, Any]:  # fmt: skip
    """The launch's run-time arguments under the names of the listing's parameters, floats as their bits."""
    _, signature, _, _ = bind(launch, sm)
    values: list[Any] = []
    layouts = iter(getattr(binary.metadata, "tensordesc_meta", None) or ())
    for value in (launch.args[name] for name, kind in signature.items() if kind != "constexpr"):
        if torch.is_tensor(value):
            values.append(memory.address(value))
        elif isinstance(value, float):
            values.append(int(np.float32(value).view(np.uint32)))
        elif isinstance(value, int):
            values.append(int(value))
        else:  # a tensor map, followed by the tensor's shape and strides
            values += [(value, next(layouts)), *value.shape, *value.strides]
    values += [0] * (len(listing.parameters) - len(values))  # scratch memory, of which our kernels use none
    return dict(zip(listing.parameters, values, strict=True))


def execute(launch: KernelLaunch, sm: int, *, seed: int | None = None, ctas: int | None = None) -> Counts:
    """Run one launch; its tensors, which must be on the host, are changed as a GPU would change them.

    With a `seed` warps and CTAs take turns in an order drawn from it; without, all go together. `ctas`: only so many
    of the grid's first, to count what they do.

    Raises `Fault` where a GPU would, `NotEmulated` for an instruction unknown here.
    """
    binary = compiled(launch, sm)
    listing = parse(binary.asm["ptx"])
    memory = GlobalMemory(tensor for value in launch.args.values() for tensor in tensor_maps.tensors(value))
    arguments = arguments_of(launch, sm, binary, listing, memory)
    x, y, z = (*launch.grid, 1, 1, 1)[:3]
    places = islice(((i, j, k) for k, j, i in product(range(z), range(y), range(x))), ctas)
    random = None if seed is None else Random(seed)
    shared: Counter[str] = Counter()
    executed: Counter[str] = Counter()
    flop = 0
    under_way: list[float] = []
    with np.errstate(all="ignore"):
        while batch := list(islice(places, CTAS_AT_ONCE)):
            machine = Machine(listing, memory, arguments, binary.metadata.shared, batch, (x, y, z))
            machine.run(make_step, random)
            shared += machine.shared.counts
            executed += machine.executed
            flop += machine.flop
            under_way += machine.under_way
    memory.write_back()
    touched = {kind: int(np.count_nonzero(n)) * SECTOR for kind, n in memory.sectors.items()}
    return Counts(
        touched=touched, memory=memory.counts, shared=shared, executed=executed, flop=flop,
        under_way=float(np.percentile(under_way, 25)) if under_way else 0.0,
    )  # fmt: skip
