"""Weights of 8 and 4 bits, unpacked in registers for kernels that multiply them with 16-bit activations.

`prepare` packs the codes once with `quantization.pack_words`: 32-bit word j of a block holds one code of each of its
4 or 8 parts, and the code of part i is that of column `32 i + j` (of nvfp4 `16 i + j`: a part has one scale). A thread
takes two neighbouring words of its row in one 8-byte read of shared memory. For each part, a few integer instructions
turn the two words into a register with two 16-bit floats. The tensor cores take their left operand in exactly this
form, so the weights never go back to shared memory. An integer becomes a float by setting it into the mantissa of a
power of two and subtracting that power: this needs no conversion instruction and is exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.common.quantization import E2M1_FORMATS, FORMATS, MX_FORMATS, by_group, pack_words
from kernels.common.random_inputs import torch_dtype
from kernels.op import Target


def max_block_b(target: Target) -> int:
    """The most batch columns of a CTA. For 64, the 128 x 64 sums, and as many again for a group of weights with its own
    scale, take 64 registers in each of 256 threads. Only wgmma has room for them: sm_80 holds its operands in registers
    too, and on sm_100 Triton 3.6 compiles int4 at 64 columns to an empty kernel."""
    return 64 if target.sm in (0, 90) else 32


PLACES = ((0, 0), (0, 6), (0, 10), (2, 2), (1, 0), (1, 6), (1, 10), (2, 12))
"""Where `arranged` puts the e2m1 code of each part for bf16: which register, and the place of its lowest bit in a half.

The two exponent bits take the next places, and the sign is 9 places above the lowest bit. In bf16 these bits are just
as far apart, and the lowest has place 6. Three codes leave four bits of each half free. The free bits of the second
register, turned by `TURN`, and those of the first one, `KEPT`, join in a third register, which holds two more codes.
Places wrap around.
"""

TURN, KEPT = 14, 0x60306030


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


def words_of(format: str, codes: torch.Tensor, dtype: str, plain: bool) -> torch.Tensor:
    """Packed codes as the kernel takes them; `plain` is for the interpreter."""
    words = pack_words(format, codes)
    return arranged(words) if format in E2M1_FORMATS and dtype == "bf16" and not plain else words


NVFP4_BIAS = 22
"""A byte of `nvfp4_words` stands for (1 + low 3 bits / 8) 2^(high 5 bits - NVFP4_BIAS). e4m3's largest, 448, gets the
exponent field 30, which is the largest of fp16 too."""
NVFP4_BF16 = 222
"""What is added to the exponent field in bf16. e2m1's bits, read as bf16, are 2^-126 times their value, so a factor
must be large. 252 is the largest field here."""


def nvfp4_power(dtype: str) -> int:
    """Unpacked weights are 2^-this times what they stand for, so that no factor leaves the range of the type."""
    return 126 + 127 - NVFP4_BIAS - NVFP4_BF16 if dtype == "bf16" else 14 + 15 - NVFP4_BIAS


@triton.constexpr_function
def factor_ptx(format: str, bf16: bool, i: int) -> list[str]:
    """PTX that puts the factor of part i into both halves of `m`: its exponent field (mxfp4, mxfp8), or exponent and
    mantissa (nvfp4, see `nvfp4_words`), moved to the place that the wider type has for them."""
    first = 32 // FORMATS[format].bits + 2
    lines = [f"prmt.b32 m, ${first + i // 4 * 2}, 0, {0x4040 + 0x0101 * (i % 4):#x};"]
    if format in MX_FORMATS:
        return [*lines, f"shl.b32 m, m, {7 if bf16 else 10};"]
    if not bf16:
        return [*lines, "shl.b32 m, m, 7;"]
    return [*lines, "shl.b32 m, m, 4;", f"add.u32 m, m, {(NVFP4_BF16 << 7) * 0x10001:#x};"]


@triton.constexpr_function
def unpack_arranged(format: str) -> str:
    """`unpack_ptx` for `arranged` words: one turn and one mask for each part, where plain codes take two of each."""
    lines = []
    # the parts of the third register come last, when the other two registers are free
    for i in (0, 1, 2, 4, 5, 6, 3, 7):
        register, place = PLACES[i]
        if i == 3:
            lines += [f"shf.l.wrap.b32 t, $9, $9, {TURN};", f"lop3.b32 third, $8, t, {KEPT:#x}, 0xe4;"]
        name = ("$8", "$9", "third")[register]
        lines += [
            f"shf.l.wrap.b32 t, {name}, {name}, {(6 - place) % 32};",
            "and.b32 t, t, 0x81C081C0;",
            *factor_ptx(format, True, i),
            f"fma.rn.bf16x2 ${i}, t, m, a;",
        ]
    return "{ .reg .b32 third, t, m, a; mov.b32 a, 0x80008000; " + " ".join(lines) + " }"


@triton.constexpr_function
def unpack_ptx(format: str, bf16: bool) -> str:
    """PTX that turns two words into pairs of floats (bf16 or fp16): part i of both words -> output i.

    The operands are the outputs and the two words. Further inputs follow, each of them twice: for int4_zp, one word
    with `-(magic + zero)` of both groups of 128 columns; for mxfp4 and nvfp4, two words of four scale bytes, for mxfp8
    one.
    `magic` is the power of two whose last mantissa bit is worth one.
    """
    if format in E2M1_FORMATS and bf16:
        return unpack_arranged(format)
    fma = f"fma.rn.{'bf16x2' if bf16 else 'f16x2'}"
    magic = 0x43004300 if bf16 else 0x64006400
    one = 0x3F803F80 if bf16 else 0x3C003C00
    # v * m + a
    multiply, add = {
        "int8": (one | 0x80008000, 0),
        "int4": (one, 0xC308C308 if bf16 else 0xE408E408),
        "int4_zp": (one, 0),
        "mxfp4": (0, 0x80008000),
        "nvfp4": (0, 0x80008000),
    }.get(format, (0x7B807B80 if bf16 else 0x5C005C00, 0x80008000))
    lines = [f"mov.b32 m, {multiply:#x};", f"mov.b32 a, {add:#x};"]
    if FORMATS[format].bits == 4:
        # put the halves of both words side by side: `lo` has four codes of each word, `hi` the other four
        lines += ["prmt.b32 lo, $8, $9, 0x5410;", "prmt.b32 hi, $8, $9, 0x7632;"]
    for i in range(32 // FORMATS[format].bits):
        half, place = ("lo", "hi")[i // 4], i % 4
        if format in ("int4", "int4_zp"):
            if format == "int4_zp" and place == 0:
                lines.append(f"prmt.b32 a, $10, 0, {(0x1010, 0x3232)[i // 4]:#x};")
            lines += [
                f"shr.b32 t, {half}, {4 * place};",
                f"lop3.b32 t, t, 0x000f000f, {magic:#x}, 0xea;",
                f"{fma} ${i}, t, m, a;",
            ]
        elif format in E2M1_FORMATS:
            # in fp16 the sign goes to the top, and the other three bits to the border of exponent and mantissa
            shift = 9 - 4 * place
            lines += [
                *factor_ptx(format, False, i),
                f"shl.b32 t, {half}, {12 - 4 * place};",
                "and.b32 t, t, 0x80008000;",
                f"{'shl' if shift > 0 else 'shr'}.b32 u, {half}, {abs(shift)};",
                "lop3.b32 t, u, 0x0e000e00, t, 0xea;",
                f"{fma} ${i}, t, m, a;",
            ]
        else:
            lines.append(f"prmt.b32 t, $4, $5, {0x4400 + 0x1111 * i:#x};")
            if format == "int8":
                # two's complement: the low 7 bits minus 128 times the sign; both are set into the magic number
                lines += [
                    f"lop3.b32 u, t, 0x00800080, {magic:#x}, 0xea;",
                    f"lop3.b32 t, t, 0x007f007f, {magic:#x}, 0xea;",
                    f"{fma} ${i}, u, m, t;",
                ]
            else:
                # move e4m3's exponent to the wider type's place, and multiply by 2 to the difference of the biases
                shift, mask = (4, 0x07F007F0) if bf16 else (7, 0x3F803F80)
                lines += [
                    f"shl.b32 u, t, {shift};",
                    "and.b32 t, t, 0x80008000;",
                    f"lop3.b32 t, u, {mask:#x}, t, 0xea;",
                    *(factor_ptx(format, bf16, i) if format == "mxfp8" else ()),
                    f"{fma} ${i}, t, m, a;",
                ]
    return "{ .reg .b32 lo, hi, t, u, m, a; " + " ".join(lines) + " }"


@triton.constexpr_function
def unpack_operands(format: str) -> str:
    """Constraints of `unpack_ptx`; `&`, because every output is written before the last input is read."""
    inputs = 2 + {"int4_zp": 2, "mxfp8": 2, "mxfp4": 4, "nvfp4": 4}.get(format, 0)
    return ",".join(["=&r"] * (32 // FORMATS[format].bits) + ["r"] * inputs)


@triton.jit
def of_groups(values, it, ROWS, rows):
    """The words of a block's scales, of mxfp4 or nvfp4: one for the parts 0 to 3, one for 4 to 7."""
    return tl.load(values + 2 * it * ROWS + rows)[:, None], tl.load(values + (2 * it + 1) * ROWS + rows)[:, None]


@triton.jit
def unpacked(words, lo, hi, x, FORMAT: tl.constexpr, PARTS: tl.constexpr):
    """Words -> their parts in the type of `x`. For mxfp4 and nvfp4 `lo` and `hi` come from
    `of_groups`; for int4_zp they are the zero points and None, for mxfp8 the exponents and None; else both are
    None."""
    PTX: tl.constexpr = unpack_ptx(FORMAT, x.dtype.element_ty == tl.bfloat16)
    OPERANDS: tl.constexpr = unpack_operands(FORMAT)
    inputs = [words] if lo is None else [words, lo] if hi is None else [words, lo, hi]
    return tl.inline_asm_elementwise(PTX, OPERANDS, inputs, (x.dtype.element_ty,) * PARTS, is_pure=True, pack=2)


@triton.jit
def half_of(words, i: tl.constexpr, like):
    """The low (i = 0) or the high half of each word, which is a float of the type of `like`'s elements, in fp32."""
    return (words >> (16 * i)).to(tl.int16).to(like.dtype.element_ty, bitcast=True).to(tl.float32)


@triton.jit
def plain_part(words, lo, hi, i: tl.constexpr, x, FORMAT: tl.constexpr, BITS: tl.constexpr, MAGIC: tl.constexpr):
    """Part i in fp32, by Triton's own arithmetic: the interpreter has no PTX."""
    code = (words >> (BITS * i)) & ((1 << BITS) - 1)
    if FORMAT == "int8":
        value = ((code ^ 128) - 128).to(tl.float32)
    elif BITS == 8:
        value = code.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32)
        if FORMAT == "mxfp8":
            value *= tl.exp2((((lo >> (8 * i)) & 255) - MAGIC).to(tl.float32))
    elif FORMAT == "mxfp4" or FORMAT == "nvfp4":
        exponent = (code >> 1) & 3
        half = (code & 1).to(tl.float32) * 0.5
        value = tl.where(exponent == 0, half, (1.0 + half) * (1 << exponent).to(tl.float32) * 0.5)
        scale = ((lo if i < 4 else hi) >> (8 * (i % 4))) & 255
        value = tl.where(code > 7, -value, value)
        if FORMAT == "mxfp4":
            value *= tl.exp2((scale - MAGIC).to(tl.float32))
        else:
            value *= tl.exp2(((scale >> 3) - MAGIC).to(tl.float32)) * (1.0 + (scale & 7).to(tl.float32) * 0.125)
    elif FORMAT == "int4_zp":
        value = code.to(tl.float32) + (half_of(lo, i // 4, x) + MAGIC)
    else:
        value = code.to(tl.float32) - 8
    return value


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, what else unpacking needs) as the kernels read them, for rows of `blocks` blocks. One stands for both
    where a kernel reads only one. `whole` has nvfp4's scales of whole matrices."""
    if whole is not None:
        return whole * 2.0 ** nvfp4_power(dtype), nvfp4_words(scale, blocks)
    if format in MX_FORMATS:
        scale = mx_words(format, scale, blocks, dtype)
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


def mx_words(format: str, scale: torch.Tensor, blocks: int, dtype: str) -> torch.Tensor:
    """e8m0 `[N, K/32]` -> int32 `[words, N]` of four bytes each: `blocks` words, for mxfp4 two times as many. A byte is
    the exponent field of a factor: see `mx_offset`.

    Raises ValueError for a scale whose factor a number of `dtype` cannot hold.
    """
    offset, words = mx_offset(format, dtype), blocks * 8 // FORMATS[format].bits
    highest = 254 if dtype == "bf16" else 30
    if not scale.is_meta and (int(scale.max()) + offset > highest or int(scale.min()) + offset < 1):
        raise ValueError(
            f"{format} scales of 2^{int(scale.min()) - 127} to 2^{int(scale.max()) - 127} do not fit {dtype}"
        )
    fields = torch.nn.functional.pad((scale.int() + offset).to(torch.uint8), (0, 4 * words - scale.shape[1]))
    return fields.view(torch.int32).T.contiguous()


def nvfp4_words(scale: torch.Tensor, blocks: int) -> torch.Tensor:
    """e4m3 `[N, K/16]` -> int32 `[2 blocks, N]` of four bytes each: for a block of 128 columns, a word of the parts 0
    to 3 and one of 4 to 7.

    A byte has 5 bits of exponent and 3 of mantissa, so that also e4m3's subnormal scales have a normal form: unpacking
    takes one addition. Raises ValueError for scales that are negative, zero or no numbers.
    """
    value = scale.float()
    if not value.is_meta and not bool(((value > 0) & (value <= 448)).all()):
        raise ValueError("nvfp4 scales must be positive numbers up to 448")
    mantissa, exponent = torch.frexp(value)  # value = mantissa 2^exponent, mantissa from 1/2 to 1
    byte = ((exponent - 1 + NVFP4_BIAS) << 3 | (mantissa * 16 - 8).to(torch.int32)).to(torch.uint8)
    byte = torch.nn.functional.pad(byte, (0, 8 * blocks - byte.shape[1]))
    return byte.view(torch.int32).T.contiguous()
