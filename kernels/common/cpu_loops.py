"""The inner loops of CPU kernels: products of rows, weighted sums of rows, sums of rows, a block's softmax.

All arrays are flat, and rows are given by the offsets of their first elements. What does
not fill a vector is done element by element where rows may have any length. `cpu_lanes` tells the types of elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.common.cpu_jit import intrinsic
from kernels.common.cpu_lanes import LINE_BYTES, Code, multiplies_bf16, narrowed

AHEAD = 2048
"""The processor's own prefetcher begins anew at every page of 4 KiB, so half a page is asked for ahead."""


def taking(count: int) -> Callable[..., Any]:
    """`f(at, i, more)` is the tuple of at[i] + more, ..., at[i + count - 1] + more. Indices are not checked."""

    def take(typingctx, at, i, more):
        from numba import types

        def generate(context, builder, signature, arguments):
            code = Code(context, builder)
            data = code.data(at, arguments[0])
            places = [builder.gep(data, [builder.add(arguments[1], code.int64(j))]) for j in range(count)]
            rows = [builder.add(builder.load(place), arguments[2]) for place in places]
            return context.make_tuple(builder, signature.return_type, rows)

        return types.UniTuple(types.int64, count)(at, types.int64, types.int64), generate

    return take


four, eight, sixteen = (intrinsic(taking(count)) for count in (4, 8, 16))


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


def dotting(*, streamed: bool) -> Callable[..., Any]:
    """Streamed rows are long and have any length: their lines are asked for `AHEAD` bytes before they are loaded. Other
    rows have whole vectors, which saves half of the code."""

    def dots(typingctx, a, a_rows, b, b_rows, length, out, at, stride):
        """out[at + j stride + i] = sum over `length` elements of row i of `a` times row j of `b` (fp32), all i and j at
        once. `a_rows` and `b_rows` are tuples of offsets; `a` has at least as many rows in all as there are outputs.

        Where both are bf16 and the processor multiplies bf16, nothing is widened. Rows must then have whole vectors."""
        from numba import types

        def generate(context, builder, signature, arguments):
            code = Code(context, builder)
            a_at, b_at = code.offsets(arguments[1], a_rows), code.offsets(arguments[3], b_rows)
            a_data, b_data, out_data = (
                code.data(a, arguments[0]),
                code.data(b, arguments[2]),
                code.data(out, arguments[5]),
            )
            A, B = len(a_at), len(b_at)
            sums = code.variables(A * B, code.zeros())
            size = context.get_abi_sizeof(context.get_data_type(a.dtype))
            paired = a.dtype == b.dtype == types.uint16 and multiplies_bf16()
            width = 2 * code.count if paired else code.count
            step = max(width, LINE_BYTES // size) if streamed else width

            def load(data, place, kind):
                return code.load_pairs(data, place) if paired else code.load(data, place, kind.dtype)

            def add(at):
                if streamed:
                    for row in a_at:
                        code.ask(a_data, builder.add(row, builder.add(at, code.int64(AHEAD // size))))
                for part in range(0, step, width):
                    add_vectors(builder.add(at, code.int64(part)))

            def add_vectors(at):
                columns = [load(b_data, builder.add(row, at), b) for row in b_at]
                for i, row in enumerate(a_at):
                    value = load(a_data, builder.add(row, at), a)
                    for j, column in enumerate(columns):
                        slot = sums[j * A + i]
                        total = (code.add_products if paired else code.fma)(value, column, builder.load(slot))
                        builder.store(total, slot)

            def add_one(at):
                for j, column in enumerate(b_at):
                    for i, row in enumerate(a_at):
                        value = code.load_one(a_data, builder.add(row, at), a.dtype)
                        place = builder.gep(out_data, [builder.add(starts[j], code.int64(i))])
                        factor = code.load_one(b_data, builder.add(column, at), b.dtype)
                        builder.store(code.fma(value, factor, builder.load(place)), place)

            whole = builder.mul(builder.sdiv(arguments[4], code.int64(step)), code.int64(step))
            code.loop(code.int64(0), whole, step, add)
            starts = [builder.add(arguments[6], builder.mul(arguments[7], code.int64(j))) for j in range(B)]
            code.store_sums([builder.load(each) for each in sums], out_data, starts)
            if streamed:
                code.loop(whole, arguments[4], 1, add_one)
            return context.get_dummy_value()

        return types.void(a, a_rows, b, b_rows, types.int64, out, types.int64, types.int64), generate

    return dots


dots, dots_streamed = intrinsic(dotting(streamed=False)), intrinsic(dotting(streamed=True))


CHAINS = 4
"""Sums of one row of W and one row of x that do not wait for each other."""


@intrinsic
def dot_row(typingctx, a, a_at, b, b_rows, length, out, at, stride):
    """out[at + j stride] = sum over `length` elements of `a` from a[a_at] on times row j of `b`, whose offsets are
    `b_rows`. `a` is read in the order of the memory, so that the processor's own prefetcher follows."""
    from numba import types

    paired = a.dtype == b.dtype == types.uint16 and multiplies_bf16()

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        b_at = code.offsets(arguments[3], b_rows)
        a_data, b_data, out_data = (code.data(k, arguments[i]) for k, i in ((a, 0), (b, 2), (out, 5)))
        sums = code.variables(CHAINS * len(b_at), code.zeros())
        width = 2 * code.count if paired else code.count

        def load(data, place, kind):
            return code.load_pairs(data, place) if paired else code.load(data, place, kind.dtype)

        def add(at):
            for chain in range(CHAINS):
                place = builder.add(at, code.int64(chain * width))
                value = load(a_data, builder.add(arguments[1], place), a)
                for j, column in enumerate(b_at):
                    slot = sums[j * CHAINS + chain]
                    factor = load(b_data, builder.add(column, place), b)
                    total = (code.add_products if paired else code.fma)(value, factor, builder.load(slot))
                    builder.store(total, slot)

        def add_one(at):
            value = code.load_one(a_data, builder.add(arguments[1], at), a.dtype)
            for place, column in zip(places, b_at, strict=True):
                factor = code.load_one(b_data, builder.add(column, at), b.dtype)
                builder.store(code.fma(value, factor, builder.load(place)), place)

        step = code.int64(CHAINS * width)
        whole = builder.mul(builder.sdiv(arguments[4], step), step)
        code.loop(code.int64(0), whole, CHAINS * width, add)
        starts = [builder.add(arguments[6], builder.mul(arguments[7], code.int64(j))) for j in range(len(b_at))]
        places = [builder.gep(out_data, [start]) for start in starts]
        for j, place in enumerate(places):
            found = [builder.load(each) for each in sums[j * CHAINS : (j + 1) * CHAINS]]
            total = builder.fadd(builder.fadd(found[0], found[1]), builder.fadd(found[2], found[3]))
            builder.store(code.horizontal(total), place)
        code.loop(whole, arguments[4], 1, add_one)
        return context.get_dummy_value()

    signature = types.void(a, types.int64, b, b_rows, types.int64, out, types.int64, types.int64)
    return signature, generate


@intrinsic
def add_rows(typingctx, out, out_rows, p, p_rows, a, a_rows, length):
    """Row j of `out` (fp32) += sum over i of p[p_rows[j] + i] times row i of `a`: all rows of `a` are read once.

    `out_rows`, `p_rows` and `a_rows` are tuples of offsets. Rows have whole vectors.
    """
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        out_at, p_at = code.offsets(arguments[1], out_rows), code.offsets(arguments[3], p_rows)
        a_at = code.offsets(arguments[5], a_rows)
        out_data, p_data, a_data = (code.data(k, arguments[i]) for k, i in ((out, 0), (p, 2), (a, 4)))
        factors = [
            [builder.load(builder.gep(p_data, [builder.add(row, code.int64(i))])) for i in range(len(a_at))]
            for row in p_at
        ]

        def add(at):
            values = [code.load(a_data, builder.add(row, at), a.dtype) for row in a_at]
            places = [builder.add(row, at) for row in out_at]
            # independent sums stand beside each other, so that none waits for the last
            chains = 2 if len(places) < 4 else 1
            totals = [[code.load(out_data, place, out.dtype)] for place in places]
            for i, value in enumerate(values):
                for mine, found in zip(factors, totals, strict=True):
                    if len(found) < chains:
                        found.append(builder.fmul(code.splat(mine[i]), value))
                    else:
                        found[i % chains] = code.fma(code.splat(mine[i]), value, found[i % chains])
            for found, place in zip(totals, places, strict=True):
                code.store(found[0] if chains == 1 else builder.fadd(found[0], found[1]), out_data, place)

        code.loop(code.int64(0), arguments[6], code.count, add)
        return context.get_dummy_value()

    return types.void(out, out_rows, p, p_rows, a, a_rows, types.int64), generate


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
