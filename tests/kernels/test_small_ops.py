"""The small kernels between the large ones, against published code. The gate must see what is wrong."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.measure.gate import check
from kernels.common.compare import compare
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv import op as ffn_gemv
from kernels.ffn_gemv.op import GemvCase
from kernels.kv_append import op as kv_append
from kernels.latent_append import op as latent_append
from kernels.latent_append.op import LatentCase
from kernels.op import Impl, Target, implementations
from kernels.rmsnorm import op as rmsnorm
from kernels.rmsnorm.op import NormCase
from kernels.rope_append import op as rope_append
from kernels.rope_append.op import RopeCase
from kernels.router import op as router
from kernels.router.op import DEEPSEEK, RouterCase
from kernels.short_conv import op as short_conv
from kernels.short_conv.op import ConvCase
from kernels.silu_mul import op as silu_mul
from kernels.silu_mul.op import GateCase
from kernels.state_update import op as state_update
from kernels.state_update.cases import StateCase

MANY = {"B": 50, "k": 8}
CPU = Target(kind="cpu", name="cpu", sm_count=2)


def impl(op: str, name: str) -> Impl:
    return next(each for each in implementations(op)[0] if each.name == name)


def passes(op: Any, case: Any, output: torch.Tensor, inputs: dict[str, Any]) -> bool:
    return compare(op.OP.decoded(case, output), op.OP.reference(case, inputs), op.OP.tolerance(case)).passed


def test_the_norm_is_torchs() -> None:
    case = NormCase(B=4, D=48, residual=True, dtype="fp32")
    inputs = rmsnorm.inputs(case, "cpu", 0)
    h = inputs["x"] + inputs["residual"]
    expected = torch.nn.functional.rms_norm(h, (48,), inputs["w"], rmsnorm.EPSILON)
    torch.testing.assert_close(rmsnorm.reference(case, inputs).float(), torch.cat([expected, h]))


GATED_NORMS = {
    "silu": ("qwen3_next", "Qwen3Next"),
    "sigmoid": ("kimi_linear", "KimiLinear"),
    "silu_first": ("bamba", "Bamba"),
}
"""By gate: module and prefix of the norm of that kind in transformers."""


@pytest.mark.parametrize("gate", GATED_NORMS)
def test_the_gated_norm_is_that_of_transformers(gate: str) -> None:
    """Of a gate after the norm all groups have one weight, of one before it each has its own."""
    module, prefix = GATED_NORMS[gate]
    published = pytest.importorskip(
        f"transformers.models.{module}.modeling_{module}",
        reason=f"the installed release of transformers has no {module}",
    )
    before = gate == "silu_first"
    case = NormCase(B=4, D=48, groups=3, shared=not before, gate=gate, wide=True, dtype="fp32")
    inputs = rmsnorm.inputs(case, "cpu", 0)
    kind = getattr(published, f"{prefix}RMSNormGated")
    if before and "group_size" not in inspect.signature(kind).parameters:
        pytest.skip(f"the installed release of transformers has no groups in the norm of {module}")
    norm = kind(144, group_size=48, eps=case.epsilon) if before else kind(48, eps=case.epsilon)
    norm.weight.data.copy_(inputs["w"])
    shape = (4, 144) if before else (12, 48)
    expected = norm(inputs["x"].view(shape), inputs["z"].reshape(shape)).view(12, 48)
    torch.testing.assert_close(rmsnorm.reference(case, inputs).float(), expected)


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize(
    ("op", "case", "names"),
    [
        (rmsnorm, NormCase(B=3, D=24, groups=2, gate="silu", wide=True, dtype="fp16"), ("z",)),
        (rmsnorm, NormCase(B=3, D=24, residual=True, addend="shares", dtype="fp16"), ("share",)),
        (silu_mul, GateCase(B=3, F=24, apart=True, activation="glu", dtype="fp16"), ("x",)),
        (silu_mul, GateCase(B=3, F=24, apart=True, wide=True, dtype="fp16"), ("x",)),
        (router, RouterCase(B=3, E=8, k=2, dtype="fp16"), ("logits",)),
        (rope_append, RopeCase(B=3, H_q=2, H_kv=1, D=16, T=9, page=4, dtype="fp16"), ("qkv",)),
        (state_update, StateCase(kind="gated_delta", B=3, H=2, V=16, K=32, dtype="fp16"), ("tokens",)),
        (state_update, StateCase(kind="mamba2", B=3, H=2, V=16, K=32, dtype="fp16"), ("tokens",)),
        (latent_append, LatentCase(B=3, H=2, D=16, L=32, R=16, T=9, page=4, dtype="fp16"), ("q", "kv")),
        (short_conv, ConvCase(B=3, C=24, dtype="fp16"), ("x",)),
        (ffn_gemv, GemvCase(B=3, N=24, K=16, dtype="fp16"), ("x",)),
    ],
)
def test_rows_may_be_columns_of_a_wider_product(op: Any, case: Any, names: tuple[str, ...], target: Target) -> None:
    for each, where in (("triton", target), ("numba", CPU), ("torch", target)):
        inputs = op.inputs(case, where.device, 0)
        for name in names:
            narrow = inputs[name]
            wider = torch.full((len(narrow), narrow[0].numel() + 8), torch.nan, dtype=narrow.dtype, device=where.device)
            wider[:, : narrow[0].numel()] = narrow.flatten(1) if narrow.ndim > 1 else narrow[:, None]
            inputs[name] = wider.as_strided(narrow.shape, (wider.stride(0), *narrow.stride()[1:]))
        found = impl(op.OP.name, each).prepare(case, inputs, where)()
        assert passes(op, case, found.cpu(), {name: tensor.cpu() for name, tensor in inputs.items()}), each


@pytest.mark.cuda(interpreted=True)
def test_the_squared_relu_has_no_gate_and_passes_a_nan_on(target: Target) -> None:
    case, x = GateCase(B=1, F=4, activation="relu2", dtype="fp16"), torch.tensor([[-3.0, 0.5, 4.0, math.nan]]).half()
    want = torch.tensor([[0.0, 0.25, 16.0, math.nan]])
    for each, where in (("triton", target), ("numba", CPU), ("torch", target)):
        found = impl("silu_mul", each).prepare(case, {"x": x.to(where.device)}, where)()
        torch.testing.assert_close(found.cpu().float(), want, equal_nan=True)
    torch.testing.assert_close(silu_mul.reference(case, {"x": x}).float(), want, equal_nan=True)


def test_a_share_weighs_what_is_added() -> None:
    case = NormCase(B=4, D=48, residual=True, addend="shares", dtype="fp32")
    inputs = rmsnorm.inputs(case, "cpu", 0)
    h = inputs["x"] + inputs["residual"] + torch.sigmoid(inputs["share"])[:, None] * inputs["addend"]
    torch.testing.assert_close(rmsnorm.reference(case, inputs)[4:].float(), h)
    with pytest.raises(ValueError, match="has none"):
        replace(case, addend="", gate="silu")


@pytest.mark.parametrize("activations", ["fp8", "int8"])
def test_codes_and_their_scales_are_compared_together(activations: str) -> None:
    """A scale that is off by a tenth shows, and so do codes that are cut off instead of rounded."""
    case = NormCase(B=3, D=256, residual=True, dtype="bf16", activations=activations)
    inputs = rmsnorm.inputs(case, "cpu", 0)
    whole = impl("rmsnorm", "torch").prepare(case, inputs, CPU)()
    out = rmsnorm.output(case, whole.device)
    assert passes(rmsnorm, case, whole, inputs)
    scaled = whole.clone()
    scaled[:4].view(torch.float32).mul_(1.1)
    assert not passes(rmsnorm, case, scaled, inputs)
    cut = whole.clone()
    codes = cut[-case.B * case.D :]
    if activations == "fp8":
        codes -= (codes & 1).to(codes.dtype)
    else:
        codes.view(torch.int8).sub_(codes.view(torch.int8).sign() * (torch.arange(len(codes)) % 2))
    assert not passes(rmsnorm, case, cut, inputs)
    rmsnorm.poison(case, inputs, out.whole)
    assert rmsnorm.decoded(case, out.whole).isnan().all()


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("activations", ["fp8", "int8"])
@pytest.mark.parametrize("name", ["triton", "numba"])
def test_a_nan_goes_on_into_codes_and_their_scale(name: str, activations: str, target: Target) -> None:
    """A code of int8 cannot hold it, so the scale does; the other tokens have their numbers."""
    where = CPU if name == "numba" else target
    case = NormCase(B=3, D=64, dtype="fp16", activations=activations)
    inputs = rmsnorm.inputs(case, where.device, 0)
    inputs["x"][1, 5] = float("nan")
    found = rmsnorm.decoded(case, impl("rmsnorm", name).prepare(case, inputs, where)()).cpu()
    assert found.isnan().all(1).tolist() == [False, True, False]
    assert found[::2].isfinite().all()


def test_every_fp8_code_is_stored_as_torch_rounds_it() -> None:
    """Halfway values, subnormals and both ends of the range, in rows whose largest value is 448."""
    case = NormCase(B=2, D=514, dtype="fp32", activations="fp8")
    inputs = rmsnorm.inputs(case, "cpu", 0)
    bytes_ = torch.arange(256, dtype=torch.uint8)
    numbers = bytes_.view(torch.float8_e4m3fn).float().nan_to_num(0.0)
    halfway = (numbers[:-1] + numbers[1:]) / 2
    row = torch.cat([numbers, halfway, torch.tensor([448.0, -448.0, 0.0])])
    inputs["x"] = torch.stack([row, -row]) / row.square().mean().sqrt()
    inputs["w"].fill_(1)
    whole = impl("rmsnorm", "numba").prepare(case, inputs, CPU)()
    _, y, scale, _ = rmsnorm.views(case, whole, 16, 0)
    found = y.float() * scale[:, None]
    expected = rmsnorm.reference(case, inputs).float()
    different = (found - expected).abs() > 1e-3 * expected.abs()
    assert different.float().mean() < 0.2, "a halfway value may go to either side"
    whole_codes = torch.cat([row[:256], torch.zeros(258)]).bool()
    assert not different[:, whole_codes].any()


def published(case: RouterCase, logits: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Gate.forward` of DeepSeek-V3's inference/model.py."""
    scores = logits.sigmoid()
    original = scores
    scores = (scores + bias).view(len(logits), case.groups, -1)
    best = scores.topk(2, dim=-1)[0].sum(dim=-1).topk(case.top_groups, dim=-1)[1]
    mask = scores.new_ones(len(logits), case.groups, dtype=torch.bool).scatter_(1, best, False)
    scores = scores.masked_fill_(mask.unsqueeze(-1), float("-inf")).flatten(1)
    indices = torch.topk(scores, case.k, dim=-1)[1]
    weights = original.gather(1, indices)
    return indices, weights / weights.sum(dim=-1, keepdim=True) * case.scaling


def test_the_reference_routes_as_deepseek_does() -> None:
    case = RouterCase(B=9, E=64, k=6, **DEEPSEEK)
    inputs = router.inputs(case, "cpu", 0)
    ids, weights = published(case, inputs["logits"], inputs["bias"])
    expected = torch.zeros(9, 64).scatter(1, ids, weights)
    torch.testing.assert_close(router.reference(case, inputs).float(), expected)


def test_a_wrong_expert_a_wrong_weight_and_an_expert_twice_show() -> None:
    case = RouterCase(B=3, E=16, k=3, dtype="fp32")
    inputs = router.inputs(case, "cpu", 0)
    whole = impl("router", "torch").prepare(case, inputs, CPU)()
    assert passes(router, case, whole, inputs)
    swapped = whole[:, :, [1, 0, 2]]
    assert passes(router, case, swapped, inputs), "the order is free"
    for change in (lambda ids, w: ids[0].add_(1).remainder_(16), lambda ids, w: w[1].mul_(1.01)):
        wrong = whole.clone()
        change(wrong[0], wrong[1].view(torch.float32))
        assert not passes(router, case, wrong, inputs)
    twice = whole.clone()
    twice[0, 0, 1] = twice[0, 0, 0]
    assert router.decoded(case, twice)[0].isnan().all()
    assert not router.decoded(case, twice)[1:].isnan().any()


@pytest.mark.parametrize(
    "case",
    [RouterCase(E=256, **DEEPSEEK, **MANY), RouterCase(E=512, **MANY), RouterCase(E=128, bias=True, **MANY)],
)
def test_no_choice_of_drawn_logits_is_close(case: RouterCase) -> None:
    """So no rounding of a score changes what is right."""
    inputs = router.inputs(case, "cpu", 3)
    wide = inputs["logits"].double()
    by = (wide.sigmoid() if case.score == "sigmoid" else wide) + (inputs["bias"].double() if case.has_bias else 0)
    gaps = by.sort(1).values.diff(dim=1)
    assert gaps.min() > 1e-4
    if case.groups:
        sums = by.view(50, 8, -1).sort(-1).values[..., -2:].sum(-1).sort(1).values.diff(dim=1)
        assert sums.min() > 1e-5


def test_heads_turn_as_transformers_turns_them() -> None:
    """`apply_rotary_pos_emb` of Llama, which Qwen3 calls after its norms."""
    case = RopeCase(B=3, H_q=4, H_kv=2, D=16, T=30, qk_norm=True, dtype="fp32")
    inputs = rope_append.inputs(case, "cpu", 0)
    positions = inputs["lengths"].double()
    frequency = 1.0 / rope_append.THETA ** (torch.arange(0, 16, 2).double() / 16)
    angle = torch.cat([positions[:, None] * frequency] * 2, dim=-1)[:, None]
    q = inputs["qkv"][:, :4].double()
    q = q * (q.square().mean(-1, keepdim=True) + rope_append.EPSILON).rsqrt() * inputs["q_weight"].double()
    half = torch.cat([-q[..., 8:], q[..., :8]], dim=-1)
    expected = q * angle.cos() + half * angle.sin()
    found = rope_append.q_of(case, rope_append.reference(case, inputs))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_cache_is_written_in_one_slot_a_sequence_and_nowhere_else() -> None:
    case = RopeCase(B=4, H_q=2, H_kv=2, D=32, T=40, page=4, dtype="bf16")
    inputs = rope_append.inputs(case, "cpu", 0)
    before = rope_append.cache_of(case, inputs["memory"]).clone()
    memory = impl("rope_append", "numba").prepare(case, inputs, CPU)()
    changed = (rope_append.cache_of(case, memory) != before).any(-1)
    places = {(0, p, s) for _, p, s in kv_append.slots(case.append, inputs).tolist()}
    assert {(0, p, s) for _, p, s, _ in changed.nonzero().tolist()} == places
    v = inputs["qkv"][:, 4:]
    for b, page, slot in kv_append.slots(case.append, inputs).tolist():
        assert torch.equal(rope_append.cache_of(case, memory)[1, page, slot], v[b])


@pytest.mark.parametrize(
    ("case_type", "fields", "reason"),
    [
        (NormCase, {"B": 1, "D": 8, "activations": "fp16"}, "activations fp16"),
        (RopeCase, {"B": 1, "H_q": 1, "H_kv": 1, "D": 8, "T": 4, "rotary": 9}, "rotary 9"),
        (RouterCase, {"B": 1, "E": 8, "k": 9}, "k = 9"),
        (RouterCase, {"B": 1, "E": 8, "k": 2, "groups": 3, "top_groups": 1}, "groups 3"),
        (RouterCase, {"B": 1, "E": 8, "k": 2, "score": "sigmoid", "bias": True}, "bias: scores"),
        (GateCase, {"B": 1, "F": 8, "activation": "relu2", "apart": True}, "relu2 has no gate"),
        (GateCase, {"B": 1, "F": 8, "wide": True}, "wide: only an up of its own"),
        (FfnCase, {"B": 1, "hidden": 8, "ffn": 8, "activation": "relu2"}, "two products of ffn_gemv"),
    ],
)
def test_refusals(case_type: Any, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        case_type(**fields)


def test_bf16_on_a_host() -> None:
    """The types that models have; the cases of every suite's tests are in fp16 and fp32."""
    for op, case in ((rmsnorm.OP, NormCase(B=2, D=96, residual=True)), (router.OP, RouterCase(B=3, E=32, k=4))):
        errors = check(op, impl(op.name, "numba"), replace(case, dtype="bf16"), CPU)
        assert errors.passed, errors.reason
