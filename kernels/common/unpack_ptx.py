"""PTX that unpacks weights of 8 and 4 bits: see `kernels/common/triton_unpack.py`, whose packing it fits."""

from __future__ import annotations

import triton

from kernels.common.quantization import E2M1_FORMATS, FORMATS, MX_FORMATS

PLACES = ((0, 0), (0, 6), (0, 10), (2, 2), (1, 0), (1, 6), (1, 10), (2, 12))
"""Where `arranged` puts the e2m1 code of each part for bf16: which register, and the place of its lowest bit in a half.

The two exponent bits take the next places, and the sign is 9 places above the lowest bit. In bf16 these bits are just
as far apart, and the lowest has place 6. Three codes leave four bits of each half free. The free bits of the second
register, turned by `TURN`, and those of the first one, `KEPT`, join in a third register, which holds two more codes.
Places wrap around.
"""

TURN, KEPT = 14, 0x60306030


NVFP4_BIAS = 22
"""A byte of `nvfp4_words` stands for (1 + low 3 bits / 8) 2^(high 5 bits - NVFP4_BIAS). e4m3's largest, 448, gets the
exponent field 30, which is the largest of fp16 too."""
NVFP4_BF16 = 224
"""What is added to the exponent field in bf16. e2m1's bits, read as bf16, are 2^-126 times their value, so a factor
must be large. 254 is the largest field here. The lowest five bits of 224 are free, so that an `or` adds it."""


@triton.constexpr_function
def factor_shift(format: str, bf16: bool) -> int:
    """By how many bits a byte of scales moves up to be the factor in 16 bits: to the exponent field (mxfp4, mxfp8), or
    to exponent and mantissa (nvfp4)."""
    return (7 if bf16 else 10) if format in MX_FORMATS else 4 if bf16 else 7


@triton.constexpr_function
def factor_ptx(format: str, bf16: bool, count: int) -> list[str]:
    """PTX that parts the four scales of the operand after `count` outputs and two words: `high` and `low` have the high
    and the low bytes of their factors."""
    ones = 0xFF >> (8 - factor_shift(format, bf16)) if factor_shift(format, bf16) < 8 else 0xFF
    base = NVFP4_BF16 >> 1 if format == "nvfp4" and bf16 else 0
    return [
        f"lop3.b32 high, ${count + 2}, {ones * 0x01010101:#x}, {base * 0x01010101:#x}, 0xea;",
        f"and.b32 low, ${count + 2}, {(255 - ones) * 0x01010101:#x};",
    ]


@triton.constexpr_function
def own_factor(i: int) -> str:
    """PTX that puts the factor of part i of a slice into both halves of `m`."""
    return f"prmt.b32 m, high, low, {0x0404 + 0x1111 * i:#x};"


@triton.constexpr_function
def nibbles_ptx(format: str, bf16: bool, first: int, count: int) -> list[str]:
    """`unpack_ptx` for words that are `side_by_side`."""
    word, fma = f"${count + first // 4}", f"fma.rn.{'bf16x2' if bf16 else 'f16x2'}"
    magic = 0x43004300 if bf16 else 0x64006400
    lines = []
    if format == "int4_zp":
        lines.append(f"prmt.b32 a, ${count + 2}, 0, {(0x1010, 0x3232)[first // 4]:#x};")
    elif format == "int4":
        lines.append(f"mov.b32 a, {0xC308C308 if bf16 else 0xE408E408:#x};")
    else:
        lines += ["mov.b32 a, 0x80008000;", *factor_ptx(format, bf16, count)]
    for at in range(count):
        i = first % 4 + at
        if format in ("int4", "int4_zp"):
            lines += [
                f"shr.b32 t, {word}, {4 * i};",
                f"lop3.b32 t, t, 0x000f000f, {magic:#x}, 0xea;",
                f"mov.b32 m, {0x3F803F80 if bf16 else 0x3C003C00:#x};",
            ]
        else:
            # in fp16 the sign goes to the top, and the other three bits to the border of exponent and mantissa
            shift = 9 - 4 * i
            lines += [
                f"shl.b32 t, {word}, {12 - 4 * i};",
                "and.b32 t, t, 0x80008000;",
                f"{'shl' if shift > 0 else 'shr'}.b32 u, {word}, {abs(shift)};",
                "lop3.b32 t, u, 0x0e000e00, t, 0xea;",
                own_factor(i),
            ]
        lines.append(f"{fma} ${at}, t, m, a;")
    return lines


@triton.constexpr_function
def arranged_ptx(format: str, first: int, count: int) -> list[str]:
    """`unpack_ptx` for `arranged` words: one turn and one mask for each part, where plain codes take two of each."""
    lines = [
        "mov.b32 a, 0x80008000;",
        *factor_ptx(format, True, count),
        f"shf.l.wrap.b32 t, ${count + 1}, ${count + 1}, {TURN};",
        f"lop3.b32 third, ${count}, t, {KEPT:#x}, 0xe4;",
    ]
    for i in range(count):
        register, place = PLACES[first + i]
        name = (f"${count}", f"${count + 1}", "third")[register]
        lines += [
            f"shf.l.wrap.b32 t, {name}, {name}, {(6 - place) % 32};",
            "and.b32 t, t, 0x81C081C0;",
            own_factor(first % 4 + i),
            f"fma.rn.bf16x2 ${i}, t, m, a;",
        ]
    return lines


@triton.constexpr_function
def bytes_ptx(format: str, bf16: bool, first: int, count: int) -> list[str]:
    """`unpack_ptx` for codes of 8 bits."""
    fma = f"fma.rn.{'bf16x2' if bf16 else 'f16x2'}"
    magic = 0x43004300 if bf16 else 0x64006400
    minus_one = 0xBF80BF80 if bf16 else 0xBC00BC00
    multiply = minus_one if format == "int8" else 0x7B807B80 if bf16 else 0x5C005C00
    lines = [f"mov.b32 m, {multiply:#x};", "mov.b32 a, 0x80008000;"]
    if format == "mxfp8":
        lines += factor_ptx(format, bf16, count)
    for at in range(count):
        lines.append(f"prmt.b32 t, ${count}, ${count + 1}, {0x4400 + 0x1111 * (first + at):#x};")
        if format == "int8":
            # two's complement: the low 7 bits minus 128 times the sign; both are set into the magic number
            lines += [
                f"lop3.b32 u, t, 0x00800080, {magic:#x}, 0xea;",
                f"lop3.b32 t, t, 0x007f007f, {magic:#x}, 0xea;",
                f"{fma} ${at}, u, m, t;",
            ]
        else:
            # move e4m3's exponent to the wider type's place, and multiply by 2 to the difference of the biases
            shift, mask = (4, 0x07F007F0) if bf16 else (7, 0x3F803F80)
            lines += [
                f"shl.b32 u, t, {shift};",
                "and.b32 t, t, 0x80008000;",
                f"lop3.b32 t, u, {mask:#x}, t, 0xea;",
                *([own_factor(first + at)] if format == "mxfp8" else ()),
                f"{fma} ${at}, t, m, a;",
            ]
    return lines


@triton.constexpr_function
def unpack_ptx(format: str, bf16: bool, first: int, count: int) -> str:
    """PTX that turns two words into pairs of floats (bf16 or fp16): part `first + i` of both words -> output i.

    The operands are the `count` outputs and the two words. A further input of `beside` follows twice. All parts are
    among 0 to 3 or among 4 to 7.
    """
    if FORMATS[format].bits == 8:
        lines = bytes_ptx(format, bf16, first, count)
    elif format in E2M1_FORMATS and bf16:
        lines = arranged_ptx(format, first, count)
    else:
        lines = nibbles_ptx(format, bf16, first, count)
    return "{ .reg .b32 high, low, third, t, u, m, a; " + " ".join(lines) + " }"


@triton.constexpr_function
def needs_more(format: str) -> bool:
    """Whether unpacking needs more than the words: scales or zero points."""
    return format in ("int4_zp", "mxfp8", "mxfp4", "nvfp4")


@triton.constexpr_function
def unpack_operands(format: str, count: int) -> str:
    """Constraints of `unpack_ptx`; `&`, because every output is written before the last input is read."""
    return ",".join(["=&r"] * count + ["r"] * (4 if needs_more(format) else 2))
