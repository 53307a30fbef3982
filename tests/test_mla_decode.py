"""mla_decode: the reference against unabsorbed attention, bytes by hand, every implementation through the gate."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.gate import check
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase, lengths
from kernels.mla_decode.triton_mla import plan, smem_bytes
from kernels.op import SUITES, Target, implementations

CPU = Target(kind="cpu", name="cpu")
H100 = Target(kind="cuda", name="h", sm=90, sm_count=132, l2_bytes=50 << 20, smem_per_sm=228 << 10)
OURS = next(i for i in implementations("mla_decode")[0] if i.ours)


def test_reference_is_attention_with_up_projected_keys_and_values() -> None:
    """Absorbed: q (W_k c) = (q W_k) c and sum p (W_v c) = W_v (sum p c)."""
    case = MlaCase(B=2, H=3, T=7, L=16, R=4, dtype="fp32")
    inputs = mla.inputs(case, "cpu", 3)
    generator = torch.Generator().manual_seed(0)
    up_k, up_v = (torch.randn(3, 8, 16, generator=generator) for _ in range(2))  # [H, head_dim, L]
    q_head = torch.randn(2, 3, 8, generator=generator)
    inputs["q_latent"] = torch.einsum("bhd,hdl->bhl", q_head, up_k)
    c, r = inputs["cache"].split([16, 4], dim=-1)
    keys, values = (torch.einsum("btl,hdl->bhtd", c, up) for up in (up_k, up_v))
    scores = torch.einsum("bhd,bhtd->bht", q_head, keys) + torch.einsum("bhr,btr->bht", inputs["q_rope"], r)
    wanted = torch.einsum("bht,bhtd->bhd", torch.softmax(scores * (128 + 4) ** -0.5, dim=-1), values)
    found = torch.einsum("bhl,hdl->bhd", mla.reference(case, inputs), up_v)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_work_by_hand() -> None:
    """3 and 2 tokens of 20 elements, tables of two pages and one, 2 queries of 3 x 20 in, 2 of 3 x 16 out."""
    case = MlaCase(B=2, H=3, T=3, L=16, R=4, page=2, lengths="ragged", seed=1)
    work = mla.work(case)
    tokens = sum(lengths(case))
    pages = sum(-(-n // 2) for n in lengths(case))
    assert work.bytes_read == tokens * 40 + 4 * pages + 2 * 4 + 2 * 3 * 20 * 2
    assert work.bytes_written == 2 * 3 * 16 * 2
    assert work.flops == {"mma_bf16": tokens * 3 * 2 * (20 + 16)}


def test_fp8_tokens_by_hand() -> None:
    """16 latents of a byte, 4 rotary elements of two and a scale of four bytes make 28 a token."""
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


@pytest.mark.parametrize("case", mla.cases("test"), ids=lambda case: case.id)
def test_ours(case: MlaCase, target: Target) -> None:
    if reason := OURS.supports(case, target):
        pytest.skip(reason)
    errors = check(mla.OP, OURS, case, target)
    assert errors.passed, errors.reason


def test_ours_at_full_width(target: Target, half: str) -> None:
    case = MlaCase(B=1, H=16, T=100, page=64, dtype=half)
    errors = check(mla.OP, OURS, case, target)
    assert errors.passed, errors.reason


def test_ours_in_fp8_at_full_width(target: Target, half: str) -> None:
    case = MlaCase(B=1, H=16, T=40, page=64, dtype=half, kv="fp8")
    assert "sm_90" in str(OURS.supports(case, dataclasses.replace(H100, sm=80)))
    if reason := OURS.supports(case, target):
        pytest.skip(reason)
    errors = check(mla.OP, OURS, case, target)
    assert errors.passed, errors.reason


def test_peer() -> None:
    impl = next(i for i in implementations("mla_decode")[0] if not i.ours)
    case = MlaCase(B=2, H=4, T=33, L=64, R=16, dtype="fp32")
    errors = check(mla.OP, impl, case, CPU)
    assert errors.passed, errors.reason
    assert "block table" in str(impl.supports(dataclasses.replace(case, page=16), CPU))
    assert "fp8" in str(impl.supports(dataclasses.replace(case, kv="fp8"), CPU))


@pytest.mark.parametrize("kv", ["", "fp8"])
@pytest.mark.parametrize("H", [16, 64, 128])
def test_plan_covers_all_tokens_once_and_fits(H: int, kv: str) -> None:
    case = MlaCase(B=5, H=H, T=5000, page=64, lengths="holes", kv=kv)
    p = plan(case, H100)
    assert smem_bytes(case, p.buffers) <= H100.smem_per_sm
    longest = max(s.t_end - s.t_begin for s in p.segments)
    assert longest <= sum(lengths(case)) // (H100.sm_count // p.head_tiles) + 2 * 32
    assert p.segments[0].t_end - p.segments[0].t_begin == longest
    seen = [[0] * n for n in lengths(case)]
    for s in p.segments:
        for t in range(s.t_begin, s.t_end):
            seen[s.b][t] += 1
    assert all(count == 1 for row in seen for count in row)


def test_stages_move_no_less_than_the_minimum() -> None:
    for suite in SUITES:
        for case in mla.cases(suite):
            for impl in implementations("mla_decode")[0]:
                if impl.supports(case, H100) is None:
                    assert sum(s.work.bytes for s in impl.stages(case, H100)) >= mla.work(case).bytes
