"""mla_decode: the reference against unabsorbed attention, bytes by hand, implementations against the reference."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import pytest
import torch

from bench.devices import DEVICES
from bench.measure.gate import check
from kernels.common.compare import compare
from kernels.mla_decode import op as mla
from kernels.mla_decode.cases import YARN_SCALE
from kernels.mla_decode.op import MlaCase, lengths, visible
from kernels.mla_decode.split_plan import plan, smem_bytes
from kernels.op import SUITES, Impl, Target, implementations
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()
A100 = Target(kind="cuda", name="a", sm=80, sm_count=108, l2_bytes=40 << 20, smem_per_sm=164 << 10)
OURS = next(i for i in implementations("mla_decode")[0] if i.build)


def test_reference_is_attention_with_up_projected_keys_and_values() -> None:
    """Absorbed: q (W_k c) = (q W_k) c and sum p (W_v c) = W_v (sum p c)."""
    case = MlaCase(B=2, H=3, T=7, L=16, R=4, dtype="fp32")
    inputs = mla.inputs(case, "cpu", 3)
    generator = torch.Generator().manual_seed(0)
    up_k, up_v = (torch.randn(3, 8, 16, generator=generator) for _ in range(2))  # [H, head_dim, L]
    q_head = torch.randn(2, 3, 8, generator=generator)
    inputs["q_latent"] = torch.einsum("bhd,hdl->bhl", q_head, up_k)[:, None]
    c, r = inputs["cache"].split([16, 4], dim=-1)
    keys, values = (torch.einsum("btl,hdl->bhtd", c, up) for up in (up_k, up_v))
    scores = torch.einsum("bhd,bhtd->bht", q_head, keys) + torch.einsum("bhr,btr->bht", inputs["q_rope"][:, 0], r)
    wanted = torch.einsum("bht,bhtd->bhd", torch.softmax(scores * (128 + 4) ** -0.5, dim=-1), values)
    found = torch.einsum("bhl,hdl->bhd", mla.reference(case, inputs)[:, 0], up_v)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_models_own_scale_by_hand() -> None:
    """YaRN's mscale is 0.1 ln 40 + 1 = 1.3689, and the scale 1.3689^2 / sqrt(192). It acts as longer queries would."""
    assert pytest.approx(1.36888794541**2 / 192**0.5) == YARN_SCALE
    assert MlaCase(B=1, H=16, T=9).softmax_scale == 192**-0.5
    case = MlaCase(B=2, H=3, T=7, L=16, R=4, dtype="fp32", scale=0.5)
    assert (case.softmax_scale, case.id) == (0.5, "B2-H3-L16+4-T7-scale0.5-fp32")
    inputs = mla.inputs(case, "cpu", 3)
    longer = inputs | {name: inputs[name] * (0.5 * 132**0.5) for name in ("q_latent", "q_rope")}
    plain = mla.reference(dataclasses.replace(case, scale=0.0), longer)
    torch.testing.assert_close(mla.reference(case, inputs), plain)


def test_work_by_hand() -> None:
    """3 and 2 tokens of 20 elements; tables of two pages and one; 2 queries of 3 x 20 in, 2 results of 3 x 16 out."""
    case = MlaCase(B=2, H=3, T=3, L=16, R=4, page=2, lengths="ragged", seed=1)
    work = mla.work(case)
    tokens = sum(lengths(case))
    pages = sum(-(-n // 2) for n in lengths(case))
    assert work.bytes_read == tokens * 40 + 4 * pages + 2 * 4 + 2 * 3 * 20 * 2
    assert work.bytes_written == 2 * 3 * 16 * 2
    assert work.flops == {"mma_bf16": tokens * 3 * 2 * (20 + 16)}


def test_work_of_a_draft_by_hand() -> None:
    """Two queries see 2 and 3 of 3 tokens, 0 and 1 of 1 token, and none of none. The cache is read once for both."""
    case = MlaCase(B=3, H=3, T=3, L=16, R=4, lengths="holes", q_len=2)
    assert lengths(case) == (3, 0, 1)
    plain, work = mla.work(dataclasses.replace(case, q_len=1)), mla.work(case)
    assert visible(case) == 2 + 3 + 0 + 0 + 0 + 1
    assert work.flops == {"mma_bf16": 6 * 3 * 2 * (20 + 16)}
    assert work.bytes_read == plain.bytes_read + 3 * 3 * 20 * 2
    assert work.bytes_written == 2 * plain.bytes_written
    assert "q2" in case.id.split("-")


def test_reference_of_a_draft_is_that_of_its_queries_one_by_one() -> None:
    case = MlaCase(B=2, H=2, T=6, L=16, R=4, q_len=3, dtype="fp32")
    inputs = mla.inputs(case, "cpu", 0)
    together = mla.reference(case, inputs)
    for i in range(3):
        tokens = case.T - case.q_len + 1 + i
        alone = inputs | {name: inputs[name][:, i : i + 1] for name in ("q_latent", "q_rope")}
        alone["cache"] = inputs["cache"][:, :tokens]
        one = dataclasses.replace(case, T=tokens, q_len=1)
        torch.testing.assert_close(together[:, i : i + 1], mla.reference(one, alone))


def test_fp8_tokens_by_hand() -> None:
    """16 latents of one byte, 4 rotary elements of two bytes and a scale of four bytes make 28 bytes a token."""
    case = MlaCase(B=2, H=3, T=3, L=16, R=4, dtype="fp16", kv="fp8")
    assert case.token_bytes == 28
    assert MlaCase(B=1, H=128, T=1, kv="fp8").token_bytes == 644
    assert case.id == "B2-H3-L16+4-T3-fp16-kvfp8"
    assert dataclasses.replace(case, kv="").id == "B2-H3-L16+4-T3-fp16"
    assert mla.work(case).bytes_read == 2 * 3 * 28 + 2 * 4 + 2 * 3 * 20 * 2
    with pytest.raises(ValueError, match="int8"):
        MlaCase(B=1, H=1, T=1, kv="int8")


def test_fp8_reference_is_that_of_the_latents_it_stands_for() -> None:
    case = MlaCase(B=2, H=3, T=9, L=16, R=4, dtype="fp32", kv="fp8")
    inputs = mla.inputs(case, "cpu", 1)
    latents = inputs["cache"].float() * inputs["latent_scale"][:, :, None]
    assert 0.5 < float(latents.std()) < 2.0
    plain = inputs | {"cache": torch.cat([latents, inputs["rope"]], dim=-1)}
    wanted = mla.reference(dataclasses.replace(case, kv=""), plain)
    torch.testing.assert_close(mla.reference(case, inputs), wanted)


def test_fp8_cache_is_poisoned_where_nothing_lives() -> None:
    case = MlaCase(B=3, H=1, T=50, L=16, R=4, page=16, lengths="ragged", dtype="fp16", kv="fp8")
    inputs = mla.inputs(case, "cpu", 0)
    for name in ("cache", "rope", "latent_scale"):
        live = inputs[name].float().flatten(0, 1).isfinite()
        live = live.view(live.shape[0], -1)
        assert bool((live.all(1) == live.any(1)).all())
        assert int(live.all(1).sum()) == sum(lengths(case)) < live.shape[0]


def passes(impl: Impl, case: MlaCase, target: Target) -> None:
    assert impl.supports(case, target) is None
    errors = check(mla.OP, impl, case, target)
    assert errors.passed, f"{case.id}: {errors.reason}"


def pretending(target: Target, sm: int) -> Target:
    """A plan for another part runs here too: whether its result is right does not depend on the part."""
    return dataclasses.replace(target, sm=sm)


@pytest.mark.parametrize("case", [c for c in mla.cases("test") if c.kv == "fp8"], ids=lambda case: case.id)
def test_ours_with_latents_in_words(case: MlaCase, target: Target, half: str) -> None:
    part = pretending(target, 80)
    assert plan(case, part).words
    assert not plan(case, pretending(target, 90)).words
    passes(OURS, dataclasses.replace(case, dtype=half), part)


@pytest.mark.parametrize(
    ("kv", "sm"), [("", 80), ("", 90), ("fp8", 80), ("fp8", 90), ("nvfp4", 80), ("nvfp4", 90), ("nvfp4", 100)]
)
@settings(max_examples=1, deadline=None)
@given(
    B=st.integers(1, 3),
    H=st.sampled_from([1, 16, 40]),
    T=st.integers(1, 70),
    page=st.sampled_from([0, 16, 64]),
    lengths=st.sampled_from(["uniform", "ragged", "holes"]),
    q_len=st.integers(1, 3),
)
def test_ours_on_drawn_cases(kv: str, sm: int, target: Target, half: str, **fields: Any) -> None:
    passes(OURS, MlaCase(L=32, R=16, kv=kv, dtype=half, **fields), pretending(target, sm))


@pytest.mark.parametrize(("kv", "sm"), [("", 90), ("fp8", 80), ("fp8", 90), ("fp8", 100), ("nvfp4", 90)])
def test_ours_at_full_width(kv: str, sm: int, target: Target, half: str) -> None:
    passes(OURS, MlaCase(B=1, H=16, T=70, page=64, kv=kv, dtype=half), pretending(target, sm))


def test_queries_may_be_views(target: Target, half: str) -> None:
    case = MlaCase(B=2, H=5, T=40, L=32, R=16, q_len=2, dtype=half)
    inputs = mla.inputs(case, target.device, 0)
    for name in ("q_latent", "q_rope"):
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
        assert not inputs[name].is_contiguous()
    errors = compare(OURS.prepare(case, inputs, target)(), mla.reference(case, inputs), mla.tolerance(case))
    assert errors.passed, errors.reason


@pytest.mark.parametrize("q_len", [1, 3])
def test_peer(q_len: int) -> None:
    impl = next(i for i in implementations("mla_decode")[0] if i.name == "torch")
    case = MlaCase(B=2, H=4, T=33, L=64, R=16, q_len=q_len, dtype="fp32")
    passes(impl, case, CPU)
    assert "block table" in str(impl.supports(dataclasses.replace(case, page=16), CPU))
    assert "fp8" in str(impl.supports(dataclasses.replace(case, kv="fp8"), CPU))
    assert "needs a token" in str(impl.supports(dataclasses.replace(case, T=2, q_len=3), CPU))


@pytest.mark.parametrize("kv", ["", "fp8"])
@pytest.mark.parametrize(("H", "q_len"), [(16, 1), (64, 1), (128, 1), (128, 2)])
@pytest.mark.parametrize("part", [H100, A100], ids=lambda part: f"sm_{part.sm}")
def test_plan_covers_all_tokens_once_and_fits(H: int, q_len: int, kv: str, part: Target) -> None:
    case = MlaCase(B=5, H=H, T=5000, page=64, lengths="holes", kv=kv, q_len=q_len)
    p = plan(case, part)
    assert smem_bytes(case, p.buffers, block_m=p.block_m) <= part.smem_per_sm
    assert p.programs * p.block_m >= q_len * H > (p.programs - 1) * p.block_m
    longest = max(s.t_end - s.t_begin for s in p.segments)
    assert longest <= sum(lengths(case)) // (part.sm_count // p.programs) + 2 * p.block_t
    assert p.segments[0].t_end - p.segments[0].t_begin == longest
    seen = [[0] * n for n in lengths(case)]
    for s in p.segments:
        for t in range(s.t_begin, s.t_end):
            seen[s.b][t] += 1
    assert all(count == 1 for row in seen for count in row)


@pytest.mark.parametrize("part", [H100, A100], ids=lambda part: f"sm_{part.sm}")
@pytest.mark.parametrize(("H", "q_len", "kv"), [(128, 1, ""), (128, 2, ""), (128, 1, "fp8"), (16, 4, "fp8")])
def test_every_further_tile_of_rows_reads_the_cache_from_the_l2(H: int, q_len: int, kv: str, part: Target) -> None:
    case = MlaCase(B=4, H=H, T=3000, page=64, q_len=q_len, kv=kv)
    p = plan(case, part)
    main, merge = OURS.stages(case, part)
    rows = q_len * H
    again = (-(-rows // p.block_m) - 1) * 4 * (3000 * case.token_bytes + 47 * 4)
    parts = 4 * p.slots * rows * 513
    queries = (len(p.segments) - 4) * rows * 576 * 2
    # 9 to 19 MB of parts: too many to be taken for free, not too many for the L2 to hold until they are merged
    assert (main.l2_bytes, main.work.bytes_written, merge.l2_bytes) == (again + queries, parts, parts)
    assert main.work.flops["mma_bf16"] == 2 * p.blocks * p.block_t * p.programs * p.block_m * 1088
    assert main.work.bytes_read == mla.work(case).bytes_read + 32 * len(p.segments)


def test_stages_move_no_less_than_the_minimum() -> None:
    for suite, part, impl in product(SUITES, (H100, A100), implementations("mla_decode")[0]):
        for case in mla.cases(suite):
            if impl.supports(case, part) is None:
                stages, least = impl.stages(case, part), mla.work(case)
                assert sum(s.work.bytes for s in stages) >= least.bytes
                assert sum(s.work.total_flops for s in stages) >= least.total_flops
