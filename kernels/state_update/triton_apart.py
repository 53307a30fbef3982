"""The same update for a token that is in several tensors, see `apart.py`: Mamba's, and KDA's."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from kernels.launch import KernelLaunch
from kernels.op import Inputs
from kernels.state_update.apart import parts
from kernels.state_update.cases import StateCase
from kernels.state_update.memory import ring_of, state_of, y_of
from kernels.state_update.recurrence import NORM_EPSILON
from kernels.state_update.triton_step import append, channel, channel_of_rows, softplus, unit


@triton.jit
def mamba1_kernel(
    state,  # [slots, V, K]
    y,  # [B, V]
    tokens,  # [B, V], convolved
    b,  # [B, K]
    c,  # [B, K]
    z,  # [B, V]
    dt,  # [B, V]
    slots,  # [B, 3] int32
    A_log,  # [V, K]
    dt_bias,
    D,
    stride_tokens_b,
    stride_b_b,
    stride_c_b,
    stride_z_b,
    stride_dt_b,
    V: tl.constexpr,
    K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    i = tl.program_id(1)
    source = tl.load(slots + 3 * i + 1)
    if source < 0:
        return
    offs_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    offs_k = tl.arange(0, K)
    inside = offs_v[:, None] * K + offs_k[None, :]
    s = tl.load(state + source.to(tl.int64) * (V * K) + inside).to(tl.float32)
    rate = tl.exp(tl.load(A_log + inside))
    x = tl.load(tokens + i * stride_tokens_b + offs_v).to(tl.float32)
    new = tl.load(b + i * stride_b_b + offs_k).to(tl.float32)
    asked = tl.load(c + i * stride_c_b + offs_k).to(tl.float32)
    gate = tl.load(z + i * stride_z_b + offs_v).to(tl.float32)
    step = softplus(tl.load(dt + i * stride_dt_b + offs_v).to(tl.float32) + tl.load(dt_bias + offs_v))
    s = s * tl.exp(-step[:, None] * rate) + (step * x)[:, None] * new[None, :]
    out = tl.sum(s * asked[None, :], axis=1) + tl.load(D + offs_v) * x
    out *= gate * tl.sigmoid(gate)
    tl.store(y + i * V + offs_v, out.to(y.dtype.element_ty))
    place = tl.load(slots + 3 * i + 2)
    if place >= 0:
        tl.store(state + place.to(tl.int64) * (V * K) + inside, s.to(state.dtype.element_ty))


@triton.jit
def kda_kernel(
    state,  # [slots, H, V, K]
    ring,  # [rings, RING, 2 H K + H V]
    y,  # [B, H, V]
    tokens,  # [B, 2 H K + H V]
    a,  # [B, H K]
    beta,  # [B, H]
    slots,  # [B, 3] int32
    positions,  # [B] int32
    weight,  # [CONV, 2 H K + H V]
    A_log,
    dt_bias,
    stride_tokens_b,
    stride_a_b,
    stride_beta_b,
    H: tl.constexpr,
    V: tl.constexpr,
    K: tl.constexpr,
    CONV: tl.constexpr,
    TAPS: tl.constexpr,
    RING: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    i = tl.program_id(1)
    source = tl.load(slots + 3 * i + 1)
    if source < 0:
        return
    WIDTH: tl.constexpr = 2 * H * K + H * V
    h = tl.program_id(0) // (V // BLOCK_V)
    first = tl.program_id(0) % (V // BLOCK_V) * BLOCK_V
    offs_v = first + tl.arange(0, BLOCK_V)
    offs_k = tl.arange(0, K)
    inside = (h * V + offs_v)[:, None] * K + offs_k[None, :]
    at = tl.load(positions + i) if RING > 0 else i
    s = tl.load(state + source.to(tl.int64) * (H * V * K) + inside).to(tl.float32)
    if RING > 0:
        ring += tl.load(slots + 3 * i).to(tl.int64) * (RING * WIDTH)
    tokens += i * stride_tokens_b
    rate = tl.exp(tl.load(A_log + h))
    of_head = h * K + offs_k
    q = channel(tokens, ring, weight, weight, at, 0, of_head, CONV, TAPS, False, WIDTH, WIDTH, RING, WIDTH, False)
    k = channel(
        tokens, ring, weight, weight, at, 0, H * K + of_head, CONV, TAPS, False, WIDTH, WIDTH, RING, WIDTH, False
    )
    of_rows = 2 * H * K + h * V + offs_v
    v = channel_of_rows(
        tokens, ring, weight, weight, at, 0, of_rows, CONV, TAPS, False, WIDTH, WIDTH, RING, WIDTH, False
    )
    q = unit(q, EPSILON)
    k = unit(k, EPSILON)
    decay = tl.load(a + i * stride_a_b + of_head).to(tl.float32) + tl.load(dt_bias + of_head)
    s *= tl.exp(-rate * softplus(decay))[None, :]
    share = tl.sigmoid(tl.load(beta + i * stride_beta_b + h).to(tl.float32))
    change = share * (v - tl.sum(s * k[None, :], axis=1))
    s += change[:, None] * k[None, :]
    out = tl.sum(s * q[None, :], axis=1) * (1.0 / tl.sqrt(float(K)))
    tl.store(y + (i * H + h) * V + offs_v, out.to(y.dtype.element_ty))
    place = tl.load(slots + 3 * i + 2)
    if place >= 0:
        tl.store(state + place.to(tl.int64) * (H * V * K) + inside, s.to(state.dtype.element_ty))
    if RING > 0:
        append(tokens, ring + at % RING * WIDTH, h, first, offs_v, offs_k, "kda", H, H, V, K, WIDTH, WIDTH)


def launch_of(case: StateCase, inputs: Inputs, grid: tuple[int, int], block_v: int) -> KernelLaunch:
    """One CTA for each sequence and block of `block_v` rows of a head."""
    memory, names = inputs["memory"], list(parts(case))
    state, y = state_of(case, memory), y_of(case, memory)
    of_token = {name: inputs[name] for name in names}
    strides = {f"stride_{name}_b": inputs[name].stride(0) for name in names}
    rates = {name: inputs[name] for name in ("A_log", "dt_bias")}
    constants: dict[str, Any] = {"V": case.V, "K": case.K, "BLOCK_V": block_v}
    if case.kind == "mamba1":
        given = {"state": state, "y": y, **of_token, "slots": inputs["slots"], **rates, "D": inputs["D"]}
        kernel = mamba1_kernel
    else:
        ring = ring_of(case, memory) if case.ring else state
        at = {"slots": inputs["slots"], "positions": inputs["positions"], "weight": inputs["conv_weight"]}
        given = {"state": state, "ring": ring, "y": y, **of_token, **at, **rates}
        taps = triton.next_power_of_2(max(1, case.conv))
        constants |= {"H": case.H, "CONV": case.conv, "TAPS": taps, "RING": case.ring, "EPSILON": NORM_EPSILON}
        kernel = kda_kernel
    args = {**given, **strides}
    return KernelLaunch(kernel=kernel, grid=grid, args=args, constexprs=constants, streams=("state",), num_stages=1)
