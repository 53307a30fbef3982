"""Where an output holds several results, each is judged by itself: the others do not hide its errors.

One result is too large by 1% or by 0.5%, or codes were made with such a scale, and all else is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.measure.gate import Contents, check_copies, check_prepared, judged, volatile_part
from kernels.all_reduce.op import OP as ALL_REDUCE
from kernels.all_reduce.op import ReduceCase
from kernels.kv_append import op as kv_append
from kernels.kv_append.op import AppendCase
from kernels.latent_append.op import OP as LATENT_APPEND
from kernels.latent_append.op import LatentCase
from kernels.op import Impl, Inputs, Op, Target, implementations
from kernels.rmsnorm import op as rmsnorm
from kernels.rmsnorm.op import NormCase
from kernels.rope_append import op as rope_append
from kernels.rope_append.op import RopeCase
from kernels.state_update.cases import StateCase
from kernels.state_update.op import OP as STATE_UPDATE

HOST = Target(kind="cpu", name="host", sm_count=2)
ROPE = RopeCase(B=4, H_q=8, H_kv=4, D=128, T=64)
LATENTS = LatentCase(B=4, H=8, D=64, L=512, R=64, T=64)
STATES = StateCase(kind="gated_delta", B=4, H=4, G=2, V=64, K=64, state="bf16")
NORM = NormCase(B=4, D=2048, residual=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine two threads wait for each other at every operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def impl_of(op: Op, name: str = "numba") -> Impl:
    return next(impl for impl in implementations(op.name)[0] if impl.name == name)


def places(reference: torch.Tensor, of: Any) -> torch.Tensor:
    """Where a result stands in the output."""
    return of(torch.arange(reference.numel(), dtype=torch.float64).view_as(reference)).flatten().long()


LARGE = [
    (rope_append.OP, ROPE, ("q", "the new tokens")),
    (LATENT_APPEND, LATENTS, ("q_rope", "latents", "rotary keys")),
    (rmsnorm.OP, NORM, ("y", "h")),
    (STATE_UPDATE, STATES, ("y", "the new states")),
    (ALL_REDUCE, ReduceCase(B=4, hidden=2048, ranks=4, fused=True), ("y", "h")),
]


@pytest.mark.parametrize(("op", "case", "names"), LARGE, ids=lambda value: getattr(value, "name", ""))
def test_each_result_that_is_too_large_shows(op: Op, case: Any, names: tuple[str, ...]) -> None:
    """The reference, rounded to bf16, stands for a right output."""
    plain = replace(op, decoded=lambda case, output: output)
    for seed in range(3):
        inputs = op.inputs(case, "cpu", seed)
        exact = op.reference(case, inputs)
        assert judged(plain, case, inputs, exact.bfloat16(), exact).passed
        results = {result.name: result for result in op.results(case, inputs)}
        for name in names:
            for gain in (1.01, 1.005, 0.995):
                wrong = exact.clone()
                wrong.view(-1)[places(exact, results[name].of)] *= gain
                reason = judged(plain, case, inputs, wrong.bfloat16(), exact).reason
                assert reason, (name, gain)


@pytest.mark.parametrize(
    ("op", "case"),
    [(rope_append.OP, ROPE), (LATENT_APPEND, LATENTS), (STATE_UPDATE, STATES)],
    ids=lambda v: getattr(v, "name", ""),
)
def test_what_was_there_before_stays_bit_for_bit(op: Op, case: Any) -> None:
    """One bit of one element that is not written, the last one of 8."""
    inputs = op.inputs(case, "cpu", 0)
    memory, exact = impl_of(op, "torch").prepare(case, inputs, HOST)(), op.reference(case, inputs)
    assert judged(op, case, inputs, memory, exact).passed
    old = next(result for result in op.results(case, inputs) if result.name.startswith("the old"))
    place = places(exact, old.of)
    at = int(place[exact.view(-1)[place].nonzero()[-1]])
    memory.view(-1).view(torch.int16)[at] ^= 1
    assert judged(op, case, inputs, memory, exact).reason


def with_scales(case: RopeCase, gain: float, *names: str) -> Any:
    """A kernel whose codes are too large by a share, since it divides by a scale that is too small."""

    def launch_of(inputs: Inputs) -> Any:
        wrong = inputs | {name: (inputs[name] / gain).contiguous() for name in names}
        return impl_of(rope_append.OP).prepare(case, wrong, HOST)

    return launch_of


@pytest.mark.parametrize("kv", ["fp8", "int8"])
@pytest.mark.parametrize("shape", [{}, {"B": 3, "H_kv": 2, "D": 32, "T": 70, "page": 32}], ids=["model", "small"])
def test_codes_of_a_wrong_scale_show(kv: str, shape: dict[str, Any]) -> None:
    case = replace(ROPE, kv=kv, **shape)
    for seed in range(3):

        def reason(launch_of: Any, seed: int = seed) -> str | None:
            inputs = rope_append.inputs(case, "cpu", seed)
            fresh = volatile_part(rope_append.OP, rope_append.inputs(case, "cpu", seed + 1))
            return check_prepared(Contents(rope_append.OP, case, inputs, fresh), launch_of(inputs), HOST).reason

        assert reason(with_scales(case, 1.0)) is None
        for gain in (1.01, 0.99):
            for name in ("k_scale", "v_scale"):
                assert "the new tokens: " in (reason(with_scales(case, gain, name)) or ""), (seed, gain, name)


def test_q_of_a_cache_in_8_bits_is_judged_as_16_bits() -> None:
    case = replace(ROPE, kv="fp8")
    inputs = rope_append.inputs(case, "cpu", 0)
    memory, exact = impl_of(rope_append.OP).prepare(case, inputs, HOST)(), rope_append.reference(case, inputs)
    rope_append.q_of(case, memory).mul_(1.01)
    assert (judged(rope_append.OP, case, inputs, memory, exact).reason or "").startswith("q: ")


@pytest.mark.parametrize("activations", ["fp8", "int8"])
def test_codes_of_a_norm_that_is_too_large_show(activations: str) -> None:
    """The scales of tokens are too large, or y was before it was quantized: then the scales are too."""
    case = replace(NORM, activations=activations)
    for seed in range(3):
        inputs = rmsnorm.inputs(case, "cpu", seed)
        exact = rmsnorm.reference(case, inputs)
        found = impl_of(rmsnorm.OP).prepare(case, inputs, HOST)()
        assert judged(rmsnorm.OP, case, inputs, found, exact).passed
        found[: 4 * case.B].view(torch.float32).mul_(1.01)
        assert (judged(rmsnorm.OP, case, inputs, found, exact).reason or "").startswith("y: slope"), seed


def test_copies_are_judged_result_by_result_after_timing() -> None:
    case = replace(ROPE, kv="int8")
    copies = [rope_append.inputs(case, "cpu", seed) for seed in range(3)]
    right = [impl_of(rope_append.OP).prepare(case, inputs, HOST)().clone() for inputs in copies]
    wrong = [*right[:2], with_scales(case, 1.01, "k_scale", "v_scale")(copies[2])()]
    good, bad = check_copies(rope_append.OP, case, copies, [right, wrong])
    assert good.passed
    assert "the new tokens: " in (bad.reason or "")


def test_rows_of_new_tokens_are_those_that_the_reference_changes() -> None:
    for case in kv_append.cases("test"):
        assert isinstance(case, AppendCase)
        inputs = kv_append.inputs(replace(case, dtype="fp32"), "cpu", 0)
        plain = replace(case, dtype="fp32")
        changed = kv_append.reference(plain, inputs) != kv_append.background(
            kv_append.cache_shape(plain), "fp32", "cpu"
        )
        new, old = kv_append.rows_of(plain, inputs)
        assert sorted(new.tolist()) == changed.view(-1, case.D).any(1).nonzero()[:, 0].tolist()
        assert sorted([*new.tolist(), *old.tolist()]) == list(range(changed.numel() // case.D))
