"""Weights in fewer than 16 bits: what is stored, how it is drawn, what it means, and how our kernels pack it.

A weight matrix W `[N, K]` is stored as codes and scales, in the layout that checkpoints use:

| format    | codes `w`                      | `w_scale`                 | W =                             |
|-----------|--------------------------------|---------------------------|---------------------------------|
| int8      | int8 `[N, K]`                  | fp32 `[N]`                | w * scale                       |
| fp8       | e4m3 `[N, K]`                  | fp32 `[N]`                | w * scale                       |
| fp8_block | e4m3 `[N, K]`                  | fp32 `[N/128, K/128]`     | w * scale                       |
| mxfp8     | e4m3 `[N, K]`                  | e8m0 (uint8) `[N, K/32]`  | w * 2^(scale - 127)             |
| int4      | uint8 `[N, K/2]`               | 16-bit `[N, K/128]`       | (w - 8) * scale                 |
| int4_zp   | uint8 `[N, K/2]`               | 16-bit `[N, K/128]`       | (w - zero) * scale              |
| mxfp4     | uint8 `[N, K/2]`               | e8m0 (uint8) `[N, K/32]`  | e2m1(w) * 2^(scale - 127)       |
| nvfp4     | uint8 `[N, K/2]`               | e4m3 `[N, K/16]`          | e2m1(w) * scale * global        |

`w_zero` of int4_zp is uint8 `[N, K/128]`. `w_global` of nvfp4 is fp32, one for each matrix. A byte holds two 4-bit
codes, that of the even column in its low half.
Fractions round up. mxfp8 and mxfp4 are of the OCP Microscaling specification v1.0; e2m1 has the values 0, .5, 1, 1.5,
2, 3, 4, 6 and their negatives. nvfp4 is NVIDIA's format of Blackwell checkpoints: TensorRT Model Optimizer's `weight`,
`weight_scale` and `weight_scale_2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from kernels.common.fields import TYPES, OneOf
from kernels.common.integers import cdiv
from kernels.common.random_inputs import RandomInputs, encoded, torch_dtype, writable
from kernels.op import Inputs

if TYPE_CHECKING:
    import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of e2m1 by their three low bits; the fourth is the sign."""

SCALE_GROUP = 16
"""Tokens of one page that share a fp32 scale per KV head in an 8-bit cache; fewer if a page is smaller."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """`group_n` x `group_k` weights share a scale; a `group_k` of 0 stands for all K columns."""

    bits: int
    group_n: int = 1
    group_k: int = 0

    def scale_shape(self, N: int, K: int, height: int = 0) -> tuple[int, ...]:
        """With a `height`, W holds matrices of so many rows below each other, and no scale is for rows of two."""
        if not self.group_k:
            return (N,)
        height = height or N
        return (N // height * cdiv(height, self.group_n), cdiv(K, self.group_k))


FORMATS = {
    "int8": Format(bits=8),
    "fp8": Format(bits=8),
    "fp8_block": Format(bits=8, group_n=128, group_k=128),
    "mxfp8": Format(bits=8, group_k=32),
    "int4": Format(bits=4, group_k=128),
    "int4_zp": Format(bits=4, group_k=128),
    "mxfp4": Format(bits=4, group_k=32),
    "nvfp4": Format(bits=4, group_k=16),
}
E2M1_FORMATS = ("mxfp4", "nvfp4")
MX_FORMATS = ("mxfp4", "mxfp8")

BESIDE = ("scale", "zero", "global")
"""What a packed matrix may have beside its codes: `w_scale` and so on."""

Weights = Annotated[str, OneOf("", *TYPES, *FORMATS)]
"""What a case's `weights` may be: a format, or `dtype`, for which the empty text stands too."""


def check_weights(weights: str, dtype: str, **columns: int) -> None:
    """Raise ValueError for weights in a 16- or 32-bit type other than `dtype`, or for 4-bit codes that do not fill
    their bytes. `columns` are the lengths of rows, by their names in the case."""
    if weights != dtype and weights not in FORMATS:
        raise ValueError(f"weights {weights}: expected {dtype} as dtype has it, or one of {', '.join(FORMATS)}")
    for name, K in columns.items():
        if weights != dtype and FORMATS[weights].bits == 4 and K % 2:
            raise ValueError(f"{name} = {K}: {weights} packs two columns in a byte, so it must be even")


def weight_bytes(format: str, N: int, K: int, scale_size: int) -> int:
    """Bytes of a matrix: codes, scales and zero points; `scale_size` is the size of one of int4's 16-bit scales."""
    kind = FORMATS[format]
    scales = 1
    for n in kind.scale_shape(N, K):
        scales *= n
    size = {"mxfp4": 1, "mxfp8": 1, "nvfp4": 1, "int4": scale_size, "int4_zp": scale_size + 1}.get(format, 4)
    return N * K * kind.bits // 8 + scales * size + (4 if format == "nvfp4" else 0)


RMS_CODES = {"int8": 74.0, "int4": 4.6, "int4_zp": 6.0, "mxfp4": 2.9, "nvfp4": 2.9} | dict.fromkeys(
    ("fp8", "fp8_block", "mxfp8"), 32.0
)
"""The rms of drawn codes, less their zero point; for mxfp4 and nvfp4 of the e2m1 values that they stand for."""

NVFP4_SCALE = 32.0
"""The size of drawn scales of nvfp4. e4m3 reaches 448, and checkpoints give the largest block this scale."""


def random_weights(draw: RandomInputs, format: str, N: int, K: int, dtype: str, height: int = 0) -> Inputs:
    """Codes over their whole range. Scales of neighbouring groups differ, see `RandomInputs.scales`; those of mxfp4
    and mxfp8 by the factor 2 at least. W is of order K^-1/2."""
    check_weights(format, dtype, K=K)
    kind = FORMATS[format]
    if kind.bits == 4:
        codes = draw.integers(0, 256, (N, K // 2), "uint8")
    elif format == "int8":
        codes = draw.integers(-128, 128, (N, K), "int8")
    else:
        codes = draw.normal((N, K), "fp8", scale=32.0)
    shape = kind.scale_shape(N, K, height)
    if format in MX_FORMATS:
        # half or a quarter of 2^-(K^1/2's exponent) in turn with once or twice as much; codes of mxfp8 are 8 times as
        # large as those of mxfp4
        middle = 127 - (K.bit_length() + 1) // 2 - (3 if format == "mxfp8" else 0)
        return {"w": codes, "w_scale": alternate(draw.integers(middle - 2, middle, shape, "uint8"), 2)}
    if format == "nvfp4":
        matrices = (N // (height or N),)
        scale = draw.scales(shape, NVFP4_SCALE, one_sided=False).to(torch_dtype("fp8"))
        return {
            "w": codes,
            "w_scale": scale,
            "w_global": draw.scales(matrices, K**-0.5 / RMS_CODES[format] / 1.5 / NVFP4_SCALE),
        }
    packed = {"w": codes, "w_scale": draw.scales(shape, K**-0.5 / RMS_CODES[format] / 1.5)}
    packed["w_scale"] = packed["w_scale"].to(torch_scale_dtype(format, dtype))
    if format == "int4_zp":
        packed["w_zero"] = draw.integers(0, 16, shape, "uint8")
    return packed


def alternate(scale: torch.Tensor, more: int) -> torch.Tensor:
    """The exponents `[N, G]`, every second one increased, along both axes."""
    if scale.device.type != "meta":
        scale[::2, ::2] += more
        scale[1::2, 1::2] += more
    return scale


def write_codes(
    format: str, weights: Inputs, rows: torch.Tensor, columns: torch.Tensor, level: float | torch.Tensor
) -> None:
    """Write codes that stand for `level` times the rms of W, as far as the format reaches, where rows and columns
    meet. `level` is a number, or one for each row and column `[rows, columns]`."""
    import torch

    kind, codes = FORMATS[format], weights["w"]
    value = torch.as_tensor(level, dtype=torch.float32, device=codes.device) * RMS_CODES[format]
    value = value.expand(len(rows), len(columns))
    if kind.bits == 8:
        writable(codes)[rows[:, None], columns] = encoded(value, codes.dtype)
        return
    if format in E2M1_FORMATS:
        magnitudes = torch.tensor(E2M1, device=codes.device)
        nearest = torch.bucketize(value.abs(), (magnitudes[1:] + magnitudes[:-1]) / 2)
        wanted = nearest | 8 * (value < 0)
    else:
        zero: int | torch.Tensor = 8
        if format == "int4_zp":
            zero = weights["w_zero"][rows[:, None] // kind.group_n, columns // kind.group_k].int()
        wanted = (zero + value.round()).clamp(0, 15)
    wanted = wanted.to(torch.uint8)
    for half in (0, 1):
        mine = columns % 2 == half
        at = (rows[:, None], columns[mine] // 2)
        codes[at] = codes[at] & (0x0F if half else 0xF0) | wanted[:, mine] << 4 * half


def group_scales(format: str, weights: Inputs, rows: torch.Tensor, height: int = 0) -> torch.Tensor:
    """What codes of these rows are multiplied with, in fp32: for each group of columns, `[rows, groups]`. `height`: see
    `Format.scale_shape`."""
    import torch

    kind, scale = FORMATS[format], weights["w_scale"].float()
    if not kind.group_k:
        return scale[rows, None]
    height = height or len(weights["w"])
    found = scale[rows // height * cdiv(height, kind.group_n) + rows % height // kind.group_n]
    if format in MX_FORMATS:
        return torch.exp2(found - 127)
    return found * weights["w_global"][rows // height, None] if format == "nvfp4" else found


def of_columns(format: str, groups: torch.Tensor, K: int) -> torch.Tensor:
    """Values of groups `[rows, groups]`, as they stand for each of K columns."""
    kind = FORMATS[format]
    return groups.repeat_interleave(kind.group_k, dim=1)[:, :K] if kind.group_k else groups


def torch_scale_dtype(format: str, dtype: str) -> torch.dtype:
    """int4 has scales in the type of the activations; the 8-bit formats have them in fp32."""
    return torch_dtype(dtype if FORMATS[format].bits == 4 else "fp32")


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 `[N, K/2]` -> uint8 `[N, K]`, low nibble first."""
    import torch

    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def nibble_values(format: str, packed: torch.Tensor) -> torch.Tensor:
    """What 4-bit codes stand for, e2m1 values or 0 to 15: uint8 `[N, K/2]` -> fp32 `[N, K]`. Both codes of a byte are
    looked up at once, as 8 bytes."""
    import torch

    values = [*E2M1, *(-x for x in E2M1)] if format in E2M1_FORMATS else [float(code) for code in range(16)]
    every = unpack_nibbles(torch.arange(256, dtype=torch.uint8, device=packed.device)[:, None])
    pairs = torch.tensor(values, device=packed.device)[every.long()].view(torch.int64).flatten()
    return pairs[packed.int()].view(torch.float32)


def dequantize(format: str, weights: Inputs, first: int, end: int, height: int = 0) -> torch.Tensor:
    """Rows `first` to `end` of W in fp32, in plain torch. `height`: see `Format.scale_shape`."""
    import torch

    kind = FORMATS[format]
    codes = weights["w"][first:end]
    values = codes.float() if kind.bits == 8 else nibble_values(format, codes)
    rows, K = torch.arange(first, first + len(codes), device=codes.device), values.shape[1]
    if format == "int4":
        values -= 8
    elif format == "int4_zp":
        values -= of_columns(format, weights["w_zero"][first:end].float(), K)
    return values.mul_(of_columns(format, group_scales(format, weights, rows, height), K))


BLOCK_WORDS = 32
"""int32 words of one block in a packed row: 32 words of 8 (4-bit) or 4 (8-bit) codes are 256 or 128 columns."""


def pack_words(format: str, codes: torch.Tensor) -> torch.Tensor:
    """Codes -> int32 `[N, blocks * 32]`: code i of word j is that of column `32 i + j` of its block, zero past K.

    Unpacking a tile of words gives one matrix for each i, and its columns are consecutive columns of W.
    """
    import torch

    bits, words = FORMATS[format].bits, BLOCK_WORDS
    codes = unpack_nibbles(codes) if bits == 4 else codes.view(torch.uint8)
    N, K = codes.shape
    parts = 32 // bits
    blocks = cdiv(K, parts * words)
    if past := blocks * parts * words - K:  # a padding of zero columns would copy gigabytes of experts
        codes = torch.nn.functional.pad(codes, (0, past))
    codes = codes.view(N, blocks, parts, words).transpose(2, 3)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes.contiguous().view(torch.int32).view(N, blocks * words)


def by_group(scale: torch.Tensor, groups: int) -> torch.Tensor:
    """`[N, G]` -> `[groups, N]`, zero past G, so that neighbouring rows of W lie beside each other."""
    import torch

    return torch.nn.functional.pad(scale, (0, groups - scale.shape[1])).T.contiguous()
