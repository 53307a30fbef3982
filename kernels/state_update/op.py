"""One decode step of layers that keep a state S [V, K] for each sequence and head instead of a cache.

    mamba2        S = exp(-A dt) S + dt x b^T                            y = S c + D x
    mamba1        S[v] = exp(-A[v] dt[v]) S[v] + dt[v] x[v] b            y = (S c + D x) silu(z)
    gated_delta   S = exp(-A dt) S;      S += beta (v - S k) k^T         y = S q
    kda           S = S diag(exp(-A dt)); S += beta (v - S k) k^T        y = S q

with A = exp(A_log) and dt = softplus(dt or a + dt_bias); beta is a sigmoid. q and k are divided by their norms,
q by sqrt(K) too. x, b, c (q, k, v) are silu of a causal convolution over the last `conv` tokens. Formulas: mamba_ssm's
`selective_state_update_ref`, transformers' `Qwen3NextGatedDeltaNet` and Kimi-Linear's `KimiDeltaAttention`.

`slots` [B, 2 + q_len] holds the ring of sequence b, the slot of the state that is read, and the slots to which the
states after each new token go; -1: it is not written. A sequence whose read slot is -1 is idle. Kernels update in place
if a slot is read and written, as engines mostly do. The measured slots differ, as vLLM's `dst_state_batch_indices`
allows: a launch can then be repeated and judged, and moves the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kernels.common.compare import rounded
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.common.smaller import fewer
from kernels.op import EXACT, Inputs, Op, Result, Tolerance, Work
from kernels.state_update.apart import decoded, decoded_y, lasting, taken_apart
from kernels.state_update.cases import DELTA, StateCase, cases
from kernels.state_update.memory import background, ring_of, state_of, y_of
from kernels.state_update.recurrence import reference

if TYPE_CHECKING:
    import torch


def draw_slots(case: StateCase, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`slots`, and how many tokens of each sequence stand aside."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(case.B, generator=generator)
    kept = torch.zeros(case.B, dtype=torch.int32)
    kept[order[: case.active]] = torch.tensor(case.phases, dtype=torch.int32)
    slots = torch.empty(case.B, 2 + case.q_len, dtype=torch.int32)
    slots[:, 0] = torch.randperm(case.rings, generator=generator)[: case.B]
    places = torch.randperm(case.slots, generator=generator)[: case.B * (1 + case.q_len)]
    slots[:, 1:] = places.view(case.B, 1 + case.q_len)
    slots[kept < case.every - 1, 2:] = -1
    slots[order[case.active :]] = -1
    return slots, kept


def inputs(case: StateCase, device: str, seed: int) -> Inputs:
    """Tokens ~ N(0, 1). Most decays are between 0.4 and 0.95, so that a wrong one tells."""
    draw = RandomInputs(device, seed)
    slots, kept = draw_slots(case, seed)
    heads = {"mamba1": (case.V,), "kda": (case.H, case.K)}.get(case.kind, (case.H,))
    rates = {"mamba1": (case.V, case.K)}.get(case.kind, (case.H,))
    found = {
        "tokens": draw.normal((case.B, case.q_len, case.width), case.dtype),
        "memory": background(case, device),
        "slots": slots.to(device),
        "kept": kept.to(device),
        "positions": draw.integers(case.ring, 10000, (case.B,)),
        "A_log": draw.normal(rates, "fp32", 0.6).add_(0.7),
        "dt_bias": draw.normal(heads, "fp32", 0.5).sub_(2),
        "conv_weight": draw.normal((case.conv, case.convolved), case.dtype, 0.5),
    }
    if case.kind not in DELTA:
        found["D"] = draw.normal((case.V,) if case.kind == "mamba1" else (case.H,), "fp32")
        found["conv_bias"] = draw.normal((case.convolved if case.conv else 0,), case.dtype, 0.25)
    return taken_apart(case, found) if case.apart else found


def poison(case: StateCase, inputs: Inputs, output: torch.Tensor) -> None:
    """Put everything back, and NaN where the launch must write. What it writes elsewhere stays, so that it shows."""
    output.copy_(background(case, output.device))
    slots, nan = inputs["slots"].long(), float("nan")
    active = slots[:, 1] >= 0
    written = slots[:, 2:]
    state_of(case, output)[written[written >= 0]] = nan
    y_of(case, output)[active] = nan
    for t in range(case.q_len if case.ring else 0):
        place = (inputs["positions"].long() + t) % case.ring
        ring_of(case, output)[slots[active, 0], place[active]] = nan


FLOPS = {"mamba1": (6, 2), "mamba2": (3, 2), "gated_delta": (5, 2), "kda": (5, 2)}
"""For each element of the state: FLOPs of an update, and of an output. mamba1 has its own decay for each element."""


def replayed(case: StateCase) -> int:
    """Tokens that are read from rings and go through the recurrence again."""
    return sum(case.phases)


def weight_bytes(case: StateCase) -> int:
    """Convolution, rates, biases and skips, each once."""
    bias = case.kind not in DELTA
    taps = (case.conv + (1 if case.conv and bias else 0)) * case.convolved * BYTES[case.dtype]
    wide = {"mamba1": case.V * (case.K + 2), "mamba2": 3 * case.H, "kda": case.H * (1 + case.K)}
    return taps + 4 * wide.get(case.kind, 2 * case.H)


def work(case: StateCase) -> Work:
    """States once in and once out, the tokens, the ring as far back as the convolution and a replay go, weights."""
    new, size = case.active * case.q_len, BYTES[case.dtype]
    update, output = FLOPS[case.kind]
    back = case.active * max(case.conv - 1, 0) * case.convolved + replayed(case) * case.ring_width
    indices = (2 + case.q_len) * case.active + case.idle + (case.active if case.ring else 0)
    indices += case.active if case.every > 1 else 0
    taps = 2 * case.conv * case.convolved * (new + replayed(case))
    return Work(
        flops={"fma_fp32": case.slot * (update * (new + replayed(case)) + output * new) + taps},
        bytes_read=case.active * case.slot * BYTES[case.state]
        + size * (new * case.width + back)
        + 4 * indices
        + weight_bytes(case),
        bytes_written=BYTES[case.state] * case.states_written * case.slot
        + BYTES[case.y_type] * new * case.H * case.V
        + (size * new * case.ring_width if case.ring else 0),
    )


def tolerance(case: StateCase) -> Tolerance:
    if case.apart:
        why = "y is rounded once to the type of the tokens; states are as without `apart`"
        return rounded(case.dtype, terms="K terms", max_units=4, rms_units=1.5, why=why)
    return rounded(
        case.state,
        terms="K terms",
        max_units=2,
        rms_units=1,
        roundings=1,
        why="states and y are rounded once, after a step in fp32",
    )


def results(case: StateCase, inputs: Inputs) -> list[Result]:
    """y, the new states, the rings, whose tokens are copied, and the states that were there before."""
    import torch

    slots = inputs["slots"].long()
    active, new = slots[:, 1] >= 0, slots[:, 2:][slots[:, 2:] >= 0]
    old = torch.ones(case.slots, dtype=torch.bool, device=new.device)
    old[new] = False
    found = [
        Result("y", lambda m: decoded_y(case, m)[active], tolerance(case)),
        Result(
            "the new states", lambda m: state_of(case, lasting(case, m))[new], tolerance(replace(case, apart=False))
        ),
        Result("the old states", lambda m: state_of(case, lasting(case, m))[old], EXACT),
    ]
    if case.ring:
        in_type = torch_dtype(case.state)
        found.append(Result("the rings", lambda m: ring_of(case, lasting(case, m).to(in_type)), EXACT))
    return found


def smaller(case: StateCase, n: int) -> StateCase:
    """Fewer sequences, then fewer groups of heads."""
    few = fewer(replace(case, idle=0), n, B=1)
    groups = max(1, case.G * case.B // (n * few.B))
    return replace(few, G=groups, H=case.H // case.G * groups)


OP = Op(
    name="state_update",
    title="state updates",
    role="decode",
    about="one step of Mamba, gated delta net or KDA: a state is read, updated and written",
    formula="S = decay S + v k^T, y = S q",
    case_type=StateCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("tokens", "memory", "slots", "kept", "positions"),
    poison=poison,
    results=results,
    decoded=decoded,
    smaller=smaller,
)
