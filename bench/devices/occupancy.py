"""What one SM of each compute capability holds and computes. A new capability is one row of `CAPABILITIES`.

The limits are from the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; 10.3 is in its
column 10.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

KIB = 1 << 10

ISSUE_LANES = 4 * 32
"""Instructions of threads that an SM can start in a clock: each of its four schedulers starts one instruction of a warp
of 32 threads (CUDA C++ Programming Guide, "Compute Capability 8.x" to "10.x")."""


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One compute capability. All numbers are per SM."""

    ctas: int
    """Most CTAs resident at once."""
    warps: int
    """Most warps resident at once."""
    smem_per_sm: int
    """Bytes of shared memory."""
    registers: int = 65536
    tmem_columns: int = 0
    """Columns of tensor memory (PTX ISA, tcgen05)."""
    fp32_lanes: int
    """32-bit multiply-adds per clock (CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions")."""
    mma_flop: Mapping[str, int] = field(default_factory=dict)
    """Dense FLOP per clock of the tensor cores by pipe; empty where parts of one capability differ (Ada, Blackwell)."""
    mma: Literal["mma", "wgmma", "tcgen05"] = "mma"
    """The tensor-core instruction that a kernel should use."""
    bytes_in_flight: int = 0
    """Bytes that must be under way to saturate the memory; 0 where that is not known.

    NVIDIA's own tuning in CUB, `arch_to_min_bytes_in_flight` in cub/device/dispatch/tuning/tuning_transform.cuh: 16 KiB
    for the A100, 32 KiB for the H100, 64 KiB for the B200. By Little's law (bytes x SMs / bandwidth) they stand for
    0.87, 1.29 and 1.21 us of latency under load. They are for `part`; `lookup.bytes_in_flight_needed` scales them for
    the part of the same capability that has the most bandwidth per SM.
    """
    part: str = ""
    """The key of the part that code generation compiles for; empty where it does not compile for this capability."""

    @property
    def smem_per_cta(self) -> int:
        """Most bytes of shared memory for one CTA: each costs 1 KiB more than it asks for (NVIDIA's tuning guides)."""
        return self.smem_per_sm - KIB

    def ctas_per_sm(self, *, registers: int, threads: int, shared: int, tmem_columns: int = 0) -> int:
        """CTAs resident on one SM at once, 0 where not even one fits. `registers` per thread, `shared` in bytes.

        A warp gets registers in units of 256, from one of four files that share them (CUDA occupancy calculator).
        """
        if shared > self.smem_per_cta:
            return 0
        warps = threads // 32
        per_warp = -(-registers * 32 // 256) * 256
        fits = [
            self.ctas,
            self.warps // warps,
            4 * (self.registers // 4 // per_warp) // warps,
            self.smem_per_sm // (-(-shared // 128) * 128 + KIB),
        ]
        if tmem_columns:
            fits.append(self.tmem_columns // tmem_columns)
        return min(fits)


CAPABILITIES = {
    80: Capability(
        ctas=32,
        warps=64,
        smem_per_sm=164 * KIB,
        fp32_lanes=64,
        mma_flop={"mma_bf16": 2048, "mma_int8": 4096, "mma_tf32": 1024},  # NVIDIA A100 whitepaper
        bytes_in_flight=16 * KIB,
        part="a100-80",
    ),
    86: Capability(ctas=16, warps=48, smem_per_sm=100 * KIB, fp32_lanes=128),
    89: Capability(ctas=24, warps=48, smem_per_sm=100 * KIB, fp32_lanes=128),
    90: Capability(
        ctas=32,
        warps=64,
        smem_per_sm=228 * KIB,
        fp32_lanes=128,
        mma_flop={"mma_bf16": 4096, "mma_fp8": 8192, "mma_int8": 8192, "mma_tf32": 2048},  # NVIDIA H100 whitepaper
        mma="wgmma",
        bytes_in_flight=32 * KIB,
        part="h100-sxm",
    ),
    100: Capability(
        ctas=32,
        warps=64,
        smem_per_sm=228 * KIB,
        tmem_columns=512,
        fp32_lanes=128,
        mma="tcgen05",
        bytes_in_flight=64 * KIB,
        part="b200",
    ),
    103: Capability(ctas=32, warps=64, smem_per_sm=228 * KIB, tmem_columns=512, fp32_lanes=128, mma="tcgen05"),
    120: Capability(ctas=24, warps=48, smem_per_sm=100 * KIB, fp32_lanes=128),
}
"""By compute capability times ten."""


def issue_rate(sm: int, fma_flops: float) -> float | None:
    """Instructions of threads that a part can start in a second, if its fp32 pipe does `fma_flops` FLOP/s.

    A clock in which the fp32 pipe is full does 2 FLOP in each of its lanes. None for a capability that is not known.
    """
    row = CAPABILITIES.get(sm)
    return fma_flops / 2 / row.fp32_lanes * ISSUE_LANES if row else None
