"""Read PTX text: instructions with their operands, names resolved by scope, labels by position. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LINE_COMMENT = re.compile(r"//[^\n]*")
NOT_CODE = re.compile(r"^[ \t]*\.loc[^\n]*$", re.MULTILINE)
TOKEN = re.compile(r"\s*([{}]|[$\w]+:(?!:)|[^;]*;)")
BRACKET = re.compile(r"[\[{(]")
NUMBER = re.compile(r"-?\d")
FLOAT = re.compile(r"0[fF][0-9A-Fa-f]{8}$|0[dD][0-9A-Fa-f]{16}$")


class NotEmulated(Exception):
    """An instruction, or a form of one, that the emulator does not know."""


@dataclass(frozen=True)
class Address:
    """`[base + offset]`; or `[base, {c0, c1}]`, a place in a tensor map with `coordinates`."""

    base: str | int
    offset: int = 0
    coordinates: tuple[str | int, ...] = ()


Operand = str | int | Address | tuple
"""A name, the bits of a constant, an address, or several operands in braces."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. `guard` names a predicate and the value for which a thread executes the instruction."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: tuple[str, bool] | None
    text: str

    def must(self, condition: object) -> None:
        """Raise `NotEmulated` unless `condition` holds."""
        if not condition:
            raise NotEmulated(self.text)


@dataclass
class Listing:
    """A kernel: its parameters in order, threads per CTA, types of registers, code, and positions of labels."""

    parameters: list[str]
    threads: int
    registers: dict[str, str] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def listed(operand: Operand) -> tuple[Any, ...]:
    """The operands in braces, or the single operand."""
    return operand if isinstance(operand, tuple) else (operand,)


def split(text: str, mark: str = ",") -> list[str]:
    """The parts of `text` between marks that are outside of brackets."""
    if not BRACKET.search(text):
        parts = [part.strip() for part in text.split(mark)]
        return parts if parts[-1] else parts[:-1]
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "[{(") - (c in "]})")
        if c == mark and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def operand(text: str, scopes: list[dict[str, str]]) -> Operand:
    """Read one operand. `scopes`, the innermost last, map the names of inner scopes to unique ones."""
    if text.startswith("{"):
        return tuple(operand(part, scopes) for part in split(text[1:-1]))
    if text.startswith("["):
        place, *rest = split(text[1:-1])
        base, _, offset = place.partition("+")
        at = operand(base.strip(), scopes)
        coordinates = operand(rest[0], scopes) if rest else ()
        assert isinstance(at, str | int)
        assert isinstance(coordinates, tuple)
        return Address(at, int(offset.strip() or "0", 0), coordinates)
    if "|" in text:
        return tuple(operand(part, scopes) for part in split(text, "|"))
    if NUMBER.match(text):
        return int(text[2:], 16) if FLOAT.match(text) else int(text.removesuffix("U"), 0)
    return next((names[text] for names in reversed(scopes) if text in names), text)


def statements(body: str) -> Iterator[str]:
    """Yield `{`, `}`, `label:` and statements without their semicolon, in order."""
    at, body = 0, body.rstrip()
    while at < len(body):
        token = TOKEN.match(body, at)
        if not token:
            raise ValueError(f"PTX ends in an unfinished statement: {body[at:].strip()[:80]}")
        yield " ".join(token[1].removesuffix(";").split())
        at = token.end()


def parse(text: str, registers: dict[str, str] | None = None) -> Listing:
    """Read a module with one kernel, or bare code that uses the given `registers` (name to type).

    Raises `ValueError` for a kernel that does not say how many threads a CTA has.
    """
    text = NOT_CODE.sub("", LINE_COMMENT.sub("", text))
    entry = re.search(r"\.entry\s+[\w$]+\s*\((.*?)\)", text, re.DOTALL)
    parameters, threads, body = [], 32, text
    if entry:
        parameters = [re.sub(r"\[\d+\]$", "", part.split()[-1]) for part in split(entry[1])]
        head, _, body = text[entry.end() :].partition("{")
        size = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head)
        if not size:
            raise ValueError("the PTX names no thread count (.reqntid)")
        threads = int(size[1])
    listing = Listing(parameters=parameters, threads=threads, registers=dict(registers or {}))
    scopes: list[dict[str, str]] = [{}]
    waiting: list[tuple[str, list[dict[str, str]]]] = []
    inner = 0
    for statement in statements(body):
        if statement == "{":
            inner += 1
            scopes = [*scopes, {}]
        elif statement == "}":
            if len(scopes) == 1:
                break
            scopes = scopes[:-1]
        elif statement.endswith(":"):
            name = statement[:-1]
            if len(scopes) > 1:
                scopes[-1][name] = f"{name}@{inner}"
                name = scopes[-1][name]
            listing.labels[name] = len(waiting)
        elif statement.startswith(".reg"):
            declare(statement, listing.registers, scopes[-1], f"@{inner}" if len(scopes) > 1 else "")
        elif not statement.startswith("."):
            waiting.append((statement, scopes))
    listing.code = [instruction(statement, names) for statement, names in waiting]
    return listing


def declare(statement: str, registers: dict[str, str], scope: dict[str, str], suffix: str) -> None:
    """Add the registers of `.reg .b32 %r<9>` or `.reg .b32 low, high`."""
    _, kind, names = statement.split(maxsplit=2)
    for name in split(names):
        several = re.match(r"(.+)<(\d+)>$", name)
        if several:
            registers.update({f"{several[1]}{i}": kind[1:] for i in range(int(several[2]))})
        else:
            registers[name + suffix] = kind[1:]
            scope[name] = name + suffix


def instruction(statement: str, scopes: list[dict[str, str]]) -> Instruction:
    guard, rest = None, statement
    if rest.startswith("@"):
        name, rest = rest[1:].split(maxsplit=1)
        register = operand(name.lstrip("!"), scopes)
        assert isinstance(register, str)
        guard = (register, not name.startswith("!"))
    opcode, _, operands = rest.partition(" ")
    return Instruction(opcode, tuple(operand(part, scopes) for part in split(operands)), guard, statement)
