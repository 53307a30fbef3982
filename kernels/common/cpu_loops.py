"""The inner loops of CPU kernels: offsets, prefetching, conversions, sums of rows, a block's softmax.

All arrays are flat, and rows are given by the offsets of their first elements. What does
not fill a vector is done element by element where rows may have any length. `cpu_lanes` tells the types of elements,
and products of rows are in `cpu_dots`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.common.cpu_jit import intrinsic
from kernels.common.cpu_lanes import LINE_BYTES, Code, narrowed, registers

AHEAD = 2048
"""The processor's own prefetcher begins anew at every page of 4 KiB, so half a page is asked for ahead."""


def taking(of_16: int, of_32: int) -> Callable[..., Any]:
    """`f(at, i, more)` is the tuple of at[i] + more, ..., at[i + count - 1] + more. Indices are not checked.

    `count` is `of_16` where a core has 16 registers for vectors, and `of_32` where it has 32.
    """

    def take(typingctx, at, i, more):
        from numba import types

        count = of_16 if registers() == 16 else of_32

        def generate(context, builder, signature, arguments):
            code = Code(context, builder)
            data = code.data(at, arguments[0])
            places = [builder.gep(data, [builder.add(arguments[1], code.int64(j))]) for j in range(count)]
            rows = [builder.add(builder.load(place), arguments[2]) for place in places]
            return context.make_tuple(builder, signature.return_type, rows)

        return types.UniTuple(types.int64, count)(at, types.int64, types.int64), generate

    return take


two, four, eight = (intrinsic(taking(count, count)) for count in (2, 4, 8))
three_or_four = intrinsic(taking(3, 4))
two_or_four = intrinsic(taking(2, 4))
four_or_eight = intrinsic(taking(4, 8))
"""So many rows that their sums with 4, 4 and 2 other rows stay in registers."""


@intrinsic
def apart(typingctx):
    """The function that calls this is not compiled into its callers, which would take seconds for each of them."""
    from numba import types

    def generate(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def prefetch(typingctx, a, rows, length):
    """Ask for the lines of `length` elements of each row of `a`, which are read soon. `rows` is a tuple of offsets."""
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        data, offsets = code.data(a, arguments[0]), code.offsets(arguments[1], rows)

        def body(i):
            for offset in offsets:
                code.ask(data, builder.add(offset, i))

        line = LINE_BYTES // context.get_abi_sizeof(context.get_data_type(a.dtype))
        code.loop(code.int64(0), arguments[2], line, body)
        return context.get_dummy_value()

    return types.void(a, rows, types.int64), generate


@intrinsic
def convert(typingctx, a, a_at, length, factor, out, out_at):
    """out[out_at + i] = factor a[a_at + i], rounded to the type of `out` (to even)."""
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        a_data, out_data = code.data(a, arguments[0]), code.data(out, arguments[4])

        def move(at, load, spread):
            value = load(a_data, builder.add(arguments[1], at), a.dtype)
            scaled = builder.fmul(value, spread(arguments[3]))
            code.store(narrowed(builder, scaled, out.dtype), out_data, builder.add(arguments[5], at))

        whole = code.whole(arguments[2])
        code.loop(code.int64(0), whole, code.count, lambda at: move(at, code.load, code.splat))
        code.loop(whole, arguments[2], 1, lambda at: move(at, code.load_one, lambda value: value))
        return context.get_dummy_value()

    return types.void(a, types.int64, types.int64, types.float32, out, types.int64), generate


BLOCK = 16
"""Tokens whose scores are softened at once; a multiple of the lanes of every machine."""

UNSEEN = -1e30
"""The score of a token that a query does not see. It is finite, so that UNSEEN - UNSEEN is no NaN."""


@intrinsic
def largest(typingctx, s, at):
    """The largest of the `BLOCK` scores from s[at] on. NaN is passed over here: `soften` lets it through."""
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        data, best = code.data(s, arguments[0]), None
        for i in range(0, BLOCK, code.count):
            value = code.load(data, builder.add(arguments[1], code.int64(i)), s.dtype)
            best = value if best is None else builder.select(builder.fcmp_ordered(">", best, value), best, value)
        name = f"llvm.vector.reduce.fmax.v{code.count}f32"
        reduce = code.declared(name, code.fp32, [code.vector])
        return builder.call(reduce, [best])

    return types.float32(s, types.int64), generate


@intrinsic
def soften(typingctx, s, at, less):
    """Replace the `BLOCK` scores from s[at] on by 2^(score - less), and return their sum. Scores are at most `less`."""
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        data, total = code.data(s, arguments[0]), None
        less = code.splat(arguments[2])
        for i in range(0, BLOCK, code.count):
            place = builder.add(arguments[1], code.int64(i))
            value = code.exp2(builder.fsub(code.load(data, place, s.dtype), less))
            code.store(value, data, place)
            total = value if total is None else builder.fadd(total, value)
        return code.horizontal(total)

    return types.float32(s, types.int64, types.float32), generate


@intrinsic
def add_row(typingctx, out, out_at, a, at, length):
    """out[out_at:] += the sum of the vectors of the row of `a` from a[at] on. The row has whole vectors."""
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        out_data, data = code.data(out, arguments[0]), code.data(a, arguments[2])
        pair = code.variables(2, code.zeros())
        builder.store(code.load(out_data, arguments[1], out.dtype), pair[0])

        def add(at, slot):
            value = code.load(data, builder.add(arguments[3], at), a.dtype)
            builder.store(builder.fadd(builder.load(slot), value), slot)

        def add_two(at):
            add(at, pair[0])
            add(builder.add(at, code.int64(code.count)), pair[1])

        step = code.int64(2 * code.count)
        whole = builder.mul(builder.sdiv(arguments[4], step), step)
        code.loop(code.int64(0), whole, 2 * code.count, add_two)
        code.loop(whole, arguments[4], code.count, lambda at: add(at, pair[0]))
        code.store(builder.fadd(builder.load(pair[0]), builder.load(pair[1])), out_data, arguments[1])
        return context.get_dummy_value()

    return types.void(out, types.int64, a, types.int64, types.int64), generate


@intrinsic
def row_sum(typingctx, a, at, length):
    """The sum of `length` elements of `a` from a[at] on, in four vectors at once."""
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        data = code.data(a, arguments[0])
        sums, rest = code.variables(4, code.zeros()), code.variables(1, code.ir.Constant(code.fp32, 0.0))[0]

        def add(at):
            for i, place in enumerate(sums):
                value = code.load(data, builder.add(builder.add(arguments[1], at), code.int64(i * code.count)), a.dtype)
                builder.store(builder.fadd(builder.load(place), value), place)

        def add_one(at):
            value = code.load_one(data, builder.add(arguments[1], at), a.dtype)
            builder.store(builder.fadd(builder.load(rest), value), rest)

        step = code.int64(4 * code.count)
        whole = builder.mul(builder.sdiv(arguments[2], step), step)
        code.loop(code.int64(0), whole, 4 * code.count, add)
        code.loop(whole, arguments[2], 1, add_one)
        first, second, third, fourth = (builder.load(each) for each in sums)
        total = builder.fadd(builder.fadd(first, second), builder.fadd(third, fourth))
        return builder.fadd(code.horizontal(total), builder.load(rest))

    return types.float32(a, types.int64, types.int64), generate


def summed(
    context: Any, builder: Any, arguments: Any, out: Any, kind: Any, rows: Any, change: Callable[..., list[Any]]
) -> Any:
    """Code for out[to + i] = the sum of `change(elements)` of row i, all rows at once, two sums for each. The arguments
    begin with out, to, the data (of the type `kind`), the offsets of the rows, and a length that 32 divides."""
    code = Code(context, builder)
    out_data, data = code.data(out, arguments[0]), code.data(kind, arguments[2])
    at = code.offsets(arguments[3], rows)
    sums = code.variables(2 * len(at), code.zeros())

    def add(i):
        places = [builder.add(row, code.add(i, n * code.count)) for row in at for n in range(2)]
        held = change(code, [code.load(data, place, kind.dtype) for place in places])
        for slot, value in zip(sums, held, strict=True):
            builder.store(builder.fadd(builder.load(slot), value), slot)

    code.loop(code.int64(0), arguments[4], 2 * code.count, add)
    found = [builder.load(each) for each in sums]
    totals = [builder.fadd(*pair) for pair in zip(found[::2], found[1::2], strict=True)]
    code.store_sums(totals, out_data, [arguments[1]])
    return context.get_dummy_value()


@intrinsic
def sum_rows(typingctx, out, to, a, rows, length):
    """out[to + i] = the sum of `length` elements of row i of `a`, all rows at once. `rows` is a tuple of offsets, and
    `length` a multiple of 32."""
    from numba import types

    def generate(context, builder, signature, arguments):
        return summed(context, builder, arguments, out, a, rows, lambda code, held: held)

    return types.void(out, types.int64, a, rows, types.int64), generate


def computing(passes: int) -> Callable[..., Any]:
    """The sums of `sum_rows`, of elements that become a z + b `passes` times before they are added."""

    def sums_after(typingctx, out, to, x, rows, length, a, b):
        from numba import types

        def generate(context, builder, signature, arguments):
            def change(code, held):
                factor, more = code.splat(arguments[5]), code.splat(arguments[6])
                for _ in range(passes):
                    held = [code.fma(value, factor, more) for value in held]
                return held

            return summed(context, builder, arguments, out, x, rows, change)

        return types.void(out, types.int64, x, rows, types.int64, types.float32, types.float32), generate

    return sums_after


PASSES = (2, 8, 16)
"""Written out, because a loop of so few steps costs as much as they do."""

fma_2, fma_8, fma_16 = (intrinsic(computing(passes)) for passes in PASSES)
