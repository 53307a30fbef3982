"""A cache in NVFP4: what codes and scales mean, what is written where, and how blocks are unpacked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from bench.devices import find
from kernels.attention_decode.op import AttentionCase
from kernels.common.nvfp4_cache import BLOCK, Nvfp4Slots, decoded, draw_cache, encoded_blocks
from kernels.common.quantization import E2M1
from kernels.common.random_inputs import RandomInputs
from kernels.common.triton_nvfp4 import block_exponent, in_order, unpack_block
from kernels.mla_decode.op import OP as MLA
from kernels.mla_decode.op import MlaCase
from kernels.op import Target, implementations


def test_decoded_follows_the_definition() -> None:
    codes, scale, whole = draw_cache(RandomInputs("cpu", 0), (3, 64), std=1.0)
    found = decoded(codes, scale, whole)
    for i, d in ((0, 0), (1, 17), (2, 63)):
        code = int(codes[i, d // 2]) >> 4 * (d % 2) & 15
        value = E2M1[code % 8] * (-1) ** (code // 8)
        assert float(found[i, d]) == pytest.approx(value * float(scale[i, d // BLOCK]) * float(whole), rel=1e-6)
    assert 0.6 < float(found.std()) < 1.4


def test_a_cache_has_nine_sixteenths_of_a_byte_for_each_element() -> None:
    codes, scale, whole = draw_cache(RandomInputs("meta", 0), (5, 128), std=1.0)
    assert codes.nbytes + scale.nbytes == 0.5625 * 5 * 128
    assert whole.nbytes == 4
    assert MlaCase(B=1, H=16, T=1, kv="nvfp4").token_bytes == 0.5625 * 512 + 2 * 64


def test_the_exact_value_of_a_block_errs_by_its_scale_only() -> None:
    values = torch.randn(500, BLOCK, generator=torch.Generator().manual_seed(1)) * 20
    codes, scale = encoded_blocks(values, values[:, 3])
    error, largest = (decoded(codes, scale[:, None], torch.ones(1)) - values).abs(), values.abs().amax(1)
    seen = values[:, 3].abs() > largest / 12  # what is smaller than the smallest code is lost
    assert float((error[:, 3] / values[:, 3].abs())[seen].max()) < 2**-4 + 1e-6
    assert bool((error <= largest[:, None] * 0.4).all())


def test_a_written_element_changes_its_block_only() -> None:
    codes, scale, whole = draw_cache(RandomInputs("cpu", 2), (2, 3, 2, 64), std=1.0)
    before = decoded(codes, scale, whole)
    slots = Nvfp4Slots(stored=codes, blocks=scale, whole=whole)
    slots.put((torch.tensor([1]), torch.tensor([2]), torch.tensor([0])), 20, torch.tensor([5.0]))
    after = decoded(codes, scale, whole)
    assert float(after[1, 2, 0, 20]) == pytest.approx(5.0, rel=2**-4)
    changed = (after != before).nonzero()
    assert set(changed[:, 3].tolist()) <= set(range(16, 32))
    assert bool((changed[:, :3] == torch.tensor([1, 2, 0])).all())
    slots.fill(30, 4, torch.tensor(-2.0))
    filled = decoded(codes, scale, whole)[..., 30:34]
    torch.testing.assert_close(filled, torch.full_like(filled, -2.0), rtol=2**-4, atol=0)


@triton.jit
def unpack_kernel(words, scale, out, N: tl.constexpr, BLOCKS: tl.constexpr, TO: tl.constexpr, SM: tl.constexpr):
    at = tl.arange(0, N)[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    rows = in_order(unpack_block(tl.load(words + at), tl.load(scale + at), TO, SM), TO, SM)
    tl.store(out + tl.arange(0, N)[:, None] * (16 * BLOCKS) + tl.arange(0, 16 * BLOCKS)[None, :], rows.to(tl.float32))


@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_every_code_and_scale_unpacks_to_its_value(to: str, target: Target) -> None:
    sm = target.sm if target.kind == "cuda" else 0
    scale = torch.arange(1, 127, dtype=torch.uint8).repeat(2)[:128].view(32, 4).view(torch.float8_e4m3fn)
    codes = torch.arange(32 * 32).mul(37).remainder(256).to(torch.uint8).view(32, 32)
    expected = decoded(codes, scale, torch.ones(1))
    codes, scale = codes.to(target.device), scale.to(target.device)
    out = torch.empty(32, 64, device=target.device)
    unpack_kernel[(1,)](codes.view(torch.int64), scale.view(torch.int8), out, N=32, BLOCKS=4, TO=to, SM=sm)
    assert torch.equal(out.cpu() * 2.0 ** -block_exponent(to, sm), expected)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="16 elements"):
        AttentionCase(B=1, H_q=1, H_kv=1, D=72, T=4, kv="nvfp4")
    with pytest.raises(ValueError, match="16 latents"):
        MlaCase(B=1, H=1, T=4, L=40, kv="nvfp4")
    attend = next(impl for impl in implementations("attention_decode")[0] if impl.name == "triton")
    narrow = AttentionCase(B=1, H_q=1, H_kv=1, D=96, T=4, kv="nvfp4")
    assert "64" in str(attend.supports(narrow, find("h200").target()))
    assert "256" in str(attend.supports(replace(narrow, D=512), find("h200").target()))
    latents = MlaCase(B=1, H=16, T=64, kv="nvfp4")
    triton_mla = next(impl for impl in implementations("mla_decode")[0] if impl.name == "triton")
    for part, least in (("a100-80", 512), ("h200", 512), ("b200", 256)):
        target = find(part).target()
        assert triton_mla.supports(replace(latents, L=least), target) is None
        assert str(least) in str(triton_mla.supports(replace(latents, L=least // 2), target))
    assert MLA.work(latents).bytes_read < MLA.work(replace(latents, kv="fp8")).bytes_read
