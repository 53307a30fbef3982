"""State updates against the published recurrences, sixteen steps in a row, any shape, and what is counted."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.devices import find
from bench.measure.gate import check
from kernels.common.compare import compare
from kernels.common.random_inputs import BYTES, torch_dtype
from kernels.op import Target, implementations, total
from kernels.state_update.apart import joined, taken_apart
from kernels.state_update.cases import JAMBA, KIMI, NEMOTRON, QWEN, TINY, StateCase
from kernels.state_update.memory import background, ring_of, state_of, y_of
from kernels.state_update.op import OP, work
from kernels.state_update.triton_update import issued, plan
from tests.support.properties import given, settings, st
from tests.support.published_states import PUBLISHED, is_published
from tests.support.state_layers import Layer, past_of
from tests.support.uninterpreted import elsewhere

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


@pytest.mark.parametrize("case", [c for c in OP.cases("test") if not c.apart], ids=lambda case: case.id)
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


@pytest.mark.parametrize("case", [c for c in OP.cases("test") if c.apart], ids=lambda case: case.id)
def test_a_token_that_is_apart_does_what_a_whole_one_does(case: StateCase) -> None:
    """Its parts are columns of the same tokens. y is the same before it is rounded."""
    whole = replace(case, apart=False)
    inputs = OP.inputs(whole, "cpu", 3)
    found, expected = OP.reference(case, taken_apart(case, inputs)), OP.reference(whole, inputs)
    states, y = case.regions[0] * case.K, y_of(whole, expected).flatten()
    torch.testing.assert_close(found[:states], expected.flatten()[:states])
    active = (inputs["slots"][:, 1] >= 0).repeat_interleave(case.H * case.V)
    torch.testing.assert_close(found[-len(y) :][active], y[active])
    assert torch.equal(joined(case, taken_apart(case, inputs)), inputs["tokens"])
    with pytest.raises(ValueError, match="apart needs"):
        replace(case, kind="gated_delta", H=1, G=1)


@pytest.mark.parametrize("case", [c for c in OP.cases("test") if c.ring and not c.apart], ids=lambda case: case.id)
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


def run_in_a_row(
    case: StateCase, impl: str, where: Target, tokens: torch.Tensor, empty: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [B, 16, H, V] and the states [B, H, V, K] after 16 tokens; each state is written where it was read. `empty`:
    nothing came before."""
    inputs = OP.inputs(case, where.device, 5)
    inputs["kept"].zero_()
    if empty:
        inputs["memory"].zero_()
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


# ---- the layers that transformers publishes, from an empty state


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("case", EACH_KIND, ids=lambda case: case.kind)
@torch.no_grad()
def test_transformers_layers_give_the_same_sixteen_outputs(case: StateCase, target: Target) -> None:
    pytest.importorskip("transformers")
    if not is_published(case.kind):
        pytest.skip(f"this release of transformers does not have the layers of {case.kind}")
    torch.manual_seed(3)
    case = replace(case, B=2, dtype="fp32", V=case.K if case.kind == "kda" else case.V)
    inputs = OP.inputs(case, "cpu", 5)
    given = {"A_log": inputs["A_log"], "dt_bias": inputs["dt_bias"]}
    if case.conv:
        given["conv1d.weight"] = inputs["conv_weight"].T
    if case.kind.startswith("mamba"):
        given["D"] = inputs["D"]
        if case.conv:
            given["conv1d.bias"] = inputs["conv_bias"]
    if case.kind == "mamba1":
        given["dt_proj.bias"] = given.pop("dt_bias")
    hidden = {"mamba1": case.V // 2, "mamba2": case.H * case.V // 2}.get(case.kind, 16)
    y, tokens = PUBLISHED[case.kind](case, given, torch.randn(case.B, STEPS, hidden))
    expected = y.reshape(case.B, STEPS, case.H, case.V).double()
    for impl, where in (("triton", target), ("torch", CPU)):
        found, _ = run_in_a_row(case, impl, where, tokens, empty=True)
        assert off(found, expected) < 1e-5, impl


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("case", EACH_KIND[:3], ids=lambda case: case.kind)
def test_states_that_are_written_every_fourth_step_give_the_same(case: StateCase, target: Target) -> None:
    case = replace(case, B=1, every=4)
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


# ---- any shape


def test_idle_sequences_keep_everything(target: Target) -> None:
    case = replace(SMALL, B=3, idle=2)
    inputs = OP.inputs(case, target.device, 0)
    memory = IMPLS["triton"].prepare(case, inputs, target)().clone()
    idle = inputs["slots"][:, 1] < 0
    assert int(idle.sum()) == 2
    assert torch.equal(y_of(case, memory)[idle], y_of(case, background(case, memory.device))[idle])
    assert compare(memory, OP.reference(case, inputs), OP.tolerance(case)).passed


@settings(max_examples=25, deadline=None)
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
    names = ["torch"] if seed % 8 else ["torch", "triton"]
    for name in names:
        if IMPLS[name].supports(case, target) is None:
            where = target if name == "triton" else CPU
            assert check(OP, IMPLS[name], case, where).reason is None, (name, case.id)


# ---- FlashInfer


def pretended_decode(**given: Any) -> None:
    """What FlashInfer's documentation says of `gated_delta_rule_decode_pretranspose`, for a pool of states."""
    q, k, v, a, b = (given[name][:, 0].float() for name in "qkvab")
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    decay = torch.exp(-given["A_log"].exp() * torch.nn.functional.softplus(a + given["dt_bias"]))
    S = given["initial_state"][given["initial_state_indices"].long()].float() * decay[..., None, None]
    change = b.sigmoid()[..., None] * (v - torch.einsum("bhvk,bhk->bhv", S, k))
    S = S + change[..., None] * k[:, :, None]
    given["initial_state"][given["output_state_indices"].long()] = S.bfloat16()
    given["output"][:, 0] = torch.einsum("bhvk,bhk->bhv", S, q) * q.shape[-1] ** -0.5
    assert given["state"] is None
    assert given["use_qk_l2norm"]


def test_flashinfer_gets_what_its_documentation_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("flashinfer.gdn_decode")
    monkeypatch.setattr(module, "gated_delta_rule_decode_pretranspose", pretended_decode, raising=False)
    monkeypatch.setitem(sys.modules, "flashinfer", types.ModuleType("flashinfer"))
    monkeypatch.setitem(sys.modules, "flashinfer.gdn_decode", module)
    monkeypatch.setattr("kernels.common.flashinfer_needs.missing", lambda target: None)
    case = replace(SMALL, H=4, G=2, V=128, K=128, conv=0, state="bf16")
    peer = IMPLS["flashinfer"]
    assert peer.supports(case, H200) is None
    assert check(OP, peer, case, CPU).reason is None
    for other, said in (
        (replace(case, idle=1), "idle"),
        (replace(case, conv=4), "convolution"),
        (replace(case, state="fp32"), "y in bf16"),
        (replace(case, q_len=2), "one token"),
        (replace(case, K=64), "128"),
        (replace(case, kind="mamba2"), "gated delta"),
    ):
        assert said in peer.supports(other, H200)


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


def counted(sm: int = 90) -> dict[str, tuple[int, float]]:
    """Instructions of compiled kernels, and what their stages say of a warp with one new and one replayed token."""
    from bench.inspection.codegen import disassemble
    from bench.inspection.codegen.build import compiled

    said = {}
    for case in (QWEN, NEMOTRON, KIMI, JAMBA, replace(NEMOTRON, every=8), replace(QWEN, conv=0, state="bf16")):
        case = replace(case, B=64)
        (launch,) = IMPLS["triton"].build(case, OP.inputs(case, "meta", 0), H200).launches
        (sass,) = disassemble.sass([compiled(launch, sm).asm["cubin"]], sm)
        found = sum(each.opcode != "NOP" for each in sass)
        new, again = issued(case, plan(case, H200))
        said[case.id] = (found, new + (again if case.every > 1 else 0))
    return said


@pytest.mark.slow
def test_stages_know_how_many_instructions_are_issued() -> None:
    for name, (found, declared) in elsewhere("tests.kernels.test_state_update", "t.counted()").items():
        assert declared == pytest.approx(found, rel=0.12), name


def test_a_replay_of_eight_steps_is_bound_by_its_instructions_and_still_saves() -> None:
    """Per block of 32 KiB and on one of 132 SMs: 4 warps, of which each of 4 schedulers issues one. At 1.7 GHz 4.8 TB/s
    are 21 bytes a clock."""
    clocks = {}
    for every in (1, 8):
        case = replace(NEMOTRON, B=64, every=every)
        (stage,) = IMPLS["triton"].stages(case, H200)
        issue, memory = stage.instructions / 128 / H200.sm_count, stage.work.bytes / 21 / H200.sm_count
        clocks[every] = max(issue, memory)
        assert (issue > memory) == (every == 8)
    assert 0.6 < clocks[8] / clocks[1] < 0.75


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
