"""Whatever is dead in NVFP4 is poison: tokens beyond the end of a sequence, pages of nobody, and experts not hit.

A scale in e4m3 can be NaN, and a code of e2m1 can't. So a kernel that takes part of what is dead into account gives
NaN, or, if it unpacks the bits of NaN as those of 480, values that are far too large.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.attention_decode import op as attention
from kernels.attention_decode.op import AttentionCase
from kernels.common import nvfp4_cache, paging
from kernels.common.compare import compare
from kernels.common.random_inputs import writable
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from kernels.moe_ffn import op as moe_ffn
from kernels.moe_ffn.op import MoeCase
from kernels.op import Inputs, Target, implementations
from tests.support.planted_attention import Fault, all_heads, attention_heads, mla_head, output

CODES, NAN, LARGEST_BITS = 0xFF, 0x7F, 480.0
HOST = Target(kind="cpu", name="host")

PAGED = {"B": 2, "T": 90, "page": 16, "lengths": "ragged", "seed": 3, "kv": "nvfp4"}
CACHES = [
    AttentionCase(H_q=4, H_kv=2, D=64, **PAGED),
    AttentionCase(H_q=4, H_kv=2, D=64, layout="HND", q_len=3, **PAGED),
    AttentionCase(H_q=4, H_kv=1, D=64, **PAGED | {"T": 150, "window": 20, "sinks": 4}),
    MlaCase(H=8, L=64, R=16, **PAGED),
    MlaCase(H=8, L=64, R=16, **PAGED | {"page": 0}),
]


def module_of(case: Any) -> Any:
    return mla if isinstance(case, MlaCase) else attention


def stored(case: Any, inputs: Inputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Codes and scales of each cache, as bytes `[pages, page, ...]`."""
    if isinstance(case, MlaCase):
        return [(inputs["cache"], writable(inputs["latent_scale"]))]
    named = [(inputs[name], writable(inputs[f"{name}_scale"])) for name in ("k", "v")]
    return [(paging.nhd(codes, case.layout), paging.nhd(scale, case.layout)) for codes, scale in named]


@pytest.mark.parametrize("case", CACHES, ids=lambda case: case.id)
def test_dead_tokens_and_pages_of_nobody_hold_poison_and_live_ones_do_not(case: Any) -> None:
    inputs = module_of(case).inputs(case, "cpu", 0)
    live_of = (lambda n: ((0, n),)) if isinstance(case, MlaCase) else lambda n: attention.live(case, n)
    page = case.page or case.T
    live = torch.zeros(stored(case, inputs)[0][0].shape[:2], dtype=torch.bool)
    for b, length in enumerate(module_of(case).lengths(case)):
        for start, end in live_of(length):
            for t in range(start, end):
                live[int(inputs["block_table"][b, t // page]) if case.page else b, t % page] = True
    assert 0 < int(live.sum()) < live.numel()
    for codes, scale in stored(case, inputs):
        assert bool((codes[~live] == CODES).all())
        assert bool((scale[~live] == NAN).all())
        assert bool((scale[live] & 0x7F != NAN).all())


@pytest.mark.parametrize("nan_counts_as", [None, LARGEST_BITS], ids=["nan", "480"])
@pytest.mark.parametrize("case", CACHES, ids=lambda case: case.id)
def test_a_dead_token_that_is_read_shows(
    case: Any, nan_counts_as: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token beyond the end counts. If NaN stays NaN, it shows even if the token's probability is set to zero."""
    module, right = module_of(case), nvfp4_cache.decoded
    for seed in range(3):
        inputs = module.inputs(case, "cpu", seed)
        expected, tolerance = module.reference(case, inputs), module.tolerance(case)
        lengths = module.lengths(case)
        short = lengths.index(min(lengths))
        found = output(case, all_heads(case, inputs))
        assert compare(found, expected, tolerance).passed
        faults = [Fault()]
        with monkeypatch.context() as patch:
            if nan_counts_as:
                patch.setattr(nvfp4_cache, "decoded", lambda c, s, w: right(c, s.float().nan_to_num(nan_counts_as), w))
            longer = [mla_head(case, inputs, short, 1)] if module is mla else attention_heads(case, inputs, short, 1)
        if not nan_counts_as:
            faults.append(Fault(counts={longer[0].values.shape[0] - 1: 0.0}))
        for fault in faults:
            wrong = found.clone()
            wrong[short] = output(case, [longer], fault)[0]
            assert not compare(wrong, expected, tolerance).passed, (seed, fault)


EXPERTS = MoeCase(B=2, E=6, k=2, H=64, F=48, dtype="fp16", weights="nvfp4")


def poisoned(inputs: Inputs, experts: list[int]) -> Inputs:
    """Codes and scales of these experts are the largest, and their scales of all are NaN. (Kernels that pack scales
    refuse NaN there.)"""
    found = {name: tensor.clone() for name, tensor in inputs.items()}
    for name in ("w_gate_up", "w_down"):
        found[name][experts] = CODES
        writable(found[f"{name}_scale"]).unflatten(0, (EXPERTS.experts, -1))[experts] = NAN - 1
        found[f"{name}_global"].unflatten(0, (EXPERTS.experts, -1))[experts] = float("nan")
    return found


@pytest.mark.parametrize("impl", implementations("moe_ffn")[0], ids=lambda impl: impl.name)
def test_experts_that_no_token_is_routed_to_are_not_read(impl: Any, target: Target) -> None:
    where = target if impl.build else HOST
    if reason := impl.supports(EXPERTS, where):
        pytest.skip(reason)
    inputs = moe_ffn.inputs(EXPERTS, where.device, 0)
    dead = sorted(set(range(EXPERTS.E)) - set(inputs["topk_ids"].flatten().tolist()))
    assert dead
    expected = moe_ffn.reference(EXPERTS, inputs)
    found = impl.prepare(EXPERTS, poisoned(inputs, dead), where)()
    assert compare(found, expected, moe_ffn.tolerance(EXPERTS)).passed
    hit = int(inputs["topk_ids"][0, 0])
    lost = impl.prepare(EXPERTS, poisoned(inputs, [hit]), where)()
    assert not compare(lost, expected, moe_ffn.tolerance(EXPERTS)).passed, "a NaN of an expert that is hit shows"


def test_an_expert_that_counts_nothing_but_is_read_shows() -> None:
    """All experts of all tokens, most of them with a router weight of zero."""
    inputs = moe_ffn.inputs(EXPERTS, "cpu", 0)
    expected = moe_ffn.reference(EXPERTS, inputs)
    weights = torch.zeros(EXPERTS.B, EXPERTS.E).scatter_(1, inputs["topk_ids"].long(), inputs["topk_weights"])
    dead = sorted(set(range(EXPERTS.E)) - set(inputs["topk_ids"].flatten().tolist()))
    everywhere = {"topk_ids": torch.arange(EXPERTS.E).expand(EXPERTS.B, -1), "topk_weights": weights}
    whole = moe_ffn.reference(EXPERTS, inputs | everywhere)
    assert compare(whole.half(), expected, moe_ffn.tolerance(EXPERTS)).passed
    wrong = moe_ffn.reference(EXPERTS, poisoned(inputs, dead) | everywhere)
    assert not compare(wrong.half(), expected, moe_ffn.tolerance(EXPERTS)).passed
