"""Instructions of single threads: numbers, bits, comparisons, conversions. Types are named as in the PTX ISA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.inspection.emulator.floats import SMALL, U32, e4m3, halves, to_f16, together
from bench.inspection.emulator.machine import Machine, Mask, Step
from bench.inspection.emulator.ptx import Instruction, listed


def exact(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Compute in fp64 and round once to fp32, so that a fused multiply-add is fused."""
    return lambda *x: function(*(v.astype(np.float64) for v in x)).astype(np.float32)


FLOAT: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "fma": lambda a, b, c: a * b + c,
    "max": np.fmax,
    "min": np.fmin,
    "neg": np.negative,
    "abs": np.abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
}


INEXACT = ("fma", "ex2", "lg2", "rcp", "rsqrt")
"""Computed in fp64 and rounded once. Where the hardware approximates, it is at least as far from the exact result."""


def truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer division as in C, rounded towards zero."""
    a, b = a.astype(np.int64), b.astype(np.int64)
    b = np.where(b == 0, 1, b)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def shift_left(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    bits = 8 * a.dtype.itemsize
    return np.where(n < bits, a << np.minimum(n, bits - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(n, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(n < bits, shifted, a.dtype.type(0))


INTEGER: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul.lo": np.multiply,
    "mad.lo": lambda a, b, c: a * b + c,
    "div": truncated,
    "rem": lambda a, b: a.astype(np.int64) - truncated(a, b) * b,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}

COMPARE: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def simple(m: Machine, ins: Instruction, kind: str, function: Callable[..., np.ndarray], into: str = "") -> Step:
    """`op d, a, b, ...` where all operands have one type."""
    sources = [m.value(x, kind) for x in ins.operands[1:]]
    write = m.writer(ins.operands[0], into or kind)
    return lambda mask: write(function(*sources), mask)


def small_float(m: Machine, ins: Instruction, kind: str, function: Callable[..., np.ndarray]) -> Step:
    """An operation on 16-bit floats, one or two of them in a register."""
    name = kind.removesuffix("x2")
    to, back = SMALL[name]
    exactly = exact(function)
    if name == kind:
        sources = [m.value(x, "b16") for x in ins.operands[1:]]
        write = m.writer(ins.operands[0], "b16")
        return lambda mask: write(back(exactly(*(to(s) for s in sources))), mask)
    words = [m.value(x, "b32") for x in ins.operands[1:]]
    write = m.writer(ins.operands[0], "b32")

    def step(mask: Mask) -> None:
        parts = zip(*(halves(w) for w in words), strict=True)
        low, high = (back(exactly(*(to(p) for p in part))) for part in parts)
        write(together(low, high), mask)

    return step


def two_floats(m: Machine, ins: Instruction, function: Callable[..., np.ndarray]) -> Step:
    """`.f32x2`: an operation on two fp32 numbers in a 64-bit register."""
    words = [m.value(x, "b64") for x in ins.operands[1:]]
    write = m.writer(ins.operands[0], "b64")
    exactly = exact(function)

    def step(mask: Mask) -> None:
        pairs = [np.ascontiguousarray(w).view(np.float32).reshape(-1, 2) for w in words]
        write(np.ascontiguousarray(exactly(*pairs)).view(np.uint64).ravel(), mask)

    return step


def arithmetic(m: Machine, ins: Instruction, name: str, kind: str) -> Step:
    if kind == "f32x2":
        return two_floats(m, ins, FLOAT[name])
    if kind.removesuffix("x2") in SMALL:
        return small_float(m, ins, kind, FLOAT[name])
    if kind in ("f32", "f64"):
        return simple(m, ins, kind, exact(FLOAT[name]) if kind == "f32" and name in INEXACT else FLOAT[name])
    if name in ("mul", "mad"):
        if ".wide" in ins.opcode:
            return wide(m, ins, kind)
        if ".hi" in ins.opcode:
            return high(m, ins, kind)
        name += ".lo"
    return simple(m, ins, kind, INTEGER[name])


def wide(m: Machine, ins: Instruction, kind: str) -> Step:
    """`mul.wide`, `mad.wide`: the product has twice the width of the factors."""
    into = f"{kind[0]}{2 * int(kind[1:])}"
    a, b = (m.value(x, kind) for x in ins.operands[1:3])
    c = m.value(ins.operands[3], into) if len(ins.operands) > 3 else None
    write = m.writer(ins.operands[0], into)
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(into[1:]) // 8}")

    def step(mask: Mask) -> None:
        product = a.astype(dtype) * b.astype(dtype)
        write(product if c is None else product + c, mask)

    return step


def high(m: Machine, ins: Instruction, kind: str) -> Step:
    """`mul.hi`: the upper half of the product, which has twice the width of the factors."""
    bits = int(kind[1:])
    ins.must(bits < 64 and len(ins.operands) == 3)
    dtype = np.int64 if kind[0] == "s" else np.uint64
    a, b = (m.value(x, kind) for x in ins.operands[1:])
    write = m.writer(ins.operands[0], kind)
    return lambda mask: write((a.astype(dtype) * b.astype(dtype)) >> dtype(bits), mask)


def shift(m: Machine, ins: Instruction, name: str, kind: str) -> Step:
    a, n = m.value(ins.operands[1], kind), m.value(ins.operands[2], "u32")
    write = m.writer(ins.operands[0], kind)
    function = shift_left if name == "shl" else shift_right
    return lambda mask: write(function(a, n), mask)


def funnel(m: Machine, ins: Instruction) -> Step:
    """`shf.l.wrap d, a, b, n`: the high word of b:a shifted left. `shf.r.wrap`: the low word shifted right."""
    a, b, n = (m.value(x, "u32") for x in ins.operands[1:])
    write = m.writer(ins.operands[0], "u32")
    left = ".l." in ins.opcode

    def step(mask: Mask) -> None:
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        by = (n & U32(31)).astype(np.uint64)
        write((both << by) >> np.uint64(32) if left else (both >> by) & np.uint64(0xFFFFFFFF), mask)

    return step


def field_extract(m: Machine, ins: Instruction, kind: str) -> Step:
    """`bfe d, a, position, length`. A signed field is extended by its highest bit."""
    a, position, length = (m.value(x, "u32") for x in ins.operands[1:])
    write = m.writer(ins.operands[0], kind)

    def step(mask: Mask) -> None:
        at, size = (position & U32(255)).astype(np.int64), (length & U32(255)).astype(np.int64)
        field = (a.astype(np.int64) >> at) & ((np.int64(1) << size) - 1)
        if kind == "s32":
            negative = (size > 0) & ((field >> np.maximum(size - 1, 0)) & 1 == 1)
            field = np.where(negative, field - (np.int64(1) << size), field)
        write(field, mask)

    return step


def byte_permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """`prmt.b32`: pick four of the eight bytes of b:a. Bit 3 of a selector repeats the sign of the byte picked."""
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result = np.zeros(np.broadcast_shapes(both.shape, selector.shape), dtype=np.uint64)
    for i in range(4):
        pick = (selector >> U32(4 * i)).astype(np.uint64) & np.uint64(15)
        octet = (both >> (np.uint64(8) * (pick & np.uint64(7)))) & np.uint64(0xFF)
        octet = np.where(pick & np.uint64(8), np.where(octet & np.uint64(0x80), np.uint64(0xFF), np.uint64(0)), octet)
        result |= octet << np.uint64(8 * i)
    return result.astype(U32)


def logic_table(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`lop3.b32`: the bits of a, b and c form a number, which selects an entry of the truth table."""
    wanted = int(table[0])
    result = np.zeros(1, dtype=U32)
    for entry in range(8):
        if wanted >> entry & 1:
            result = result | (a if entry & 4 else ~a) & (b if entry & 2 else ~b) & (c if entry & 1 else ~c)
    return result


def compare(m: Machine, ins: Instruction, kind: str) -> Step:
    """`setp.<how>.<type> p, a, b`; of two 16-bit floats in a register `p|q`, of the low half and of the high one."""
    how = ins.opcode.split(".")[1]
    ins.must(len(ins.operands) == 3)
    if kind.removesuffix("x2") != kind:
        return compare_halves(m, ins, how, SMALL[kind.removesuffix("x2")][0])
    write = m.writer(ins.operands[0], "pred")
    if kind in SMALL:
        to = SMALL[kind][0]
        x, y = (m.value(v, "b16") for v in ins.operands[1:])
        a, b = (lambda: to(x)), (lambda: to(y))
    else:
        x, y = (m.value(v, kind) for v in ins.operands[1:])
        a, b = (lambda: x), (lambda: y)

    return lambda mask: write(compared(how, a(), b()), mask)


def compare_halves(m: Machine, ins: Instruction, how: str, to: Callable[[np.ndarray], np.ndarray]) -> Step:
    both = listed(ins.operands[0])
    ins.must(len(both) == 2)
    low, high = (m.writer(each, "pred") for each in both)
    x, y = (m.value(v, "b32") for v in ins.operands[1:])

    def step(mask: Mask) -> None:
        for write, a, b in zip((low, high), halves(x), halves(y), strict=True):
            write(compared(how, to(a), to(b)), mask)

    return step


def compared(how: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A comparison with a NaN is false, but of `equ`, `neu` and the like."""
    if left.dtype.kind != "f":
        return COMPARE[how[:2]](left, right)
    none = np.isnan(left) | np.isnan(right)
    if how in ("num", "nan"):
        return none if how == "nan" else ~none
    result = COMPARE[how[:2]](left, right)
    return result | none if how in ("equ", "neu", "ltu", "leu", "gtu", "geu") else result & ~none


def select(m: Machine, ins: Instruction, kind: str) -> Step:
    a, b, p = m.value(ins.operands[1], kind), m.value(ins.operands[2], kind), m.value(ins.operands[3], "pred")
    write = m.writer(ins.operands[0], kind)
    return lambda mask: write(np.where(p, a, b), mask)


def move(m: Machine, ins: Instruction, kind: str) -> Step:
    """`mov`, which also packs `{low, high}` into a register and unpacks it."""
    target, source = ins.operands
    if isinstance(source, tuple):
        width = int(kind[1:]) // len(source)
        parts = [m.value(x, f"b{width}") for x in source]
        write = m.writer(target, kind)
        dtype = np.dtype(f"u{int(kind[1:]) // 8}")
        shifts = [dtype.type(width * i) for i in range(len(parts))]

        def pack(mask: Mask) -> None:
            shifted = [p.astype(dtype) << s for p, s in zip(parts, shifts, strict=True)]
            write(np.bitwise_or.reduce(np.broadcast_arrays(*shifted)), mask)

        return pack
    if isinstance(target, tuple):
        width = int(kind[1:]) // len(target)
        whole = m.value(source, kind)
        writes = [m.writer(x, f"b{width}") for x in target]

        def step(mask: Mask) -> None:
            for i, write in enumerate(writes):
                write((whole >> whole.dtype.type(width * i)).astype(np.dtype(f"u{width // 8}")), mask)

        return step
    return simple(m, ins, kind, lambda a: a)


def convert(m: Machine, ins: Instruction) -> Step:
    """`cvt[.round].<to>.<from>`."""
    parts = ins.opcode.split(".")[1:]
    to, source = parts[-2:]
    mode = next((p for p in parts[:-2] if p in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")), "")
    if to in ("bf16x2", "f16x2") and source == "f32":
        back = SMALL[to.removesuffix("x2")][1]
        high_part, low_part = (m.value(x, "f32") for x in ins.operands[1:])
        write = m.writer(ins.operands[0], "b32")
        return lambda mask: write(together(back(low_part), back(high_part)), mask)
    if source == "e4m3x2":
        octets = m.value(ins.operands[1], "b16")
        write = m.writer(ins.operands[0], "b32")
        return lambda mask: write(
            together(to_f16(e4m3(octets & np.uint16(0xFF))), to_f16(e4m3(octets >> np.uint16(8)))), mask
        )
    if source in SMALL:
        bits, decode = m.value(ins.operands[1], "b16"), SMALL[source][0]
        ins.must(to == "f32" or to in SMALL)
        write = m.writer(ins.operands[0], "f32" if to == "f32" else "b16")
        encode = SMALL[to][1] if to in SMALL else (lambda x: x)
        return lambda mask: write(encode(decode(bits)), mask)
    number = m.value(ins.operands[1], source)
    if to in SMALL:
        write, encode = m.writer(ins.operands[0], "b16"), SMALL[to][1]
        return lambda mask: write(encode(number.astype(np.float32)), mask)
    write = m.writer(ins.operands[0], to)
    rounds: dict[str, Any] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    if mode in rounds:
        limits = np.iinfo(m.value(0, to).dtype) if to[0] in "us" else None

        def step(mask: Mask) -> None:
            whole = rounds[mode](number.astype(np.float64))
            if limits is not None:
                whole = np.clip(np.nan_to_num(whole), limits.min, limits.max)
            write(whole, mask)

        return step
    dtype = m.value(0, to).dtype
    return lambda mask: write(number.astype(dtype), mask)


def step_for(m: Machine, ins: Instruction) -> Step | None:
    """The step for an instruction of this module, or None if another module executes it."""
    parts = ins.opcode.split(".")
    name, kind = parts[0], parts[-1]
    match name:
        case "mov":
            return move(m, ins, kind)
        case "cvt":
            return convert(m, ins)
        case "cvta":
            return simple(m, ins, kind, lambda a: a)
        case "setp":
            return compare(m, ins, kind)
        case "selp":
            return select(m, ins, kind)
        case "shl" | "shr":
            return shift(m, ins, name, kind)
        case "shf":
            return funnel(m, ins)
        case "bfe":
            return field_extract(m, ins, kind)
        case "prmt":
            return simple(m, ins, "b32", byte_permute)
        case "lop3":
            return simple(m, ins, "b32", logic_table)
        case "popc":
            return simple(m, ins, kind, np.bitwise_count, "u32")
    if name in FLOAT or name in INTEGER or name in ("mul", "mad"):
        return arithmetic(m, ins, name, kind)
    return None
