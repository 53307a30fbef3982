"""Prefill: the reference against its definition, the work against a count, and torch against both."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.devices import find
from bench.predict.roofline import predict_from_datasheet
from kernels.common.compare import compare
from kernels.models import model
from kernels.op import Target, implementations, total
from kernels.prefill import op as prefill
from kernels.prefill.op import OP, PrefillCase, heads, work
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
FOUND, MISSING = implementations("prefill")
(TORCH,) = FOUND
ATTENTION = PrefillCase(kind="attention", B=2, T=9, H_q=6, H_kv=2, D=8, dtype="fp32")
GEMM = PrefillCase(kind="gemm", T=5, N=7, K=3, dtype="fp32")


def test_nothing_is_ours() -> None:
    assert not MISSING
    assert not TORCH.ours


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 2),
    T=st.integers(1, 11),
    H_kv=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
    rows=st.integers(1, 12),
)
def test_attention_by_its_definition(B, T, H_kv, group, seed, rows) -> None:
    """One query at a time in fp64. The reference takes the queries in slices, whose size must not matter."""
    case = PrefillCase(kind="attention", B=B, T=T, H_q=H_kv * group, H_kv=H_kv, D=4, dtype="fp32")
    inputs = OP.inputs(case, "cpu", seed)
    q, k, v = (part.double() for part in heads(case, inputs["x"]))
    expected = torch.zeros_like(q)
    for b in range(B):
        for t in range(T):
            for h in range(case.H_q):
                p = torch.softmax(k[b, : t + 1, h // group] @ q[b, t, h] / 2.0, dim=0)
                expected[b, t, h] = p @ v[b, : t + 1, h // group]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "SLICE", rows * case.H_q * T)
        found = OP.reference(case, inputs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_the_next_token_is_refused() -> None:
    inputs = OP.inputs(ATTENTION, "cpu", 0)
    q, k, v = (part.transpose(1, 2) for part in heads(ATTENTION, inputs["x"]))
    ahead = torch.ones(ATTENTION.T, ATTENTION.T, dtype=torch.bool).tril(1)
    wrong = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=ahead, enable_gqa=True)
    assert not compare(wrong.transpose(1, 2), OP.reference(ATTENTION, inputs), OP.tolerance(ATTENTION)).passed


def test_gemm_in_slices_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "SLICE", 2 * GEMM.K)
    inputs = OP.inputs(GEMM, "cpu", 0)
    expected = inputs["x"].double() @ inputs["w"].double().T
    torch.testing.assert_close(OP.reference(GEMM, inputs).double(), expected, rtol=1e-6, atol=1e-6)


def test_work_by_hand() -> None:
    """Attention: 9 tokens are 45 pairs; 2 prompts, 6 heads, 4 x 8 FLOP; 6 heads of q and o, 2 of k and v, 4 B each."""
    found = work(ATTENTION)
    assert found.flops == {"fma_fp32": 45 * 2 * 6 * 4 * 8}
    assert (found.bytes_read, found.bytes_written) == (2 * 9 * 10 * 8 * 4, 2 * 9 * 6 * 8 * 4)
    found = work(dataclasses.replace(GEMM, dtype="bf16"))
    assert found.flops == {"mma_bf16": 2 * 5 * 7 * 3}
    assert (found.bytes_read, found.bytes_written) == (2 * (5 * 3 + 7 * 3), 2 * 5 * 7)


@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_real_tensors_hold_the_bytes(case: PrefillCase) -> None:
    inputs = OP.inputs(case, "cpu", 0)
    assert work(case).bytes_read == sum(tensor.nbytes for tensor in inputs.values())
    output = TORCH.prepare(case, inputs, CPU)()
    assert work(case).bytes_written == output.numel() * output.element_size()
    assert total(TORCH.stages(case, CPU)) == work(case)


def test_measured_shapes_are_those_of_the_models() -> None:
    for case in (case for suite in ("quick", "full") for case in OP.cases(suite)):
        shape = model(case.model)
        if case.kind == "attention":
            assert (case.H_q, case.H_kv, case.D) == (shape.heads, shape.kv_heads, shape.head_dim)
        else:
            widths = {"gate": shape.ffn, "qkv": shape.hidden + 2 * shape.kv_heads * shape.head_dim}
            assert widths[case.layer] == case.N
            assert shape.hidden == case.K


def test_measured_prompts_are_bound_by_arithmetic_on_an_h100() -> None:
    """The contrast that the op shows: prefill is right of the ridge, and decode is far left of it. Attention over 512
    tokens has 205 FLOP/B with four query heads per KV head."""
    measured = {case.id: case for suite in ("quick", "full") for case in OP.cases(suite)}
    left = [case for case in measured.values() if work(case).intensity < find("h100-sxm").ridge("mma_bf16").value]
    assert [(case.kind, case.T) for case in left] == [("attention", 512)]
    assert work(left[0]).intensity == pytest.approx(512 / 1.25 / 2, rel=0.01)
    for case in measured.values():
        bound = predict_from_datasheet(TORCH.stages(case, CPU), find("h100-sxm")).bound
        assert bound == ("memory" if case in left else "mma_bf16")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "gemm", "N": 4},
        {"kind": "gemm", "N": 4, "K": 4, "D": 8},
        {"kind": "gemm", "N": 4, "K": 4, "B": 2},
        {"kind": "attention", "H_q": 4, "H_kv": 2},
        {"kind": "attention", "H_q": 4, "H_kv": 3, "D": 8},
        {"kind": "attention", "H_q": 4, "H_kv": 2, "D": 8, "N": 4},
    ],
)
def test_fields_of_the_other_kind_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"gemm has|no multiple"):
        PrefillCase(T=4, **changes)
