"""Read the compiler's listings: TTGIR, PTX, SASS and resource usage. Text in, data out.

- TTGIR says how each pointer argument is read (TMA, `cp.async`, plain load) and how many bytes one statement asks for.
- PTX says how wide the access of one thread is; its address is followed back to the kernel's parameters.
- SASS says what the chip executes: spills, tensor-core instructions, how many loads wait together.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bench.inspection.emulator.ptx import Address, Listing, Operand

How = Literal["tma", "cp.async", "load", "store"]

BITS = {"i1": 8, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64}
"""Bits in memory of MLIR's element types. Every `f8...` type has 8."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """One statement of the TTGIR that moves a tile between global memory and a CTA."""

    args: frozenset[str]
    """Names of the pointer or descriptor arguments from which the address is computed."""
    how: How
    tile_bytes: int
    block: int
    """The straight piece of code in which it stands. Loads of one piece are issued together."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a kernel uses: per thread registers, bytes of stack and of local memory; per CTA bytes of shared memory."""

    registers: int
    stack: int
    local: int
    shared: int


_SSA = re.compile(r"%[\w$.\-]+(?:#\d+)?")
_NESTED = r"<(?:[^<>]|<(?:[^<>]|<(?:[^<>]|<[^<>]*>)*>)*>)*>"
_ARGUMENT = re.compile(rf"(%[\w$.\-]+): (!?[\w.]+(?:{_NESTED})?)(?: \{{[^}}]*\}})?(?: loc\((?:\"([^\"]+)\")?)?")
_CARRIED = re.compile(r"(%[\w$.\-]+) = (%[\w$.\-]+(?:#\d+)?)")
_TILE = re.compile(r"(?:tensor|memdesc|tensordesc<tensor|tensordesc|^|-> )<((?:\d+x)+)(?:!tt\.ptr<(\w+)|(\w+))")


def ttgir_arguments(ttgir: str) -> list[tuple[str, str, str]]:
    """The kernel's lowered arguments in order: SSA name, type, and the Python argument that each comes from.

    A tensor descriptor made on the host becomes several arguments, which are all named after it.
    """
    header = next(line for line in ttgir.splitlines() if "tt.func public" in line)
    found = []
    for ssa, kind, origin in _ARGUMENT.findall(header[header.index("(") :]):
        name = origin or ssa[1:]
        found.append((ssa, kind, name.split(".")[0]))
    return found


def _tile_bytes(text: str) -> int:
    """Bytes of the first tile type in `text`; for a scalar pointer, bytes of one element."""
    tile = _TILE.search(text)
    if tile:
        elements = 1
        for extent in tile[1].rstrip("x").split("x"):
            elements *= int(extent)
        element = tile[2] or tile[3]
    else:
        scalar = re.search(r"!tt\.ptr<(\w+)", text)
        if not scalar:
            return 0
        elements, element = 1, scalar[1]
    return elements * (8 if element.startswith("f8") else BITS[element]) // 8


def _results(left: str) -> list[str]:
    """`%a` or `%a:3` -> the names of the results."""
    name, _, count = left.strip().partition(":")
    return [f"{name}#{i}" for i in range(int(count))] if count else [name]


_MOVES: tuple[tuple[str, How], ...] = (
    ("async_tma_copy_global_to_local", "tma"),
    ("async_tma_gather", "tma"),
    ("async_tma_copy_local_to_global", "store"),
    ("async_copy_global_to_local", "cp.async"),
    ("tt.load ", "load"),
    ("tt.store ", "store"),
)


def ttgir_accesses(ttgir: str) -> list[Access]:
    """Every access of global memory, with the arguments from which its address is computed.

    Values are followed through arithmetic, through loops and branches (initial values, yields, results) and through
    descriptors made on the device. A loaded value carries nothing on, so that a page is not taken for a part of the
    block table that points to it.
    """
    sources: dict[str, frozenset[str]] = defaultdict(frozenset)
    for ssa, kind, name in ttgir_arguments(ttgir):
        if "tt.ptr" in kind or "tensordesc" in kind:
            sources[ssa] = frozenset({name})
    lines = [re.sub(r" loc\(.*$", "", line).strip() for line in ttgir.splitlines()]
    start = next(i for i, line in enumerate(lines) if "tt.func public" in line) + 1
    accesses: list[Access] = []
    for _ in range(3):  # values in nested loops settle after as many passes as the loops are deep
        accesses = []
        # for each open region: its block, the results of its operation, the names carried from iteration to iteration
        regions: list[tuple[int, list[str], list[str]]] = [(0, [], [])]
        blocks = 0
        passed: list[str] = []
        for line in lines[start:]:
            if line.startswith("}") and len(regions) > 1:
                _, results, carried = regions.pop()
                if line.endswith("{"):  # } else {   } do {
                    blocks += 1
                    regions.append((blocks, results, carried))
                continue
            move = next((how for text, how in _MOVES if text in line), None)
            left, _, right = line.partition(" = ") if line.startswith("%") else ("", "", line)
            operands = _SSA.findall(right)
            if move:
                address = operands[0]
                tile = line.split(" : ", 1)[-1]
                tile = tile.rsplit(" -> ", 1)[-1] if move in ("tma", "cp.async") else tile
                accesses.append(
                    Access(args=sources[address], how=move, tile_bytes=_tile_bytes(tile), block=regions[-1][0])
                )
            elif "ttng.tensormap_create" in line:
                sources[operands[0]] |= sources[operands[1]]
            elif line.startswith("scf.yield"):
                _, results, carried = regions[-1]
                for position, operand in enumerate(operands):
                    for names in (results, carried):
                        if position < len(names):
                            sources[names[position]] |= sources[operand]
            elif line.startswith("scf.condition"):
                passed = operands[1:]
                for result, operand in zip(regions[-1][1], passed, strict=False):
                    sources[result] |= sources[operand]
            elif line.startswith("^bb"):
                for (inner, _, _), operand in zip(_ARGUMENT.findall(line), passed, strict=False):
                    sources[inner] |= sources[operand]
                passed = []
            elif line.endswith("{"):
                results = _results(left) if left else []
                carried = []
                if "iter_args" in line or right.startswith("scf.while"):
                    for inner, outer in _CARRIED.findall(re.split(r"iter_args|scf\.while", line)[-1]):
                        sources[inner] |= sources[outer]
                        carried.append(inner)
                blocks += 1
                regions.append((blocks, results, carried))
            elif left:
                origin: frozenset[str] = frozenset().union(*(sources[o] for o in operands))
                for result in _results(left):
                    sources[result] |= origin
    return accesses


def pipelined_bytes(accesses: Iterable[Access], streams: Iterable[str]) -> int:
    """Bytes of `streams` that one CTA has under way in asynchronous reads: the most issued in one piece of code.

    The prologue of a pipelined loop issues `num_stages - 1` tiles before the first wait. Each iteration then waits for
    one tile and issues another.
    """
    wanted = frozenset(streams)
    per_block: dict[int, int] = defaultdict(int)
    for access in accesses:
        if access.how in ("tma", "cp.async") and access.args & wanted:
            per_block[access.block] += access.tile_bytes
    return max(per_block.values(), default=0)


@dataclass(frozen=True, kw_only=True)
class PtxAccess:
    """One global access of a thread: the parameters, by position, that its address comes from, and its width in bytes.

    The width is 0 for TMA.
    """

    parameters: frozenset[int]
    how: How
    width: int
    at: int = 0
    """Its position in the listing."""


def _names(operand: Operand) -> tuple[str, ...]:
    """The registers, parameters and symbols that an operand mentions."""
    match operand:
        case str():
            return (operand,)
        case Address(base=base, coordinates=coordinates):
            return (*_names(base), *_names(coordinates))
        case tuple():
            return tuple(name for each in operand for name in _names(each))
    return ()


def _width(parts: list[str]) -> int:
    """Bytes that one thread moves: `["ld", "global", "v4", "b32"]` -> 16."""
    vector = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d+", part)), 1)
    return vector * int(parts[-1][1:]) // 8


def ptx_accesses(listing: Listing, pointers: Iterable[int]) -> list[PtxAccess]:
    """Global accesses whose address comes from the parameters at the positions `pointers`.

    Registers are followed without regard to order, until nothing changes. A loaded value carries nothing on, with one
    exception: when layouts change, threads hand addresses to each other through shared memory, so a 64-bit load from
    shared memory carries on what the group of 64-bit stores before it carries.
    """
    sources: dict[str, frozenset[int]] = defaultdict(frozenset)
    sources |= {listing.parameters[i]: frozenset({i}) for i in pointers}
    flows: list[tuple[str, tuple[str, ...]]] = []
    accesses: list[tuple[int, How, int, Operand]] = []
    handed: tuple[str, ...] = ()
    taken = False
    for at, ins in enumerate(listing.code):
        parts = [part.split("::")[0] for part in ins.opcode.split(".")]
        first, rest = ins.operands[:1], ins.operands[1:]
        places = [operand.base for operand in ins.operands if isinstance(operand, Address)]
        moves = parts[0] in ("ld", "st")
        if parts[:3] == ["cp", "async", "bulk"]:
            if "global" in parts and "shared" in parts and len(places) > 1:
                loads = parts.index("shared") < parts.index("global")
                accesses.append((at, "tma" if loads else "store", 0, places[1 if loads else 0]))
        elif parts[:2] == ["cp", "async"]:
            if len(places) > 1 and isinstance(ins.operands[2], int):
                accesses.append((at, "cp.async", ins.operands[2], places[1]))
        elif moves and "global" in parts:
            accesses.append((at, "load" if parts[0] == "ld" else "store", _width(parts), places[0]))
        elif moves and parts[1] == "shared" and parts[-1] in ("b64", "u64"):
            if parts[0] == "ld":
                flows += [(name, handed) for name in _names(first)]
                taken = True
            else:
                handed = _names(rest) if taken else (*handed, *_names(rest))
                taken = False
        elif parts[:2] == ["ld", "param"] or not (moves or parts[0].startswith(("atom", "red"))):
            flows += [(name, _names(rest)) for name in _names(first)]
    changed = True
    while changed:
        changed = False
        for target, origins in flows:
            merged = sources[target].union(*(sources[o] for o in origins))
            changed |= merged != sources[target]
            sources[target] = merged
    found = []
    for at, how, width, address in accesses:
        origin = frozenset().union(*(sources[name] for name in _names(address)))
        if origin:
            found.append(PtxAccess(parameters=origin, how=how, width=width, at=at))
    return found


_SASS_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][\w.]*)([^;]*);")
_ADDRESS = re.compile(r"0x([0-9a-f]+)$")
_MMA = re.compile(r"UTC[HQOI]MMA|[HQIB]GMMA|[HQIDO]MMA")


class Instruction(NamedTuple):
    """One instruction of SASS: its address, its opcode with modifiers, and its operands."""

    at: int
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """The address that a branch goes to; None for what is no branch, or goes where a register says."""
        found = _ADDRESS.search(self.operands) if self.name == "BRA" else None
        return int(found[1], 16) if found else None


def sass_instructions(listing: str) -> list[Instruction]:
    """Every instruction that `nvdisasm --binary` lists."""
    found = map(_SASS_LINE.search, listing.splitlines())
    return [Instruction(int(line[1], 16), line[2], line[3].strip()) for line in found if line]


def sass_spills(sass: Iterable[Instruction]) -> int:
    """The number of loads from and stores to local memory."""
    return sum(each.name in ("LDL", "STL") for each in sass)


def is_mma(name: str) -> bool:
    """Whether an instruction of SASS multiplies on tensor cores. `name` is its opcode without modifiers."""
    return bool(_MMA.fullmatch(name))


def sass_mma(sass: Iterable[Instruction]) -> str:
    """The tensor-core instruction with its shape, of several the newest kind; empty if there is none."""
    found = {each.opcode for each in sass if is_mma(each.name)}
    return max(found, key=lambda opcode: (opcode.startswith("UTC"), "GMMA" in opcode, opcode), default="")


def _load_width(opcode: str) -> int:
    parts = opcode.split(".")[1:]
    for name, width in (("256", 32), ("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if name in parts:
            return width
    return 4


def sass_waiting_bytes(sass: Iterable[Instruction], width: int) -> int:
    """The most bytes that a thread has under way in plain loads of `width` bytes.

    A load is under way until an instruction names its destination. Code is read in order; at a jump backwards nothing
    is under way.
    """
    waiting: dict[int, int] = {}
    most = 0
    for each in sass:
        if each.target is not None and each.target <= each.at:
            waiting.clear()
        touched = [int(r) for r in re.findall(r"\bR(\d+)\b", each.operands)]
        is_load = each.name == "LDG" and _load_width(each.opcode) == width
        for first, bytes_ in list(waiting.items()):
            if any(first <= r < first + max(1, bytes_ // 4) for r in touched):
                del waiting[first]
        if is_load and touched:
            waiting[touched[0]] = width
            most = max(most, sum(waiting.values()))
    return most


def resources(listing: str) -> Resources:
    """Read the output of `cuobjdump --dump-resource-usage` for one kernel."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", listing)
    if not found:
        raise ValueError(f"no resource usage in {listing!r}")
    registers, stack, shared, local = map(int, found.groups())
    return Resources(registers=registers, stack=stack, local=local, shared=shared)
