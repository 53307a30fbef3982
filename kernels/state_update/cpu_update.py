"""State updates on the host's cores: each thread has equal runs of state rows, and a row is read once for all tokens.

First the tokens are convolved and their gates computed, in fp32, each thread some channels. Then each row of K elements
goes through the recurrence token by token, because rows of a state do not depend on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, on_fma, prange, spread, threads
from kernels.common.cpu_loops import apart, convert
from kernels.op import Inputs, Launch, Stage, Target
from kernels.state_update.apart import joined
from kernels.state_update.cases import DELTA, StateCase
from kernels.state_update.memory import ring_of, state_of, y_of
from kernels.state_update.op import work
from kernels.state_update.recurrence import NORM_EPSILON

if TYPE_CHECKING:
    import torch

KINDS = ("mamba1", "mamba2", "gated_delta", "kda")
MAMBA1, MAMBA2, GATED_DELTA, KDA = range(4)


@jit
def softplus(x):
    return x if x > np.float32(20.0) else np.log1p(np.exp(x))


@jit
def sigmoid(x):
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-x))


@jit
def read_token(tokens, rings, b, t, place, shape, first, count, out, to):
    """Elements of token t of sequence b, which is in the ring if t < 0. `place` is the number of the ring and the
    position of token 0."""
    apart()
    width, ring, ring_width, stride = shape[3], shape[6], shape[7], shape[8]
    if t >= 0:
        convert(tokens, b * stride + t * width + first, count, np.float32(1.0), out, to)
    else:
        at = (place[0] * ring + (place[1] + t) % ring) * ring_width
        convert(rings, at + first, count, np.float32(1.0), out, to)


@jit
def convolve(tokens, rings, b, t, place, shape, first, count, weight, bias, line, mixed, to):
    """Channels `first` and so on of token t, after the convolution and silu if there is one."""
    apart()
    convolved, taps = shape[4], shape[5]
    if taps == 0:
        read_token(tokens, rings, b, t, place, shape, first, count, mixed, to)
        return
    sums, found = mixed[to : to + count], line[:count]
    sums[:] = 0.0
    if len(bias):
        sums[:] = bias[first : first + count]
    for tap in range(taps):
        read_token(tokens, rings, b, t - taps + 1 + tap, place, shape, first, count, line, 0)
        factors = weight[tap * convolved + first : tap * convolved + first + count]
        for i in range(count):
            sums[i] += factors[i] * found[i]
    for i in range(count):
        sums[i] *= sigmoid(sums[i])


@jit
def open_gates(kind, gates, first, H, K, V, rates, bias):
    """In place: dt, or decays and betas, or for mamba1 silu(z) and dt. `gates` are those from `first` on."""
    apart()
    for i in range(len(gates)):
        g, x = first + i, gates[i]
        if kind == MAMBA1:
            gates[i] = x * sigmoid(x) if g < V else softplus(x + bias[g - V])
        elif kind == MAMBA2:
            gates[i] = softplus(x + bias[g])
        else:
            decays = H if kind == GATED_DELTA else H * K
            if g >= decays:
                gates[i] = sigmoid(x)
            else:
                gates[i] = np.exp(-rates[g * H // decays] * softplus(x + bias[g]))


@jit
def prepare_tokens(run, runs, tokens, rings, slots, kept, positions, dims, shape, weights, line, mixed):
    """One thread's channels of all tokens, and its part of the new tokens that go into the rings."""
    apart()
    kind, B, H, _, V, K = dims
    every, q_len, width, convolved, ring, ring_width = shape[1], shape[2], shape[3], shape[4], shape[6], shape[7]
    conv_weight, conv_bias, rates, bias = weights
    first, end = convolved * run // runs, convolved * (run + 1) // runs
    others = width - convolved
    gate, last = others * run // runs, others * (run + 1) // runs
    column, columns = ring_width * run // runs, ring_width * (run + 1) // runs
    for b in range(B):
        if slots[b * (2 + q_len) + 1] < 0:
            continue
        place = (np.int64(slots[b * (2 + q_len)]), np.int64(positions[b]))
        for t in range(-kept[b] if every > 1 else 0, q_len):
            to = (b * (every - 1 + q_len) + every - 1 + t) * width
            convolve(
                tokens, rings, b, t, place, shape, first, end - first, conv_weight, conv_bias, line, mixed, to + first
            )
            at = to + convolved + gate
            read_token(tokens, rings, b, t, place, shape, convolved + gate, last - gate, mixed, at)
            open_gates(kind, mixed[at : at + last - gate], gate, H, K, V, rates, bias)
        for t in range(q_len if ring else 0):
            at = (place[0] * ring + (place[1] + t) % ring) * ring_width
            for i in range(column, columns):
                rings[at + i] = tokens[b * shape[8] + t * width + i]


@jit
def load_vectors(kind, mixed, at, group, dims, first, second):
    """b and c, or k and q divided by their norms, of one token."""
    H, G, V, K = dims[2:]
    if kind in (MAMBA1, MAMBA2):
        first[:] = mixed[at + H * V + group * K : at + H * V + (group + 1) * K]
        second[:] = mixed[at + H * V + (G + group) * K : at + H * V + (G + group + 1) * K]
        return
    second[:] = mixed[at + group * K : at + (group + 1) * K]
    first[:] = mixed[at + (G + group) * K : at + (G + group + 1) * K]
    of_first, of_second = np.float32(NORM_EPSILON), np.float32(NORM_EPSILON)
    for i in range(K):
        of_first += first[i] * first[i]
        of_second += second[i] * second[i]
    first *= np.float32(1.0) / np.sqrt(of_first)
    second *= np.float32(1.0) / np.sqrt(of_second * np.float32(K))


@jit
def advance(kind, row, h, v, mixed, at, dims, convolved, first, second, rates, skip):
    """One row of a state after one token, and its y."""
    H, G, V, K = dims[2:]
    gates = at + convolved
    y = np.float32(0.0)
    if kind == MAMBA1:
        x, dt, own = mixed[at + v], mixed[gates + V + v], rates[v * K : (v + 1) * K]
        for i in range(K):
            row[i] = np.exp(-dt * own[i]) * row[i] + dt * x * first[i]
            y += row[i] * second[i]
        return (y + skip[v] * x) * mixed[gates + v]
    if kind == MAMBA2:
        x, dt = mixed[at + h * V + v], mixed[gates + h]
        decay, new = np.exp(-dt * rates[h]), dt * x
        for i in range(K):
            row[i] = decay * row[i] + new * first[i]
            y += row[i] * second[i]
        return y + skip[h] * x
    known = np.float32(0.0)
    if kind == GATED_DELTA:
        decay, beta = mixed[gates + h], mixed[gates + H + h]
        for i in range(K):
            row[i] *= decay
            known += row[i] * first[i]
    else:
        decays, beta = mixed[gates + h * K : gates + (h + 1) * K], mixed[gates + H * K + h]
        for i in range(K):
            row[i] *= decays[i]
            known += row[i] * first[i]
    change = beta * (mixed[at + 2 * G * K + h * V + v] - known)
    for i in range(K):
        row[i] += change * first[i]
        y += row[i] * second[i]
    return y


@jit
def update_head(b, h, begin, end, state, y, slots, kept, dims, shape, rates, skip, mixed, row, vectors, outputs):
    """Rows `begin` to `end` of one head of one sequence."""
    apart()
    kind, _, H, G, V, K = dims
    every, q_len, width, convolved = shape[1], shape[2], shape[3], shape[4]
    mine = slots[b * (2 + q_len) : (b + 1) * (2 + q_len)]
    count = every - 1 + q_len
    oldest = every - 1 - kept[b] if every > 1 else 0
    for n in range(oldest, count):
        at = (b * count + n) * width
        load_vectors(kind, mixed, at, h * G // H, dims, vectors[n, 0], vectors[n, 1])
    for v in range(begin, end):
        convert(state, ((np.int64(mine[1]) * H + h) * V + v) * K, K, np.float32(1.0), row, 0)
        for n in range(oldest, count):
            at, t = (b * count + n) * width, n - every + 1
            found = advance(kind, row, h, v, mixed, at, dims, convolved, vectors[n, 0], vectors[n, 1], rates, skip)
            if t >= 0:
                outputs[t, v] = found
                if mine[2 + t] >= 0:
                    convert(row, 0, K, np.float32(1.0), state, ((np.int64(mine[2 + t]) * H + h) * V + v) * K)
    for t in range(q_len):
        convert(outputs[t], begin, end - begin, np.float32(1.0), y, ((b * q_len + t) * H + h) * V + begin)


@kernel
def update(
    tokens, rings, state, y, slots, kept, positions, dims, shape, weights, skip, lines, mixed, rows, vectors, outputs
):
    """`dims` is the kind, B, H, G, V, K. `shape` is runs, every, q_len, width, convolved, taps, ring, ring
    width, and the stride of sequences in `tokens`."""
    runs, q_len = shape[0], shape[2]
    B, H, V = dims[1], dims[2], dims[4]
    for run in prange(runs):
        mine = (lines[run], mixed)
        prepare_tokens(np.int64(run), runs, tokens, rings, slots, kept, positions, dims, shape, weights, *mine)
    for run in prange(runs):
        at, stop = B * H * V * run // runs, B * H * V * (run + 1) // runs
        while at < stop:
            head = at // V
            end = min(stop, (head + 1) * V)
            b, first = head // H, head * V
            if slots[b * (2 + q_len) + 1] >= 0:
                update_head(
                    b,
                    head % H,
                    at - first,
                    end - first,
                    state,
                    y,
                    slots,
                    kept,
                    dims,
                    shape,
                    weights[2],
                    skip,
                    mixed,
                    rows[run],
                    vectors[run],
                    outputs[run],
                )
            at = end


def prepare(case: StateCase, inputs: Inputs, target: Target) -> Launch:
    """Rates and the convolution's weights are widened here, as engines keep them. A token that is apart is put together
    first: it is a hundredth of a state."""
    import torch

    runs, memory, count = threads(target), inputs["memory"], case.every - 1 + case.q_len
    tokens = torch.empty(case.B, 1, case.width, dtype=inputs["tokens"].dtype) if case.apart else inputs["tokens"]
    nothing = torch.empty(0)
    bias = nothing if case.kind in DELTA else inputs["conv_bias"].float()
    weights = (inputs["conv_weight"].float(), bias, inputs["A_log"].exp(), inputs["dt_bias"])
    ring = ring_of(case, memory) if case.ring else torch.empty(0, dtype=inputs["tokens"].dtype)
    shape = (runs, case.every, case.q_len, case.width, case.convolved)
    arguments = (
        spread(tokens),
        array(ring),
        array(state_of(case, memory)),
        array(y_of(case, memory)),
        *(array(inputs[name]) for name in ("slots", "kept", "positions")),
        (KINDS.index(case.kind), case.B, case.H, case.G, case.V, case.K),
        (*shape, case.conv, case.ring, case.ring_width, tokens.stride(0)),
        tuple(array(each.contiguous()) for each in weights),
        array(inputs["D"]) if "D" in inputs else nothing.numpy(),
        torch.empty(runs, case.width).numpy(),
        torch.empty(case.B * count * case.width).numpy(),
        torch.empty(runs, case.K).numpy(),
        torch.empty(runs, count, 2, case.K).numpy(),
        torch.empty(runs, case.q_len, case.V).numpy(),
    )

    def launch() -> torch.Tensor:
        if case.apart:
            joined(case, inputs, tokens)
        update(*arguments)
        return memory

    return launch


def stages(case: StateCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="update", work=on_fma(work(case))),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
