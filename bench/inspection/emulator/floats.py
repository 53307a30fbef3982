"""Small floats as bits: conversions between them and fp32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

U32 = np.uint32


def bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits to fp32."""
    return (bits.astype(U32) << U32(16)).view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """fp32 to bfloat16 bits, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(U32)
    rounded = (bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), rounded).astype(np.uint16)


def f16(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits, dtype=np.uint16).view(np.float16).astype(np.float32)


def to_f16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).view(np.uint16)


SMALL: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "bf16": (bf16, to_bf16),
    "f16": (f16, to_f16),
}
"""For each 16-bit type, the conversions from bits to fp32 and back."""


def e4m3(octets: np.ndarray) -> np.ndarray:
    """fp8 e4m3 bits to fp32."""
    return torch.from_numpy(octets.astype(np.uint8)).view(torch.float8_e4m3fn).float().numpy()


def halves(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """32-bit words to their low and high 16 bits."""
    return (words & U32(0xFFFF)).astype(np.uint16), (words >> U32(16)).astype(np.uint16)


def together(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(U32) | high.astype(U32) << U32(16)
