"""Routed experts on the host's cores: only the experts hit are read, once each, for all their tokens.

Two phases, each shared out by rows: gate and up rows of all experts hit, then down rows. A thread adds the experts of
a down row itself, so no sum is shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_gated import RELU2, activate
from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, on_fma, prange, threads
from kernels.common.cpu_loops import convert
from kernels.common.cpu_products import ROWS, UNSCALED, multiply_rows
from kernels.common.gated import ACTIVATIONS
from kernels.common.integers import cdiv
from kernels.moe_ffn.op import MoeCase, work
from kernels.op import Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch


@jit
def sort_pairs(ids, E, k, first, pairs):
    """Pairs (token, expert) by expert: those of e are pairs[first[e]:first[e + 1]]."""
    first[: E + 1] = 0
    for expert in ids:
        first[expert + 1] += 1
    for e in range(E):
        first[e + 1] += first[e]
    place = first[:E].copy()
    for pair in range(len(ids)):
        expert = ids[pair]
        pairs[place[expert]] = pair
        place[expert] += 1


@jit
def gate_and_up(w, bias, none, e, tile, tokens, xs, x_at, H, F, kind, hidden, hidden_at, at, sums, gate, up):
    """hidden[pair] = a(gate, up) for `ROWS` rows of expert e; hidden_at are the places of its pairs. `bias` has that of
    every expert, in fp32, or is empty."""
    first, count = tile * ROWS, min(ROWS, F - tile * ROWS)
    matrices = 1 if kind == RELU2 else 2
    expert = w[e * matrices * F * H : (e + 1) * matrices * F * H]
    multiply_rows(expert[: F * H], first, F, H, none, UNSCALED, xs, x_at, tokens, at, sums, gate)
    if matrices == 2:
        multiply_rows(expert[F * H :], first, F, H, none, UNSCALED, xs, x_at, tokens, at, sums, up)
    for j in range(tokens):
        for i in range(count):
            g, u, row = gate[j * ROWS + i], up[j * ROWS + i], e * matrices * F + first + i
            if len(bias):
                g += bias[row]
                u += bias[row + (matrices - 1) * F]
            hidden[hidden_at[j] + first + i] = activate(kind, g, u)


@kernel
def experts(
    x,
    ids,
    weights,
    w_gate_up,
    w_down,
    b_gate_up,
    b_down,
    y,
    shape,
    first,
    pairs,
    xs,
    x_at,
    hidden,
    hidden_at,
    total,
    at,
    sums,
    found,
):
    """`shape` is B, E, k, H, F and the kind of activation. `found` has room for two tiles a thread. `total` has
    the sums of all tiles of `ROWS` rows."""
    B, E, k, H, F, kind = shape
    runs = len(at)
    none = np.empty(0, dtype=np.float32)
    sort_pairs(ids, E, k, first, pairs)
    for b in range(B):
        convert(x, b * H, H, np.float32(1.0), xs, b * H)
    for i in range(B * k):
        x_at[i], hidden_at[i] = pairs[i] // k * H, i * F
    tiles, down_tiles = (F + ROWS - 1) // ROWS, (H + ROWS - 1) // ROWS
    for run in prange(runs):
        for e in range(E):
            begin, tokens = first[e], first[e + 1] - first[e]
            for tile in range(tiles * run // runs if tokens else tiles, tiles * (run + 1) // runs):
                places = hidden_at[begin : begin + tokens]
                gate_and_up(
                    w_gate_up,
                    b_gate_up,
                    none,
                    e,
                    tile,
                    tokens,
                    xs,
                    x_at[begin : begin + tokens],
                    H,
                    F,
                    kind,
                    hidden,
                    places,
                    at[run],
                    sums[run],
                    found[run, 0],
                    found[run, 1],
                )
    for run in prange(runs):
        begin_tile, end_tile = down_tiles * run // runs, down_tiles * (run + 1) // runs
        total[begin_tile * ROWS * B : end_tile * ROWS * B] = 0.0
        for e in range(E):
            begin, tokens = first[e], first[e + 1] - first[e]
            w, places = w_down[e * H * F : (e + 1) * H * F], hidden_at[begin : begin + tokens]
            for tile in range(begin_tile if tokens else end_tile, end_tile):
                row = tile * ROWS
                multiply_rows(w, row, H, F, none, UNSCALED, hidden, places, tokens, at[run], sums[run], found[run, 0])
                for j in range(tokens):
                    pair = pairs[begin + j]
                    to = (tile * B + pair // k) * ROWS
                    for i in range(ROWS):
                        value = found[run, 0, j * ROWS + i]
                        if len(b_down):
                            value += b_down[e * H + min(row + i, H - 1)]
                        total[to + i] += weights[pair] * value
        for tile in range(begin_tile, end_tile):
            row = tile * ROWS
            for b in range(B):
                convert(total, (tile * B + b) * ROWS, min(ROWS, H - row), np.float32(1.0), y, b * H + row)


def prepare(case: MoeCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    runs, pairs = threads(target), case.pairs
    y, none = torch.empty_like(inputs["x"]), np.empty(0, dtype=np.float32)
    arguments = (
        *(array(inputs[name]) for name in ("x", "topk_ids", "topk_weights", "w_gate_up", "w_down")),
        *(array(inputs[name].float()) if case.bias else none for name in ("b_gate_up", "b_down")),
        array(y),
        (case.rows, case.experts, case.width, case.H, case.F, ACTIVATIONS.index(case.activation)),
        np.empty(case.experts + 1, dtype=np.int64),
        np.empty(pairs, dtype=np.int64),
        torch.empty(case.rows * case.H).numpy(),
        np.empty(pairs, dtype=np.int64),
        torch.empty(pairs * case.F).numpy(),
        np.empty(pairs, dtype=np.int64),
        torch.empty(cdiv(case.H, ROWS) * ROWS * case.rows).numpy(),
        np.empty((runs, 3 * ROWS), dtype=np.int64),
        torch.empty(runs, pairs * ROWS).numpy(),
        torch.empty(runs, 2, pairs * ROWS).numpy(),
    )

    def launch() -> torch.Tensor:
        experts(*arguments)
        return y

    return launch


def stages(case: MoeCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="experts", work=on_fma(work(case))),)


def supports(case: MoeCase, target: Target) -> str | None:
    return f"multiplies experts in {case.dtype}, not in {case.weights}" if case.quantized else None


IMPLS = (cpu_impl(prepare=prepare, stages=stages, supports=supports),)
