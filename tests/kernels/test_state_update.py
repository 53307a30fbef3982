"""State updates against the published recurrences, sixteen steps in a row, and what the gate must see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.devices import find
from bench.measure.gate import check, check_prepared, volatile_part
from kernels.common.compare import Errors, compare
from kernels.common.random_inputs import BYTES, torch_dtype
from kernels.op import Inputs, Target, implementations, total
from kernels.state_update import peers
from kernels.state_update.cases import KIMI, NEMOTRON, QWEN, TINY, StateCase
from kernels.state_update.memory import background, ring_of, state_of, y_of
from kernels.state_update.op import OP, poison, work
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
H200 = find("h200").target()
IMPLS = {impl.name: impl for impl in implementations("state_update")[0]}
SMALL = replace(TINY, V=8, idle=0)
EACH_KIND = [
    SMALL,
    replace(SMALL, kind="mamba2", K=16),
    replace(SMALL, kind="kda", H=1, G=1),
    replace(SMALL, kind="mamba1", H=1, V=24, K=16, conv=0),
]


# ---- the published recurrences, one sequence, head and token at a time


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(x.exp())


class Layer:
    """One sequence: the convolution's window is shifted by one for each token, as in transformers' models, and the
    delta rule's states are [K, V], as in flash-linear-attention."""

    def __init__(self, case: StateCase, inputs: Inputs, state: torch.Tensor, past: list[torch.Tensor]) -> None:
        """`state` [H, V, K]; `past`: the tokens before, from the oldest on, as far as the ring has them."""
        self.case = case
        self.given = {n: t.double() for n, t in inputs.items() if t.is_floating_point() and n not in ("memory", "D")}
        self.skip = inputs["D"].double() if "D" in inputs else None
        self.states = [state[h].double() for h in range(case.H)]
        width = torch.zeros(case.convolved, max(case.conv, 1), dtype=torch.float64)
        for i, token in enumerate(past[-case.conv :] if case.conv else []):
            width[:, case.conv - len(past[-case.conv :]) + i] = token[: case.convolved].double()
        self.window = width

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """y [H, V] of one more token."""
        case, token = self.case, token.double()
        mixed = token[: case.convolved]
        if case.conv:
            self.window = self.window.roll(-1, 1)
            self.window[:, -1] = mixed
            mixed = (self.window * self.given["conv_weight"].T).sum(1)
            mixed = silu(mixed + self.given.get("conv_bias", torch.zeros(())))
        rest, rows = token[case.convolved :], []
        for h in range(case.H):
            rows.append(self.head(h, mixed, rest))
        return torch.stack(rows)

    def head(self, h: int, mixed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        case, A, bias = self.case, self.given["A_log"].exp(), self.given["dt_bias"]
        g, keys, values = h // (case.H // case.G), case.G * case.K, case.H * case.V
        if case.kind in ("mamba1", "mamba2"):
            assert self.skip is not None
            x = mixed[h * case.V : (h + 1) * case.V]
            b = mixed[values + g * case.K : values + (g + 1) * case.K]
            c = mixed[values + keys + g * case.K : values + keys + (g + 1) * case.K]
            if case.kind == "mamba1":
                z, dt = rest[: case.V], softplus(rest[case.V :] + bias)
                self.states[h] = self.states[h] * (-A * dt[:, None]).exp() + torch.outer(dt * x, b)
                return (self.states[h] @ c + self.skip * x) * silu(z)
            dt = softplus(rest[h] + bias[h])
            self.states[h] = self.states[h] * (-A[h] * dt).exp() + torch.outer(dt * x, b)
            return self.states[h] @ c + self.skip[h] * x
        q, k = mixed[g * case.K : (g + 1) * case.K], mixed[keys + g * case.K : keys + (g + 1) * case.K]
        v = mixed[2 * keys + h * case.V : 2 * keys + (h + 1) * case.V]
        q, k = (x / (x.dot(x) + 1e-6).sqrt() for x in (q, k))
        if case.kind == "kda":
            decay = -A[h] * softplus(rest[h * case.K : (h + 1) * case.K] + bias[h])
            beta = rest[case.H * case.K + h]
        else:
            decay, beta = (-A[h] * softplus(rest[h] + bias[h])).expand(case.K), rest[case.H + h]
        S = self.states[h].T * decay.exp()[:, None]
        S = S + torch.outer(k, (v - S.T @ k) / (1 + (-beta).exp()))
        self.states[h] = S.T
        return S.T @ q / math.sqrt(case.K)


def past_of(case: StateCase, inputs: Inputs, b: int) -> list[torch.Tensor]:
    """The tokens before, from the oldest in the ring on; gates that it does not hold are zeros."""
    old, position, ring = case.ring - case.q_len, int(inputs["positions"][b]), int(inputs["slots"][b, 0])
    stored = ring_of(case, background(case, "cpu"))
    found = [stored[ring, (position - i) % case.ring] for i in range(old, 0, -1)] if case.ring else []
    return [torch.cat([t, torch.zeros(case.width - case.ring_width, dtype=t.dtype)]) for t in found]


@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_the_reference_is_the_published_recurrence(case: StateCase) -> None:
    inputs = OP.inputs(case, "cpu", 3)
    expected, states = background(case, "cpu").double(), state_of(case, background(case, "cpu"))
    found = OP.reference(case, inputs)
    assert found.dtype == torch.float64
    written = 0
    for b, (_, read, *places) in enumerate(inputs["slots"].tolist()):
        if read < 0:
            continue
        past, kept = past_of(case, inputs, b), int(inputs["kept"][b])
        layer = Layer(case, inputs, states[read], past[: len(past) - kept])
        for token in past[len(past) - kept :]:
            layer(token)
        for t in range(case.q_len):
            y_of(case, expected)[b, t] = layer(inputs["tokens"][b, t])
            if places[t] >= 0:
                state_of(case, expected)[places[t]] = torch.stack(layer.states)
                written += 1
    assert written == case.states_written
    first, rows, _ = case.regions
    torch.testing.assert_close(found[:first], expected[:first], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[first + rows :], expected[first + rows :], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in OP.cases("test") if c.ring], ids=lambda case: case.id)
def test_the_reference_puts_new_tokens_in_the_ring_and_leaves_the_rest(case: StateCase) -> None:
    inputs = OP.inputs(case, "cpu", 3)
    found = OP.reference(case, inputs).to(torch_dtype(case.state))
    expected = ring_of(case, background(case, "cpu")).clone()
    for b, (ring, read, *_) in enumerate(inputs["slots"].tolist()):
        for t in range(case.q_len if read >= 0 else 0):
            place = (int(inputs["positions"][b]) + t) % case.ring
            expected[ring, place] = inputs["tokens"][b, t, : case.ring_width]
    assert torch.equal(ring_of(case, found), expected)


# ---- sixteen steps in a row, in place

STEPS = 16


def run_in_a_row(case: StateCase, impl: str, where: Target, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y [B, 16, H, V] and the states [B, H, V, K] after 16 tokens; each state is written where it was read."""
    inputs = OP.inputs(case, where.device, 5)
    inputs["kept"].zero_()
    slots, found = inputs["slots"], []
    home = slots[:, 1].clone()
    for first in range(0, STEPS, case.q_len):
        inputs["tokens"].copy_(tokens[:, first : first + case.q_len])
        if case.q_len > 1:  # the next launch reads the last state that this one writes
            slots[:, 1] = slots[:, 1 + case.q_len] if first else home
        else:
            writes = inputs["kept"] == case.every - 1
            slots[:, 2] = torch.where(writes, home, torch.full_like(home, -1))
        memory = IMPLS[impl].prepare(case, inputs, where)()
        found.append(y_of(case, memory).double().cpu())
        inputs["kept"].add_(1).remainder_(case.every)
        inputs["positions"].add_(case.q_len)
    last = slots[:, 1 + case.q_len] if case.q_len > 1 else home
    return torch.cat(found, 1), state_of(case, memory)[last.long()].double().cpu()


def sixteen(case: StateCase) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, and y and states as the published recurrence makes them."""
    inputs = OP.inputs(case, "cpu", 5)
    tokens = torch.randn(case.B, STEPS, case.width, generator=torch.Generator().manual_seed(9))
    tokens = tokens.to(torch_dtype(case.dtype))
    states, ys, ends = state_of(case, background(case, "cpu")), [], []
    for b in range(case.B):
        layer = Layer(case, inputs, states[int(inputs["slots"][b, 1])], past_of(case, inputs, b))
        ys.append(torch.stack([layer(token) for token in tokens[b]]))
        ends.append(torch.stack(layer.states))
    return tokens, torch.stack(ys), torch.stack(ends)


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("q_len", [1, 4])
@pytest.mark.parametrize("case", EACH_KIND, ids=lambda case: case.kind)
def test_sixteen_steps_in_a_row(case: StateCase, q_len: int, target: Target) -> None:
    case = replace(case, B=2, q_len=q_len)
    tokens, y, states = sixteen(case)
    for impl, where in (("triton", target), ("torch", CPU)):
        found = run_in_a_row(case, impl, where, tokens)
        assert off(found[0], y) < 2e-6, impl
        assert off(found[1], states) < 2e-6, impl


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("case", EACH_KIND[:3], ids=lambda case: case.kind)
def test_states_that_are_written_every_fourth_step_give_the_same(case: StateCase, target: Target) -> None:
    case = replace(case, B=2, every=4)
    tokens, y, states = sixteen(case)
    found = run_in_a_row(case, "triton", target, tokens)
    assert off(found[0], y) < 2e-6
    assert off(found[1], states) < 2e-6


def test_a_16_bit_state_loses_what_its_roundings_lose() -> None:
    """Decays of 0.8 keep the errors of some steps: about two roundings of 2^-9, not sixteen, and not none."""
    for case in EACH_KIND[:2]:
        case = replace(case, B=2, state="bf16")
        tokens, _, states = sixteen(case)
        _, found = run_in_a_row(case, "torch", CPU, tokens)
        assert 2**-10 < off(found, states) < 2**-7


# ---- what the gate must see

WIDE = replace(SMALL, B=6, H=4, G=2, V=16, K=64, q_len=2)
KINDS = [WIDE, replace(WIDE, kind="mamba2"), replace(WIDE, kind="kda", G=4)]
Plant = Callable[[StateCase, Inputs], torch.Tensor]


def by_torch(case: StateCase, inputs: Inputs, **changed: torch.Tensor) -> torch.Tensor:
    return IMPLS["torch"].prepare(case, {**inputs, **changed}, CPU)()


def gated(case: StateCase, plant: Plant, seed: int = 0) -> Errors:
    inputs = OP.inputs(case, "cpu", seed)
    fresh = volatile_part(OP, OP.inputs(case, "cpu", seed + 1))
    return check_prepared(OP, case, inputs, fresh, lambda: plant(case, inputs), CPU)


def swapped(x: torch.Tensor, column: int, one: int = 0, other: int = 5) -> torch.Tensor:
    x = x.clone()
    x[[one, other], column] = x[[other, one], column]
    return x


def lost_slot(case: StateCase, inputs: Inputs) -> torch.Tensor:
    """The last state of one sequence is left as it was."""
    place = int(inputs["slots"][3, -1])
    before = state_of(case, inputs["memory"])[place].clone()
    memory = by_torch(case, inputs)
    state_of(case, memory)[place] = before
    return memory


def another_place_too(case: StateCase, inputs: Inputs) -> torch.Tensor:
    """A slot that belongs to nobody is written."""
    memory = by_torch(case, inputs)
    free = set(range(case.slots)) - set(inputs["slots"][:, 1:].flatten().tolist())
    state_of(case, memory)[min(free)] = state_of(case, memory)[int(inputs["slots"][3, -1])]
    return memory


def misplaced_token(case: StateCase, inputs: Inputs) -> torch.Tensor:
    memory = by_torch(case, inputs)
    ring = ring_of(case, memory)[int(inputs["slots"][3, 0])]
    ring.copy_(ring.roll(1, 0))
    return memory


WRONG: dict[str, Plant] = {
    "lost slot": lost_slot,
    "another slot is written": another_place_too,
    "states of two sequences swapped when read": lambda c, i: by_torch(c, i, slots=swapped(i["slots"], 1)),
    "states of two sequences swapped when written": lambda c, i: by_torch(c, i, slots=swapped(i["slots"], 2)),
    "rings of two sequences swapped": lambda c, i: by_torch(c, i, slots=swapped(i["slots"], 0)),
    "a token stands elsewhere in the ring": misplaced_token,
    "the window of the convolution is one token late": lambda c, i: by_torch(c, i, positions=i["positions"] - 1),
    "decay of one head off by 1%": lambda c, i: by_torch(c, i, A_log=i["A_log"] + 0.03 * (torch.arange(c.H) == 1)),
    "no bias of the time step": lambda c, i: by_torch(c, i, dt_bias=0 * i["dt_bias"]),
    "tokens of a draft in the wrong order": lambda c, i: by_torch(c, i, tokens=i["tokens"].flip(1)),
}


@pytest.mark.parametrize("state", ["fp32", "bf16"])
@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.kind)
def test_the_gate_sees_what_is_wrong(case: StateCase, state: str) -> None:
    case = replace(case, state=state)
    assert gated(case, by_torch).reason is None
    for name, plant in WRONG.items():
        assert gated(case, plant).reason, name


@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_the_gate_sees_a_state_that_is_rounded_between_two_tokens(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bf16 memory each state may be rounded once, when it is written; the next token must not see that."""
    exact = {name: getattr(peers, name) for name in ("delta", "selective")}

    def rounding(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        def step(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
            s, y = exact[name](*args)
            return s.bfloat16().float(), y

        return step

    for name in exact:
        monkeypatch.setattr(peers, name, rounding(name))
    for case in KINDS:
        for seed in range(3):
            assert gated(replace(case, state=state), by_torch, seed).reason, (case.kind, seed)


@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_poison_covers_what_must_be_written_and_no_more(case: StateCase) -> None:
    inputs = OP.inputs(case, "cpu", 0)
    memory = inputs["memory"]
    before = memory.clone()
    memory.add_(1)
    poison(case, inputs, memory)
    nan = [part(case, memory).isnan() for part in (state_of, ring_of, y_of)]
    assert int(nan[0].sum()) == case.states_written * case.slot
    assert int(nan[1].sum()) == (case.active * case.q_len * case.ring_width if case.ring else 0)
    assert int(nan[2].sum()) == case.active * case.q_len * case.H * case.V
    for part, poisoned in zip((state_of, ring_of, y_of), nan, strict=True):
        assert torch.equal(part(case, memory)[~poisoned], part(case, before)[~poisoned])


def test_idle_sequences_keep_everything(target: Target) -> None:
    case = replace(SMALL, B=3, idle=2)
    inputs = OP.inputs(case, target.device, 0)
    memory = IMPLS["triton"].prepare(case, inputs, target)().clone()
    idle = inputs["slots"][:, 1] < 0
    assert int(idle.sum()) == 2
    assert torch.equal(y_of(case, memory)[idle], y_of(case, background(case, memory.device))[idle])
    assert compare(memory, OP.reference(case, inputs), OP.tolerance(case)).passed


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["mamba1", "mamba2", "gated_delta", "kda"]),
    B=st.integers(1, 3),
    G=st.integers(1, 2),
    each=st.integers(1, 2),
    V=st.sampled_from([8, 24]),
    K=st.sampled_from([8, 16]),
    steps=st.sampled_from([(1, 1), (3, 1), (1, 3)]),
    conv=st.integers(0, 4),
    state=st.sampled_from(["fp32", "bf16"]),
    seed=st.integers(0, 99),
)
def test_drawn_shapes_pass_the_gate(kind, B, G, each, V, K, steps, conv, state, seed, target) -> None:
    q_len, every = steps
    if kind == "mamba1":
        G, each, conv, every = 1, 1, 0, 1
    heads = G if kind == "kda" else G * each
    fields: dict[str, Any] = {"q_len": q_len, "every": every, "conv": conv, "state": state}
    case = StateCase(kind=kind, B=B, H=heads, G=G, V=V, K=K, **fields)
    names = ["torch"] if seed % 4 else ["torch", "triton"]
    for name in names:
        if IMPLS[name].supports(case, target) is None:
            where = target if name == "triton" else CPU
            assert check(OP, IMPLS[name], case, where).reason is None, (name, case.id)


# ---- what is counted


def test_work_by_hand() -> None:
    """32 heads of 128 x 128 in fp32 are 2 MiB for each sequence, in and out. Beside them: y in fp32; 8,192 channels and
    64 gates of a token; 3 tokens before it, and one into the ring; weights of 4 taps; rates and biases."""
    case = replace(QWEN, B=64)
    state, token = 32 * 128 * 128 * 4, 8192 + 64
    weights = 4 * 8192 * 2 + 2 * 32 * 4
    assert work(case).bytes_read == 64 * (state + 2 * token + 2 * 3 * 8192 + 4 * 4) + weights
    assert work(case).bytes_written == 64 * (state + 4 * 4096 + 2 * 8192)
    assert work(case).total_flops == 64 * (7 * 32 * 128 * 128 + 2 * 4 * 8192)
    assert work(replace(case, idle=32)).bytes_read - weights == (work(case).bytes_read - weights) // 2 + 32 * 4


def test_a_state_that_is_written_every_eighth_step_saves_nearly_half_of_the_bytes() -> None:
    """Of 64 sequences 8 write: 2 + 2 becomes 2 + 2 / 8 MiB. Each replays 3.5 tokens of 12 KiB."""
    plain, replaying = (work(replace(NEMOTRON, B=64, every=every)) for every in (1, 8))
    assert replaying.bytes / plain.bytes == pytest.approx(0.5625, abs=0.02)
    assert work(replace(NEMOTRON, B=64, q_len=4)).bytes / plain.bytes == pytest.approx(2.5, abs=0.02)


@pytest.mark.parametrize("suite", ["smoke", "quick", "full", "test"])
def test_sizes_stages_and_launches_agree(suite: str) -> None:
    for case in OP.cases(suite):
        inputs = OP.inputs(case, "meta", 0)
        memory = inputs["memory"]
        kept = memory.numel() * memory.element_size()
        assert case.slots * case.slot * BYTES[case.state] <= kept < 5e9
        for impl in IMPLS.values():
            if impl.supports(case, H200) is None:
                assert total(impl.stages(case, H200)).bytes >= work(case).bytes
        (launch,) = IMPLS["triton"].build(case, inputs, H200).launches
        (stage,) = IMPLS["triton"].stages(case, H200)
        assert stage.work == work(case)
        assert stage.ctas == launch.grid[0] * case.active
        assert stage.l2_bytes >= 0


def test_blocks_are_small_where_the_batch_is() -> None:
    for case in (QWEN, NEMOTRON, KIMI):
        (one,), (many,) = (
            IMPLS["triton"].build(replace(case, B=B), OP.inputs(replace(case, B=B), "meta", 0), H200).launches
            for B in (1, 64)
        )
        assert one.grid[0] >= 3 * H200.sm_count
        assert one.constexprs["BLOCK_V"] < many.constexprs["BLOCK_V"]


def test_senseless_cases_raise() -> None:
    for wrong, said in (
        ({"state": "fp16"}, "state fp16"),
        ({"idle": 3}, "idle 3"),
        ({"G": 3}, "multiple of G"),
        ({"K": 12}, "K = 12"),
        ({"every": 2, "q_len": 2}, "every 2"),
        ({"kind": "kda"}, "kda has as many"),
        ({"kind": "mamba1"}, "mamba1 needs"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(SMALL, **wrong)
    assert "power of two" in IMPLS["triton"].supports(replace(SMALL, K=24), H200)
    assert "multiple of 8" in IMPLS["triton"].supports(replace(SMALL, V=12), H200)
