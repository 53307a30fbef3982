"""One CTA per sequence, head and block of rows of the state. A block stays in registers from its load to its store.

All loads of a block are issued at once, and several CTAs share an SM: this keeps enough bytes under way without a
pipeline. The CTA convolves what it needs itself. Vectors of K elements that several CTAs need come from the L2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import triton
import triton.language as tl

from kernels.common.random_inputs import BYTES
from kernels.launch import Built, KernelLaunch, registers, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.state_update.cases import DELTA, StateCase
from kernels.state_update.memory import ring_of, state_of, y_of
from kernels.state_update.op import work
from kernels.state_update.recurrence import NORM_EPSILON
from kernels.state_update.triton_apart import launch_of
from kernels.state_update.triton_step import append, step

SMALLEST = 1024
"""Elements of a block at least: 4 KiB of fp32."""

LOADED = 128
"""Bytes of the state that a thread loads at once, and twice as much before replays. All warps convolve the same vectors
of K elements: with half as much for each, a 16-bit state would take as long to issue as to read and write (742
instructions a warp on sm_90)."""

SMALL_STEP = 64 << 10
"""Bytes of states for each SM, below which a step is short of CTAs."""

LONGEST = 1024
"""Elements of a row at most."""

CTAS_PER_SM = 4
"""The blocks shrink until each SM has so many CTAs."""

WARPS_PER_SM, MANY_WARPS, FEW_WARPS, REPLAYING = 20, 32, 16, 12
"""Resident warps: a thread takes up to 96 registers, 64 for Mamba-1, 128 for a draft or for 64 elements of 16 bits, and
168 to replay tokens."""

INSTRUCTIONS = {
    "mamba1": (140, 0, 17.0, 0, 0.0),
    "mamba2": (163, 165, 8.5, 117, 3.5),
    "gated_delta": (352, 124, 8.6, 205, 6.3),
    "kda": (352, 124, 8.6, 205, 6.3),
}
"""Instructions that a warp issues on sm_90 for a new token: at all, for convolutions of K = 128, and for each element
that a thread holds; then those of a replayed token, at all and for each element. A test compiles and counts them."""


class Plan(NamedTuple):
    block_v: int
    num_warps: int
    grid: tuple[int, int]


def plan(case: StateCase, target: Target) -> Plan:
    """Blocks as large as registers allow, since each CTA reads the vectors of its head again. Smaller ones where the
    batch would leave SMs empty. A thread loads 128 bytes of the state, or 16 elements and their rates."""
    rows = case.V & -case.V
    loaded = LOADED if case.every == 1 else 2 * LOADED
    most, each = (8, 16) if case.kind == "mamba1" else (4, min(64, loaded // BYTES[case.state]))
    while rows > 1 and rows * case.K > 32 * most * each:
        rows //= 2
    heads = case.B * case.H * case.V
    while rows > 1 and rows * case.K > SMALLEST and heads // rows < CTAS_PER_SM * target.sm_count:
        rows //= 2
    warps = min(most, max(1, rows * case.K // (32 * each)))
    chosen = {"block_v": rows, "num_warps": warps} | target.overrides
    return Plan(**chosen, grid=(case.H * case.V // chosen["block_v"], case.B))


def warps_per_sm(case: StateCase) -> int:
    if case.every > 1:
        return REPLAYING
    if case.kind == "mamba1":
        return MANY_WARPS
    return FEW_WARPS if case.q_len > 1 or case.state != "fp32" else WARPS_PER_SM


@triton.jit
def update_kernel(
    state,  # [slots, H, V, K]
    ring,  # [rings, RING, RING_WIDTH]
    y,  # [B, Q, H, V]
    tokens,  # [B, Q, WIDTH], maybe with other elements between sequences
    slots,  # [B, 2 + Q] int32
    positions,  # [B] int32
    kept,  # [B] int32
    weight,  # [CONV, CONVOLVED]
    bias,  # [CONVOLVED]
    A_log,
    dt_bias,
    D,
    stride_tokens_b,
    KIND: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    V: tl.constexpr,
    K: tl.constexpr,
    Q: tl.constexpr,
    CONV: tl.constexpr,
    TAPS: tl.constexpr,
    EVERY: tl.constexpr,
    CONVOLVED: tl.constexpr,
    WIDTH: tl.constexpr,
    RING: tl.constexpr,
    RING_WIDTH: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    b = tl.program_id(1)
    row = slots + b * (2 + Q)
    source = tl.load(row + 1)
    if source < 0:
        return
    h = tl.program_id(0) // (V // BLOCK_V)
    first = tl.program_id(0) % (V // BLOCK_V) * BLOCK_V
    offs_v = first + tl.arange(0, BLOCK_V)
    offs_k = tl.arange(0, K)
    inside = (h * V + offs_v)[:, None] * K + offs_k[None, :]
    at = tl.load(positions + b) if RING > 0 else b
    turn = tl.load(row) if RING > 0 else b
    replays = tl.load(kept + b) if EVERY > 1 else 0
    s = tl.load(state + source.to(tl.int64) * (H * V * K) + inside).to(tl.float32)
    skip = 0.0
    if KIND == "mamba1":
        rate = tl.exp(tl.load(A_log + inside))
        shift = tl.load(dt_bias + offs_v)
        skip = tl.load(D + offs_v)
    else:
        rate = tl.exp(tl.load(A_log + h))
        shift = tl.load(dt_bias + h * K + offs_k if KIND == "kda" else dt_bias + h)
        if KIND == "mamba2":
            skip = tl.load(D + h)
    tokens += b * stride_tokens_b
    if RING > 0:
        ring += turn.to(tl.int64) * (RING * RING_WIDTH)
    if EVERY > 1:
        for t in range(-replays, 0):
            tl.debug_barrier()  # weights are loaded again for each token: registers could not keep them
            s, _ = step(
                s,
                rate,
                shift,
                skip,
                tokens,
                ring,
                weight,
                bias,
                at + t,
                t,
                h,
                offs_v,
                offs_k,
                KIND,
                H,
                G,
                V,
                K,
                CONV,
                TAPS,
                CONVOLVED,
                WIDTH,
                RING,
                RING_WIDTH,
                EPSILON,
                True,
            )
    for t in range(Q):
        tl.debug_barrier()  # the assembler would otherwise move the loads of the state behind those of the token
        s, out = step(
            s,
            rate,
            shift,
            skip,
            tokens,
            ring,
            weight,
            bias,
            at + t,
            t,
            h,
            offs_v,
            offs_k,
            KIND,
            H,
            G,
            V,
            K,
            CONV,
            TAPS,
            CONVOLVED,
            WIDTH,
            RING,
            RING_WIDTH,
            EPSILON,
            False,
        )
        tl.store(y + ((b * Q + t) * H + h) * V + offs_v, out.to(y.dtype.element_ty))
        place = tl.load(row + 2 + t)
        if place >= 0:
            tl.store(state + place.to(tl.int64) * (H * V * K) + inside, s.to(state.dtype.element_ty))
        if RING > 0:
            stands = ring + (at + t) % RING * RING_WIDTH
            append(tokens + t * WIDTH, stands, h, first, offs_v, offs_k, KIND, H, G, V, K, CONVOLVED, RING_WIDTH)


def supports(case: StateCase, target: Target) -> str | None:
    if case.K & (case.K - 1):
        return f"needs K to be a power of two, not {case.K}"
    if case.V % 8:
        return f"needs V to be a multiple of 8, not {case.V}"
    if case.K > LONGEST:
        return f"keeps rows of at most {LONGEST} elements in registers, not K = {case.K}"
    return None


def build(case: StateCase, inputs: Inputs, target: Target) -> Built:
    chosen, memory = plan(case, target), inputs["memory"]
    if case.apart:
        launch = launch_of(case, inputs, chosen.grid, chosen.block_v)
        few = why_few(case, target)
        launch = replace(launch, num_warps=chosen.num_warps, why_few_in_flight=few)
        return Built(launches=(launch,), output=memory)
    absent = inputs["A_log"]
    state = state_of(case, memory)
    launch = KernelLaunch(
        kernel=update_kernel,
        grid=chosen.grid,
        args={
            "state": state,
            "ring": ring_of(case, memory) if case.ring else state,
            "y": y_of(case, memory),
            "tokens": inputs["tokens"],
            "slots": inputs["slots"],
            "positions": inputs["positions"],
            "kept": inputs["kept"],
            "weight": inputs["conv_weight"],
            "bias": inputs.get("conv_bias", absent),
            "A_log": inputs["A_log"],
            "dt_bias": inputs["dt_bias"],
            "D": inputs.get("D", absent),
            "stride_tokens_b": inputs["tokens"].stride(0),
        },
        constexprs={
            "KIND": case.kind,
            "H": case.H,
            "G": case.G,
            "V": case.V,
            "K": case.K,
            "Q": case.q_len,
            "CONV": case.conv,
            "TAPS": triton.next_power_of_2(max(1, case.conv)),
            "EVERY": case.every,
            "CONVOLVED": case.convolved,
            "WIDTH": case.width,
            "RING": case.ring,
            "RING_WIDTH": case.ring_width,
            "EPSILON": NORM_EPSILON,
            "BLOCK_V": chosen.block_v,
        },
        num_warps=chosen.num_warps,
        num_stages=1,
        max_registers=registers(REPLAYING) if case.every > 1 else None,
        streams=("state",),
        why_few_in_flight=why_few(case, target),
    )
    return Built(launches=(launch,), output=memory)


def why_few(case: StateCase, target: Target) -> str:
    """Why code generation finds fewer bytes in flight than are wanted."""
    if case.B * case.slot * BYTES[case.state] < target.sm_count * SMALL_STEP:
        return "all states of the step are under way at once: there are no more"
    if case.q_len > 1:
        return f"{case.q_len} states are written for one that is read: loads have a part of the bandwidth"
    if case.state != "fp32":
        return "all loads of a block wait together, but those of tokens are as wide and take part of the count"
    return ""


def asked(case: StateCase, chosen: Plan) -> int:
    """Bytes of tokens, rings, convolution and rates that all CTAs read, each CTA what it needs once."""
    replays = sum(case.phases) / case.active
    rows = case.q_len + replays + max(case.conv - 1, 0)
    elements = 2 * case.K + chosen.block_v
    gates = {"mamba1": 2 * chosen.block_v, "mamba2": 1, "gated_delta": 2, "kda": case.K + 1}[case.kind]
    taps = case.conv + (1 if case.conv and case.kind not in DELTA else 0)
    numbers = {"mamba1": chosen.block_v * (case.K + 2), "mamba2": 3, "gated_delta": 2, "kda": 1 + case.K}[case.kind]
    vectors = elements * (rows + taps) + gates * (case.q_len + replays)
    table = 4 * (2 + case.q_len + (1 if case.ring else 0) + (1 if case.every > 1 else 0))
    return round(chosen.grid[0] * case.active * (BYTES[case.dtype] * vectors + 4 * numbers + table))


def issued(case: StateCase, chosen: Plan) -> tuple[float, float]:
    """Instructions of a warp on sm_90 for a new token, and for one that is replayed."""
    elements = chosen.block_v * case.K / (32 * chosen.num_warps)
    fixed, convolved, each, again, each_again = INSTRUCTIONS[case.kind]
    new = fixed + (convolved * case.K / 128 if case.conv else 0) + each * elements
    return new, again + each_again * elements


def instructions(case: StateCase, chosen: Plan) -> int:
    """Instructions of all threads on sm_90."""
    new, again = issued(case, chosen)
    tokens = case.active * case.q_len * new + sum(case.phases) * again
    return round(32 * chosen.num_warps * chosen.grid[0] * tokens)


def stages(case: StateCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes. What several CTAs read comes from the L2 but once. The state waits for its slot."""
    chosen = plan(case, target)
    once = work(case).bytes_read - case.active * case.slot * BYTES[case.state]
    return (
        Stage(
            name="update",
            work=work(case),
            l2_bytes=max(0, asked(case, chosen) - once),
            ctas=chosen.grid[0] * case.active,
            ctas_per_sm=warps_per_sm(case) // chosen.num_warps,
            loads_before={"dram": 1},
            instructions=instructions(case, chosen) if target.sm == 90 else 0,
        ),
    )


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
