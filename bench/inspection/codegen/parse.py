"""What the compiler made, read from its own listings: TTGIR, PTX, SASS, resource usage. Pure text in, data out.

- TTGIR says how each pointer argument is read (TMA, `cp.async`, plain load) and how many bytes one statement asks for;
- PTX says how wide one thread's access is: addresses are followed back to the kernel's parameters;
- SASS says what the chip executes: spills, tensor-core instructions, how many loads wait at once.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

How = Literal["tma", "cp.async", "load", "store"]

BITS = {"i1": 8, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64}
"""Element types of MLIR -> bits in memory; every `f8...` has 8."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """One statement of the TTGIR that moves a tile between global memory and a CTA."""

    args: frozenset[str]
    """Names of the kernel's pointer or descriptor arguments that the address comes from."""
    how: How
    tile_bytes: int
    block: int
    """Which straight piece of code it stands in: loads of one piece are issued together."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """`cuobjdump --dump-resource-usage`: registers a thread, bytes of stack and spill a thread, static shared bytes."""

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
    """The kernel's lowered arguments in order: SSA name, type, and the Python argument that it came from.

    A host-side tensor descriptor is lowered to several arguments, all named after it.
    """
    header = next(line for line in ttgir.splitlines() if "tt.func public" in line)
    found = []
    for ssa, kind, origin in _ARGUMENT.findall(header[header.index("(") :]):
        name = origin or ssa[1:]
        found.append((ssa, kind, name.split(".")[0]))
    return found


def _tile_bytes(text: str) -> int:
    """Bytes of the first tile type in `text`; of one element for a scalar pointer."""
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
    """Every access of global memory, with the arguments that its address comes from.

    Values are followed through arithmetic, loops and branches (initial values, yields, results) and descriptors made
    on the device; a loaded value carries nothing on, so that a block table does not claim the pages it points to.
    """
    sources: dict[str, frozenset[str]] = defaultdict(frozenset)
    for ssa, kind, name in ttgir_arguments(ttgir):
        if "tt.ptr" in kind or "tensordesc" in kind:
            sources[ssa] = frozenset({name})
    lines = [re.sub(r" loc\(.*$", "", line).strip() for line in ttgir.splitlines()]
    start = next(i for i, line in enumerate(lines) if "tt.func public" in line) + 1
    accesses: list[Access] = []
    for _ in range(3):  # values carried by nested loops settle within as many passes as loops are deep
        accesses = []
        # of each open region: its block, the results of its operation, the names that it carries from turn to turn
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
    """Bytes of asynchronous reads of `streams` that one CTA has under way: the most issued in one piece of code.

    The prologue of a pipelined loop issues `num_stages - 1` tiles before the first wait, and the loop keeps it so.
    """
    wanted = frozenset(streams)
    per_block: dict[int, int] = defaultdict(int)
    for access in accesses:
        if access.how in ("tma", "cp.async") and access.args & wanted:
            per_block[access.block] += access.tile_bytes
    return max(per_block.values(), default=0)


_PTX_REGISTER = re.compile(r"%(?:rd|rs|rq|r|f|fd|p)\d+")
_PTX_PARAMETER = re.compile(r"(\w+_param_\d+)")
_PTX_EXCHANGE = re.compile(r"(ld|st)\.shared(?:::cta)?(?:\.v\d)?\.[bu]64\s")
_PTX_GLOBAL = re.compile(r"\b(ld|st)\.(?:[\w:]+\.)*?global((?:\.[\w:]+)*)\s")


@dataclass(frozen=True, kw_only=True)
class PtxAccess:
    """One global access of a thread: `width` in bytes (0 for TMA) and the positions of the parameters it came from."""

    parameters: frozenset[int]
    how: How
    width: int


def _ptx_width(suffix: str) -> int:
    parts = suffix.split(".")
    vector = next((int(p[1:]) for p in parts if re.fullmatch(r"v\d+", p)), 1)
    bits = next(int(p[1:]) for p in parts if re.fullmatch(r"[bufs]\d+", p))
    return vector * bits // 8


def ptx_accesses(ptx: str, pointers: Iterable[int]) -> list[PtxAccess]:
    """Global accesses whose address derives from the parameters at the positions `pointers`.

    Registers are followed without regard to order, until nothing changes; a loaded value carries nothing on. But
    addresses may be handed from thread to thread through shared memory, when layouts change: a 64-bit load of it has
    whatever the group of 64-bit stores before it has.
    """
    entry = ptx[ptx.index(".entry") :]
    names = list(dict.fromkeys(_PTX_PARAMETER.findall(entry[: entry.index(")")])))
    position = {name: i for i, name in enumerate(names)}
    wanted = frozenset(pointers)
    flows: list[tuple[str, tuple[str, ...]]] = []
    sources: dict[str, frozenset[int]] = defaultdict(frozenset)
    accesses: list[tuple[How, int, list[str]]] = []
    handed: list[str] = []
    taken = False
    for line in entry.splitlines():
        code = re.sub(r"^@!?%p\d+\s+", "", line.split("//")[0].strip())
        if not code or code.startswith("."):
            continue
        registers = _PTX_REGISTER.findall(code)
        brackets = [_PTX_REGISTER.findall(text) for text in re.findall(r"\[([^\]]*)\]", code)]
        parameter = _PTX_PARAMETER.search(code)
        if parameter and registers and parameter[1] in position:
            sources[registers[0]] |= {position[parameter[1]]} & wanted
        elif code.startswith("cp.async.bulk"):
            if "global" in code and "shared" in code and len(brackets) > 1:
                loads = code.index("shared") < code.index("global")
                accesses.append(("tma" if loads else "store", 0, brackets[1 if loads else 0][:1]))
        elif code.startswith("cp.async.c"):
            size = re.search(r"\],\s*(0x[0-9a-fA-F]+|\d+)", code)
            if size and len(brackets) > 1:
                accesses.append(("cp.async", int(size[1], 0), brackets[1][:1]))
        elif access := _PTX_GLOBAL.match(code):
            how: How = "load" if access[1] == "ld" else "store"
            accesses.append((how, _ptx_width(access[2]), brackets[0][:1]))
        elif exchange := _PTX_EXCHANGE.match(code):
            values = [r for r in registers if r not in brackets[0]]
            if exchange[1] == "ld":
                flows.extend((value, tuple(handed)) for value in values)
                taken = True
            else:
                handed = values if taken else [*handed, *values]
                taken = False
        elif code.startswith(("ld.", "st.", "atom", "red")):
            continue
        elif len(registers) > 1:
            flows.append((registers[0], tuple(registers[1:])))
    changed = True
    while changed:
        changed = False
        for target, origins in flows:
            merged = sources[target].union(*(sources[o] for o in origins))
            changed |= merged != sources[target]
            sources[target] = merged
    found = []
    for how, width, address in accesses:
        origin = frozenset().union(*(sources[r] for r in address))
        if origin:
            found.append(PtxAccess(parameters=origin, how=how, width=width))
    return found


def ptx_threads(ptx: str) -> int:
    """Threads of a CTA, warps added by specialization included."""
    found = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", ptx)
    if not found:
        raise ValueError("the PTX names no thread count (.reqntid)")
    return int(found[1])


_SASS_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][\w.]*)([^;]*);")
_SASS_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_MMA = re.compile(r"UTC[HQOI]MMA|[HQIB]GMMA|[HQIDO]MMA")


def sass_instructions(sass: str) -> Iterator[tuple[str, str]]:
    """Opcode with its modifiers, and operands. Labels come as `("label", name)`."""
    for line in sass.splitlines():
        if label := _SASS_LABEL.match(line):
            yield "label", label[1]
        elif found := _SASS_LINE.search(line):
            yield found[1], found[2].strip()


def sass_spills(sass: str) -> int:
    """Loads from and stores to local memory."""
    return sum(opcode.split(".")[0] in ("LDL", "STL") for opcode, _ in sass_instructions(sass))


def sass_mma(sass: str) -> str:
    """The tensor-core instruction with its shape, the widest kind if there are several; empty if there is none."""
    found = {opcode for opcode, _ in sass_instructions(sass) if _MMA.fullmatch(opcode.split(".")[0])}
    return max(found, key=lambda opcode: (opcode.startswith("UTC"), "GMMA" in opcode, opcode), default="")


def _load_width(opcode: str) -> int:
    parts = opcode.split(".")[1:]
    for name, width in (("256", 32), ("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if name in parts:
            return width
    return 4


def sass_waiting_bytes(sass: str, width: int) -> int:
    """The most bytes a thread has under way in plain loads of `width` bytes, before the first of them is used.

    A load is under way until an instruction names its destination. Code is read in order; a jump backwards ends what
    was under way.
    """
    waiting: dict[int, int] = {}
    seen: set[str] = set()
    most = 0
    for opcode, operands in sass_instructions(sass):
        base = opcode.split(".")[0]
        if base == "label":
            seen.add(operands)
            continue
        if base == "BRA" and any(label in operands for label in seen):
            waiting.clear()
        touched = [int(r) for r in re.findall(r"\bR(\d+)\b", operands)]
        is_load = base == "LDG" and _load_width(opcode) == width
        for first, bytes_ in list(waiting.items()):
            if any(first <= r < first + max(1, bytes_ // 4) for r in touched):
                del waiting[first]
        if is_load and touched:
            waiting[touched[0]] = width
            most = max(most, sum(waiting.values()))
    return most


def resources(listing: str) -> Resources:
    """The numbers of `cuobjdump --dump-resource-usage` for its one kernel."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", listing)
    if not found:
        raise ValueError(f"no resource usage in {listing!r}")
    registers, stack, shared, local = map(int, found.groups())
    return Resources(registers=registers, stack=stack, local=local, shared=shared)
