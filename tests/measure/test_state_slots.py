"""State updates that are wrong: a lost slot, a swapped one, another decay, a rounding too many. The gate sees each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.measure.gate import Contents, check_prepared, volatile_part
from kernels.common.compare import Errors
from kernels.op import Inputs, Target, implementations
from kernels.state_update import peers
from kernels.state_update.cases import TINY, StateCase
from kernels.state_update.memory import ring_of, state_of, y_of
from kernels.state_update.op import OP, poison

CPU = Target(kind="cpu", name="cpu")
TORCH = next(impl for impl in implementations("state_update")[0] if impl.name == "torch")
WIDE = replace(TINY, B=6, idle=0, H=4, G=2, V=8, K=32, q_len=2)
KINDS = [WIDE, replace(WIDE, kind="mamba2"), replace(WIDE, kind="kda", G=4)]
Plant = Callable[[StateCase, Inputs], torch.Tensor]


def by_torch(case: StateCase, inputs: Inputs, **changed: torch.Tensor) -> torch.Tensor:
    return TORCH.prepare(case, {**inputs, **changed}, CPU)()


def gated(case: StateCase, plant: Plant, seed: int = 0) -> Errors:
    inputs = OP.inputs(case, "cpu", seed)
    fresh = volatile_part(OP, OP.inputs(case, "cpu", seed + 1))
    return check_prepared(Contents(OP, case, inputs, fresh), lambda: plant(case, inputs), CPU)


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


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.kind)
def test_the_gate_sees_each_slot_that_is_lost_or_swapped_and_each_decay_that_is_off(case: StateCase) -> None:
    """A state of any sequence that is not written, those of any two neighbours, and 0.5% in the decay of any head."""

    def unwritten(b: int) -> Plant:
        def plant(case: StateCase, inputs: Inputs) -> torch.Tensor:
            place = int(inputs["slots"][b, -1])
            before = state_of(case, inputs["memory"])[place].clone()
            memory = by_torch(case, inputs)
            state_of(case, memory)[place] = before
            return memory

        return plant

    def slower(h: int) -> Plant:
        return lambda c, i: by_torch(c, i, A_log=i["A_log"] + 0.015 * (torch.arange(c.H) == h))

    def exchanged(b: int) -> Plant:
        return lambda c, i: by_torch(c, i, slots=swapped(i["slots"], 2, b, (b + 1) % c.B))

    for n in range(case.B):
        assert gated(case, unwritten(n)).reason, n
        assert gated(case, exchanged(n)).reason, n
    for h in range(case.H):
        assert gated(case, slower(h)).reason, h


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
