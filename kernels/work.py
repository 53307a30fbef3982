"""What is moved and computed: the least that an operation needs (`Work`), and what a kernel really does (`Stage`).

Both belong to the contract, and `kernels/op.py` passes them on. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs and DRAM bytes. `flops` is split by the pipe that executes them, since each pipe has its own roof.

    Pipes: `mma_bf16` (fp16 too), `mma_fp8`, `mma_int8`, `mma_fp4`, `mma_tf32` are tensor cores; `fma_fp32` is the
    ordinary arithmetic pipe (dot-product GEMV, softmax, fp32 on a CPU). One multiply-add counts as 2 FLOP.
    """

    flops: Mapping[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOP per DRAM byte."""
        return self.total_flops / self.bytes if self.bytes else 0.0

    def __add__(self, other: Work) -> Work:
        pipes = [*self.flops, *(p for p in other.flops if p not in self.flops)]
        return Work(
            flops={p: self.flops.get(p, 0) + other.flops.get(p, 0) for p in pipes},
            bytes_read=self.bytes_read + other.bytes_read,
            bytes_written=self.bytes_written + other.bytes_written,
        )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one kernel of a launch really does. An implementation declares its traffic in these units.

    `work` counts the bytes that must come from or reach DRAM (re-reads that miss the L2 included) and the FLOPs
    executed (padding included). `l2_bytes` are the further bytes that the L2 serves: parts that are read again,
    repeated activations. `link_bytes` cross the link between the host's memory and the device's.
    `ctas` is the size of the grid, 0 where a library does not tell it; an SM holds `ctas_per_sm` of them at once.
    """

    name: str
    work: Work
    l2_bytes: int = 0
    link_bytes: int = 0
    peer_bytes: int = 0
    """Bytes that a rank reads from other ranks, or gets from them."""
    ctas: int = 0
    ctas_per_sm: int = 1
    pieces: tuple[tuple[int, int], ...] = ()
    """(how many CTAs, the size of each) in the order in which they start, where CTAs differ in size. Any unit will do.
    Empty where all CTAs are equal."""
    loads_before: Mapping[str, int] = field(default_factory=dict)
    """Loads that a CTA does one after the other before its stream begins, because each needs the result of the last:
    a list, then a page id. By the level that answers: `dram`, `l2` or `l1`. The first load of the stream itself does
    not count: a plain read has it too."""
    loads_after: Mapping[str, int] = field(default_factory=dict)
    """The same behind the stream: a CTA counts its arrival, then reads the parts of the others. Atomics and fences
    count as loads."""
    instructions: int = 0
    """Instructions of threads that the main loop issues: `KernelLaunch.slots_per_byte` times the bytes that all CTAs
    stream. 0 where they are not declared."""


def part_of(stage: str) -> str:
    """The part that a stage of a step belongs to: `qkv` of `0.qkv gemv`, where 0 is the layer."""
    return stage.partition(" ")[0].rpartition(".")[2]


def total(stages: Iterable[Stage]) -> Work:
    """The work of all stages together."""
    result = Work()
    for stage in stages:
        result = result + stage.work
    return result
