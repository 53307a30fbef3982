"""Products of rows on a host: dot products of a few rows with a few others, and weighted sums of a few rows.

As many sums run at once as the processor has registers for. All arrays are flat, and rows are given by the offsets of
their first elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.common.cpu_jit import intrinsic
from kernels.common.cpu_lanes import LINE_BYTES, Code, multiplies_bf16
from kernels.common.cpu_loops import AHEAD


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

        def add_vector(at, chain):
            value = load(a_data, builder.add(arguments[1], at), a)
            for j, column in enumerate(b_at):
                slot = sums[j * CHAINS + chain]
                factor = load(b_data, builder.add(column, at), b)
                total = (code.add_products if paired else code.fma)(value, factor, builder.load(slot))
                builder.store(total, slot)

        def add(at):
            for chain in range(CHAINS):
                add_vector(builder.add(at, code.int64(chain * width)), chain)

        def add_one(at):
            value = code.load_one(a_data, builder.add(arguments[1], at), a.dtype)
            for place, column in zip(places, b_at, strict=True):
                factor = code.load_one(b_data, builder.add(column, at), b.dtype)
                builder.store(code.fma(value, factor, builder.load(place)), place)

        chained, whole = (
            builder.mul(builder.sdiv(arguments[4], code.int64(step)), code.int64(step))
            for step in (CHAINS * width, width)
        )
        code.loop(code.int64(0), chained, CHAINS * width, add)
        code.loop(chained, whole, width, lambda at: add_vector(at, 0))
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

    `out_rows`, `p_rows` and `a_rows` are tuples of offsets. `length` is a multiple of 16: each factor that is loaded
    serves 16 elements.
    """
    from numba import types

    def generate(context, builder, signature, arguments):
        code = Code(context, builder)
        out_at, p_at = code.offsets(arguments[1], out_rows), code.offsets(arguments[3], p_rows)
        a_at = code.offsets(arguments[5], a_rows)
        out_data, p_data, a_data = (code.data(k, arguments[i]) for k, i in ((out, 0), (p, 2), (a, 4)))
        factors = [[builder.load(builder.gep(p_data, [code.add(row, i)])) for i in range(len(a_at))] for row in p_at]
        steps = range(0, 16, code.count)

        def add(at):
            places = [[builder.add(row, code.add(at, step)) for step in steps] for row in out_at]
            totals = [[code.load(out_data, place, out.dtype) for place in row] for row in places]
            for i, row in enumerate(a_at):
                values = [code.load(a_data, builder.add(row, code.add(at, step)), a.dtype) for step in steps]
                for mine, found in zip(factors, totals, strict=True):
                    factor = code.splat(mine[i])
                    found[:] = [code.fma(factor, *pair) for pair in zip(values, found, strict=True)]
            for row, found in zip(places, totals, strict=True):
                for place, total in zip(row, found, strict=True):
                    code.store(total, out_data, place)

        code.loop(code.int64(0), arguments[6], 16, add)
        return context.get_dummy_value()

    return types.void(out, out_rows, p, p_rows, a, a_rows, types.int64), generate
