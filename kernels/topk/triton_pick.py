"""What the kernels of top-k share: keys in the order of scores, the k-th largest by bisection, and the output."""

from __future__ import annotations

import triton
import triton.language as tl

LEAST: tl.constexpr = tl.constexpr(-(2**31))
"""Below the key of every score, -inf too: it is that of a NaN."""


@triton.jit
def widened(x):
    """Scores as fp32; bf16 by a shift, which keeps denormal numbers in the interpreter too."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x


@triton.jit
def key_of(x):
    """int32 in the order of the scores x; -0 has the key of +0."""
    bits = widened(x).to(tl.int32, bitcast=True)
    bits = tl.where(bits == -(2**31), 0, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def segment_of(ends, i, SEGMENTS: tl.constexpr, EACH: tl.constexpr):
    """Where element i of a list lies whose segment s holds the elements up to `ends[s]`, from 2 s EACH on."""
    segment = tl.zeros_like(i)
    before = tl.zeros_like(i)
    for halving in tl.static_range(1, 13):
        if (SEGMENTS >> halving) > 0:
            end = tl.gather(ends, segment + ((SEGMENTS >> halving) - 1), 0)
            before = tl.where(end <= i, end, before)
            segment = tl.where(end <= i, segment + (SEGMENTS >> halving), segment)
    return segment * (2 * EACH) + i - before


@triton.jit
def listed_keys(first, ends, start, total, TILE: tl.constexpr, SEGMENTS: tl.constexpr, EACH: tl.constexpr):
    """The keys of a list from element `start` on; `LEAST` behind its end."""
    offs = start + tl.arange(0, TILE)
    place = segment_of(ends, offs, SEGMENTS, EACH)
    return tl.load(first + place, mask=offs < total, other=LEAST, cache_modifier=".cg")


@triton.jit
def reaching(bound, keys, total, first, ends, TILE: tl.constexpr, SEGMENTS: tl.constexpr, EACH: tl.constexpr):
    """How many keys reach a bound: those of the first tile, and those of the list behind it, if it is longer."""
    count = tl.sum((keys >= bound).to(tl.int32))
    if SEGMENTS * EACH > TILE:
        for start in range(TILE, total, TILE):
            key = listed_keys(first, ends, start, total, TILE, SEGMENTS, EACH)
            count += tl.sum((key >= bound).to(tl.int32))
    return count


@triton.jit
def kth_largest(
    keys, least, largest, count, k, first, ends, TILE: tl.constexpr, SEGMENTS: tl.constexpr, EACH: tl.constexpr
):
    """A bound that exactly k keys reach, or else the k-th largest key; `least` if there are no more than k.

    `count` keys reach `least`, and none is above `largest`.
    """
    total = count
    low = least.to(tl.int64)
    high = largest.to(tl.int64) + 1
    while (high - low > 1) & (count > k):
        middle = (low + high) >> 1
        n = reaching(middle.to(tl.int32), keys, total, first, ends, TILE, SEGMENTS, EACH)
        enough = n >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        count = tl.where(enough, n, count)
    return low.to(tl.int32)


@triton.jit
def kth_largest_of_tile(keys, count, k, TILE: tl.constexpr):
    """`kth_largest` of the `count` keys of a tile that are not `LEAST`."""
    least = tl.min(tl.where(keys == LEAST, 2**31 - 1, keys))
    return kth_largest(keys, least, tl.max(keys), count, k, None, None, TILE, 1, 1)


@triton.jit
def take(keys, positions, bound, need, above, ties, picked):
    """List the positions of keys above the bound, and of the first `need` that equal it, in their order.

    `above` and `ties` are how many keys so far were above the bound and equal to it. Returns both counts with these.
    """
    over = keys > bound
    equal = keys == bound
    # one scan for both counts: a tile has less than 2^16 keys
    counts = tl.cumsum(over.to(tl.int32) * 65536 + equal.to(tl.int32), 0)
    rank = ties + (counts & 0xFFFF)
    place = above + (counts >> 16) + tl.minimum(rank, need) - 1
    tl.store(picked + place, positions, mask=over | (equal & (rank <= need)))
    return above + tl.sum(over.to(tl.int32)), ties + tl.sum(equal.to(tl.int32))


@triton.jit
def arrange(row, picked, out, b, done, k, K: tl.constexpr, VALUES: tl.constexpr, BY_VALUE: tl.constexpr):
    """The `done` positions that are `picked`, in the order of the output, with -1 behind them."""
    tl.debug_barrier()  # other threads have stored them
    offs = tl.arange(0, K)
    mask = offs < k
    position = tl.load(picked + offs, mask=offs < done, other=-1)
    if BY_VALUE:
        x = tl.load(row + position, mask=offs < done, other=0.0)
        # the larger key first, then the lower position; what is no score is the least
        key = tl.where(offs < done, key_of(x), LEAST).to(tl.int64)
        both = (key << 32) | (0x7FFFFFFF - tl.maximum(position, 0)).to(tl.int64)
        position = 0x7FFFFFFF - (tl.sort(both, descending=True) & 0xFFFFFFFF).to(tl.int32)
        position = tl.where(offs < done, position, -1)
    if VALUES:
        x = tl.load(row + position, mask=offs < done, other=float("-inf"))
        tl.store(out + 2 * b * k + offs, position, mask=mask)
        tl.store(out + (2 * b + 1) * k + offs, widened(x).to(tl.int32, bitcast=True), mask=mask)
    else:
        tl.store(out + b * k + offs, position, mask=mask)
