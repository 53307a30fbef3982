"""Products of 4-bit codes with rows of activations, for CPU kernels: codes are multiplied as they are, and the sum of
each group is scaled once."""

from __future__ import annotations

from typing import Any

from kernels.common.cpu_jit import intrinsic
from kernels.common.cpu_lanes import Code, widened
from kernels.common.cpu_loops import AHEAD


def packed_group(scale: Any) -> int:
    """Columns that share a scale: 32 where scales are exponents (uint8, mxfp4), else 128 (int4)."""
    from numba import types

    return 32 if scale.dtype == types.uint8 else 128


@intrinsic
def packed_products(typingctx, w, w_rows, scale, zero, scale_rows, x, x_rows, x_sums, length, out, at, stride):
    """`packed_dots` in fp32, or `packed_pairs` where x is in bf16."""
    from numba import types

    kinds = (w, w_rows, scale, zero, scale_rows, x, x_rows, x_sums, types.int64, out, types.int64, types.int64)
    return types.void(*kinds), (packed_pairs if x.dtype == types.uint16 else packed_dots)(*kinds)


QUARTER = 32
"""Columns of a quarter of a group of int4: a register of AVX-512 in bf16."""

BF16_128 = 0x4300
"""The bits of 128 in bf16. Its last place is 1, so `BF16_128 | code` is 128 + code."""


def packed_pairs(w, w_rows, scale, zero, scale_rows, x, x_rows, x_sums, length, out, at, stride):
    """The same as `packed_dots` for int4 in groups of 128 that divide the columns, by AVX512-BF16.

    A group is a register of 32 words, with four codes in each. `128 + code` is multiplied, in four quarters: of each
    group x has the columns 0, 4, 8, ... first, then 1, 5, 9, ... and so on.
    """
    from numba import types

    zeros = zero.dtype == types.uint8

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        words = code.ir.VectorType(code.ir.IntType(16), QUARTER)
        w_at, scale_at = code.offsets(arguments[1], w_rows), code.offsets(arguments[4], scale_rows)
        x_at = code.offsets(arguments[6], x_rows)
        w_data, scale_data, zero_data = (code.data(k, arguments[i]) for k, i in ((w, 0), (scale, 2), (zero, 3)))
        x_data, sums_data, out_data = (code.data(k, arguments[i]) for k, i in ((x, 5), (x_sums, 7), (out, 9)))
        A, B = len(w_at), len(x_at)
        totals = code.variables(A * B, code.zeros())
        size, half = code.int64(4 * QUARTER), code.int64(2 * QUARTER)

        def constant(value):
            return code.ir.Constant(words, [value] * QUARTER)

        def quarters(i, g):
            place = builder.gep(w_data, [builder.add(w_at[i], builder.mul(g, half))])
            loaded = builder.load(builder.bitcast(place, words.as_pointer()), align=1)
            shifted = [builder.lshr(loaded, constant(4 * n)) if n else loaded for n in range(4)]
            return [builder.or_(builder.and_(each, constant(15)), constant(BF16_128)) for each in shifted]

        def one_group(g):
            first = builder.mul(g, size)
            for i, row in enumerate(w_at):
                place = builder.add(row, builder.add(builder.mul(g, half), code.int64(AHEAD)))
                code.ask(w_data, place)
                where = builder.add(scale_at[i], g)
                factor = code.splat(widened(builder, builder.load(builder.gep(scale_data, [where])), scale.dtype))
                point = code.ir.Constant(code.fp32, 136.0)
                if zeros:
                    stored = builder.uitofp(builder.load(builder.gep(zero_data, [where])), code.fp32)
                    point = builder.fadd(stored, code.ir.Constant(code.fp32, 128.0))
                less = code.splat(builder.fneg(point))
                values = quarters(i, g)
                for j in range(B):
                    group_row = builder.add(builder.sdiv(x_at[j], size), g)
                    lane = builder.mul(group_row, code.int64(code.count))
                    part = builder.fmul(less, code.load(sums_data, lane, x_sums.dtype))
                    for n, value in enumerate(values):
                        column = builder.add(x_at[j], builder.add(first, code.int64(n * QUARTER)))
                        part = code.add_products(value, code.load_pairs(x_data, column), part)
                    slot = totals[j * A + i]
                    builder.store(code.fma(factor, part, builder.load(slot)), slot)

        code.loop(code.int64(0), builder.sdiv(arguments[8], size), 1, one_group)
        starts = [builder.add(arguments[10], builder.mul(arguments[11], code.int64(j))) for j in range(B)]
        code.store_sums([builder.load(each) for each in totals], out_data, starts)
        return context.get_dummy_value()

    return generate


def packed_dots(w, w_rows, scale, zero, scale_rows, x, x_rows, x_sums, length, out, at, stride):
    """out[at + j stride + i] = row i of 4-bit codes times row j of x, where a group of columns shares a scale.

    The types tell the format: scales in uint8 are mxfp4's, zero points in uint8 are int4_zp's, else codes have the zero
    point 8. Of each group x has the even columns first, then the odd ones. A row has zeros past `length`, up to a whole
    group; codes are not read there. x_sums[x_row / half a group lanes] has the sums of each group, lane by lane.
    """
    from numba import types

    group = packed_group(scale)
    exponents, zeros = scale.dtype == types.uint8, zero.dtype == types.uint8

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        i32, half = code.ir.IntType(32), group // 2
        width = min(code.count, half)
        w_at, scale_at = code.offsets(arguments[1], w_rows), code.offsets(arguments[4], scale_rows)
        x_at = code.offsets(arguments[6], x_rows)
        w_data, scale_data, zero_data = (code.data(k, arguments[i]) for k, i in ((w, 0), (scale, 2), (zero, 3)))
        x_data, sums_data, out_data = (code.data(k, arguments[i]) for k, i in ((x, 5), (x_sums, 7), (out, 9)))
        A, B = len(w_at), len(x_at)
        totals = code.variables(A * B, code.zeros())
        size = code.int64(group)
        groups = builder.sdiv(builder.add(arguments[8], code.int64(group - 1)), size)

        def factor(at):
            """The scale of a group. e2m1 is read as fp16, which is 2^-14 times its value."""
            value = builder.load(builder.gep(scale_data, [at]))
            if not exponents:
                return widened(builder, value, scale.dtype)
            # 2^(e - 127 + 14), by the exponent of fp32
            bits = builder.shl(builder.add(builder.zext(value, i32), i32(14)), i32(23))
            return builder.bitcast(bits, code.fp32)

        def pair(i, place, load):
            """The values of the even and the odd columns in a vector of bytes, or one byte."""
            loaded = load(builder.add(w_at[i], place))
            return [nibble(builder, loaded, high, exponents) for high in (False, True)]

        def add(sums, g, place, pair_at, load):
            first = builder.add(builder.mul(g, size), place)
            for i in range(A):
                values = pair(i, builder.add(builder.mul(g, code.int64(half)), place), pair_at)
                for j in range(B):
                    for which, value in enumerate(values):
                        column = builder.add(x_at[j], builder.add(first, code.int64(which * half)))
                        slot = sums[j * A + i]
                        builder.store(code.fma(value, load(x_data, column, x.dtype), builder.load(slot)), slot)

        def vector(at):
            many = code.ir.VectorType(code.ir.IntType(8), width)
            return builder.load(builder.bitcast(builder.gep(w_data, [at]), many.as_pointer()), align=1)

        parts = code.variables(A * B, code.zeros())
        tails = code.variables(A * B, code.ir.Constant(code.fp32, 0.0))

        def one_group(g):
            for i in range(A):
                for j in range(B):
                    if exponents:
                        start = code.zeros()
                    else:
                        point = code.ir.Constant(code.fp32, 8.0)
                        if zeros:
                            stored = builder.load(builder.gep(zero_data, [builder.add(scale_at[i], g)]))
                            point = builder.uitofp(stored, code.fp32)
                        row = builder.sdiv(x_at[j], size)
                        where = builder.mul(builder.add(row, g), code.int64(code.count))
                        start = builder.fmul(code.splat(builder.fneg(point)), code.load(sums_data, where, x_sums.dtype))
                    builder.store(start, parts[j * A + i])
                    builder.store(code.ir.Constant(code.fp32, 0.0), tails[j * A + i])
            left = builder.sub(builder.sdiv(arguments[8], code.int64(2)), builder.mul(g, code.int64(half)))
            bytes_here = builder.select(builder.icmp_signed("<", left, code.int64(half)), left, code.int64(half))
            whole = code.whole(bytes_here)
            code.loop(code.int64(0), whole, code.count, lambda at: add(parts, g, at, vector, code.load))
            code.loop(
                whole,
                bytes_here,
                1,
                lambda at: add(tails, g, at, lambda p: builder.load(builder.gep(w_data, [p])), code.load_one),
            )
            first_lane = code.ir.Constant(i32, 0)
            for i in range(A):
                value = code.splat(factor(builder.add(scale_at[i], g)))
                for j in range(B):
                    slot = totals[j * A + i]
                    part = builder.load(parts[j * A + i])
                    lane = builder.fadd(builder.extract_element(part, first_lane), builder.load(tails[j * A + i]))
                    part = builder.insert_element(part, lane, first_lane)
                    builder.store(code.fma(value, part, builder.load(slot)), slot)

        code.loop(code.int64(0), groups, 1, one_group)
        starts = [builder.add(arguments[10], builder.mul(arguments[11], code.int64(j))) for j in range(B)]
        code.store_sums([builder.load(each) for each in totals], out_data, starts)
        return context.get_dummy_value()

    return generate


def nibble(builder: Any, packed: Any, high: bool, e2m1: bool) -> Any:
    """The low or high halves of bytes, a vector or one, as fp32: the codes, or e2m1 values times 2^-14."""
    from llvmlite import ir

    def like(element: Any) -> Any:
        return ir.VectorType(element, packed.type.count) if isinstance(packed.type, ir.VectorType) else element

    def number(kind: Any, value: int) -> Any:
        many = isinstance(packed.type, ir.VectorType)
        return ir.Constant(like(kind), [value] * packed.type.count if many else value)

    kind = ir.IntType(16 if e2m1 else 32)
    wide = builder.zext(packed, like(kind))
    four_bits = builder.lshr(wide, number(kind, 4)) if high else builder.and_(wide, number(kind, 15))
    if not e2m1:
        return builder.sitofp(four_bits, like(ir.FloatType()))
    sign = builder.shl(builder.and_(four_bits, number(kind, 8)), number(kind, 12))
    rest = builder.shl(builder.and_(four_bits, number(kind, 7)), number(kind, 9))
    return builder.fpext(builder.bitcast(builder.or_(sign, rest), like(ir.HalfType())), like(ir.FloatType()))
