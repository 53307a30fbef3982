"""The threads of some CTAs as they execute a listing: which stand where, and which wait for others.

Threads that stand at the same instruction execute it together. If threads stand at several instructions, those at the
earliest one in the code go first, so that the threads of a branch meet again behind it. A barrier holds the threads of
a CTA until all of them that have not returned have come. What each instruction does is in the other modules.

Asynchronous copies and products happen between their issue and the wait for them: as late as possible, or, with a
random order, at a moment that is drawn for each of them. A late one shows a missing wait. An early one shows a buffer
that is filled while it is still read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

import numpy as np

from bench.inspection.emulator.memory import Fault, GlobalMemory, SharedMemory
from bench.inspection.emulator.ptx import Address, Instruction, Listing, NotEmulated, Operand

WARP = 32
WARPGROUP = 4 * WARP
"""The threads that execute a `wgmma` together."""
BRANCHES = ("bra", "bra.uni")
LONGEST_DELAY = 16
"""The logarithm to base 2 of the longest delay, in instructions. A loop of 8 warps issues fewer in its pipeline."""
PAUSE = 0.1
"""How often a warp stops at a branch and lets another one go on."""
TYPES: dict[str, Any] = {
    **{f"u{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    **{f"b{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    **{f"s{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "pred": np.dtype("?"),
}
Mask = np.ndarray
Step = Callable[[Mask], None]
"""Executes an instruction for the threads of a mask."""
Maker = Callable[["Machine", Instruction], Step]
"""Looks up the operands of an instruction once, and returns the step that executes it."""


@dataclass
class Deferred:
    """What the threads in `mask` have begun. `group` is the number of groups that each had closed before."""

    mask: Mask
    group: np.ndarray
    happen: Step
    size: np.ndarray | int = 0
    """Bytes that it brings to each thread."""
    bits: int = 0
    """`mask` as one number, in which another mask is found faster."""


def as_bits(mask: Mask) -> int:
    return int.from_bytes(np.packbits(mask).tobytes())


class Groups:
    """What has begun. It happens at the latest when the group in which it was closed is waited for."""

    def __init__(self, lanes: int) -> None:
        self.begun: list[Deferred] = []
        self.closed = np.zeros(lanes, dtype=np.int64)

    def begin(self, mask: Mask, happen: Step, size: np.ndarray | int = 0) -> Deferred:
        self.begun.append(Deferred(mask.copy(), self.closed.copy(), happen, size, as_bits(mask)))
        return self.begun[-1]

    def happen(self, one: Deferred, in_order: bool = False) -> None:
        """Let `one` happen now unless it has. With `in_order`, what the same threads began before goes first."""
        if not one.bits:
            return
        before = self.begun[: next(i for i, each in enumerate(self.begun) if each is one)] if in_order else []
        for each in (*(each for each in before if each.bits & one.bits), one):
            each.happen(each.mask)
            each.bits = 0
        self.begun = [each for each in self.begun if each.bits]

    def close(self, mask: Mask) -> None:
        self.closed[mask] += 1

    def of(self, mask: Mask) -> list[Deferred]:
        """What threads in `mask` have begun."""
        bits = as_bits(mask)
        return [each for each in self.begun if each.bits & bits]

    def wait(self, mask: Mask, left: int | None, together: int = 1) -> None:
        """Let all groups of the threads in `mask` happen except for the last `left`.

        With None everything happens, also what is in no group yet. `together` neighbouring threads count as one: what
        one of them waits for happens for all.
        """
        for each in self.of(mask):
            ready = each.mask & mask
            if left is not None:
                ready &= each.group < self.closed - left
            ready = np.repeat(ready.reshape(-1, together).any(axis=1), together)
            if ready.any():
                each.happen(ready)
                each.mask &= ~ready
                each.bits = as_bits(each.mask)
        self.begun = [each for each in self.begun if each.bits]

    def bytes_left(self, mask: Mask) -> int:
        """Bytes that are still on their way to the threads in `mask`."""
        return sum(int((each.size * (each.mask & mask)).sum()) for each in self.of(mask))


class Loops:
    """How often each warp goes through each loop without leaving it. A loop ends with a branch to an earlier place."""

    def __init__(self, listing: Listing, warps: int) -> None:
        self.listing = listing
        self.bodies: dict[int, range] = {}
        """The instructions of each loop, by the first of them."""
        for at, ins in enumerate(listing.code):
            if ins.opcode in BRANCHES and (start := listing.labels[str(ins.operands[0])]) <= at:
                self.bodies[start] = range(start, at + 1)
        self.now = {start: np.ones(warps, dtype=np.int64) for start in self.bodies}
        self.most = dict.fromkeys(self.bodies, 0)

    def branch(self, at: int, mask: Mask, taken: Mask) -> None:
        """The warps in `mask` execute the branch at `at`; it leads those in `taken` away."""
        here, there = (np.asarray(x.reshape(-1, WARP).any(axis=1)) for x in (mask, taken))
        target = self.listing.labels[str(self.listing.code[at].operands[0])]
        for start, body in self.bodies.items():
            now = self.now[start]
            if at not in body:
                now[here] = 1
                continue
            self.most[start] = max(self.most[start], int(now[here].max()))
            if target == start:
                now[there] += 1

    def around(self) -> Counter[str]:
        """For each instruction, the most turns of the innermost loop around one of its kind."""
        found: Counter[str] = Counter()
        for at, ins in enumerate(self.listing.code):
            inside = [start for start, body in self.bodies.items() if at in body]
            if inside:
                innermost = min(inside, key=lambda start: len(self.bodies[start]))
                found[ins.opcode] = max(found[ins.opcode], self.most[innermost])
        return found


class Machine:
    """`ctas` are the indices (x, y, z) of the CTAs that run together; `grid` is the size of the whole grid."""

    def __init__(
        self,
        listing: Listing,
        memory: GlobalMemory,
        arguments: Mapping[str, Any],
        shared: int,
        ctas: list[tuple[int, int, int]],
        grid: tuple[int, int, int],
    ) -> None:
        self.listing, self.memory, self.arguments = listing, memory, arguments
        self.lanes = len(ctas) * listing.threads
        self.cta = np.repeat(np.arange(len(ctas)), listing.threads)
        self.warp = np.arange(self.lanes) // WARP
        self.lane = np.arange(self.lanes) % WARP
        self.shared = SharedMemory(len(ctas), shared)
        self.registers = {name: self.unwritten(kind) for name, kind in listing.registers.items()}
        self.registers |= self.special(ctas, grid)
        self.copies, self.products = Groups(self.lanes), Groups(self.lanes)
        """Copies that `cp.async` has begun, and products that `wgmma` has begun."""
        self.barriers: dict[int, Any] = {}
        """The barriers (`tensor_maps.Barrier`) by their place in shared memory."""
        self.executed: Counter[str] = Counter()
        self.under_way: list[float] = []
        """After each wait for copies, the bytes per CTA that are still on their way."""
        self.flop = 0
        """FLOP of the tensor cores."""
        self.random: Random | None = None
        self.clock = 0
        """Instructions that warps have executed; threads that go together count once."""
        self.due: list[tuple[int, int, Callable[[], object]]] = []
        """What happens when the clock has come so far: a heap of (clock, number, what)."""
        self.numbers = count()
        self.loops = Loops(listing, self.lanes // WARP)

    def unwritten(self, kind: str) -> np.ndarray:
        """A register before the first write: false, or bits that are NaN in every float type."""
        if kind == "pred":
            return np.zeros(self.lanes, dtype=bool)
        dtype = np.dtype(f"u{int(kind[1:]) // 8}")
        return np.full(self.lanes, 0x7FC07FC07FC07FC0 & np.iinfo(dtype).max, dtype=dtype)

    def special(self, ctas: list[tuple[int, int, int]], grid: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """The special registers, which hold the indices of thread and CTA and their numbers."""
        thread = np.arange(self.lanes) % self.listing.threads
        named: dict[str, Any] = {"%tid.x": thread, "%tid.y": 0, "%tid.z": 0, "%ntid.x": self.listing.threads}
        named["%laneid"] = thread % WARP
        for i, axis in enumerate("xyz"):
            named[f"%ctaid.{axis}"] = np.array([cta[i] for cta in ctas])[self.cta]
            named[f"%nctaid.{axis}"] = grid[i]
        return {name: np.full(self.lanes, value, dtype=np.uint32) for name, value in named.items()}

    # ---- operands

    def value(self, operand: Operand, kind: str) -> np.ndarray:
        """An operand as numbers of a type. For a register it is a view of its memory, so that it stays current."""
        dtype = TYPES[kind]
        if isinstance(operand, str):
            if operand not in self.registers:
                return self.constant(np.array(self.symbol(operand)).astype(dtype))
            register = self.registers[operand]
            if register.dtype == dtype or register.dtype.itemsize == dtype.itemsize:
                return register.view(dtype)
            assert register.dtype.itemsize > dtype.itemsize, f"{operand} is too narrow for {kind}"
            return register.view(dtype)[:: register.dtype.itemsize // dtype.itemsize]  # little end first
        assert isinstance(operand, int), operand
        if kind == "pred":
            return self.constant(np.array(operand != 0))
        bits = np.array(operand & (1 << 8 * dtype.itemsize) - 1, dtype=np.dtype(f"u{dtype.itemsize}"))
        return self.constant(bits.view(dtype))

    def constant(self, number: np.ndarray) -> np.ndarray:
        """A number that is the same in all threads."""
        return np.broadcast_to(number, self.lanes)

    def symbol(self, name: str) -> int:
        """The value of a name: the address of shared memory, or the position of a parameter."""
        if name in self.listing.parameters:
            return self.listing.parameters.index(name)
        if name != "global_smem":
            raise NotEmulated(f"the name {name}")
        return self.shared.base

    def writer(self, operand: Operand, kind: str) -> Callable[[np.ndarray, Mask], None]:
        """A function that writes numbers of a type into a register, extended by their sign or by zeros."""
        if operand == "_":
            return lambda values, mask: None
        assert isinstance(operand, str), operand
        register = self.registers[operand]
        dtype = TYPES[kind]
        if register.dtype.itemsize == dtype.itemsize:
            view = register.view(dtype)
        elif dtype.kind == "i":
            view = register.view(np.dtype(f"i{register.dtype.itemsize}"))
        else:
            view = register
        return lambda values, mask: np.copyto(view, values, where=mask, casting="unsafe")

    def addresses(self, operand: Operand, wide: bool) -> Callable[[], np.ndarray]:
        """A function that returns the address `[base + offset]` of each thread as int64."""
        assert isinstance(operand, Address), operand
        base = self.value(operand.base, "u64" if wide else "u32")
        offset = operand.offset
        return lambda: base.astype(np.int64) + offset

    def whole_warps(self, mask: Mask) -> np.ndarray:
        """The warps of a mask. Raises `Fault` if one of them is not complete."""
        by_warp = mask.reshape(-1, WARP)
        warps = by_warp.any(axis=1)
        if not by_warp[warps].all():
            raise Fault("an instruction of whole warps is executed by part of one")
        return np.flatnonzero(warps)

    # ---- execution

    def soon(self, happen: Callable[[], object]) -> None:
        """Let it happen at a moment that is drawn. Short delays are as likely as long ones; without `random` it waits
        for whoever waits for it."""
        if self.random:
            delay = int(2 ** self.random.uniform(0, LONGEST_DELAY))
            heappush(self.due, (self.clock + delay, next(self.numbers), happen))

    def run(self, make_step: Maker, random: Random | None = None) -> None:
        """Execute until every thread has returned.

        Without `random` all threads go together. With it one warp goes at a time. When it must stop, at a barrier or
        after an atomic of global memory, and sometimes at a branch, a warp drawn at random goes on, so that missing
        synchronisation shows.
        """
        self.random = random
        units = np.arange(self.lanes) // (WARP if random else self.lanes)
        self.places: dict[tuple[int, int], Mask] = {}
        self.alive = np.ones(self.lanes, dtype=bool)
        self.waiting = np.zeros(self.lanes, dtype=bool)
        self.gathered = np.zeros(self.lanes, dtype=bool)
        self.resume = np.zeros(self.lanes, dtype=np.int64)
        for unit in np.unique(units):
            self.places[unit, 0] = units == unit
        steps: list[Step | None] = [None] * len(self.listing.code)
        while self.places:
            standing = sorted({unit for unit, _ in self.places})
            unit = random.choice(standing) if random else standing[0]
            while unit is not None:
                unit = self.stretch(unit, steps, make_step, random is not None)
                if random and random.random() < PAUSE:
                    break
            self.release(units)
        if self.waiting.any() or self.gathered.any():
            raise Fault("some threads wait for others that never come")

    def stretch(self, unit: int, steps: list[Step | None], make_step: Maker, stops: bool) -> int | None:
        """Execute the earliest threads of a unit up to a branch. Returns the unit if it may go on at once."""
        code, labels = self.listing.code, self.listing.labels
        here = [at for u, at in self.places if u == unit]
        if not here:
            return None
        at = min(here)
        mask: Mask = np.zeros(self.lanes, dtype=bool)
        warps = 0
        while at < len(code):
            if (unit, at) in self.places:
                mask = mask | self.places.pop((unit, at))
                warps = int(np.count_nonzero(mask.reshape(-1, WARP).any(axis=1)))
            ins = code[at]
            self.executed[ins.opcode] += warps
            self.clock += 1
            while self.due and self.due[0][0] <= self.clock:
                heappop(self.due)[2]()
            active = mask if ins.guard is None else mask & self.guard(ins)
            match ins.opcode:
                case opcode if opcode in BRANCHES:
                    self.loops.branch(at, mask, active)
                    self.put(unit, labels[str(ins.operands[0])], active)
                    self.put(unit, at + 1, mask & ~active)
                    return unit
                case "ret" | "exit":
                    self.alive &= ~active
                    self.put(unit, at + 1, mask & ~active)
                    return unit
                case "bar.sync" | "barrier.sync":
                    ins.must(ins.guard is None and ins.operands in ((0,), (0, self.listing.threads)))
                    self.waiting |= mask
                    self.resume[mask] = at + 1
                    return unit
            step = steps[at]
            if step is None:
                step = steps[at] = make_step(self, ins)
            if stops and ins.opcode.startswith("wgmma.mma_async"):
                self.gather(at, mask, step)
                return None
            if ins.guard is None or active.any():
                try:
                    step(active)
                except Fault as fault:
                    raise Fault(f"{fault}, at {ins.text}") from None
            at += 1
            if stops and ins.opcode.startswith(("atom.global", "mbarrier.try_wait")):
                self.put(unit, at, mask)
                return None
        self.alive &= ~mask
        return unit

    def put(self, unit: int, at: int, mask: Mask) -> None:
        if mask.any():
            self.places[unit, at] = self.places[unit, at] | mask if (unit, at) in self.places else mask

    def gather(self, at: int, mask: Mask, step: Step) -> None:
        """Collect the warps that come to an instruction of a warpgroup. The last one executes it; then all go on."""
        self.gathered |= mask
        self.resume[mask] = at
        here = (self.gathered & (self.resume == at)).reshape(-1, WARPGROUP).all(axis=1)
        complete = np.repeat(here, WARPGROUP)
        if complete.any():
            step(complete)
            self.gathered &= ~complete
            for warp in np.unique(self.warp[complete]):
                self.put(int(warp), at + 1, self.warp == warp)

    def release(self, units: np.ndarray) -> None:
        """Let the CTAs go on in which all threads that have not returned wait at a barrier."""
        held = (self.waiting | ~self.alive).reshape(-1, self.listing.threads).all(axis=1)
        free = self.waiting & np.repeat(held, self.listing.threads)
        for unit, at in np.unique(np.stack([units[free], self.resume[free]]), axis=1).T.tolist():
            self.put(unit, at, free & (units == unit) & (self.resume == at))
        self.waiting[free] = False

    def guard(self, ins: Instruction) -> np.ndarray:
        assert ins.guard is not None
        name, wanted = ins.guard
        register = self.registers[name]
        return register if wanted else ~register
