"""Weights of 8 and 4 bits, unpacked in registers for kernels that multiply them with 16-bit activations.

`prepare` packs the codes once with `quantization.pack_words`: 32-bit word j of a block holds one code of each of its
4 or 8 parts, and the code of part i is that of column `32 i + j`. A thread takes two neighbouring words of its row in
one 8-byte read of shared memory. For each part, a few integer instructions turn the two words into a register with two
16-bit floats. The tensor cores take their left operand in exactly this form, so the weights never go back to shared
memory. An integer becomes a float by setting it into the mantissa of a power of two and subtracting that power: this
needs no conversion instruction and is exact.

Some parts side by side are a slice of W, which one `tl.dot` multiplies. Each product has its own addresses, fence and
wait, which cost as much as unpacking two parts. So a slice has as many of up to four parts as registers are left for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.common.quantization import E2M1_FORMATS, FORMATS, MX_FORMATS, by_group, pack_words
from kernels.common.random_inputs import torch_dtype
from kernels.common.triton_nvfp4 import join_4
from kernels.common.unpack_ptx import (
    KEPT,
    NVFP4_BF16,
    NVFP4_BIAS,
    PLACES,
    TURN,
    factor_shift,
    needs_more,
    unpack_operands,
    unpack_ptx,
)
from kernels.op import Target


def max_block_b(target: Target) -> int:
    """The most batch columns of a CTA. For 64, the 128 x 64 sums, and as many again for a group of weights with its own
    scale, take 64 registers in each of 256 threads. Only wgmma has room for them: sm_80 holds its operands in registers
    too, and on sm_100 Triton 3.6 compiles int4 at 64 columns to an empty kernel."""
    return 64 if target.sm in (0, 90) else 32


def arranged(words: torch.Tensor) -> torch.Tensor:
    """Words of e2m1 codes `[..., 2 n]` as bf16 wants them. The bits of each two neighbours move to the places of
    `PLACES`: the first word's to the low half of a register, the second word's to the high half. The two neighbours are
    in one thread, as the tensor cores' left operand demands."""
    pairs = words.unflatten(-1, (-1, 2))
    moved = torch.zeros_like(pairs)
    for i, (register, place) in enumerate(PLACES):
        for column in range(2):
            for bit, offset in enumerate((0, 1, 2, 9)):
                at, to = (16 * column + place + offset) % 32, register
                if register == 2:
                    to = 0 if KEPT >> at & 1 else 1
                    at = (at - TURN * to) % 32
                moved[..., to] |= (pairs[..., column] >> (4 * i + bit) & 1) << at
    return moved.flatten(-2)


def side_by_side(words: torch.Tensor) -> torch.Tensor:
    """Words of 4-bit codes `[..., 2 n]`, of which each two neighbours exchange halves: the first then has the parts 0
    to 3 of both, the second the parts 4 to 7."""
    halves = words.view(torch.int16).unflatten(-1, (-1, 2, 2))
    return halves.transpose(-1, -2).contiguous().view(torch.int32).flatten(-3)


def words_of(format: str, codes: torch.Tensor, dtype: str, plain: bool) -> torch.Tensor:
    """Packed codes as the kernel takes them; `plain` is for the interpreter."""
    words = pack_words(format, codes)
    if plain or FORMATS[format].bits == 8:
        return words
    return arranged(words) if format in E2M1_FORMATS and dtype == "bf16" else side_by_side(words)


def nvfp4_power(dtype: str) -> int:
    """Unpacked weights are 2^-this times what they stand for, so that no factor leaves the range of the type."""
    return 126 + 127 - NVFP4_BIAS - NVFP4_BF16 if dtype == "bf16" else 14 + 15 - NVFP4_BIAS


def parted(fields: torch.Tensor, format: str, dtype: str) -> torch.Tensor:
    """Bytes of scales, uint8, turned by `factor_shift`. The bits for the high and for the low byte of the factor are
    then in place, and `factor_ptx` parts them with one mask for four scales."""
    wide = fields.int() << factor_shift(format, dtype == "bf16")
    return ((wide >> 8 | wide) & 255).to(torch.uint8)


@triton.jit
def beside(unpacking, it, ROWS, rows, FORMAT: tl.constexpr):
    """What unpacking needs beside the words of a block, for each row: a value for the parts 0 to 3, and one for 4 to 7.

    Of mxfp4 and mxfp8 that is the word of their four scales, of nvfp4 such a word for each of the 32 words, of int4_zp
    both zero points of the block. Of other formats it is nothing of use: Triton 3.6 cannot return None twice."""
    N: tl.constexpr = rows.shape[0]
    if FORMAT == "nvfp4":
        four = tl.load(unpacking + ((it * ROWS + rows) * 4)[:, None] + tl.arange(0, 4)[None, :])
        first, second = tl.split(tl.reshape(four, (N, 2, 2)))
        return for_words(first), for_words(second)
    elif FORMAT == "mxfp4":
        both = tl.load(unpacking + ((it * ROWS + rows) * 2)[:, None] + tl.arange(0, 2)[None, :])
        first, second = tl.split(both)
        return first[:, None], second[:, None]
    elif FORMAT == "mxfp8" or FORMAT == "int4_zp":
        one = tl.load(unpacking + (it * ROWS + rows))[:, None]
        return one, one
    else:
        return rows, rows


@triton.jit
def for_words(sides):
    """[N, 2] -> [N, 32]: the first value of a row for its words 0 to 15, the second for the others."""
    N: tl.constexpr = sides.shape[0]
    return tl.reshape(tl.broadcast_to(sides[:, :, None], (N, 2, 16)), (N, 32))


@triton.jit
def unpacked(
    words,
    extra,
    x,
    first: tl.constexpr,
    COUNT: tl.constexpr,
    FORMAT: tl.constexpr,
    PLAIN: tl.constexpr,
    MAGIC: tl.constexpr,
):
    """Words [N, W] -> their parts from `first` on, side by side [N, COUNT W], in the type of `x`, in fp32 if
    `PLAIN`. `extra` comes from `beside`."""
    N: tl.constexpr = words.shape[0]
    W: tl.constexpr = words.shape[1]
    if PLAIN:
        return tl.reshape(plain_parts(words, extra, x, first, COUNT, FORMAT, MAGIC), (N, COUNT * W))
    parts = apart(words, extra, x, first, COUNT, FORMAT)
    if COUNT == 1:
        out = parts[0]
    elif COUNT == 2:
        out = tl.reshape(tl.permute(tl.join(parts[0], parts[1]), (0, 2, 1)), (N, 2 * W))
    else:
        both = tl.reshape(join_4(parts[0], parts[1], parts[2], parts[3]), (N, W, 4))
        out = tl.reshape(tl.permute(both, (0, 2, 1)), (N, 4 * W))
    return out


@triton.jit
def apart(words, extra, x, first: tl.constexpr, COUNT: tl.constexpr, FORMAT: tl.constexpr):
    """Words [N, W] -> COUNT parts [N, W] from `first` on, in the type of `x`."""
    PTX: tl.constexpr = unpack_ptx(FORMAT, x.dtype.element_ty == tl.bfloat16, first, COUNT)
    OPERANDS: tl.constexpr = unpack_operands(FORMAT, COUNT)
    inputs = [words, extra] if needs_more(FORMAT) else [words]
    return tl.inline_asm_elementwise(PTX, OPERANDS, inputs, (x.dtype.element_ty,) * COUNT, is_pure=True, pack=2)


@triton.jit
def half_of(words, i: tl.constexpr, like):
    """The low (i = 0) or the high half of each word, which is a float of the type of `like`'s elements, in fp32."""
    return (words >> (16 * i)).to(tl.int16).to(like.dtype.element_ty, bitcast=True).to(tl.float32)


@triton.jit
def plain_parts(words, extra, x, first: tl.constexpr, COUNT: tl.constexpr, FORMAT: tl.constexpr, MAGIC: tl.constexpr):
    """Words [N, W] -> their parts from `first` on [N, COUNT, W] in fp32. The arithmetic is Triton's own, since the
    interpreter has no PTX."""
    BITS: tl.constexpr = bits_of(FORMAT)
    i = first + tl.arange(0, COUNT)[None, :, None]
    code = (words[:, None, :] >> (BITS * i)) & ((1 << BITS) - 1)
    if FORMAT == "mxfp4" or FORMAT == "nvfp4" or FORMAT == "mxfp8":
        scale = (extra[:, None, :] >> (8 * (i % 4))) & 255
    if FORMAT == "int8":
        value = ((code ^ 128) - 128).to(tl.float32)
    elif BITS == 8:
        value = code.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32)
    elif FORMAT == "mxfp4" or FORMAT == "nvfp4":
        exponent = (code >> 1) & 3
        fraction = (code & 1).to(tl.float32) * 0.5
        value = tl.where(exponent == 0, fraction, (1.0 + fraction) * (1 << exponent).to(tl.float32) * 0.5)
        value = tl.where(code > 7, -value, value)
    elif FORMAT == "int4_zp":
        value = code.to(tl.float32) + (half_of(extra, first // 4, x) + MAGIC)[:, None, :]
    else:
        value = code.to(tl.float32) - 8
    if FORMAT == "mxfp4" or FORMAT == "mxfp8":
        value *= tl.exp2((scale - MAGIC).to(tl.float32))
    elif FORMAT == "nvfp4":
        value *= tl.exp2(((scale >> 3) - MAGIC).to(tl.float32)) * (1.0 + (scale & 7).to(tl.float32) * 0.125)
    return value


@triton.constexpr_function
def bits_of(format: str) -> int:
    """Bits of a code."""
    return FORMATS[format].bits


@triton.constexpr_function
def parts_of(format: str) -> int:
    """Parts of a block: codes of a word."""
    return 32 // FORMATS[format].bits


def magic_number(format: str, dtype: str) -> int:
    """For the interpreter: the offset that the stored exponent fields of mxfp4, mxfp8 and nvfp4, or zero points of
    int4_zp, contain."""
    if format in MX_FORMATS:
        return 127 + mx_offset(format, dtype)
    if format == "nvfp4":
        return NVFP4_BIAS + nvfp4_power(dtype)
    return 128 if dtype == "bf16" else 1024


def scales_of(
    format: str,
    dtype: str,
    blocks: int,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    whole: torch.Tensor | None = None,
    plain: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, what else unpacking needs) as the kernels read them, for rows of `blocks` blocks. One stands for both
    where a kernel reads only one. `whole` has nvfp4's scales of whole matrices. `plain` is for the interpreter."""
    if whole is not None:
        return whole * 2.0 ** nvfp4_power(dtype), nvfp4_words(scale, blocks, dtype, plain)
    if format in MX_FORMATS:
        scale = mx_words(format, scale, blocks, dtype, plain)
    elif FORMATS[format].bits == 4:
        scale = by_block(scale, blocks)
    if zero is None:
        return scale, scale
    return scale, by_block(-(zero.to(torch_dtype(dtype)) + magic_number(format, dtype)), blocks)


def by_block(values: torch.Tensor, blocks: int) -> torch.Tensor:
    """16-bit `[N, G]` -> int32 `[blocks, N]`: one word holds both groups of a block. `cp.async` can bring words early,
    but no 2 bytes."""
    pairs = by_group(values, 2 * blocks).unflatten(0, (blocks, 2)).transpose(1, 2).contiguous()
    return pairs.view(torch.int32).squeeze(2)


def mx_offset(format: str, dtype: str) -> int:
    """What is added to an e8m0 scale for the exponent field of the factor that unpacking needs. The bits of e2m1 and
    e4m3, moved to their places in bf16 or fp16, stand for their value times a power of two."""
    return {"mxfp4": (126, -98), "mxfp8": (120, -104)}[format][dtype != "bf16"]


def mx_words(format: str, scale: torch.Tensor, blocks: int, dtype: str, plain: bool = False) -> torch.Tensor:
    """e8m0 `[N, K/32]` -> int32 `[blocks, N, words]`, a word of four bytes for four parts. A byte is the exponent
    field of a factor, see `mx_offset`, and unless `plain` it is `parted`.

    Raises ValueError for a scale whose factor a number of `dtype` cannot hold.
    """
    offset, words = mx_offset(format, dtype), blocks * parts_of(format) // 4
    highest = 254 if dtype == "bf16" else 30
    if not scale.is_meta and (int(scale.max()) + offset > highest or int(scale.min()) + offset < 1):
        raise ValueError(
            f"{format} scales of 2^{int(scale.min()) - 127} to 2^{int(scale.max()) - 127} do not fit {dtype}"
        )
    fields = torch.nn.functional.pad((scale.int() + offset).to(torch.uint8), (0, 4 * words - scale.shape[1]))
    fields = fields if plain else parted(fields, format, dtype)
    return fields.view(torch.int32).unflatten(1, (blocks, -1)).transpose(0, 1).contiguous()


def nvfp4_words(scale: torch.Tensor, blocks: int, dtype: str, plain: bool = False) -> torch.Tensor:
    """e4m3 `[N, K/16]` -> int32 `[blocks, N, 4]` of four bytes each. The first two words have the scales of the lower
    16 columns of the parts, the other two those of the upper 16.

    A byte has 5 bits of exponent and 3 of mantissa, so that also e4m3's subnormal scales have a normal form. Unless
    `plain` it is `parted`. Raises ValueError for scales that are negative, zero or no numbers.
    """
    value = scale.float()
    if not value.is_meta and not bool(((value > 0) & (value <= 448)).all()):
        raise ValueError("nvfp4 scales must be positive numbers up to 448")
    mantissa, exponent = torch.frexp(value)  # value = mantissa 2^exponent, mantissa from 1/2 to 1
    fields = ((exponent - 1 + NVFP4_BIAS) << 3 | (mantissa * 16 - 8).to(torch.int32)).to(torch.uint8)
    fields = torch.nn.functional.pad(fields, (0, 16 * blocks - fields.shape[1]))
    fields = fields if plain else parted(fields, "nvfp4", dtype)
    # [N, blocks, 2 x 4 parts, sides] -> [blocks, N, sides, 2 x 4 parts]
    words = fields.unflatten(1, (blocks, 2, 4, 2)).permute(1, 0, 4, 2, 3).contiguous()
    return words.view(torch.int32).flatten(2)
