"""Instructions of whole warps on small matrices: `ldmatrix`, `stmatrix`, `mma`, `wgmma`.

Fragments and shared-memory layouts as in the PTX ISA ("Matrix Fragments for mma.m16n8k16", "Register Fragments and
Shared Memory Matrix Layouts" of wgmma, "Matrix Descriptor Format"). Products are summed in fp32.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.emulator.arithmetic import SMALL, bf16, e4m3, f16, halves
from bench.emulator.listing import Instruction
from bench.emulator.machine import WARP, WARPGROUP, Machine, Mask, Step
from bench.emulator.memory import LINE, UNSIGNED, Fault, SharedMemory

LANE = np.arange(WARP)
ROW, PAIR = LANE // 4, LANE % 4 * 2
"""Of a thread in an 8 x 8 matrix of 16-bit elements: its row, and the first of its two columns."""


def floats(words: np.ndarray, kind: str) -> np.ndarray:
    """32-bit words -> fp32, one more axis of the two halves."""
    to = SMALL[kind][0]
    return np.stack([to(half) for half in halves(words)], axis=-1)


def matrix_rows(m: Machine, mask: Mask, addresses: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Warps of the mask, and where the rows of their `count` matrices are in shared memory: (warps, count, 8)."""
    warps = m.whole_warps(mask)
    givers = (warps[:, None] * WARP + np.arange(8 * count)).ravel()
    offsets = m.shared.offsets(m.cta[givers], addresses[givers], 16)
    m.shared.count("matrix", offsets, np.repeat(warps, 8 * count), 16)
    return warps, offsets.reshape(len(warps), count, 8)


def load_matrices(m: Machine, ins: Instruction) -> Step:
    """`ldmatrix.sync.aligned.m8n8.x<n>[.trans].shared.b16 {d}, [row addresses]`."""
    names = ins.operands[0] if isinstance(ins.operands[0], tuple) else (ins.operands[0],)
    writes = [m.writer(name, "b32") for name in names]
    at = m.addresses(ins.operands[1], False)
    transposed = ".trans." in ins.opcode
    ins.must(".m8n8." in ins.opcode and ins.opcode.endswith("b16"))

    def step(mask: Mask) -> None:
        warps, rows = matrix_rows(m, mask, at(), len(names))
        memory = m.shared.bytes.view(np.uint16)
        if transposed:
            low, high = (memory[rows[:, :, PAIR + i] // 2 + ROW] for i in (0, 1))
        else:
            low, high = (memory[rows[:, :, ROW] // 2 + PAIR + i] for i in (0, 1))
        words = low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)
        for i, write in enumerate(writes):
            full = np.zeros((m.lanes // WARP, WARP), dtype=np.uint32)
            full[warps] = words[:, i]
            write(full.ravel(), mask)

    return step


def store_matrices(m: Machine, ins: Instruction) -> Step:
    """`stmatrix.sync.aligned.m8n8.x<n>[.trans].shared.b16 [row addresses], {s}`."""
    names = ins.operands[1] if isinstance(ins.operands[1], tuple) else (ins.operands[1],)
    sources = [m.value(name, "b32") for name in names]
    at = m.addresses(ins.operands[0], False)
    transposed = ".trans." in ins.opcode

    def step(mask: Mask) -> None:
        warps, rows = matrix_rows(m, mask, at(), len(names))
        memory = m.shared.bytes.view(np.uint16)
        for i, source in enumerate(sources):
            for part, half in enumerate(halves(source.reshape(-1, WARP)[warps])):
                if transposed:
                    memory[rows[:, i][:, PAIR + part] // 2 + ROW] = half
                else:
                    memory[rows[:, i][:, ROW] // 2 + PAIR + part] = half

    return step


def mma(m: Machine, ins: Instruction) -> Step:
    """`mma.sync.aligned.m16n8k16.row.col.f32.<t>.<t>.f32 d, a, b, c` of 16-bit floats."""
    found = re.match(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(\w+)\.(\w+)\.f32$", ins.opcode)
    ins.must(found)
    assert found
    kind = found[1]
    ins.must(kind == found[2] and kind in SMALL)
    d, a, b, c = (x if isinstance(x, tuple) else (x,) for x in ins.operands)
    writes = [m.writer(x, "f32") for x in d]
    lefts, rights = [m.value(x, "b32") for x in a], [m.value(x, "b32") for x in b]
    sums = [m.value(x, "f32") for x in c]

    def step(mask: Mask) -> None:
        warps = m.whole_warps(mask)
        n = len(warps)

        def taken(register: np.ndarray) -> np.ndarray:
            return np.broadcast_to(register, m.lanes).reshape(-1, WARP)[warps]

        left, right = np.zeros((n, 16, 16), dtype=np.float32), np.zeros((n, 16, 8), dtype=np.float32)
        for i, register in enumerate(lefts):
            both = floats(taken(register), kind)
            for part in (0, 1):
                left[:, ROW + 8 * (i % 2), PAIR + part + 8 * (i // 2)] = both[..., part]
        for i, register in enumerate(rights):
            both = floats(taken(register), kind)
            for part in (0, 1):
                right[:, PAIR + part + 8 * i, ROW] = both[..., part]
        product = left @ right
        m.flop += n * 2 * 16 * 8 * 16
        for i, (write, start) in enumerate(zip(writes, sums, strict=True)):
            full = np.zeros((m.lanes // WARP, WARP), dtype=np.float32)
            full[warps] = product[:, ROW + 8 * (i // 2), PAIR + i % 2] + taken(start)
            write(full.ravel(), mask)

    return step


# wgmma: four warps, operands in shared memory behind a descriptor

SWIZZLES = {0: 0, 1: 128, 2: 64, 3: 32}
"""Bits 62-63 of a descriptor -> bytes of a row that are permuted."""


@dataclass(frozen=True)
class Descriptor:
    """The fields of a wgmma matrix descriptor, offsets in bytes."""

    start: int
    leading: int
    stride: int
    swizzle: int

    @classmethod
    def of(cls, bits: int) -> Descriptor:
        if bits >> 49 & 7:
            raise Fault("a matrix descriptor with a base offset")
        return cls(
            start=(bits & 0x3FFF) << 4,
            leading=(bits >> 16 & 0x3FFF) << 4,
            stride=(bits >> 32 & 0x3FFF) << 4,
            swizzle=SWIZZLES[bits >> 62],
        )

    def places(self, rows: int, columns: int, size: int, transposed: bool) -> np.ndarray:
        """Addresses of elements of `size` bytes (row of M or N, column of K) before the swizzle."""
        row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
        width = self.swizzle or 16
        if transposed:  # `span` elements of M or N lie together; 8 of K make an atom
            span = width // size
            return (
                self.start + row % span * size + row // span * self.leading
                + column % 8 * width + column // 8 * self.stride
            )  # fmt: skip
        octets = column * size
        beyond = 0 if self.swizzle else octets // 16 * (self.leading - 16)
        return self.start + row % 8 * width + row // 8 * self.stride + octets + beyond

    def read(self, shared: SharedMemory, cta: int, rows: int, columns: int, size: int, transposed: bool) -> np.ndarray:
        """The matrix's elements, as bits."""
        at = self.places(rows, columns, size, transposed)
        if self.swizzle:
            chunks = self.swizzle // 16 - 1  # 7, 3, 1: which of the address bits 4-6 are exchanged
            at = at ^ ((at >> 7 & chunks) << 4)
        offsets = shared.offsets(np.full(at.size, cta), at.ravel(), size)
        return shared.bytes.view(UNSIGNED[size])[offsets // size].reshape(rows, columns)


DECODE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bf16": bf16, "f16": f16, "e4m3": e4m3}


def wgmma(m: Machine, ins: Instruction) -> Step:
    """`wgmma.mma_async.sync.aligned.m64n<N>k<K>.f32.<t>.<t> d, a, b, scale-d, 1, 1[, transposed a][, transposed b]`.

    It happens where its group is waited for, as late as it may: operands that change before, or sums that are read
    before, are wrong.
    """
    found = re.match(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+)$", ins.opcode)
    ins.must(found)
    assert found
    ins.must(found[3] == found[4] and found[3] in DECODE)
    columns, depth, decode = int(found[1]), int(found[2]), DECODE[found[3]]
    size = 32 // depth
    d, a, b, scale, *rest = ins.operands
    ins.must(rest[:2] == [1, 1])
    assert isinstance(d, tuple)
    transposed_b = len(rest) > 2 and bool(rest[-1])
    transposed_a = len(rest) > 3 and bool(rest[2])
    writes, sums = [m.writer(x, "f32") for x in d], [m.value(x, "f32") for x in d]
    lefts = [m.value(x, "b32") for x in a] if isinstance(a, tuple) else []
    descriptors = [m.value(x, "u64") for x in ((b,) if lefts else (b, a))]
    keep = m.value(scale, "pred")
    row = (16 * np.arange(4)[:, None] + ROW).ravel()
    pair = np.tile(PAIR, 4)

    def one(register: np.ndarray, lanes: np.ndarray) -> int:
        """A value that all threads of a group must share."""
        values = np.unique(np.broadcast_to(register, m.lanes)[lanes])
        if len(values) > 1:
            raise Fault("the threads of a warpgroup disagree")
        return int(values[0])

    def fragments(lanes: np.ndarray) -> np.ndarray:
        """The left matrix where it is held in registers, 4 bytes of a row in each."""
        words = np.zeros((64, 8), dtype=np.uint32)
        for i, register in enumerate(lefts):
            words[row + 8 * (i % 2), pair // 2 + 4 * (i // 2)] = register[lanes]
        return words.view(UNSIGNED[size])

    def step(mask: Mask) -> None:
        groups = mask.reshape(-1, WARPGROUP)
        if not (groups.all(axis=1) | ~groups.any(axis=1)).all():
            raise Fault("a warpgroup's instruction is executed by part of one")
        results = np.zeros((len(writes), m.lanes), dtype=np.float32)
        for group in np.flatnonzero(groups[:, 0]):
            lanes = np.arange(group * WARPGROUP, (group + 1) * WARPGROUP)
            cta = int(m.cta[lanes[0]])
            right, *left = (Descriptor.of(one(x, lanes)) for x in descriptors)
            there = right.read(m.shared, cta, columns, depth, size, transposed_b)
            here = left[0].read(m.shared, cta, 64, depth, size, transposed_a) if left else fragments(lanes)
            m.flop += 2 * 64 * columns * depth
            read = (columns + (64 if left else 0)) * depth * size
            m.shared.counts.update({f"product {what}": read // LINE for what in ("cycles", "least cycles")})
            product = decode(here) @ decode(there).T
            kept = one(keep, lanes)
            for i, start in enumerate(sums):
                value = product[row + 8 * (i // 2 % 2), pair + i % 2 + 8 * (i // 4)]
                results[i, lanes] = value + start[lanes] if kept else value
        for write, result in zip(writes, results, strict=True):
            write(result, mask)

    return lambda mask: under_way(m).append(Product(mask.copy(), closed(m).copy(), step))


@dataclass
class Product:
    """A `wgmma` of the threads in `mask` that has not happened; `group` is each thread's count of groups before it."""

    mask: Mask
    group: np.ndarray
    step: Step


def under_way(m: Machine) -> list[Product]:
    products: list[Product] = m.state.setdefault("products", [])
    return products


def closed(m: Machine) -> np.ndarray:
    """Each thread's number of closed groups of products."""
    groups: np.ndarray = m.state.setdefault("product groups", np.zeros(m.lanes, dtype=np.int64))
    return groups


def commit(m: Machine, mask: Mask) -> None:
    closed(m)[mask] += 1


def wait(m: Machine, mask: Mask, left: int) -> None:
    """Make all groups of the threads in `mask` happen but the last `left`."""
    for product in under_way(m):
        asked = product.mask & mask & (product.group < closed(m) - left)
        ready = np.repeat(asked.reshape(-1, WARPGROUP).any(axis=1), WARPGROUP)
        if ready.any():
            product.step(ready)
            product.mask &= ~ready
    under_way(m)[:] = [product for product in under_way(m) if product.mask.any()]


def step_for(m: Machine, ins: Instruction) -> Step | None:
    name = ins.opcode
    if name.startswith("ldmatrix"):
        return load_matrices(m, ins)
    if name.startswith("stmatrix"):
        return store_matrices(m, ins)
    if name.startswith("mma."):
        return mma(m, ins)
    if name.startswith("wgmma.mma_async"):
        return wgmma(m, ins)
    if name.startswith("wgmma.commit_group"):
        return lambda mask: commit(m, mask)
    if name.startswith("wgmma.wait_group"):
        left = ins.operands[0]
        assert isinstance(left, int)
        return lambda mask: wait(m, mask, left)
    return None
