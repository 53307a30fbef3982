"""What a CTA does with one token: it convolves, updates its block of the state, and puts the token in the ring."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """log(1 + exp(x)). A logarithm near 1 would lose digits: log(1 + u) = 2 atanh(u / (2 + u)), here as a series."""
    u = tl.exp(-tl.abs(x))
    s = u / (2.0 + u)
    z = s * s
    series = 1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13 + z * (1.0 / 15))))
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * series)))


@triton.jit
def gate(
    tokens,
    ring,
    at,
    t,
    offs,
    WIDTH: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Elements of token `t` as they are."""
    place = ring + at % RING * RING_WIDTH if KEPT else tokens + t * WIDTH
    return tl.load(place + offs).to(tl.float32)


@triton.jit
def before(
    tokens,
    ring,
    at,
    t,
    back,
    WIDTH: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Where the token `back` before token `t` is, which stands at position `at`. KEPT: t is negative."""
    if KEPT:
        place = ring + (at - back) % RING * RING_WIDTH
    else:
        place = tl.where(t >= back, tokens + (t - back) * WIDTH, ring + (at - back) % RING * RING_WIDTH)
    return place


@triton.jit
def channel(
    tokens,
    ring,
    weight,
    bias,
    at,
    t,
    offs,
    CONV: tl.constexpr,
    TAPS: tl.constexpr,
    BIAS: tl.constexpr,
    CONVOLVED: tl.constexpr,
    WIDTH: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """silu of the causal convolution at token `t`, tap by tap."""
    value = gate(tokens, ring, at, t, offs, WIDTH, RING, RING_WIDTH, KEPT)
    if CONV > 0:
        value *= tl.load(weight + (CONV - 1) * CONVOLVED + offs).to(tl.float32)
        for back in tl.static_range(1, CONV):
            place = before(tokens, ring, at, t, back, WIDTH, RING, RING_WIDTH, KEPT)
            tap = tl.load(weight + (CONV - 1 - back) * CONVOLVED + offs).to(tl.float32)
            value += tap * tl.load(place + offs).to(tl.float32)
        if BIAS:
            value += tl.load(bias + offs).to(tl.float32)
        value *= tl.sigmoid(value)
    return value


@triton.jit
def channel_of_rows(
    tokens,
    ring,
    weight,
    bias,
    at,
    t,
    offs,
    CONV: tl.constexpr,
    TAPS: tl.constexpr,
    BIAS: tl.constexpr,
    CONVOLVED: tl.constexpr,
    WIDTH: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    """The same for elements that belong to rows of the state. Loaded tap by tap, they would come in the order of the
    rows: every lane would load each of them. So all taps are loaded as one block [TAPS, elements]."""
    if CONV == 0:
        value = gate(tokens, ring, at, t, offs, WIDTH, RING, RING_WIDTH, KEPT)
    else:
        taps = tl.arange(0, TAPS)
        place = before(tokens, ring, at, t, CONV - 1 - taps, WIDTH, RING, RING_WIDTH, KEPT)
        mask = (taps < CONV)[:, None] & (offs >= 0)[None, :]
        x = tl.load(place[:, None] + offs[None, :], mask=mask, other=0.0)
        w = tl.load(weight + taps[:, None] * CONVOLVED + offs[None, :], mask=mask, other=0.0)
        value = tl.sum(x.to(tl.float32) * w.to(tl.float32), axis=0)
        if BIAS:
            value += tl.load(bias + offs).to(tl.float32)
        value *= tl.sigmoid(value)
    return value


@triton.jit
def unit(x, EPSILON: tl.constexpr):
    """x / |x|"""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) + EPSILON)


@triton.jit
def step(
    s,  # [BLOCK_V, K] fp32
    rate,  # exp(A_log): one number, or [BLOCK_V, K] for mamba1
    shift,  # dt_bias: one number, [K] for kda, or [BLOCK_V] for mamba1
    skip,  # D
    tokens,
    ring,
    weight,
    bias,
    at,
    t,
    h,
    offs_v,
    offs_k,
    KIND: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    V: tl.constexpr,
    K: tl.constexpr,
    CONV: tl.constexpr,
    TAPS: tl.constexpr,
    CONVOLVED: tl.constexpr,
    WIDTH: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    EPSILON: tl.constexpr,
    KEPT: tl.constexpr,
):
    """The block of the state after one token, and its elements of y."""
    KEYS: tl.constexpr = G * K
    of_group = h // (H // G) * K + offs_k
    if KIND == "mamba1" or KIND == "mamba2":
        VALUES: tl.constexpr = H * V
        x = channel_of_rows(
            tokens,
            ring,
            weight,
            bias,
            at,
            t,
            h * V + offs_v,
            CONV,
            TAPS,
            True,
            CONVOLVED,
            WIDTH,
            RING,
            RING_WIDTH,
            KEPT,
        )
        b = channel(
            tokens,
            ring,
            weight,
            bias,
            at,
            t,
            VALUES + of_group,
            CONV,
            TAPS,
            True,
            CONVOLVED,
            WIDTH,
            RING,
            RING_WIDTH,
            KEPT,
        )
        c = channel(
            tokens,
            ring,
            weight,
            bias,
            at,
            t,
            VALUES + KEYS + of_group,
            CONV,
            TAPS,
            True,
            CONVOLVED,
            WIDTH,
            RING,
            RING_WIDTH,
            KEPT,
        )
        if KIND == "mamba1":
            dt = softplus(gate(tokens, ring, at, t, CONVOLVED + V + offs_v, WIDTH, RING, RING_WIDTH, KEPT) + shift)
            decay = tl.exp(-dt[:, None] * rate)
        else:
            dt = softplus(gate(tokens, ring, at, t, CONVOLVED + h, WIDTH, RING, RING_WIDTH, KEPT) + shift)
            decay = tl.exp(-dt * rate)
        s = s * decay + (dt * x)[:, None] * b[None, :]
        y = tl.sum(s * c[None, :], axis=1) + skip * x
        if KIND == "mamba1":
            z = gate(tokens, ring, at, t, CONVOLVED + offs_v, WIDTH, RING, RING_WIDTH, KEPT)
            y *= z * tl.sigmoid(z)
    else:
        q = channel(
            tokens, ring, weight, bias, at, t, of_group, CONV, TAPS, False, CONVOLVED, WIDTH, RING, RING_WIDTH, KEPT
        )
        k = channel(
            tokens,
            ring,
            weight,
            bias,
            at,
            t,
            KEYS + of_group,
            CONV,
            TAPS,
            False,
            CONVOLVED,
            WIDTH,
            RING,
            RING_WIDTH,
            KEPT,
        )
        v = channel(
            tokens,
            ring,
            weight,
            bias,
            at,
            t,
            2 * KEYS + h * V + offs_v,
            CONV,
            TAPS,
            False,
            CONVOLVED,
            WIDTH,
            RING,
            RING_WIDTH,
            KEPT,
        )
        q = unit(q, EPSILON)
        k = unit(k, EPSILON)
        if KIND == "kda":
            a = gate(tokens, ring, at, t, CONVOLVED + h * K + offs_k, WIDTH, RING, RING_WIDTH, KEPT)
            s *= tl.exp(-rate * softplus(a + shift))[None, :]
            beta = gate(tokens, ring, at, t, CONVOLVED + H * K + h, WIDTH, RING, RING_WIDTH, KEPT)
        else:
            a = gate(tokens, ring, at, t, CONVOLVED + h, WIDTH, RING, RING_WIDTH, KEPT)
            s *= tl.exp(-rate * softplus(a + shift))
            beta = gate(tokens, ring, at, t, CONVOLVED + H + h, WIDTH, RING, RING_WIDTH, KEPT)
        change = tl.sigmoid(beta) * (v - tl.sum(s * k[None, :], axis=1))
        s += change[:, None] * k[None, :]
        y = tl.sum(s * q[None, :], axis=1) * (1.0 / tl.sqrt(float(K)))
    return s, y


@triton.jit
def copy(tokens, ring, offs):
    tl.store(ring + offs, tl.load(tokens + offs))


@triton.jit
def append(
    new,
    place,
    h,
    first,
    offs_v,
    offs_k,
    KIND: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    V: tl.constexpr,
    K: tl.constexpr,
    CONVOLVED: tl.constexpr,
    RING_WIDTH: tl.constexpr,
):
    """Put a new token in the ring, where no CTA of this launch reads. Each CTA copies its own elements; the first
    one of a head copies the gates, and the first one of a group the vectors of K elements."""
    KEYS: tl.constexpr = G * K
    mamba: tl.constexpr = KIND == "mamba2"
    of_group = h // (H // G) * K + offs_k
    copy(new, place, (0 if mamba else 2 * KEYS) + h * V + offs_v)
    if first == 0:
        if h % (H // G) == 0:
            copy(new, place, (H * V if mamba else 0) + of_group)
            copy(new, place, (H * V if mamba else 0) + KEYS + of_group)
        if RING_WIDTH > CONVOLVED:
            if KIND == "kda":
                copy(new, place, CONVOLVED + h * K + offs_k)
                copy(new, place, CONVOLVED + H * K + h)
            else:
                copy(new, place, CONVOLVED + h)
                if KIND == "gated_delta":
                    copy(new, place, CONVOLVED + H + h)
