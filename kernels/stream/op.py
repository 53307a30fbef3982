"""The memory ceilings. Predictions of all other operations are made from them. Arrays are fp32; a `chase` has int32.

| kind | computes | moves |
|---|---|---|
| `read` | y[c] = sum of chunk c of x | `size` bytes read; the roof of decode, which hardly writes |
| `copy` | y = x | `size` read, `size` written |
| `triad` | z = x + 2.5 y | 2 `size` read, `size` written |
| `fma_read` | y[c] = sum of chunk c of x after `passes` times x <- (1 - 2^-12) x + 2^-12 | `size` bytes read |
| `l2_read` | y[c] = sum over p < `passes` of sum(chunk (c + p) mod C) | `size` from DRAM, all else from L2 |
| `chase` | y[c] = a_c after `loads` times a_c = x[a_c], from the first element of line c | 32 bytes a load |
| `launch` | y[0] = x[0] | 4 bytes read and written: all its time is the launch |

An `fma_read` tells what a host makes of memory and arithmetic together: its cores do not hide all of one behind the
other. So the roofline of a host has no sharp ridge, and the time of a stream that computes is measured as such, with a
few FLOPs per byte (as the Empirical Roofline Toolkit does).

A chunk is 4096 elements (16 KiB), so the sums are 1/4096 of what is read. The operation defines the chunk, so that the
output is the same whatever grid computes it. The last chunk of a `read` may be short.

A `chase` tells how long one load takes when it must wait for the load before it: each line of 128 bytes begins with the
place of the next line. There are `chains` such chains at once, as many as a part has SMs, so that few copies of the
array suffice to keep the caches cold. They do not slow each other down: 128 loads of 32 bytes in 0.7 us are 6 GB/s. The
lines of all chains are drawn from the whole array. The first pass over a chain brings its lines from the memory; in
later passes a cache answers if it holds the array. So the price of a load is

- in the memory: the time of a chase with no second pass, over its loads;
- in a cache: the difference of the times of two chases over the same array, over the difference of their loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kernels.common.fields import Count
from kernels.common.integers import GiB, KiB, MiB, cdiv, size_text
from kernels.common.random_inputs import RandomInputs
from kernels.common.smaller import fewer
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

CHUNK = 4096
"""Elements that are summed into one output."""

ALPHA = 2.5
"""The factor of the triad, exact in fp32."""

FMA_A = 1 - 2**-12
FMA_B = 2**-12
"""Each step of an `fma_read` brings x nearer to 1 by 1/4096."""

LINE = 32
"""Elements of a line of a `chase`: 128 bytes, what the caches of NVIDIA's parts keep track of."""

SECTOR = 32
"""Bytes that one load of a `chase` moves: the L1 and the L2 ask for sectors, not for whole lines."""

CHAINS = 128
"""Chains of a `chase`, each in a CTA of its own: an H100 has an SM for each."""

L2_SIZE = 6 * 132 * 4 * CHUNK
"""Six chunks for each of an H100's 132 SMs: 13.0 MB, a quarter of its 50 MB L2. No SM reads more than another."""


@dataclass(frozen=True, kw_only=True)
class StreamCase(Case):
    """`size`: bytes of each array, a multiple of 4 up to 4 GiB, so that an element's index fits in 32 bits.

    `passes`: how often an `l2_read` reads its array, multiply-adds of each element of an `fma_read`; 1 for other kinds.
    Only for a `chase`: `chains`, the `loads` of each chain, and whether the loads may find lines in the L1 (`l1`) or go
    past it.
    """

    kind: Literal["read", "copy", "triad", "fma_read", "l2_read", "chase", "launch"]
    size: int
    passes: int = 1
    chains: Count = 0
    loads: Count = 0
    l1: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size > 4 * GiB or self.size % 4:
            raise ValueError(f"size {self.size}: expected a positive multiple of an element's 4 bytes, up to 4 GiB")
        if self.kind in ("fma_read", "l2_read") and self.size % (4 * CHUNK):
            raise ValueError(f"size {self.size}: an {self.kind} is whole chunks of {4 * CHUNK} bytes")
        if self.kind == "launch" and self.size != 4:
            raise ValueError(f"size {self.size}: a launch moves one element of 4 bytes")
        if self.kind not in ("fma_read", "l2_read") and self.passes != 1:
            raise ValueError(f"passes {self.passes}: a {self.kind} has one")
        if (self.kind == "chase") != (self.chains > 0) or (self.kind == "chase") != (self.loads > 0):
            raise ValueError(f"chains {self.chains}, loads {self.loads}: a chase has both, a {self.kind} neither")
        if self.kind == "chase" and self.size % (4 * LINE * self.chains):
            raise ValueError(f"size {self.size}: a chase over it is not {self.chains} chains of whole lines")
        if self.kind == "chase" and self.loads % (self.lines // self.chains) == 0:
            raise ValueError(f"loads {self.loads}: each chain is back where it began, and the result shows nothing")

    @property
    def n(self) -> int:
        """Elements of each array."""
        return self.size // 4

    @property
    def chunks(self) -> int:
        """Outputs of a read of any kind."""
        return cdiv(self.n, CHUNK)

    @property
    def lines(self) -> int:
        """Lines of a chase."""
        return self.size // (4 * LINE)

    @property
    def lines_met(self) -> int:
        """Different lines that the loads of all chains of a chase meet."""
        return min(self.chains * self.loads, self.lines)

    @property
    def id(self) -> str:
        if self.kind == "chase":
            return f"chase-{size_text(self.size)}-{self.chains}x{self.loads}" + ("-l1" if self.l1 else "")
        return f"{self.kind}-{size_text(self.size)}" + (
            f"-x{self.passes}" if self.kind in ("fma_read", "l2_read") else ""
        )


def cases(suite: str) -> list[StreamCase]:
    """Reads from 64 KiB, where the launch decides the time, to far beyond any cache, where the memory does."""

    def several(kind: Literal["read", "copy", "triad"], *sizes: int) -> list[StreamCase]:
        return [StreamCase(kind=kind, size=size) for size in sizes]

    def l2(*passes: int) -> list[StreamCase]:
        return [StreamCase(kind="l2_read", size=L2_SIZE, passes=p) for p in passes]

    def chase(size: int, *passes: int, l1: bool = False) -> list[StreamCase]:
        """All passes but the last load, which would lead back to where a chain began."""
        each = size // (4 * LINE * CHAINS)
        return [StreamCase(kind="chase", size=size, chains=CHAINS, loads=p * each - 1, l1=l1) for p in passes]

    # 16,384 of a chain's 262,144 lines: 12 ms; four copies are met in 268 MB, four times the L2 of an H200
    far = StreamCase(kind="chase", size=4 * GiB, chains=CHAINS, loads=16384)

    launch = StreamCase(kind="launch", size=4)
    if suite == "smoke":
        return [
            launch,
            *several("read", MiB, 16 * MiB, 64 * MiB, 128 * MiB),
            *several("copy", 8 * MiB),
            *several("triad", 8 * MiB),
            *(StreamCase(kind="fma_read", size=64 * MiB, passes=passes) for passes in (2, 8, 16)),
        ]
    if suite == "quick":
        return [
            launch,
            *several("read", 64 * KiB, MiB, 4 * MiB, 16 * MiB, 64 * MiB, 256 * MiB, GiB),
            *several("copy", 256 * MiB),
            *several("triad", 256 * MiB),
            *l2(128),
            *chase(16 * MiB, 1, 5),
            far,
        ]
    if suite == "full":
        return [
            launch,
            *several("read", 64 * KiB, 256 * KiB, *(MiB << shift for shift in range(7)), 256 * MiB, GiB, 4 * GiB),
            *several("copy", 16 * MiB, 256 * MiB, GiB),
            *several("triad", 256 * MiB, GiB),
            *l2(32, 128),
            # 16 KiB for each chain, which an L1 holds; from 2 to 16 MiB for all of them, which an L2 holds
            *chase(CHAINS * 16 * KiB, 1, 17, l1=True),
            *chase(2 * MiB, 1, 5),
            *chase(16 * MiB, 1, 5),
            *chase(256 * MiB, 1),
            far,
        ]
    return [
        launch,
        *several("read", 4 * CHUNK, 4, 5 * 4 * CHUNK, 18 * 4 * CHUNK + 4 * 37),
        *several("copy", 4, 8 * CHUNK, 12 * CHUNK + 4 * 37),
        *several("triad", 4, 8 * CHUNK, 12 * CHUNK + 4 * 37),
        StreamCase(kind="l2_read", size=3 * 4 * CHUNK, passes=1),
        StreamCase(kind="l2_read", size=3 * 4 * CHUNK, passes=5),
        StreamCase(kind="chase", size=4 * LINE * 8, chains=1, loads=1),
        StreamCase(kind="chase", size=4 * LINE * 21, chains=3, loads=5),
        StreamCase(kind="chase", size=4 * LINE * 21, chains=3, loads=17, l1=True),
    ]


def chained(case: StreamCase, draw: RandomInputs) -> torch.Tensor:
    """x `[n]` int32 of a chase: the first element of a line is the place of the first element of the next line.

    Chain c begins at line c, meets as many lines as every other chain in random order, and then begins again.
    """
    import torch

    if draw.device == "meta":
        return torch.empty(case.n, dtype=torch.int32, device="meta")
    starts = torch.arange(case.chains, device=draw.device)[:, None]
    others = draw.permutation(case.lines - case.chains) + case.chains
    order = torch.cat([starts, others.view(case.chains, -1)], dim=1)
    x = torch.zeros(case.n, dtype=torch.int32, device=draw.device)
    x.view(-1, LINE)[order.flatten(), 0] = LINE * order.roll(-1, dims=1).flatten().int()
    return x


def inputs(case: StreamCase, device: str, seed: int) -> Inputs:
    """x (and y for a triad) `[n]` fp32, drawn from |N(0, 1)|: sums of positive terms do not cancel. For a chase, x is
    `chained`."""
    draw = RandomInputs(device, seed)
    if case.kind == "chase":
        return {"x": chained(case, draw)}
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


def ends(case: StreamCase, x: torch.Tensor) -> torch.Tensor:
    """Where the chains of a chase end, `[chains]` int64: the map from line to next line, raised to the power `loads` by
    squaring."""
    import torch

    step = x.view(-1, LINE)[:, 0].long() // LINE
    at = torch.arange(case.chains, device=x.device)
    left = case.loads
    while left:
        at = step[at] if left % 2 else at
        left //= 2
        step = step[step] if left else step
    return LINE * at


def reference(case: StreamCase, inputs: Inputs) -> torch.Tensor:
    """Sums in fp64; a copy in fp32; a triad in fp32, computed in fp64 slice by slice; places in int64."""
    import torch

    x = inputs["x"]
    if case.kind == "chase":
        return ends(case, x)
    if case.kind in ("copy", "launch"):
        return x.clone()
    if case.kind == "triad":
        pairs = zip(x.split(1024 * CHUNK), inputs["y"].split(1024 * CHUNK), strict=True)
        return torch.cat([(a.double() + ALPHA * b.double()).float() for a, b in pairs])
    sums = chunk_sums(x)
    if case.kind == "read":
        return sums
    if case.kind == "fma_read":
        return CHUNK + FMA_A**case.passes * (sums - CHUNK)
    return torch.stack([sums.roll(-p) for p in range(case.passes)]).sum(dim=0)


def work(case: StreamCase) -> Work:
    """Each array once; one addition per element summed, 2 FLOP per element of a triad and per multiply-add.

    A chase reads a sector of each line that it meets.
    """
    if case.kind == "chase":
        return Work(bytes_read=SECTOR * case.lines_met, bytes_written=4 * case.chains)
    arrays_read = 2 if case.kind == "triad" else 1
    summed = case.kind in ("read", "fma_read", "l2_read")
    per_element = {"read": 1, "fma_read": 2 * case.passes + 1, "l2_read": case.passes, "triad": 2}
    flops = per_element.get(case.kind, 0) * case.n
    return Work(
        flops={"fma_fp32": flops} if flops else {},
        bytes_read=arrays_read * case.size,
        bytes_written=4 * case.chunks if summed else case.size,
    )


def tolerance(case: StreamCase) -> Tolerance:
    if case.kind in ("copy", "launch", "chase"):
        return Tolerance(max_rel=0.0, rms_rel=0.0, why="a copy is exact, and so is a place in an array")
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
    about="memory ceilings: read, copy, triad, L2, dependent loads and launch",
    formula="y[c] = sum(x[chunk c]); y = x; z = x + 2.5 y; y[c] = x[x[...x[line c]]]",
    case_type=StreamCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
    smaller=lambda case, n: fewer(case, n, size=64 * CHUNK) if case.kind == "fma_read" else None,
)
