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


@pytest.mark.parametrize("case", mla.cases("test"), ids=lambda case: case.id)
def test_ours(case: MlaCase, target: Target) -> None:
    errors = check(mla.OP, OURS, case, target)
    assert errors.passed, errors.reason


def test_ours_at_full_width(target: Target, half: str) -> None:
    case = MlaCase(B=1, H=16, T=100, page=64, dtype=half)
    errors = check(mla.OP, OURS, case, target)
    assert errors.passed, errors.reason


def test_peer() -> None:
    impl = next(i for i in implementations("mla_decode")[0] if not i.ours)
    case = MlaCase(B=2, H=4, T=33, L=64, R=16, dtype="fp32")
    errors = check(mla.OP, impl, case, CPU)
    assert errors.passed, errors.reason
    assert "block table" in str(impl.supports(dataclasses.replace(case, page=16), CPU))


@pytest.mark.parametrize("H", [16, 64, 128])
def test_plan_covers_all_tokens_once_and_fits(H: int) -> None:
    case = MlaCase(B=5, H=H, T=5000, page=64, lengths="holes")
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
