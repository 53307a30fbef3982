"""A KV cache in NVFP4, unpacked in registers: see `kernels/common/nvfp4_cache.py` for the format.

A block of 16 elements is one 64-bit word, and beside it lies the byte of its scale. So a tile of words and the tile of
their scales have one shape, and a thread has the scale of each word that it holds. Four instructions make two codes
into a register of two fp16 or bf16, and one more multiplies both by the scale. This is exact: a product has 6
significant bits. On sm_100 one instruction converts two neighbouring codes to fp16. Two blocks are unpacked at a
time, since one block's elements would be 16-bit registers, each as large as two elements, until they are joined.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def converts(to: str, sm: int) -> bool:
    """Whether an instruction converts e2m1."""
    return to == "fp16" and sm >= 100


@triton.constexpr_function
def pairs_halves(to: str, sm: int) -> bool:
    """Whether `unpack_block` gives the elements of 8 in the order 0, 4, 1, 5, 2, 6, 3, 7: those of one register lie in
    the two halves of a 32-bit word."""
    return sm > 0 and not converts(to, sm)


@triton.constexpr_function
def block_exponent(to: str, sm: int) -> int:
    """`unpack_block` gives values times two to this power. e2m1's bits, moved to their places in fp16 or bf16, are
    2^-14 or 2^-126 times their value, and 2^14 or 2^126 times the largest scale would leave the type."""
    return 0 if not pairs_halves(to, sm) else -7 if to == "fp16" else -8


@triton.constexpr_function
def scale_ptx(block: int, to: str, sm: int) -> list[str]:
    """PTX that puts the factor of a block into both halves of `s0` or `s1`. Only fp16 has a conversion from e4m3, and
    only from sm_89 on. Else the bits are shifted to their places, and NaN is 480."""
    s = f"s{block}"
    if to == "fp16" and sm >= 89:
        lines = [f"prmt.b32 {s}, ${18 + block}, 0, 0;", f"mov.b32 {{h, g}}, {s};", f"cvt.rn.f16x2.e4m3x2 {s}, h;"]
        factors = [0x5800] if sm < 100 else []
    else:
        lines = [f"prmt.b32 {s}, ${18 + block}, 0, 0x4040;", f"shl.b32 {s}, {s}, {7 if to == 'fp16' else 4};"]
        factors = [0x7800] if to == "fp16" else [0x7B00, 0x7B00]
    kind = "f16x2" if to == "fp16" else "bf16x2"
    for factor in factors:
        lines += [f"mov.b32 t, {factor * 0x10001:#x};", f"fma.rn.{kind} {s}, {s}, t, a;"]
    return lines


@triton.constexpr_function
def block_ptx(to: str, sm: int) -> str:
    """PTX for two blocks: 16 codes each in $16 and $17, low bits first, times the e4m3 scales of $18 and $19, become
    16 registers of two fp16 or bf16. The first 8 have the first block."""
    lines = ["mov.b32 a, 0x80008000;", "mov.b64 {w0, w1}, $16;", "mov.b64 {w2, w3}, $17;"]
    for block in range(2):
        lines += scale_ptx(block, to, sm)
    lowest, mask, kind = (9, 0x0E000E00, "f16x2") if to == "fp16" else (6, 0x01C001C0, "bf16x2")
    for word in range(4):
        if converts(to, sm):
            lines.append(f"mov.b32 {{b0, b1, b2, b3}}, w{word};")
        for i in range(4):
            shift = lowest - 4 * i
            lines += (
                [f"cvt.rn.f16x2.e2m1x2 t, b{i};"]
                if converts(to, sm)
                else [
                    f"shl.b32 t, w{word}, {12 - 4 * i};",
                    "and.b32 t, t, 0x80008000;",
                    f"{'shl' if shift > 0 else 'shr'}.b32 u, w{word}, {abs(shift)};",
                    f"lop3.b32 t, u, {mask:#x}, t, 0xea;",
                ]
            )
            lines.append(f"fma.rn.{kind} ${4 * word + i}, t, s{word // 2}, a;")
    names = ".reg .b32 w0, w1, w2, w3, s0, s1, t, u, a; .reg .b16 h, g;"
    return f"{{ {names}{' .reg .b8 b0, b1, b2, b3;' if converts(to, sm) else ''} {' '.join(lines)} }}"


BLOCK_OPERANDS: tl.constexpr = tl.constexpr(",".join(["=&r"] * 16 + ["l"] * 2 + ["r"] * 2))


@triton.jit
def plain_code(words, scale, i: tl.constexpr):
    """Element i of each block in fp32, by Triton's own arithmetic: the interpreter has no PTX."""
    code = ((words >> (4 * i)) & 15).to(tl.int32)
    exponent = (code >> 1) & 3
    half = (code & 1).to(tl.float32) * 0.5
    value = tl.where(exponent == 0, half, (1.0 + half) * (1 << exponent).to(tl.float32) * 0.5)
    return tl.where(code > 7, -value, value) * scale


@triton.jit
def join_4(a, b, c, d):
    """[..] each -> [.., 2, 2], whose last index is that of a, b, c, d in order."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def unpack_block(words, scale, TO: tl.constexpr, SM: tl.constexpr):
    """64-bit words [T, D / 16] and the bytes of their e4m3 scales [T, D / 16] -> [T, D] in fp16 or bf16, times
    2^block_exponent, in the order that `pairs_halves` tells. Where kernels are interpreted (SM 0) they are fp32."""
    if SM > 0:
        CODE: tl.constexpr = block_ptx(TO, SM)
        inputs = [words, scale.to(tl.int32)]
        if TO == "fp16":
            x = tl.inline_asm_elementwise(CODE, BLOCK_OPERANDS, inputs, (tl.float16,) * 16, is_pure=True, pack=2)
        else:
            x = tl.inline_asm_elementwise(CODE, BLOCK_OPERANDS, inputs, (tl.bfloat16,) * 16, is_pure=True, pack=2)
        a = join_4(x[0], x[4], x[8], x[12])
        b = join_4(x[1], x[5], x[9], x[13])
        c = join_4(x[2], x[6], x[10], x[14])
        d = join_4(x[3], x[7], x[11], x[15])
    else:
        s = scale.to(tl.uint8, bitcast=True).to(tl.float8e4nv, bitcast=True).to(tl.float32)
        a = join_4(plain_code(words, s, 0), plain_code(words, s, 4), plain_code(words, s, 8), plain_code(words, s, 12))
        b = join_4(plain_code(words, s, 1), plain_code(words, s, 5), plain_code(words, s, 9), plain_code(words, s, 13))
        c = join_4(plain_code(words, s, 2), plain_code(words, s, 6), plain_code(words, s, 10), plain_code(words, s, 14))
        d = join_4(plain_code(words, s, 3), plain_code(words, s, 7), plain_code(words, s, 11), plain_code(words, s, 15))
    T: tl.constexpr = words.shape[0]
    BLOCKS: tl.constexpr = words.shape[1]
    out = join_4(a, b, c, d)
    if SM > 0:
        # the two halves of a register belong side by side
        out = tl.permute(tl.reshape(out, (T, BLOCKS // 2, 2, 16)), (0, 1, 3, 2))
    return tl.reshape(out, (T, BLOCKS * 16))


@triton.jit
def dims_in_order(offs_d, HALVES: tl.constexpr):
    """The dims of the places `offs_d` of an unpacked row; HALVES as `pairs_halves` tells."""
    return offs_d // 8 * 8 + offs_d % 8 // 2 + offs_d % 2 * 4 if HALVES else offs_d


@triton.jit
def turned(rows, OUTER: tl.constexpr):
    """[M, D] -> [M, D]: of each 8 columns, as [OUTER, 8 / OUTER], the transpose."""
    M: tl.constexpr = rows.shape[0]
    D: tl.constexpr = rows.shape[1]
    return tl.reshape(tl.permute(tl.reshape(rows, (M, D // 8, OUTER, 8 // OUTER)), (0, 1, 3, 2)), (M, D))


@triton.jit
def to_places(rows, TO: tl.constexpr, SM: tl.constexpr):
    """[M, D] with the dims in order -> [M, D] with the columns of an unpacked row: `in_order` reversed."""
    return turned(rows, 2) if pairs_halves(TO, SM) else rows


@triton.jit
def in_order(rows, TO: tl.constexpr, SM: tl.constexpr):
    """[M, D] with the columns of an unpacked row -> [M, D] with the dims in order."""
    return turned(rows, 4) if pairs_halves(TO, SM) else rows
