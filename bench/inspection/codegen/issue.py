"""How many instructions the main loop of a kernel issues for each byte of its main streams.

The main loop is the smallest loop that holds tensor-core instructions or, in a kernel without any, the loads of the
main streams. Each instruction in the loop takes one issue slot of every warp, whatever its predicate is. SASS tells how
many instructions there are. PTX tells how many bytes an iteration loads, because only PTX tells which argument a load
reads. The assembler may unroll a loop of PTX: then SASS holds the same loads several times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from bench.inspection.codegen import parse
from bench.inspection.emulator.ptx import Listing

_PRODUCT = re.compile(r"(wgmma|mma|tcgen05)\.(mma|sync)")
"""Tensor-core instructions of PTX: `wgmma.mma_async`, `mma.sync`, `tcgen05.mma`."""

_SASS_OF = {"cp.async": "LDGSTS", "load": "LDG", "tma": "UTMALDG"}
"""The SASS instruction that a load of PTX becomes."""


def smallest_loop(jumps: Iterable[tuple[int, int]], holds: Callable[[range], bool]) -> range | None:
    """The positions of the smallest loop for which `holds` is true. A jump is (its position, the position it goes to).

    A jump backwards closes a loop.
    """
    loops = (range(target, at + 1) for at, target in jumps if target <= at)
    return min((loop for loop in loops if holds(loop)), key=len, default=None)


def sass_loop(sass: Sequence[parse.Instruction], load: str) -> list[str]:
    """The opcodes of the main loop without their modifiers; empty for a kernel that has none. `load`: the opcode by
    which the main streams are read."""
    positions = {each.at: position for position, each in enumerate(sass)}
    targets = [(at, each.target) for at, each in enumerate(sass) if each.target is not None]
    jumps = [(at, positions[target]) for at, target in targets if target in positions]
    names = [each.name for each in sass]
    products = [parse.is_mma(name) for name in names]
    wanted = products if any(products) else [name == load for name in names]
    loop = smallest_loop(jumps, lambda loop: any(wanted[at] for at in loop))
    return [names[at] for at in loop] if loop else []


def ptx_loop(listing: Listing, loads: Collection[int]) -> range:
    """The positions of the main loop, empty where there is none. `loads`: those of the main streams' loads."""
    jumps = []
    for at, ins in enumerate(listing.code):
        if ins.opcode.split(".")[0] == "bra" and isinstance(target := ins.operands[0], str):
            jumps.append((at, listing.labels[target]))
    products = [at for at, ins in enumerate(listing.code) if _PRODUCT.match(ins.opcode)]
    wanted = set(products or loads)
    return smallest_loop(jumps, lambda loop: not wanted.isdisjoint(loop)) or range(0)


def slots_per_byte(
    sass: Sequence[parse.Instruction],
    listing: Listing,
    accesses: Sequence[parse.PtxAccess],
    streams: frozenset[int],
    tma_bytes: int = 0,
) -> float:
    """Lane-instructions of the main loop for each byte of the main streams; 0 where no loop streams.

    `accesses` are all that `parse.ptx_accesses` finds; `streams` are the positions of the main streams among the
    parameters. `tma_bytes` is what one TMA load brings to the CTA.
    """
    reads = [access for access in accesses if access.how != "store"]
    loop = ptx_loop(listing, [access.at for access in reads if access.parameters & streams])
    inside = [access for access in reads if access.at in loop]
    main = [access for access in inside if access.parameters & streams]
    if not main:
        return 0.0
    how = main[0].how
    body = sass_loop(sass, _SASS_OF[how])
    again = body.count(_SASS_OF[how]) / sum(access.how == how for access in inside)
    loaded = sum(tma_bytes if access.how == "tma" else access.width * listing.threads for access in main)
    return len(body) * listing.threads / (loaded * again) if again else 0.0
