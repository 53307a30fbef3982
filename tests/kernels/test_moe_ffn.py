"""moe_ffn: routing and bytes by hand, the reference against a plain loop, implementations against the reference."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from bench.devices import DEVICES
from bench.measure.gate import check
from bench.predict.step_work import expected_experts
from kernels.common.expert_routing import ROUTINGS
from kernels.common.quantization import FORMATS
from kernels.models import model
from kernels.moe_ffn import op as moe
from kernels.moe_ffn.op import MoeCase, experts_hit, tokens_per_expert
from kernels.moe_ffn.triton_moe import plan
from kernels.op import SUITES, Target, implementations
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()


def test_as_many_experts_are_hit_as_the_step_model_expects() -> None:
    drawn = [experts_hit(MoeCase(B=32, E=256, k=8, H=8, F=8, seed=seed)) for seed in range(40)]
    assert sum(drawn) / len(drawn) == pytest.approx(expected_experts(model("deepseek-v3"), 32), rel=0.02)


def test_routing_is_distinct_per_token_and_zipf_is_skewed() -> None:
    even = MoeCase(B=256, E=32, k=4, H=8, F=8)
    skewed = dataclasses.replace(even, routing="zipf")
    for case in (even, skewed):
        assert all(len(set(experts)) == 4 for experts in moe.routing(case))
        assert sum(tokens_per_expert(case)) == case.pairs
    assert tokens_per_expert(skewed)[0] > 150 > 2 * max(tokens_per_expert(even))
    assert tokens_per_expert(skewed)[0] > 4 * tokens_per_expert(skewed)[31]


def test_seed_moves_the_experts_but_not_their_number() -> None:
    case = MoeCase(B=6, E=16, k=2, H=8, F=8, dtype="fp32")
    first, second = (moe.inputs(case, "cpu", seed)["topk_ids"] for seed in (0, 1))
    assert not torch.equal(first, second)
    assert len(first.unique()) == len(second.unique()) == experts_hit(case)


def test_work_by_hand() -> None:
    """One token reads two of four experts of 3 x 8 x 16 weights: 2 x 384 x 2 B; x and y of 8, two ids and weights."""
    work = moe.work(MoeCase(B=1, E=4, k=2, H=8, F=16))
    assert (work.bytes_read, work.bytes_written) == (2 * 384 * 2 + 16 + 2 * 8, 16)
    assert work.flops == {"mma_bf16": 2 * 2 * 384}


def test_packed_experts_by_hand() -> None:
    """mxfp4: half a byte a weight, and a scale for 32 columns or for the last 8 of a row. fp8: 4 B for 128 x 128."""
    mxfp4 = MoeCase(B=1, E=4, k=2, H=40, F=16, weights="mxfp4")
    assert mxfp4.id == "B1-E4k2-H40-F16-bf16-wmxfp4"
    assert mxfp4.expert_bytes == 3 * 40 * 16 // 2 + 32 * 2 + 40 * 1
    fp8 = MoeCase(B=1, E=4, k=2, H=256, F=128, weights="fp8_block")
    assert fp8.expert_bytes == 3 * 256 * 128 + 6 * 4
    assert moe.work(fp8).bytes_read == 2 * fp8.expert_bytes + 2 * 256 + 2 * 8
    assert MoeCase(B=1, E=4, k=2, H=256, F=128).id == "B1-E4k2-H256-F128-bf16"
    # 1.5 blocks of 128 in F: gate and up have 2 x 2 blocks each, down as many
    assert MoeCase(B=1, E=4, k=2, H=256, F=192, weights="fp8_block").expert_bytes == 3 * 256 * 192 + 3 * 4 * 4
    # int4: a scale of 2 B for 128 columns of a row, or for the last 64; int8: 4 B for a row
    assert MoeCase(B=1, E=4, k=2, H=256, F=192, weights="int4").expert_bytes == 3 * 256 * 96 + 2 * (384 * 2 + 256 * 2)
    assert MoeCase(B=1, E=4, k=2, H=256, F=192, weights="int8").expert_bytes == 3 * 256 * 192 + 4 * (384 + 256)
    with pytest.raises(ValueError, match="one of"):
        MoeCase(B=1, E=4, k=2, H=256, F=128, weights="int3")


def test_packed_weights_of_one_expert_one_by_one() -> None:
    """The last expert's matrices follow the formats' definitions: no scale is taken from a neighbour."""
    e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    case = MoeCase(B=1, E=3, k=1, H=48, F=8, dtype="fp16", weights="mxfp4")
    inputs = moe.inputs(case, "cpu", 3)
    down = moe.expert_weights(case, inputs, "w_down", 2)
    assert down.shape == (48, 8)
    for row, column in ((0, 0), (5, 3), (47, 7)):
        code = int(inputs["w_down"][2, row, column // 2]) >> 4 * (column % 2) & 15
        value = e2m1[code & 7] * (-1) ** (code >> 3) * 2.0 ** (int(inputs["w_down_scale"][96 + row, 0]) - 127)
        assert float(down[row, column]) == value
    case = MoeCase(B=1, E=3, k=1, H=256, F=128, dtype="fp16", weights="fp8_block")
    inputs = moe.inputs(case, "cpu", 3)
    assert inputs["w_gate_up_scale"].shape == (6, 2)
    gate_up = moe.expert_weights(case, inputs, "w_gate_up", 2)
    for row, column in ((0, 130), (127, 127), (128, 0), (255, 255)):
        scale = inputs["w_gate_up_scale"][4 + row // 128, column // 128]
        assert gate_up[row, column] == inputs["w_gate_up"][2, row, column].float() * scale


@pytest.mark.parametrize(("weights", "zero"), [("int4", False), ("int4_zp", True), ("int8", False), ("fp8", False)])
def test_scales_of_one_expert_one_by_one(weights: str, zero: bool) -> None:
    """The last expert's rows have their own scales and zero points."""
    case = MoeCase(B=1, E=3, k=1, H=160, F=24, dtype="fp16", weights=weights)
    inputs = moe.inputs(case, "cpu", 3)
    assert ("w_gate_up_zero" in inputs) is zero
    gate_up = moe.expert_weights(case, inputs, "w_gate_up", 2)
    for row, column in ((0, 0), (23, 127), (24, 128), (47, 159)):
        at = (96 + row, column // 128)
        if weights in ("int8", "fp8"):
            value, scale = inputs["w_gate_up"][2, row, column].float(), inputs["w_gate_up_scale"][96 + row]
        else:
            code = int(inputs["w_gate_up"][2, row, column // 2]) >> 4 * (column % 2) & 15
            value = code - (int(inputs["w_gate_up_zero"][at]) if zero else 8)
            scale = inputs["w_gate_up_scale"][at].float()
        assert float(gate_up[row, column]) == pytest.approx(float(value * scale), rel=1e-6)


def test_blocks_of_matrices_that_128_does_not_divide_end_with_the_matrix() -> None:
    """72 rows of gate, then 72 of up: each has a block row of its own, and expert 1 begins at the third."""
    case = MoeCase(B=1, E=2, k=1, H=160, F=72, dtype="fp16", weights="fp8_block")
    inputs = moe.inputs(case, "cpu", 3)
    assert inputs["w_gate_up_scale"].shape == (2 * 2, 2)
    assert inputs["w_down_scale"].shape == (2 * 2, 1)
    gate_up = moe.expert_weights(case, inputs, "w_gate_up", 1)
    for row, column in ((0, 0), (71, 159), (72, 127), (143, 128)):
        scale = inputs["w_gate_up_scale"][2 + row // 72, column // 128]
        assert gate_up[row, column] == inputs["w_gate_up"][1, row, column].float() * scale
    down = moe.expert_weights(case, inputs, "w_down", 1)
    assert down[130, 5] == inputs["w_down"][1, 130, 5].float() * inputs["w_down_scale"][2 + 1, 0]


def test_packed_suites_fit_an_80_gb_gpu() -> None:
    """Two copies of the checkpoint and of its packed words, and the larger matrix in bf16 while one copy is drawn."""
    for suite in SUITES:
        for case in moe.cases(suite):
            if case.quantized:
                drawn = 2 * case.E * 2 * case.F * case.H
                assert 4 * case.E * case.expert_bytes + drawn < 70e9


def test_reference_against_a_loop_over_tokens() -> None:
    case = MoeCase(B=3, E=4, k=2, H=5, F=3, dtype="fp32")
    inputs = moe.inputs(case, "cpu", 7)
    wanted = torch.zeros(3, 5, dtype=torch.float64)
    for b in range(3):
        for j in range(2):
            e = int(inputs["topk_ids"][b, j])
            gate, up = (inputs["w_gate_up"][e].double() @ inputs["x"][b].double()).split(3)
            down = inputs["w_down"][e].double() @ (torch.nn.functional.silu(gate) * up)
            wanted[b] += inputs["topk_weights"][b, j].double() * down
    torch.testing.assert_close(moe.reference(case, inputs).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["", *FORMATS])
def test_ours_in_several_tiles_and_shared_items(target: Target, weights: str) -> None:
    """An expert has more pairs than a tile holds, and there are more CTAs than output blocks, so CTAs share blocks."""
    case = MoeCase(B=20, E=1, k=1, H=384, F=128, dtype="fp16", weights=weights)
    small = dataclasses.replace(target, sm_count=7, config=(("BLOCK_B", 16),))
    p = plan(case, small)
    items = p.gate_up.blocks * 2
    assert p.BLOCK_B < 20
    assert items < min(p.gate_up.ctas, items * p.gate_up.iters)
    impl = next(i for i in implementations("moe_ffn")[0] if i.build)
    errors = check(moe.OP, impl, case, small)
    assert errors.passed, errors.reason


@settings(max_examples=5, deadline=None)
@given(
    B=st.integers(1, 9),
    each=st.integers(1, 3),
    top=st.integers(1, 2),
    sizes=st.sampled_from([(64, 40), (72, 96), (160, 34)]),
    weights=st.sampled_from(["", *FORMATS]),
    routing=st.sampled_from(list(ROUTINGS)),
    split=st.sampled_from([{}, {"groups": 2}, {"parts": 2}, {"groups": 4, "parts": 4}]),
    shared=st.integers(0, 2),
    bias=st.booleans(),
)
def test_ours_on_drawn_cases(
    target: Target, each: int, top: int, sizes: tuple[int, int], split: dict[str, int], **fields: Any
) -> None:
    """Experts in groups, on parts, shared and packed, in any combination."""
    H, F = sizes
    more = {"top_groups": 1} if "groups" in split else {}
    case = MoeCase(E=4 * each, k=min(top, each), H=H, F=F, dtype="fp16", **split, **more, **fields)
    impl = next(i for i in implementations("moe_ffn")[0] if i.build)
    assert impl.supports(case, target) is None
    errors = check(moe.OP, impl, case, target)
    assert errors.passed, f"{case.id}: {errors.reason}"


@pytest.mark.parametrize("name", ["torch-grouped", "torch-gather"])
@pytest.mark.parametrize(
    ("B", "activation"), [(1, "swiglu"), (9, "swiglu"), (9, "geglu"), (9, "swiglu_clamped"), (9, "relu2")]
)
def test_peers(name: str, B: int, activation: str) -> None:
    impl = next(i for i in implementations("moe_ffn")[0] if i.name == name)
    case = MoeCase(B=B, E=6, k=2, H=256, F=128, activation=activation)
    assert impl.supports(case, CPU) is None
    errors = check(moe.OP, impl, case, CPU)
    assert errors.passed, errors.reason


def test_stages_read_what_is_hit_and_no_less_than_the_minimum() -> None:
    for suite in SUITES:
        for case in moe.cases(suite):
            for impl in implementations("moe_ffn")[0]:
                if impl.supports(case, H100) is None:
                    stages = impl.stages(case, H100)
                    assert sum(s.work.bytes for s in stages) >= moe.work(case).bytes
    one = MoeCase(B=1, E=256, k=8, H=7168, F=2048)
    ours = next(i for i in implementations("moe_ffn")[0] if i.build)
    read = sum(s.work.bytes_read for s in ours.stages(one, H100))
    assert read == pytest.approx(8 * one.expert_bytes, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_no_routing_has_more_tiles_than_the_plan_allows(seed: int) -> None:
    """Buffers of tiles and counters have the size `max_tiles`, which must suffice for every routing."""
    generator = random.Random(seed)
    for B, E, k in ((1, 256, 8), (64, 8, 2), (200, 8, 2), (1024, 32, 4)):
        case = MoeCase(B=B, E=E, k=k, H=64, F=64)
        p = plan(case, H100)
        popular = generator.sample(range(E), generator.randint(k, E))
        counts = [0] * E
        for _ in range(B):
            for e in generator.sample(popular, k):
                counts[e] += 1
        assert sum(-(-count // p.BLOCK_B) for count in counts) <= p.max_tiles
