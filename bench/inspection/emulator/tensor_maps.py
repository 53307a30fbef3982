"""Copies of boxes by the tensor memory accelerator (TMA), and the barriers in shared memory that count their bytes.

A box arrives when the first thread that waits for its barrier may go on, or at a moment before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from bench.inspection.emulator.machine import PAUSE, Machine, Maker, Mask, Step
from bench.inspection.emulator.memory import SECTOR
from bench.inspection.emulator.ptx import Address, Instruction


@dataclass(frozen=True, kw_only=True)
class TensorMap:
    """What a kernel is given for a tensor of two dimensions that it reads in boxes. Extents and strides in elements."""

    tensor: torch.Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    """How boxes are permuted in shared memory: 0 not at all; 1, 2, 3 for rows of 32, 64, 128 bytes."""


@dataclass
class Box:
    """A copy on its way. `bring` writes it and returns its bytes."""

    bring: Callable[[], int]
    brought: int = 0

    def arrive(self) -> int:
        """Let it arrive unless it already has. Returns its bytes."""
        self.brought = self.brought or self.bring()
        return self.brought


@dataclass
class Barrier:
    """An mbarrier: the arrivals and bytes that its present phase still needs, and the copies that bring them."""

    count: int
    missing: int
    awaited: int = 0
    parity: int = 0
    copies: list[Box] = field(default_factory=list)

    def passed(self, parity: int) -> bool:
        """Is the phase with this parity over? It ends now if all have arrived and all bytes are on their way."""
        if self.parity != parity:
            return True
        if self.missing or (self.awaited and not self.copies):
            return False
        brought = sum(copy.arrive() for copy in self.copies)
        assert brought == self.awaited, f"{brought} bytes arrive where {self.awaited} are expected"
        self.missing, self.awaited, self.copies, self.parity = self.count, 0, [], 1 - self.parity
        return True


def places(m: Machine, ins: Instruction, index: int) -> Callable[[np.ndarray], list[int]]:
    at = m.addresses(ins.operands[index], False)
    return lambda lanes: m.shared.offsets(m.cta[lanes], at()[lanes], 8).tolist()


def initialise(m: Machine, ins: Instruction) -> Step:
    at, count = places(m, ins, 0), ins.operands[1]
    assert isinstance(count, int)

    def step(mask: Mask) -> None:
        for place in at(np.flatnonzero(mask)):
            m.barriers[place] = Barrier(count, count)

    return step


def expect(m: Machine, ins: Instruction) -> Step:
    """`mbarrier.arrive.expect_tx.shared.b64 _, [barrier], bytes`."""
    at, size = places(m, ins, 1), ins.operands[2]
    assert isinstance(size, int)

    def step(mask: Mask) -> None:
        for place in at(np.flatnonzero(mask)):
            m.barriers[place].missing -= 1
            m.barriers[place].awaited += size

    return step


def try_wait(m: Machine, ins: Instruction) -> Step:
    """`mbarrier.try_wait.parity.shared.b64 p, [barrier], parity`. In a random order it may fail without a reason."""
    write = m.writer(ins.operands[0], "pred")
    at, parity = places(m, ins, 1), m.value(ins.operands[2], "u32")

    def step(mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        wanted = parity[lanes]
        result = np.zeros(m.lanes, dtype=bool)
        if m.random and m.random.random() < PAUSE:
            write(result, mask)
            return
        result[lanes] = [m.barriers[place].passed(int(p)) for place, p in zip(at(lanes), wanted, strict=True)]
        write(result, mask)

    return step


def copy_box(m: Machine, ins: Instruction) -> Step:
    """`cp.async.bulk.tensor.2d.<shared>.global.mbarrier... [target], [map, {x, y}], [barrier]`."""
    where = ins.operands[1]
    assert isinstance(where, Address)
    target, barrier = m.addresses(ins.operands[0], False), places(m, ins, 2)
    number = m.value(where.base, "u64")
    x, y = (m.value(c, "s32") for c in where.coordinates)

    def step(mask: Mask) -> None:
        for lane in np.flatnonzero(mask):
            chosen = np.array([lane])
            source = m.arguments[m.listing.parameters[int(number[lane])]]
            row, column = (int(c[lane]) for c in (y, x))
            start = int(m.shared.offsets(m.cta[chosen], target()[chosen], 128)[0])
            box = Box(partial(bring, m, source, (row, column), start))
            m.barriers[barrier(chosen)[0]].copies.append(box)
            m.soon(box.arrive)

    return step


def bring(m: Machine, source: TensorMap, corner: tuple[int, int], start: int) -> int:
    """Write the box at `corner` (row, column), with zeros for what lies outside of the tensor. Returns its bytes."""
    (rows, columns), size = source.box, source.tensor.element_size()
    row, octet = np.arange(rows)[:, None], np.arange(columns * size)[None, :]
    inside = (corner[0] + row < source.shape[0]) & (corner[1] + octet // size < source.shape[1])
    first = m.memory.address(source.tensor) + corner[1] * size
    addresses = first + (corner[0] + row) * source.strides[0] * size + octet
    data = np.zeros(inside.shape, dtype=np.uint8)
    offsets = m.memory.offsets(addresses[inside], 1)
    sectors = np.unique(offsets // SECTOR) * SECTOR
    m.memory.count("load", sectors, np.zeros(len(sectors), dtype=np.int64), SECTOR)
    data[inside] = m.memory.bytes[offsets]
    to = start + row * columns * size + octet
    if source.swizzle:
        assert columns * size == 16 << source.swizzle, "a box narrower than its swizzle"
        to = to ^ ((to >> 7 & (1 << source.swizzle) - 1) << 4)
    m.shared.bytes[to] = data
    return data.size


MAKERS: dict[str, Maker] = {
    "cp.async.bulk.tensor.2d": copy_box,
    "mbarrier.init": initialise,
    "mbarrier.arrive.expect_tx": expect,
    "mbarrier.try_wait.parity": try_wait,
}
