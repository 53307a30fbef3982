"""LLVM vectors for CPU kernels: loads that widen to fp32, stores that round, sums of lanes, 2^x, loops.

Elements are widened when they are loaded: fp32 as it is, bf16 (uint16) by a shift, fp16 (int16) by the processor, e4m3
(uint8) by way of fp16, int8 by the processor.

A vector has as many lanes as a register: 16 with AVX-512, 8 with AVX2, 4 with NEON or SSE. LLVM gets whole vectors, so
that it does not matter whether it would have vectorised a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import factorial, log
from typing import Any

CONTRACT = ("contract",)
"""A product and a sum become one instruction where the processor has one."""

EXP2_TERMS = tuple(log(2) ** n / factorial(n) for n in range(6, -1, -1))
"""Taylor's coefficients of 2^f, that of f^6 first."""


@cache
def lanes() -> int:
    """Elements of fp32 in a register of this machine, or of the one that NUMBA_CPU_FEATURES tells."""
    has = features()
    return 16 if "+avx512f" in has else 8 if "+avx2" in has else 4


@cache
def registers() -> int:
    """Registers for vectors: 32 with AVX-512 and on Arm, 16 on other x86 processors."""
    has = features()
    return 16 if ("+sse2" in has and "+avx512f" not in has) or lanes() == 8 else 32


@cache
def asks_ahead() -> bool:
    """Whether memory is read faster if kernels ask for lines ahead of their loads: with AVX-512.

    On a Zen 3 core, four rows of W times three of x came at 0.97 of a plain read without, and at 0.79 with it.
    Attention without groups came at 1.01 and 0.93.
    """
    return lanes() == 16


def features() -> list[str]:
    """LLVM's names of what the processor has and lacks, as in +avx2 and -avx512f."""
    from numba import config
    from numba.core.codegen import get_host_cpu_features

    return (config.CPU_FEATURES or get_host_cpu_features()).split(",")


@cache
def multiplies_bf16() -> bool:
    """Whether one instruction multiplies pairs of bf16 and adds both products to an fp32: AVX512-BF16.

    LLVM's function for it has had its arguments in bf16 since LLVM 16.
    """
    from llvmlite.binding import llvm_version_info

    return llvm_version_info >= (16, 0, 0) and "+avx512bf16" in features()


def widened(builder: Any, values: Any, stored: Any) -> Any:
    """Values of a stored type, a vector or one alone, as fp32."""
    from llvmlite import ir
    from numba import types

    def like(element: Any) -> Any:
        return ir.VectorType(element, values.type.count) if isinstance(values.type, ir.VectorType) else element

    def number(kind: Any, value: float) -> Any:
        many = isinstance(values.type, ir.VectorType)
        return ir.Constant(like(kind), [value] * values.type.count if many else value)

    fp32, i16, i32 = like(ir.FloatType()), ir.IntType(16), ir.IntType(32)
    if stored == types.float32:
        return values
    if stored == types.uint16:
        return builder.bitcast(builder.shl(builder.zext(values, like(i32)), number(i32, 16)), fp32)
    if stored == types.int16:
        return builder.fpext(builder.bitcast(values, like(ir.HalfType())), fp32)
    if stored == types.int8:
        return builder.sitofp(values, fp32)
    if stored == types.uint8:
        wide = builder.zext(values, like(i16))
        sign = builder.shl(builder.and_(wide, number(i16, 0x80)), number(i16, 8))
        rest = builder.shl(builder.and_(wide, number(i16, 0x7F)), number(i16, 7))
        half = builder.bitcast(builder.or_(sign, rest), like(ir.HalfType()))
        return builder.fmul(builder.fpext(half, fp32), number(ir.FloatType(), 256.0))
    raise TypeError(f"elements in {stored}: expected fp32, uint16 (bf16), int16 (fp16), uint8 (e4m3) or int8")


def narrowed(builder: Any, values: Any, stored: Any) -> Any:
    """Values of fp32, a vector or one alone, rounded to a stored type of 16 bits or left as they are."""
    from llvmlite import ir
    from numba import types

    def like(element: Any) -> Any:
        return ir.VectorType(element, values.type.count) if isinstance(values.type, ir.VectorType) else element

    def number(value: int) -> Any:
        many = isinstance(values.type, ir.VectorType)
        return ir.Constant(like(ir.IntType(32)), [value] * values.type.count if many else value)

    if stored == types.float32:
        return values
    if stored == types.int16:
        return builder.bitcast(builder.fptrunc(values, like(ir.HalfType())), like(ir.IntType(16)))
    if stored != types.uint16:
        raise TypeError(f"results in {stored}: expected fp32, uint16 (bf16) or int16 (fp16)")
    bits = builder.bitcast(values, like(ir.IntType(32)))
    odd = builder.and_(builder.lshr(bits, number(16)), number(1))
    to_even = builder.lshr(builder.add(bits, builder.add(odd, number(0x7FFF))), number(16))
    is_nan = builder.fcmp_unordered("uno", values, values)
    return builder.trunc(builder.select(is_nan, number(0x7FC0), to_even), like(ir.IntType(16)))


LINE_BYTES = 64
"""A line of the caches of all common processors."""


class Code:
    """Helpers around one builder: pointers into flat arrays, vectors from and to them, loops."""

    def __init__(self, context: Any, builder: Any) -> None:
        from llvmlite import ir

        self.context, self.builder, self.ir = context, builder, ir
        self.count = lanes()
        self.fp32, self.i64 = ir.FloatType(), ir.IntType(64)
        self.vector = ir.VectorType(self.fp32, self.count)

    def int64(self, value: int) -> Any:
        return self.ir.Constant(self.i64, value)

    def add(self, place: Any, more: int) -> Any:
        """place + more."""
        return self.builder.add(place, self.int64(more)) if more else place

    def zeros(self) -> Any:
        return self.ir.Constant(self.vector, [0.0] * self.count)

    def data(self, kind: Any, value: Any) -> Any:
        """The pointer to the first element of a flat array."""
        return self.context.make_array(kind)(self.context, self.builder, value).data

    def offsets(self, value: Any, kind: Any) -> list[Any]:
        """The members of a tuple of offsets."""
        return [
            self.context.cast(self.builder, self.builder.extract_value(value, i), member, int64())
            for i, member in enumerate(kind)
        ]

    def load(self, pointer: Any, at: Any, stored: Any) -> Any:
        """A vector of fp32 from the element `at` on."""
        element = self.context.get_data_type(stored)
        place = self.builder.gep(pointer, [at])
        many = self.ir.VectorType(element, self.count)
        size = self.context.get_abi_sizeof(element)
        loaded = self.builder.load(self.builder.bitcast(place, many.as_pointer()), align=size)
        return widened(self.builder, loaded, stored)

    def load_pairs(self, pointer: Any, at: Any) -> Any:
        """Twice as many bf16 as a vector of fp32 has elements, from the element `at` on, left as they are."""
        bits, place = self.ir.VectorType(self.ir.IntType(16), 2 * self.count), self.builder.gep(pointer, [at])
        return self.builder.load(self.builder.bitcast(place, bits.as_pointer()), align=2)

    def add_products(self, pairs: Any, others: Any, total: Any) -> Any:
        """total[i] + pairs[2i] others[2i] + pairs[2i + 1] others[2i + 1]. Needs `multiplies_bf16`."""
        kind = self.ir.VectorType(bfloat(), 2 * self.count)
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.count}"
        multiply = self.declared(name, self.vector, [self.vector, kind, kind])
        return self.builder.call(multiply, [total, *(self.builder.bitcast(each, kind) for each in (pairs, others))])

    def load_one(self, pointer: Any, at: Any, stored: Any) -> Any:
        return widened(self.builder, self.builder.load(self.builder.gep(pointer, [at])), stored)

    def store(self, vector: Any, pointer: Any, at: Any) -> None:
        place = self.builder.gep(pointer, [at])
        self.builder.store(vector, self.builder.bitcast(place, vector.type.as_pointer()), align=1)

    def ask(self, pointer: Any, at: Any) -> None:
        """Prefetch a line into the L2, to read it, where that helps."""
        if not asks_ahead():
            return
        byte, i32 = self.ir.IntType(8).as_pointer(), self.ir.IntType(32)
        fnty = self.ir.FunctionType(self.ir.VoidType(), [byte, i32, i32, i32])
        prefetch = self.builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=fnty)
        place = self.builder.bitcast(self.builder.gep(pointer, [at]), byte)
        self.builder.call(prefetch, [place, i32(0), i32(2), i32(1)])

    def splat(self, value: Any) -> Any:
        one = self.builder.insert_element(
            self.ir.Constant(self.vector, self.ir.Undefined), value, self.ir.Constant(self.ir.IntType(32), 0)
        )
        return self.shuffle(one, one, [0] * self.count)

    def shuffle(self, first: Any, second: Any, order: Sequence[int]) -> Any:
        i32 = self.ir.IntType(32)
        return self.builder.shuffle_vector(
            first, second, self.ir.Constant(self.ir.VectorType(i32, len(order)), list(order))
        )

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.fadd(self.builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)

    def variables(self, count: int, initial: Any) -> list[Any]:
        """Variables that LLVM keeps in registers."""
        from numba.core import cgutils

        return [cgutils.alloca_once_value(self.builder, initial) for _ in range(count)]

    def declared(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        """One of LLVM's own functions."""
        return self.builder.module.declare_intrinsic(name, fnty=self.ir.FunctionType(result, list(arguments)))

    def horizontal(self, vector: Any) -> Any:
        """The sum of a vector's lanes."""
        reduce = self.declared(f"llvm.vector.reduce.fadd.v{self.count}f32", self.fp32, [self.fp32, self.vector])
        return self.builder.call(reduce, [self.ir.Constant(self.fp32, 0.0), vector], fastmath=("reassoc",))

    def exp2(self, x: Any) -> Any:
        """2^x of a vector with x <= 0, to 2e-7 relative; 0 below 2^-126, and NaN for NaN.

        x = n + f with |f| <= 1/2; 2^f is its Taylor polynomial of degree 6, and n goes into the exponent.
        """
        builder, many = self.builder, self.ir.VectorType(self.ir.IntType(32), self.count)
        same = self.ir.FunctionType(self.vector, [self.vector])
        rounded = builder.module.declare_intrinsic(f"llvm.rint.v{self.count}f32", fnty=same)

        def constant(value: float) -> Any:
            return self.ir.Constant(self.vector, [value] * self.count)

        small = builder.fcmp_ordered("<", x, constant(-126.0))
        near = builder.select(small, constant(-126.0), x)
        n = builder.call(rounded, [near])
        f = builder.fsub(near, n)
        power = constant(EXP2_TERMS[0])
        for term in EXP2_TERMS[1:]:
            power = self.fma(power, f, constant(term))
        exponent = builder.shl(builder.fptosi(n, many), self.ir.Constant(many, [23] * self.count))
        found = builder.bitcast(builder.add(builder.bitcast(power, many), exponent), self.vector)
        # the sum of integers would make a number of NaN
        found = builder.select(builder.fcmp_unordered("uno", x, x), x, found)
        return builder.select(small, constant(0.0), found)

    def whole(self, length: Any) -> Any:
        """The part of a length that fills vectors."""
        step = self.int64(self.count)
        return self.builder.mul(self.builder.sdiv(length, step), step)

    def loop(self, start: Any, stop: Any, step: int, body: Callable[[Any], None]) -> None:
        from numba.core import cgutils

        with cgutils.for_range_slice(self.builder, start, stop, self.int64(step), intp=self.i64) as (at, _):
            body(at)

    def row_sums(self, vectors: Sequence[Any]) -> Any:
        """The sums of as many vectors as a vector has lanes; lane i has that of vector i.

        In a tree, two vectors become one by adding neighbours: twice single lanes within each 128 bits, where a shuffle
        is cheap, then whole 128 bits.
        """
        rows, level = list(vectors), 0
        while len(rows) > 1:
            unit, within = (1, 4) if level < 2 else (4, self.count)
            first, second = (
                [
                    side * self.count + block + at + lane
                    for block in range(0, self.count, within)
                    for side in (0, 1)
                    for at in range(start, within, 2 * unit)
                    for lane in range(unit)
                ]
                for start in (0, unit)
            )
            rows = [
                self.builder.fadd(self.shuffle(a, b, first), self.shuffle(a, b, second))
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ]
            level += 1
        return rows[0]

    def store_sums(self, vectors: Sequence[Any], pointer: Any, starts: Sequence[Any]) -> None:
        """Store the sum of each vector: those of the first `len(vectors) / len(starts)` from the first start on, and
        so on."""
        padded = [*vectors, *[self.zeros()] * (-len(vectors) % self.count)]
        totals = [self.row_sums(padded[i : i + self.count]) for i in range(0, len(padded), self.count)]
        each = len(vectors) // len(starts)
        for j, start in enumerate(starts):
            for first, last in pieces(j * each, (j + 1) * each, self.count):
                total, lane = totals[first // self.count], first % self.count
                part = self.shuffle(total, total, range(lane, lane + last - first))
                self.store(part, pointer, self.builder.add(start, self.int64(first - j * each)))


def pieces(first: int, last: int, width: int) -> list[tuple[int, int]]:
    """[first, last) cut at the multiples of `width`."""
    cuts = [first, *(i for i in range(first + 1, last) if i % width == 0), last]
    return list(pairwise(cuts))


@cache
def bfloat() -> Any:
    """LLVM's type of bf16, which llvmlite lacks."""
    from llvmlite import ir

    class Bfloat(ir.Type):
        def __str__(self) -> str:
            return "bfloat"

    return Bfloat()


def int64() -> Any:
    from numba import types

    return types.int64
