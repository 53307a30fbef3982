"""The few PTX instructions with which kernels unpack low precision, executed on 32-bit registers."""

from __future__ import annotations

import re

import numpy as np
import torch

MASK = (1 << 32) - 1


def lop3(a: int, b: int, c: int, table: int) -> int:
    """PTX `lop3.b32`: for each bit the truth table's entry number a b c."""
    return sum(((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1))) & 1) << i for i in range(32))


def prmt(a: int, b: int, selector: int) -> int:
    """PTX `prmt.b32`: four bytes picked of the eight of b, a."""
    data = (a | b << 32).to_bytes(8, "little")
    picks = [selector >> 4 * i & 15 for i in range(4)]
    assert all(p < 8 for p in picks), "replicates a sign, which is not emulated"
    return int.from_bytes(bytes(data[p] for p in picks), "little")


def halves(word: int, dtype: torch.dtype) -> torch.Tensor:
    """The two 16-bit floats of a register, as fp64, low half first."""
    bits = np.array([word & 0xFFFF, word >> 16], dtype=np.uint16)
    return torch.from_numpy(bits.view(np.int16)).view(dtype).double()


def register(pair: torch.Tensor, dtype: torch.dtype) -> int:
    """Two floats rounded to 16 bits each, the first in the low half."""
    low, high = pair.to(dtype).view(torch.int16).tolist()
    return (low & 0xFFFF) | (high & 0xFFFF) << 16


def run_ptx(text: str, outputs: int, inputs: list[int], dtype: torch.dtype) -> list[int]:
    """Execute the few PTX instructions that the unpackers use, on 32-bit registers."""
    registers = {f"${outputs + i}": value for i, value in enumerate(inputs)}
    for line in (part.strip() for part in text.strip(" {}").split(";") if part.strip()):
        if line.startswith(".reg"):
            continue
        name, rest = line.split(maxsplit=1)
        taken_apart = re.fullmatch(r"\{(\w+), (\w+)\}, (\S+)", rest)
        if taken_apart:
            low, high, source = taken_apart.groups()
            registers[low], registers[high] = registers[source] & 0xFFFF, registers[source] >> 16
            continue
        target, *names = (word.strip() for word in rest.split(","))
        v = [registers[n] if n in registers else int(n, 0) for n in names]
        match re.sub(r"\.(b32|rn\..*)$", "", name):
            case "mov":
                result = v[0]
            case "and":
                result = v[0] & v[1]
            case "xor":
                result = v[0] ^ v[1]
            case "shl":
                result = v[0] << v[1]
            case "shr":
                result = v[0] >> v[1]
            case "shf.l.wrap":
                result = ((v[1] << 32 | v[0]) << v[2]) >> 32
            case "prmt":
                result = prmt(v[0], v[1], v[2])
            case "lop3":
                result = lop3(v[0], v[1], v[2], v[3])
            case "cvt":
                assert name == "cvt.rn.f16x2.e4m3x2"
                e4m3 = torch.tensor([v[0] & 0xFF, v[0] >> 8], dtype=torch.uint8).view(torch.float8_e4m3fn)
                result = register(e4m3.double(), torch.float16)
            case "add":
                result = register(halves(v[0], dtype) + halves(v[1], dtype), dtype)
            case "fma":
                result = register(halves(v[0], dtype) * halves(v[1], dtype) + halves(v[2], dtype), dtype)
            case other:
                raise AssertionError(f"no emulation of {other}")
        registers[target] = result & MASK
    return [registers[f"${i}"] for i in range(outputs)]
