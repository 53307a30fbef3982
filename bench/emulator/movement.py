"""Instructions that move data: loads, stores, atomics, asynchronous copies, and exchanges within a warp."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.emulator.listing import Address, Instruction, NotEmulated
from bench.emulator.machine import TYPES, WARP, Machine, Mask, Step
from bench.emulator.memory import Fault


def listed(operand: Any) -> tuple[Any, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def load(m: Machine, ins: Instruction) -> Step:
    """`ld.<space>[.v<n>].<type> d, [a]`."""
    parts = ins.opcode.split(".")
    kind, space = parts[-1], parts[1].split("::")[0]
    if space == "param":
        return load_parameter(m, ins, kind)
    names = listed(ins.operands[0])
    writes = [m.writer(name, kind) for name in names]
    at = m.addresses(ins.operands[1], space == "global")
    dtype = TYPES[kind]
    size = dtype.itemsize
    ins.must(space in ("global", "shared"))

    def step(mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        where = at()[lanes]
        if space == "global":
            words = m.memory.load(where, m.warp[lanes], size, len(names))
        else:
            words = m.shared.load(m.cta[lanes], where, m.warp[lanes], size, len(names))
        for i, write in enumerate(writes):
            full = np.zeros(m.lanes, dtype=dtype)
            full[lanes] = np.ascontiguousarray(words[:, i]).view(dtype)
            write(full, mask)

    return step


def load_parameter(m: Machine, ins: Instruction, kind: str) -> Step:
    place = ins.operands[1]
    assert isinstance(place, Address)
    ins.must(place.offset == 0)
    number = m.arguments[str(place.base)]
    value = np.full(1, number).astype(TYPES[kind])
    write = m.writer(ins.operands[0], kind)
    return lambda mask: write(value, mask)


def store(m: Machine, ins: Instruction) -> Step:
    parts = ins.opcode.split(".")
    kind, space = parts[-1], parts[1].split("::")[0]
    sources = [m.value(x, kind) for x in listed(ins.operands[1])]
    at = m.addresses(ins.operands[0], space == "global")
    unsigned = np.dtype(f"u{TYPES[kind].itemsize}")
    ins.must(space in ("global", "shared"))

    def step(mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        where = at()[lanes]
        words = np.stack([np.broadcast_to(s, m.lanes)[lanes].view(unsigned) for s in sources], axis=1)
        if space == "global":
            m.memory.store(where, m.warp[lanes], words)
        else:
            m.shared.store(m.cta[lanes], where, m.warp[lanes], words)

    return step


ATOMIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda old, x: old + x,
    "max": max,
    "min": min,
    "or": lambda old, x: old | x,
    "and": lambda old, x: old & x,
    "exch": lambda old, x: x,
}


def atomic(m: Machine, ins: Instruction) -> Step:
    """`atom.<space>....<op>.<type> d, [a], x`: one thread after the other."""
    parts = ins.opcode.split(".")
    kind, name = parts[-1], parts[-2]
    wide = "global" in parts
    write = m.writer(ins.operands[0], kind)
    at = m.addresses(ins.operands[1], wide)
    source = m.value(ins.operands[2], kind)
    function, dtype = ATOMIC[name], TYPES[kind]

    def step(mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        where, values = at()[lanes], np.broadcast_to(source, m.lanes)[lanes]
        result = np.zeros(m.lanes, dtype=dtype)
        if wide:
            offsets, memory = m.memory.offsets(where, dtype.itemsize), m.memory.bytes.view(dtype)
        else:
            offsets, memory = m.shared.offsets(m.cta[lanes], where, dtype.itemsize), m.shared.bytes.view(dtype)
        for lane, offset, value in zip(lanes, offsets // dtype.itemsize, values, strict=True):
            old = memory[offset]
            result[lane] = old
            memory[offset] = np.array(function(old, value)).astype(dtype)
        write(result, mask)

    return step


# Asynchronous copies: nothing arrives before a thread has waited for it


@dataclass
class Copy:
    """One `cp.async` of the threads in `mask`, not done yet; `group` is each thread's count of groups before it."""

    mask: Mask
    group: np.ndarray
    target: np.ndarray
    source: np.ndarray
    taken: np.ndarray
    size: int
    text: str


def copies(m: Machine) -> tuple[list[Copy], np.ndarray]:
    """The copies under way, and each thread's number of closed groups."""
    pending: tuple[list[Copy], np.ndarray] = m.state.setdefault("copies", ([], np.zeros(m.lanes, dtype=np.int64)))
    return pending


def start_copy(m: Machine, ins: Instruction) -> Step:
    """`cp.async.<ca|cg>.shared.global [d], [s], size[, taken]`: the rest of `size` is filled with zeros."""
    target, source = m.addresses(ins.operands[0], False), m.addresses(ins.operands[1], True)
    size = ins.operands[2]
    assert isinstance(size, int)
    taken = m.value(ins.operands[3] if len(ins.operands) > 3 else size, "u32")

    def step(mask: Mask) -> None:
        pending, groups = copies(m)
        asked = np.broadcast_to(taken, m.lanes).copy()
        pending.append(Copy(mask.copy(), groups.copy(), target(), source(), asked, size, ins.text))

    return step


def finish(m: Machine, copy: Copy, ready: Mask) -> None:
    """The bytes of those threads' copy arrive."""
    for taken in np.unique(copy.taken[ready]):
        lanes = np.flatnonzero(ready & (copy.taken == taken))
        if taken not in (0, copy.size):
            raise Fault(f"a copy takes {taken} of {copy.size} bytes")
        words = np.zeros((len(lanes), copy.size // 4), dtype=np.uint32)
        if taken:
            words = m.memory.load(copy.source[lanes], m.warp[lanes], 4, copy.size // 4)
        m.shared.store(m.cta[lanes], copy.target[lanes], m.warp[lanes], words, "copy")
    copy.mask &= ~ready


def commit(m: Machine, mask: Mask) -> None:
    copies(m)[1][mask] += 1


def wait(m: Machine, mask: Mask, left: int | None) -> None:
    """Finish all groups of the threads in `mask` but the last `left`; with None also what no group holds."""
    pending, groups = copies(m)
    for copy in pending:
        ready = copy.mask & mask
        if left is not None:
            ready &= copy.group < groups - left
        if ready.any():
            try:
                finish(m, copy, ready)
            except Fault as fault:
                raise Fault(f"{fault}, begun by {copy.text}") from None
    pending[:] = [copy for copy in pending if copy.mask.any()]
    left_bytes = sum(int(np.count_nonzero(copy.mask & mask & (copy.taken > 0))) * copy.size for copy in pending)
    m.under_way.append(left_bytes / len(np.unique(m.cta[mask])))


def asynchronous(m: Machine, ins: Instruction) -> Step | None:
    name = ins.opcode
    if name.startswith(("cp.async.ca.shared", "cp.async.cg.shared")):
        return start_copy(m, ins)
    if name == "cp.async.commit_group":
        return lambda mask: commit(m, mask)
    if name == "cp.async.wait_group":
        left = ins.operands[0]
        assert isinstance(left, int)
        return lambda mask: wait(m, mask, left)
    if name == "cp.async.wait_all":
        return lambda mask: wait(m, mask, None)
    return None


# Within a warp


def shuffle(m: Machine, ins: Instruction) -> Step:
    """`shfl.sync.<how>.b32 d[|p], a, b, c, members`."""
    how = ins.opcode.split(".")[2]
    target, *predicate = listed(ins.operands[0])
    write = m.writer(target, "b32")
    write_in_range = m.writer(predicate[0], "pred") if predicate else None
    a, b, c = (m.value(x, "u32") for x in ins.operands[1:4])

    def step(mask: Mask) -> None:
        m.whole_warps(mask)
        lane, by, clamp = m.lane, np.broadcast_to(b, m.lanes).astype(np.int64), c.astype(np.int64)
        segment = clamp >> 8 & 31
        last = (lane & segment) | (clamp & 31 & ~segment)
        match how:
            case "bfly":
                j = lane ^ (by & 31)
                inside = j <= last
            case "idx":
                j = (lane & segment) | (by & 31 & ~segment)
                inside = j <= last
            case "up":
                j = lane - (by & 31)
                inside = j >= last
            case "down":
                j = lane + (by & 31)
                inside = j <= last
            case _:
                raise NotEmulated(ins.text)
        j = np.where(inside, j, lane)
        write(np.broadcast_to(a, m.lanes)[m.warp * WARP + j], mask)
        if write_in_range:
            write_in_range(inside, mask)

    return step


REDUCE = {"add": np.add, "max": np.maximum, "min": np.minimum, "or": np.bitwise_or, "and": np.bitwise_and}


def warp_reduce(m: Machine, ins: Instruction) -> Step:
    """`redux.sync.<op>.<type>`, `vote.sync.ballot.b32`."""
    kind = ins.opcode.split(".")[-1]
    if ins.opcode.startswith("vote"):
        flags = m.value(ins.operands[1], "pred")
        write = m.writer(ins.operands[0], "b32")

        def ballot(mask: Mask) -> None:
            m.whole_warps(mask)
            rows = np.broadcast_to(flags, m.lanes).reshape(-1, WARP).astype(np.uint64)
            bits = (rows << np.arange(WARP, dtype=np.uint64)).sum(axis=1)
            write(np.repeat(bits, WARP), mask)

        return ballot
    function = REDUCE[ins.opcode.split(".")[2]]
    a = m.value(ins.operands[1], kind)
    write = m.writer(ins.operands[0], kind)

    def step(mask: Mask) -> None:
        m.whole_warps(mask)
        rows = np.broadcast_to(a, m.lanes).reshape(-1, WARP)
        write(np.repeat(function.reduce(rows, axis=1, dtype=rows.dtype), WARP), mask)

    return step


def elect(m: Machine, ins: Instruction) -> Step:
    """`elect.sync d|p, members`: one thread of each warp, here the first."""
    target, predicate = listed(ins.operands[0])
    write, chosen = m.writer(target, "b32"), m.writer(predicate, "pred")

    def step(mask: Mask) -> None:
        m.whole_warps(mask)
        write(np.zeros(1, dtype=np.uint32), mask)
        chosen(m.lane == 0, mask)

    return step


NOTHING = re.compile(r"(fence|membar|wgmma\.fence|bar\.warp|griddepcontrol|prefetch|nanosleep|discard)")
"""Instructions that order or hint: execution here is in order."""


def step_for(m: Machine, ins: Instruction) -> Step | None:
    name = ins.opcode.split(".")[0]
    if NOTHING.match(ins.opcode):
        return lambda mask: None
    match name:
        case "ld" | "ldu":
            return load(m, ins)
        case "st":
            return store(m, ins)
        case "atom":
            return atomic(m, ins)
        case "cp":
            return asynchronous(m, ins)
        case "shfl":
            return shuffle(m, ins)
        case "redux" | "vote":
            return warp_reduce(m, ins)
        case "elect":
            return elect(m, ins)
    return None
