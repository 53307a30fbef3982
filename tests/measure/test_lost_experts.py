"""A lost expert, slot, column or scale and an error of all outputs of an FFN fail the gate, in the suites' layers.

A token's row of y depends on its own experts only, and the gate judges each row by itself. So what shows in one token
shows in every batch, and two kinds of cases are enough:

- **One token** with the hidden sizes of the suites' layers. Each element of y takes one row of W_down, so only the last
  1,024 rows are computed. An expert that the token is not routed to is not read, so there are only the k that it is
  routed to, on one part and without shared ones. Ten tokens are drawn at a time, for the same weights, and each is
  judged as a batch of one.
- **Batches** of the suites, with their experts and routings, of narrow layers. What the gate allows the slope and what
  roundings do to it become smaller with the number of hidden values, so there are 8,192 of them or more: fewer than in
  each of the suites' layers. On one of several parts most rows may go to one expert, whose weights are marked alike for
  all of them: there experts keep their width. Faults are those of all elements, a lost slot and a lost expert. Of the
  formats only fp8_block has a fault of all elements, scales rounded to bf16.

`pytest -m exhaustive` tries 100 seeds of each, or 100 tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.common import gated
from kernels.common.compare import UNIT_ROUNDOFF, compare, hidden_slope_units
from kernels.common.quantization import FORMATS
from kernels.common.random_inputs import torch_dtype
from kernels.ffn_block import op as ffn_block
from kernels.ffn_block.op import FfnCase
from kernels.moe_ffn import op as moe_ffn
from kernels.moe_ffn.op import MoeCase
from tests.measure.test_systematic_errors import EXPERTS, moe_faults
from tests.support.derived_faults import (
    expert,
    expert_outputs,
    experts_outputs,
    ffn_weights,
    hidden,
    of_all_elements,
    stored,
)
from tests.support.quick_draws import quick_draws

ROWS, TOKENS, HIDDEN = 1024, 10, 8192
NARROW = 256
"""The size of x in batches, and the least width of an expert: two groups of every format."""
ERROR, OFFSET = 0.005, 0.0035


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_draws():
        yield


def of_suites(module: Any) -> list[Any]:
    return [replace(case, model="") for suite in ("smoke", "quick", "full") for case in module.OP.cases(suite)]


def outputs(case: FfnCase | MoeCase, seed: int, local: bool = True) -> dict[str, torch.Tensor]:
    """The last columns of y in fp32: exact, of a right kernel, and of kernels with a fault each."""
    if isinstance(case, MoeCase):
        found = experts_outputs(case, moe_ffn.inputs(case, "cpu", seed), min(ROWS, case.H), local=local)
    else:
        inputs = ffn_block.inputs(case, "cpu", seed)
        w = ffn_weights(case, inputs, min(ROWS, case.hidden))
        found = expert_outputs(case.activation, torch_dtype(case.dtype), inputs["x"].float(), w, "", columns=local)
    return found | of_all_elements(found["right"], ERROR, OFFSET)


def missed(case: FfnCase | MoeCase, seed: int, alone: bool) -> list[str]:
    """What the gate gets wrong, in all tokens or in each by itself."""
    op: Any = moe_ffn.OP if isinstance(case, MoeCase) else ffn_block.OP
    found = outputs(case, seed, local=alone)
    exact = found.pop("exact")
    tolerance = op.tolerance(replace(case, B=1) if alone else case)
    said = []
    for rows in [slice(b, b + 1) for b in range(case.B)] if alone else [slice(None)]:
        for name, y in found.items():
            errors = compare(stored(case, y[rows]), exact[rows], tolerance)
            if errors.passed != (name == "right"):
                said.append(name)
    return said


ONE_TOKEN = list(
    dict.fromkeys(
        [replace(c, B=TOKENS, E=c.k, top_groups=0, **MoeCase.PLAIN) for c in of_suites(moe_ffn)]
        + [replace(c, B=TOKENS) for c in of_suites(ffn_block)]
    )
)


def narrow(case: Any) -> Any:
    if isinstance(case, FfnCase):
        return replace(case, hidden=NARROW, ffn=max(NARROW, HIDDEN // case.B))
    F = case.F if case.parts > 1 else min(case.F, max(NARROW, HIDDEN // case.pairs))
    return replace(case, H=NARROW, F=F, weights=case.weights if case.weights == "fp8_block" else case.dtype)


BATCHES = list(dict.fromkeys(narrow(c) for c in [*of_suites(moe_ffn), *of_suites(ffn_block)] if c.B > 1))


SOME = [
    (MoeCase(B=2, E=2, k=2, H=1024, F=512, weights="fp8_block"), True),
    *((MoeCase(B=2, E=3, k=3, H=1024, F=512, weights=weights), True) for weights in FORMATS if "block" not in weights),
    (narrow(MoeCase(B=64, E=8, k=2, H=4096, F=14336)), False),
    (narrow(MoeCase(B=16, E=32, k=4, H=2880, F=2880, routing="zipf", weights="fp8_block")), False),
    (narrow(FfnCase(B=128, hidden=8192, ffn=28672)), False),
]


@pytest.mark.parametrize(("case", "alone"), SOME, ids=lambda value: getattr(value, "id", ""))
def test_some_of_each(case: Any, alone: bool) -> None:
    assert Counter(what for seed in range(2) for what in missed(case, seed, alone)) == {}


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", ONE_TOKEN, ids=lambda case: case.id)
def test_one_token_of_every_layer(case: Any) -> None:
    assert Counter(what for seed in range(100 // TOKENS) for what in missed(case, seed, alone=True)) == {}


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", BATCHES, ids=lambda case: case.id)
def test_every_batch(case: Any) -> None:
    assert Counter(what for seed in range(100) for what in missed(case, seed, alone=False)) == {}


CLAMPED = [
    *(MoeCase(B=6, E=2, k=2, H=1024, F=2880, weights=w) for w in ("", "mxfp4", "nvfp4", "int4", "int8", "fp8_block")),
    MoeCase(B=6, E=2, k=2, H=2880, F=2880, weights="mxfp4", bias=True),
    FfnCase(B=6, hidden=1024, ffn=2880),
]


@pytest.mark.parametrize("case", CLAMPED, ids=lambda case: case.id)
def test_a_clamp_hides_no_scale_and_no_limit(case: FfnCase | MoeCase) -> None:
    """In every row some sums are beyond each limit and the marked ones are not. A scale of the last row of gate or of
    up that is off by an eighth shows, and so does a limit that is left out. Without a clamp, 5% of a scale show."""
    case = replace(case, activation="swiglu_clamped")
    F, limit = (case.ffn if isinstance(case, FfnCase) else case.F), gated.LIMIT
    for seed in range(2):
        if isinstance(case, FfnCase):
            inputs = ffn_block.inputs(case, "cpu", seed)
            w = ffn_weights(case, inputs, 512)
            tolerance = ffn_block.tolerance(replace(case, B=1))
        else:
            inputs = moe_ffn.inputs(case, "cpu", seed)
            w = expert(case, inputs, case.E - 1, 512)
            tolerance = moe_ffn.tolerance(replace(case, B=1))
        gate_up = inputs["x"].float() @ w.gate_up.T
        gate, up = gate_up.chunk(2, dim=1)
        assert bool(((gate > limit).any(1) & (up > limit).any(1) & (up < -limit).any(1)).all())
        assert bool((torch.stack([gate[:, [0, -1]], up[:, [0, -1]]]).abs() < limit).all())
        dtype = torch.bfloat16
        y = {
            "right": hidden(case.activation, gate_up, dtype),
            **{
                f"scale of {n} x {s}": scaled(case.activation, gate_up, at, s)
                for n, at in (("gate", F - 1), ("up", -1))
                for s in (0.875, 1.125)
            },
            **{f"no limit {i}": unlimited(gate, up, i) for i in range(3)},
        }
        exact = gated.hidden(case.activation, gate, up) @ w.down.T
        for b in range(case.B):
            for name, h in y.items():
                errors = compare((h[b : b + 1].to(dtype).float() @ w.down.T).to(dtype), exact[b : b + 1], tolerance)
                assert errors.passed == (name == "right"), (seed, b, name, errors.reason)


def scaled(activation: str, gate_up: torch.Tensor, column: int, by: float) -> torch.Tensor:
    """Hidden values if one row of the weights has a scale that is off."""
    other = gate_up.clone()
    other[:, column] *= by
    return hidden(activation, other, torch.bfloat16)


def unlimited(gate: torch.Tensor, up: torch.Tensor, which: int) -> torch.Tensor:
    """Hidden values without the limit of the gate, the lower or the upper one of up."""
    limits = [gated.LIMIT, -gated.LIMIT, gated.LIMIT]
    limits[which] = float("-inf") if which == 1 else float("inf")
    gate, up = gate.clamp(max=limits[0]), up.clamp(limits[1], limits[2]) + 1
    return gate * torch.sigmoid(gated.ALPHA * gate) * up


@pytest.mark.parametrize("routing", ["uniform", "zipf"])
def test_roundings_of_large_hidden_values_go_to_both_sides(routing: str) -> None:
    """On one of several parts most rows may go to one expert. If its large hidden values were alike in all of them, so
    were their rounding errors: by 0.06 units to one side for this shape, and nothing is allowed for that."""
    case = MoeCase(B=64, E=16, k=2, H=1024, F=256, parts=4, shared=1, routing=routing)
    slopes = []
    for seed in range(8):
        found = experts_outputs(case, moe_ffn.inputs(case, "cpu", seed), case.H)
        slopes.append(compare(stored(case, found["right"]), found["exact"], moe_ffn.tolerance(case)).slope)
    units = (torch.tensor(slopes, dtype=torch.float64) - 1) / UNIT_ROUNDOFF["bf16"]
    assert abs(float(units.mean())) < 0.03
    assert 4 * float(units.square().mean().sqrt()) < hidden_slope_units(case.rows, case.pairs * case.F)


@pytest.mark.parametrize("case", EXPERTS, ids=lambda case: case.id)
def test_derived_faults_are_those_of_kernels_that_have_them(case: MoeCase) -> None:
    """Up to single roundings, where sums in another order lie beside a half of a unit in the last place."""
    inputs, derived = moe_ffn.inputs(case, "cpu", 0), outputs(case, 0)
    for name, kernel in moe_faults(case).items():
        y = kernel(case, inputs).float()[:, -ROWS:]
        assert float((stored(case, derived[name]) - y).norm() / y.norm()) < 2.0**-9, name
    exact = moe_ffn.reference(case, inputs)[:, -ROWS:]
    assert float((derived["exact"] - exact).norm() / exact.norm()) < 1e-5
