"""Instructions that move data: loads, stores, atomics, asynchronous copies, and exchanges within a warp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.inspection.emulator.machine import TYPES, WARP, Machine, Maker, Mask, Step
from bench.inspection.emulator.memory import Fault
from bench.inspection.emulator.ptx import Address, Instruction, NotEmulated, listed


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
        words = np.stack([s[lanes].view(unsigned) for s in sources], axis=1)
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
    """`atom.<space>....<op>.<type> d, [a], x`, by one thread after the other."""
    parts = ins.opcode.split(".")
    kind, name = parts[-1], parts[-2]
    wide = "global" in parts
    write = m.writer(ins.operands[0], kind)
    at = m.addresses(ins.operands[1], wide)
    source = m.value(ins.operands[2], kind)
    function, dtype = ATOMIC[name], TYPES[kind]

    def step(mask: Mask) -> None:
        lanes = np.flatnonzero(mask)
        where, values = at()[lanes], source[lanes]
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


# Asynchronous copies: they arrive when a thread waits for them, or at a moment before that.


def start_copy(m: Machine, ins: Instruction) -> Step:
    """`cp.async.<ca|cg>.shared.global [d], [s], size[, taken]`. Bytes of `size` beyond `taken` become zero."""
    target, source = m.addresses(ins.operands[0], False), m.addresses(ins.operands[1], True)
    size = ins.operands[2]
    assert isinstance(size, int)
    asked = m.value(ins.operands[3] if len(ins.operands) > 3 else size, "u32")

    def step(mask: Mask) -> None:
        to, at, taken = target(), source(), asked.copy()
        if not np.isin(taken[mask], (0, size)).all():
            raise Fault(f"a copy takes part of its {size} bytes")

        def arrive(ready: Mask) -> None:
            for filled in (True, False):
                lanes = np.flatnonzero(ready & ((taken > 0) == filled))
                words = np.zeros((len(lanes), size // 4), dtype=np.uint32)
                try:
                    if filled:
                        words = m.memory.load(at[lanes], m.warp[lanes], 4, size // 4)
                    m.shared.store(m.cta[lanes], to[lanes], m.warp[lanes], words, "copy")
                except Fault as fault:
                    raise Fault(f"{fault}, begun by {ins.text}") from None

        begun = m.copies.begin(mask, arrive, taken)
        m.soon(lambda: m.copies.happen(begun))

    return step


def close_copies(m: Machine, ins: Instruction) -> Step:
    return m.copies.close


def wait_for_copies(m: Machine, ins: Instruction) -> Step:
    """`cp.async.wait_group n`, `cp.async.wait_all`."""
    left = ins.operands[0] if ins.operands else None
    assert left is None or isinstance(left, int)

    def step(mask: Mask) -> None:
        m.copies.wait(mask, left)
        m.under_way.append(m.copies.bytes_left(mask) / len(np.unique(m.cta[mask])))

    return step


# Exchanges within a warp.


def shuffle(m: Machine, ins: Instruction) -> Step:
    """`shfl.sync.<how>.b32 d[|p], a, b, c, members`."""
    how = ins.opcode.split(".")[2]
    target, *predicate = listed(ins.operands[0])
    write = m.writer(target, "b32")
    write_in_range = m.writer(predicate[0], "pred") if predicate else None
    a, b, c = (m.value(x, "u32") for x in ins.operands[1:4])

    def step(mask: Mask) -> None:
        m.whole_warps(mask)
        lane, by, clamp = m.lane, b.astype(np.int64), c.astype(np.int64)
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
        write(a[m.warp * WARP + j], mask)
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
            rows = flags.reshape(-1, WARP).astype(np.uint64)
            bits = (rows << np.arange(WARP, dtype=np.uint64)).sum(axis=1)
            write(np.repeat(bits, WARP), mask)

        return ballot
    function = REDUCE[ins.opcode.split(".")[2]]
    a = m.value(ins.operands[1], kind)
    write = m.writer(ins.operands[0], kind)

    def step(mask: Mask) -> None:
        m.whole_warps(mask)
        rows = a.reshape(-1, WARP)
        write(np.repeat(function.reduce(rows, axis=1, dtype=rows.dtype), WARP), mask)

    return step


def elect(m: Machine, ins: Instruction) -> Step:
    """`elect.sync d|p, members` chooses one thread of each warp; here it is the first."""
    target, predicate = listed(ins.operands[0])
    write, chosen = m.writer(target, "b32"), m.writer(predicate, "pred")

    def step(mask: Mask) -> None:
        m.whole_warps(mask)
        write(np.zeros(1, dtype=np.uint32), mask)
        chosen(m.lane == 0, mask)

    return step


def nothing(m: Machine, ins: Instruction) -> Step:
    """Do nothing: fences and hints change nothing, since execution here is in order."""
    return lambda mask: None


ORDERS = (
    "fence",
    "membar",
    "wgmma.fence",
    "mbarrier.inval",
    "bar.warp",
    "griddepcontrol",
    "prefetch",
    "nanosleep",
    "discard",
)
MAKERS: dict[str, Maker] = {
    "ld": load,
    "ldu": load,
    "st": store,
    "atom": atomic,
    "cp.async.ca": start_copy,
    "cp.async.cg": start_copy,
    "cp.async.commit_group": close_copies,
    "cp.async.wait_group": wait_for_copies,
    "cp.async.wait_all": wait_for_copies,
    "shfl": shuffle,
    "redux": warp_reduce,
    "vote": warp_reduce,
    "elect": elect,
    **dict.fromkeys(ORDERS, nothing),
}
