"""The memory ceilings, on fp32 arrays. Predictions of all other operations are made from them.

| kind | computes | moves |
|---|---|---|
| `read` | y[c] = sum of chunk c of x | `size` bytes read; the roof of decode, which hardly writes |
| `copy` | y = x | `size` read, `size` written |
| `triad` | z = x + 2.5 y | 2 `size` read, `size` written |
| `l2_read` | y[c] = sum over p < `passes` of sum(chunk (c + p) mod C) | `size` from DRAM, all else from L2 |
| `launch` | y[0] = x[0] | 4 bytes read and written: all its time is the launch |

A chunk is 4096 elements (16 KiB), so the sums are 1/4096 of what is read. The operation defines the chunk, so that the
output is the same whatever grid computes it. The last chunk of a `read` may be short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kernels.common.integers import GiB, KiB, MiB, cdiv, size_text
from kernels.common.random_inputs import RandomInputs
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

CHUNK = 4096
"""Elements that are summed into one output."""

ALPHA = 2.5
"""The factor of the triad, exact in fp32."""

L2_SIZE = 6 * 132 * 4 * CHUNK
"""Six chunks for each of an H100's 132 SMs: 13.0 MB, a quarter of its 50 MB L2. No SM reads more than another."""


@dataclass(frozen=True, kw_only=True)
class StreamCase(Case):
    """`size`: bytes of each array, a multiple of 4 up to 4 GiB, so that an element's index fits in 32 bits.

    `passes`: how often an `l2_read` reads its array; 1 for other kinds.
    """

    kind: Literal["read", "copy", "triad", "l2_read", "launch"]
    size: int
    passes: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.size <= 4 * GiB or self.size % 4:
            raise ValueError(f"size {self.size} is no positive multiple of an element's 4 bytes up to 4 GiB")
        if self.kind == "l2_read" and self.size % (4 * CHUNK):
            raise ValueError(f"an l2_read of {self.size} bytes is not made of whole chunks of {4 * CHUNK}")
        if self.kind == "launch" and self.size != 4:
            raise ValueError("a launch moves one element of 4 bytes")
        if self.passes < 1 or (self.kind != "l2_read" and self.passes != 1):
            raise ValueError(f"{self.passes} passes of a {self.kind}")

    @property
    def n(self) -> int:
        """Elements of each array."""
        return self.size // 4

    @property
    def chunks(self) -> int:
        """Outputs of a `read` or `l2_read`."""
        return cdiv(self.n, CHUNK)

    @property
    def id(self) -> str:
        return f"{self.kind}-{size_text(self.size)}" + (f"-x{self.passes}" if self.kind == "l2_read" else "")


def cases(suite: str) -> list[StreamCase]:
    """Reads from 64 KiB, where the launch decides the time, to far beyond any cache, where the memory does."""

    def several(kind: Literal["read", "copy", "triad"], *sizes: int) -> list[StreamCase]:
        return [StreamCase(kind=kind, size=size) for size in sizes]

    def l2(*passes: int) -> list[StreamCase]:
        return [StreamCase(kind="l2_read", size=L2_SIZE, passes=p) for p in passes]

    launch = StreamCase(kind="launch", size=4)
    if suite == "smoke":
        return [
            launch,
            *several("read", MiB, 16 * MiB, 64 * MiB, 128 * MiB),
            *several("copy", 8 * MiB),
            *several("triad", 8 * MiB),
        ]
    if suite == "quick":
        return [
            launch,
            *several("read", 64 * KiB, MiB, 4 * MiB, 16 * MiB, 64 * MiB, 256 * MiB, GiB),
            *several("copy", 256 * MiB),
            *several("triad", 256 * MiB),
            *l2(128),
        ]
    if suite == "full":
        return [
            launch,
            *several("read", 64 * KiB, 256 * KiB, *(MiB << shift for shift in range(7)), 256 * MiB, GiB, 4 * GiB),
            *several("copy", 16 * MiB, 256 * MiB, GiB),
            *several("triad", 256 * MiB, GiB),
            *l2(32, 128),
        ]
    return [
        launch,
        *several("read", 4 * CHUNK, 4, 5 * 4 * CHUNK, 18 * 4 * CHUNK + 4 * 37),
        *several("copy", 4, 8 * CHUNK, 12 * CHUNK + 4 * 37),
        *several("triad", 4, 8 * CHUNK, 12 * CHUNK + 4 * 37),
        StreamCase(kind="l2_read", size=3 * 4 * CHUNK, passes=1),
        StreamCase(kind="l2_read", size=3 * 4 * CHUNK, passes=5),
    ]


def inputs(case: StreamCase, device: str, seed: int) -> Inputs:
    """x (and y for a triad) `[n]` fp32, drawn from |N(0, 1)|: sums of positive terms do not cancel."""
    draw = RandomInputs(device, seed)
    made = {name: draw.normal((case.n,), "fp32") for name in ("x", "y")[: 1 + (case.kind == "triad")]}
    return made if device == "meta" else {name: values.abs_() for name, values in made.items()}


def chunk_sums(x: torch.Tensor) -> torch.Tensor:
    """x `[n]` fp32 -> the sums of its chunks, `[C]` fp64. It works in slices, so that a large x is never held twice."""
    import torch

    sums = []
    for part in x.split(1024 * CHUNK):
        padded = torch.nn.functional.pad(part, (0, -len(part) % CHUNK))
        sums.append(padded.double().view(-1, CHUNK).sum(dim=1))
    return torch.cat(sums)


def reference(case: StreamCase, inputs: Inputs) -> torch.Tensor:
    """Sums in fp64; a copy in fp32; a triad in fp32, computed in fp64 slice by slice."""
    import torch

    x = inputs["x"]
    if case.kind in ("copy", "launch"):
        return x.clone()
    if case.kind == "triad":
        pairs = zip(x.split(1024 * CHUNK), inputs["y"].split(1024 * CHUNK), strict=True)
        return torch.cat([(a.double() + ALPHA * b.double()).float() for a, b in pairs])
    sums = chunk_sums(x)
    if case.kind == "read":
        return sums
    return torch.stack([sums.roll(-p) for p in range(case.passes)]).sum(dim=0)


def work(case: StreamCase) -> Work:
    """Each array once; one addition per element summed, 2 FLOP per element of a triad."""
    arrays_read = 2 if case.kind == "triad" else 1
    summed = case.kind in ("read", "l2_read")
    flops = {"read": case.n, "l2_read": case.passes * case.n, "triad": 2 * case.n}.get(case.kind, 0)
    return Work(
        flops={"fma_fp32": flops} if flops else {},
        bytes_read=arrays_read * case.size,
        bytes_written=4 * case.chunks if summed else case.size,
    )


def tolerance(case: StreamCase) -> Tolerance:
    if case.kind in ("copy", "launch"):
        return Tolerance(max_rel=0.0, rms_rel=0.0, why="a copy is exact")
    if case.kind == "triad":
        return Tolerance(max_rel=2**-23, rms_rel=2**-23, why="one or two fp32 roundings of positive terms")
    return Tolerance(
        max_rel=1e-5,
        rms_rel=2e-6,
        why="fp32 sums of 4096 positive terms by trees; one element left out is 2e-4 of a sum",
    )


OP = Op(
    name="stream",
    title="memory streams",
    role="ceiling",
    about="memory ceilings: read, copy, triad, L2 and launch",
    formula="y[c] = sum(x[chunk c]); y = x; z = x + 2.5 y",
    case_type=StreamCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
)
