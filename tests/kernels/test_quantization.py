"""Weight formats: packing loses nothing, dequantization follows the definitions, and the unpacking PTX is right."""

from __future__ import annotations

import pytest
import torch

from kernels.common.quantization import (
    BLOCK_WORDS,
    E2M1,
    E2M1_FORMATS,
    FORMATS,
    by_group,
    dequantize,
    pack_words,
    random_weights,
    unpack_nibbles,
    weight_bytes,
)
from kernels.common.random_inputs import RandomInputs
from kernels.common.triton_unpack import (
    arranged,
    mx_words,
    nvfp4_power,
    nvfp4_words,
    parts_of,
    side_by_side,
)
from kernels.common.unpack_ptx import NVFP4_BIAS, unpack_ptx
from tests.support.properties import given, settings, st
from tests.support.snippet import MASK, halves, register, run_ptx


def pair(value: float, dtype: torch.dtype) -> int:
    return register(torch.tensor([value, value]), dtype)


def unpacked(format: str, dtype: torch.dtype, two_words: list[int], extra: list[int]) -> torch.Tensor:
    """What the PTX makes of two words: [parts, 2]. `extra` has an input for each four parts, or is empty. One part at
    a time, two and four are the same."""
    parts, bf16 = parts_of(format), dtype == torch.bfloat16

    def of(count: int) -> list[int]:
        made = []
        for first in range(0, parts, count):
            inputs = two_words + [extra[first // 4]] * 2 if extra else two_words
            made += run_ptx(unpack_ptx(format, bf16, first, count), count, inputs)
        return made

    found = of(4)
    assert of(1) == of(2) == found
    return torch.stack([halves(w, dtype) for w in found])


TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@TYPES
@pytest.mark.parametrize("format", ["int8", "fp8", "mxfp8"])
def test_ptx_unpacks_every_byte(format: str, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    scales = torch.tensor([[120, 121, 119, 130]], dtype=torch.uint8)
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    extra = [int(mx_words("mxfp8", scales, 1, name)) & MASK] if format == "mxfp8" else []
    gain = torch.exp2(scales[0].double() - 127)[:, None] if format == "mxfp8" else 1.0
    want = codes.view(torch.int8).double() if format == "int8" else codes.view(torch.float8_e4m3fn).double()
    for first in range(0, 256, 8):
        low, high = (int.from_bytes(bytes(range(first + s, first + s + 4)), "little") for s in (0, 4))
        got = unpacked(format, dtype, [low, high], extra)
        expected = torch.stack((want[first : first + 4], want[first + 4 : first + 8]), dim=1) * gain
        number = expected.isfinite()  # e4m3's NaN codes are no weights
        assert torch.equal(got[number], expected[number])


@TYPES
@pytest.mark.parametrize("format", ["int4", "int4_zp", "mxfp4", "nvfp4"])
def test_ptx_unpacks_every_nibble_in_every_place(format: str, dtype: torch.dtype) -> None:
    magic = 128 if dtype == torch.bfloat16 else 1024
    scale_bytes = torch.tensor([[120, 121, 119, 127, 128, 115, 118, 122]], dtype=torch.uint8)
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    if format == "nvfp4":
        scales = torch.tensor([448.0, 1.0, 0.875, 2**-6, 2**-7, 2**-9, 1.5 * 2**-8, 26.0]).to(torch.float8_e4m3fn)
        # those of the upper 16 columns of a part lie between
        extra = nvfp4_words(torch.stack((scales, scales.roll(1, 0)), dim=1).view(1, 16), 1, name)[0, 0, :2].tolist()
    elif format == "mxfp4":
        extra = mx_words("mxfp4", scale_bytes, 1, name)[0, 0].tolist()
    else:
        zeros = pair(-(magic + 3), dtype) & 0xFFFF | pair(-(magic + 11), dtype) & 0xFFFF0000
        extra = [zeros] * 2 if format == "int4_zp" else []
    extra = [word & MASK for word in extra]
    for turn in range(16):
        codes = [[(turn + 5 * word + i) % 16 for i in range(8)] for word in range(2)]
        words = [sum(code << 4 * i for i, code in enumerate(of_word)) for of_word in codes]
        arrange = arranged if format in E2M1_FORMATS and name == "bf16" else side_by_side
        words = [word & MASK for word in arrange(torch.tensor(words).to(torch.int32)).tolist()]
        got = unpacked(format, dtype, words, extra)
        for i in range(8):
            for word in range(2):
                code = codes[word][i]
                if format == "mxfp4":
                    want = E2M1[code & 7] * (-1) ** (code >> 3) * 2.0 ** (int(scale_bytes[0, i]) - 127)
                elif format == "nvfp4":
                    want = E2M1[code & 7] * (-1) ** (code >> 3) * float(scales[i]) * 2.0 ** -nvfp4_power(name)
                else:
                    want = code - (8 if format == "int4" else (3, 11)[i // 4])
                assert float(got[i, word]) == want


@pytest.mark.parametrize("format", FORMATS)
def test_dequantize_follows_the_definition(format: str) -> None:
    """Compared with a loop over single elements."""
    N, K = 130, 258
    weights = random_weights(RandomInputs("cpu", 1), format, N, K, "fp16")
    got = dequantize(format, weights, 0, N)
    assert torch.equal(dequantize(format, weights, 120, 130), got[120:])
    w, scale = weights["w"], weights["w_scale"]
    for n, k in ((0, 0), (0, 1), (1, 31), (5, 32), (127, 127), (128, 128), (129, 257), (77, 200)):
        if FORMATS[format].bits == 4:
            code = int(w[n, k // 2]) >> (4 * (k % 2)) & 15
        if format in ("int8", "fp8"):
            want = float(w[n, k]) * float(scale[n])
        elif format == "fp8_block":
            want = float(w[n, k]) * float(scale[n // 128, k // 128])
        elif format == "mxfp8":
            want = float(w[n, k]) * 2.0 ** (int(scale[n, k // 32]) - 127)
        elif format == "mxfp4":
            want = E2M1[code % 8] * (1 if code < 8 else -1) * 2.0 ** (int(scale[n, k // 32]) - 127)
        elif format == "nvfp4":
            whole = float(weights["w_global"][0])
            want = E2M1[code % 8] * (1 if code < 8 else -1) * float(scale[n, k // 16]) * whole
        else:
            zero = int(weights["w_zero"][n, k // 128]) if format == "int4_zp" else 8
            want = (code - zero) * float(scale[n, k // 128])
        assert float(got[n, k]) == pytest.approx(want, rel=1e-6)
    assert 0.3 < float(got.std()) * K**0.5 < 4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(format=st.sampled_from(list(FORMATS)), N=st.integers(1, 5), K=st.integers(1, 300).map(lambda k: 2 * k))
def test_packing_keeps_every_code(format: str, N: int, K: int) -> None:
    """Code i of word j is that of column 32 i + j of its block; codes past K are zero."""
    bits = FORMATS[format].bits
    parts, width = 32 // bits, BLOCK_WORDS
    codes = random_weights(RandomInputs("cpu", K), format, N, K, "bf16")["w"]
    plain = unpack_nibbles(codes) if bits == 4 else codes.view(torch.uint8)
    words = pack_words(format, codes)
    blocks = -(-K // (parts * width))
    assert words.dtype == torch.int32
    assert words.shape == (N, blocks * width)
    split = torch.stack([(words.long() >> bits * i) & (2**bits - 1) for i in range(parts)], dim=1)
    columns = split.view(N, parts, blocks, width).transpose(1, 2).reshape(N, -1)
    assert torch.equal(columns[:, :K], plain.long())
    assert not columns[:, K:].any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weight_bytes_are_those_of_the_tensors(format: str, dtype: str) -> None:
    on_meta = random_weights(RandomInputs("meta", 0), format, 300, 520, dtype)
    drawn = random_weights(RandomInputs("cpu", 0), format, 300, 520, dtype)
    assert weight_bytes(format, 300, 520, 2) == sum(t.nbytes for t in drawn.values())
    for name, tensor in drawn.items():
        assert (on_meta[name].shape, on_meta[name].dtype) == (tensor.shape, tensor.dtype)
    assert pack_words(format, on_meta["w"]).shape == pack_words(format, drawn["w"]).shape


def test_groups_are_transposed_and_padded() -> None:
    scale = torch.arange(6.0).view(2, 3)
    assert by_group(scale, 4).tolist() == [[0, 3], [1, 4], [2, 5], [0, 0]]


def test_odd_columns_and_wide_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        random_weights(RandomInputs("cpu", 0), "int4", 4, 7, "bf16")
    with pytest.raises(ValueError, match="do not fit bf16"):
        mx_words("mxfp4", torch.full((2, 4), 129, dtype=torch.uint8), 1, "bf16")
    with pytest.raises(ValueError, match="do not fit fp16"):
        mx_words("mxfp4", torch.full((2, 4), 98, dtype=torch.uint8), 1, "fp16")
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            nvfp4_words(torch.full((2, 8), wrong).to(torch.float8_e4m3fn), 1, "bf16")


def test_every_scale_of_nvfp4_has_a_byte_of_its_own() -> None:
    """All positive numbers of e4m3, the subnormal ones too."""
    scales = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    words = nvfp4_words(scales, 8, "bf16", plain=True)
    # [blocks, 1, sides, slices, parts] -> [blocks, slices, parts, sides]
    found = words.view(torch.uint8).view(8, 2, 2, 4).permute(0, 2, 3, 1).reshape(-1)[: scales.shape[1]].int()
    assert torch.equal(torch.exp2((found >> 3) - NVFP4_BIAS) * (1 + (found & 7) / 8), scales[0].float())


@TYPES
def test_ptx_multiplies_by_every_scale_of_nvfp4(dtype: torch.dtype) -> None:
    """Codes of one, so that a scale comes out. Part i of side s has scale 2 i + s."""
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    ones = torch.full((2,), 0x22222222, dtype=torch.int32)
    words = (arranged(ones) if name == "bf16" else side_by_side(ones)).tolist()
    scales = torch.arange(127, 0, -1, dtype=torch.uint8)[1:113].view(torch.float8_e4m3fn).view(7, 16)
    for row in scales:
        sides = nvfp4_words(row[None], 1, name)[0, 0].view(2, 2).tolist()
        for side, extra in enumerate(sides):
            got = unpacked("nvfp4", dtype, [word & MASK for word in words], [word & MASK for word in extra])
            assert torch.equal(got[:, 0], row[side::2].double() * 2.0 ** -nvfp4_power(name))
            assert torch.equal(got[:, 0], got[:, 1])


@TYPES
def test_ptx_multiplies_by_every_scale_that_a_type_holds(dtype: torch.dtype) -> None:
    """mxfp8's code of one, 0x38, times four scales each."""
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    lowest, highest = (1, 134) if name == "bf16" else (105, 134)
    for first in range(lowest, highest - 3, 4):
        scale = torch.arange(first, first + 4, dtype=torch.uint8)
        extra = [int(mx_words("mxfp8", scale[None], 1, name)) & MASK]
        got = unpacked("mxfp8", dtype, [0x38383838] * 2, extra)
        assert torch.equal(got, torch.exp2(scale.double() - 127)[:, None].expand(4, 2))


def test_nvfp4_has_nine_sixteenths_of_a_byte_for_each_weight() -> None:
    assert weight_bytes("nvfp4", 128, 4096, 2) == 0.5625 * 128 * 4096 + 4
