"""How one weight may be stored: types, bits, and the scales that come with them. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.model_config.fields import Fields
from kernels.model_config.names import Names


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How one weight is stored, and the type in which it is multiplied."""

    name: str
    bits: float
    """Of one weight, without scales."""
    scale_bits: float = 0.0
    """Scales and zero points, per weight."""
    row_bits: float = 0.0
    """Scales, per row of a matrix."""
    computes: str = "16"
    """`16`, `fp8`, `int8` or `fp4`: the type of its tensor-core instruction."""


PLAIN = {
    "bfloat16": Stored(name="bf16", bits=16),
    "float16": Stored(name="fp16", bits=16),
    "float32": Stored(name="fp32", bits=32, computes="32"),
}


Scheme = tuple[Stored, Names]
"""How the modules with these names are stored."""

Read = tuple[list[Scheme], Names]
"""What a reader of a `quantization_config` finds: schemes, of which the first that names a module counts, and the
modules that are left out."""


def fp8(*, block: float = 0, computes: str = "fp8", channel: bool = False) -> Stored:
    """e4m3 with a fp32 scale per block of `block` weights, per row, or per tensor."""
    if block:
        return Stored(name="fp8", bits=8, scale_bits=32 / block, computes=computes)
    return Stored(name="fp8", bits=8, row_bits=32 if channel else 0, computes=computes)


def grouped(bits: int, group: int, *, zero: bool, scale: int = 16) -> Stored:
    """Integers with a 16-bit scale per group, and a zero point of the same bits; a group of 0 is a whole row."""
    extra = scale + (bits if zero else 0)
    name = f"int{bits}"
    if group <= 0:
        return Stored(name=name, bits=bits, row_bits=extra)
    return Stored(name=name, bits=bits, scale_bits=extra / group)


MXFP4 = Stored(name="mxfp4", bits=4, scale_bits=8 / 32)
NVFP4 = Stored(name="nvfp4", bits=4, scale_bits=8 / 16, computes="fp4")
NF4 = {
    False: Stored(name="nf4", bits=4, scale_bits=32 / 64),
    True: Stored(name="nf4", bits=4, scale_bits=8 / 64 + 32 / 16384),
}
"""bitsandbytes: a fp32 scale for 64 weights; if scales are quantized too, 8 bits, and a fp32 scale for 256 of them."""


def exceptions(fields: Fields, *names: str) -> Names:
    """The modules that the first of these fields lists."""
    found = next((name for name in names if name in fields), None)
    value = fields.get(found) if found else []
    if not isinstance(value, list) or any(not isinstance(each, str) for each in value):
        raise fields.wrong(str(found), "a list of module names")
    return Names(value)


def everywhere(stored: Stored, ignored: Names) -> Read:
    """All linear layers of the decoder, but not `lm_head`."""
    return [(stored, Names(["re:.*layers\\."]))], ignored


def group_size(fields: Fields, *names: str) -> int:
    found = next((name for name in names if name in fields), None)
    if found is None or fields.get(found) == -1:
        return 0
    return fields.whole(found)
