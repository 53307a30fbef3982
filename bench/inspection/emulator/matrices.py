"""Instructions of whole warps on small matrices: `ldmatrix`, `stmatrix`, `mma`, `wgmma`.

Fragments and layouts in shared memory follow the PTX ISA ("Matrix Fragments for mma.m16n8k16", "Register Fragments and
Shared Memory Matrix Layouts" of wgmma, "Matrix Descriptor Format"). Products are summed in fp32.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bench.inspection.emulator.floats import SMALL, bf16, e4m3, f16, halves, together
from bench.inspection.emulator.machine import WARP, WARPGROUP, Machine, Maker, Mask, Step
from bench.inspection.emulator.memory import LINE, UNSIGNED, Fault, SharedMemory
from bench.inspection.emulator.ptx import Instruction, listed

LANE = np.arange(WARP)
ROW, PAIR = LANE // 4, LANE % 4 * 2
"""Which row, and which two neighbouring columns (the first is given), a thread holds of an 8 x 8 matrix."""


DECODE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bf16": bf16, "f16": f16, "e4m3": e4m3}


def left_words(registers: list[np.ndarray]) -> np.ndarray:
    """The left matrices of warps: four registers [warps, 32] -> [warps, 16 rows, 8 words]."""
    words = np.zeros((len(registers[0]), 16, 8), dtype=np.uint32)
    for i, register in enumerate(registers):
        words[:, ROW + 8 * (i % 2), PAIR // 2 + 4 * (i // 2)] = register
    return words


def right_words(registers: list[np.ndarray]) -> np.ndarray:
    """The right matrices of warps: two registers [warps, 32] -> [warps, 8 columns, 8 words]."""
    words = np.zeros((len(registers[0]), 8, 8), dtype=np.uint32)
    for i, register in enumerate(registers):
        words[:, ROW, PAIR // 2 + 4 * i] = register
    return words


def sum_of(product: np.ndarray, i: int) -> np.ndarray:
    """The part of a product [warps, 16, N] that register i of the sums holds: [warps, 32]."""
    return product[:, ROW + 8 * (i // 2 % 2), PAIR + i % 2 + 8 * (i // 4)]


def to_lanes(m: Machine, warps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of some warps [warps, 32] -> one value for each thread, zero in the other warps."""
    full = np.zeros((m.lanes // WARP, WARP), dtype=values.dtype)
    full[warps] = values
    return full.ravel()


def matrix_rows(m: Machine, mask: Mask, addresses: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The warps of the mask, and the places of their `count` matrices' rows in shared memory [warps, count, 8]."""
    warps = m.whole_warps(mask)
    givers = (warps[:, None] * WARP + np.arange(8 * count)).ravel()
    offsets = m.shared.offsets(m.cta[givers], addresses[givers], 16)
    m.shared.count("matrix", offsets, np.repeat(warps, 8 * count), 16)
    return warps, offsets.reshape(len(warps), count, 8)


def load_matrices(m: Machine, ins: Instruction) -> Step:
    """`ldmatrix.sync.aligned.m8n8.x<n>[.trans].shared.b16 {d}, [row addresses]`."""
    names = listed(ins.operands[0])
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
        words = together(low, high)
        for i, write in enumerate(writes):
            write(to_lanes(m, warps, words[:, i]), mask)

    return step


def store_matrices(m: Machine, ins: Instruction) -> Step:
    """`stmatrix.sync.aligned.m8n8.x<n>[.trans].shared.b16 [row addresses], {s}`."""
    names = listed(ins.operands[1])
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
    ins.must(found[1] == found[2] and found[1] in SMALL)
    decode = DECODE[found[1]]
    d, a, b, c = (listed(x) for x in ins.operands)
    writes, sums = [m.writer(x, "f32") for x in d], [m.value(x, "f32") for x in c]
    lefts, rights = [m.value(x, "b32") for x in a], [m.value(x, "b32") for x in b]

    def step(mask: Mask) -> None:
        warps = m.whole_warps(mask)

        def taken(registers: list[np.ndarray]) -> list[np.ndarray]:
            return [register.reshape(-1, WARP)[warps] for register in registers]

        left, right = (decode(x.view(np.uint16)) for x in (left_words(taken(lefts)), right_words(taken(rights))))
        product = left @ right.swapaxes(1, 2)
        m.flop += len(warps) * 2 * 16 * 8 * 16
        results = [sum_of(product, i) + start for i, start in enumerate(taken(sums))]
        for write, result in zip(writes, results, strict=True):
            write(to_lanes(m, warps, result), mask)

    return step


# wgmma: four warps together; a descriptor says where the operands lie in shared memory

SWIZZLES = {0: 0, 1: 128, 2: 64, 3: 32}
"""Bits 62-63 of a descriptor -> bytes of a row within which 16-byte chunks are permuted."""


@dataclass(frozen=True)
class Descriptor:
    """The fields of a wgmma matrix descriptor. Offsets are in bytes."""

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
        """Addresses before the swizzle, of elements of `size` bytes: rows are along M or N, columns along K."""
        row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
        width = self.swizzle or 16
        if transposed:  # `span` elements along M or N are contiguous; 8 along K make an atom
            span = width // size
            along_rows = row % span * size + row // span * self.leading
            return self.start + along_rows + column % 8 * width + column // 8 * self.stride
        octets = column * size
        beyond = 0 if self.swizzle else octets // 16 * (self.leading - 16)
        return self.start + row % 8 * width + row // 8 * self.stride + octets + beyond

    def read(self, shared: SharedMemory, cta: int, rows: int, columns: int, size: int, transposed: bool) -> np.ndarray:
        """The elements of the matrix as bits."""
        offsets = shared.offsets(cta, swizzled(self, rows, columns, size, transposed), size)
        return shared.bytes.view(UNSIGNED[size])[offsets // size]


@lru_cache(maxsize=256)
def swizzled(matrix: Descriptor, rows: int, columns: int, size: int, transposed: bool) -> np.ndarray:
    """The places after the swizzle. A loop comes back to the same few matrices."""
    at = matrix.places(rows, columns, size, transposed)
    if not matrix.swizzle:
        return at
    chunks = matrix.swizzle // 16 - 1  # 7, 3, 1: which of the address bits 4-6 are exchanged
    return at ^ ((at >> 7 & chunks) << 4)


def wgmma(m: Machine, ins: Instruction) -> Step:
    """`wgmma.mma_async.sync.aligned.m64n<N>k<K>.f32.<t>.<t> d, a, b, scale-d, 1, 1[, transposed a][, transposed b]`.

    Descriptors and scale-d are read when it is issued. The product happens when its group is waited for, or at a moment
    between its commit and the wait. Until then only the sums, a left matrix in registers and
    the shared memory that descriptors name must stay as they are (PTX ISA, "Asynchronous wgmma.mma_async"): a kernel
    that changes them or reads the sums before gets wrong results.
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

    held_rows = np.array([ROW + 8 * (i // 2 % 2) for i in range(len(d))])
    held_columns = np.array([PAIR + i % 2 + 8 * (i // 4) for i in range(len(d))])

    def one(register: np.ndarray, lanes: slice) -> int:
        """A value that must be the same in all threads of a group."""
        first = register[lanes.start]
        if (register[lanes] != first).any():
            raise Fault("the threads of a warpgroup disagree")
        return int(first)

    def fragments(lanes: slice) -> np.ndarray:
        """The left matrix if it is held in registers."""
        return left_words([r[lanes].reshape(4, WARP) for r in lefts]).reshape(64, 8).view(UNSIGNED[size])

    def product(mask: Mask, named: list[np.ndarray], scaled: np.ndarray) -> None:
        groups = mask.reshape(-1, WARPGROUP)
        if not (groups.all(axis=1) | ~groups.any(axis=1)).all():
            raise Fault("a warpgroup's instruction is executed by part of one")
        results = np.zeros((len(writes), m.lanes), dtype=np.float32)
        for group in np.flatnonzero(groups[:, 0]):
            lanes = slice(group * WARPGROUP, (group + 1) * WARPGROUP)
            cta = int(m.cta[lanes.start])
            right, *left = (Descriptor.of(one(x, lanes)) for x in named)
            there = right.read(m.shared, cta, columns, depth, size, transposed_b)
            here = left[0].read(m.shared, cta, 64, depth, size, transposed_a) if left else fragments(lanes)
            m.flop += 2 * 64 * columns * depth
            read = (columns + (64 if left else 0)) * depth * size
            m.shared.counts.update({f"product {what}": read // LINE for what in ("cycles", "least cycles")})
            summed = (decode(here) @ decode(there).T).reshape(4, 16, columns)
            results[:, lanes] = summed[:, held_rows, held_columns].swapaxes(0, 1).reshape(len(d), WARPGROUP)
            if one(scaled, lanes):
                results[:, lanes] += [start[lanes] for start in sums]
        for write, result in zip(writes, results, strict=True):
            write(result, mask)

    def issue(mask: Mask) -> None:
        named, scaled = [x.copy() for x in descriptors], keep.copy()
        m.products.begin(mask, lambda ready: product(ready, named, scaled))

    return issue


def close_products(m: Machine, ins: Instruction) -> Step:
    """`wgmma.commit_group.sync.aligned`. The products of a group happen together, after those of earlier groups.

    One moment is drawn for a group and its four warps. If there were one for each product, the earliest of many would
    decide, and a product would hardly ever be late.
    """
    first = np.arange(m.lanes) % WARPGROUP < WARP

    def step(mask: Mask) -> None:
        m.products.close(mask)
        if begun := m.products.of(mask & first):
            m.soon(lambda: m.products.happen(begun[-1], in_order=True))

    return step


def wait_for_products(m: Machine, ins: Instruction) -> Step:
    left = ins.operands[0]
    assert isinstance(left, int)
    return lambda mask: m.products.wait(mask, left, WARPGROUP)


MAKERS: dict[str, Maker] = {
    "ldmatrix": load_matrices,
    "stmatrix": store_matrices,
    "mma": mma,
    "wgmma.mma_async": wgmma,
    "wgmma.commit_group": close_products,
    "wgmma.wait_group": wait_for_products,
}
