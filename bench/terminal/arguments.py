"""The values of options: lists, whole numbers, durations. A `BadRequest` names the option."""

from __future__ import annotations

import math
import re

from bench.errors import BadRequest

LONGEST = 12
"""Digits of a whole number in an option."""


def comma_separated(text: str, what: str) -> list[str]:
    """Split an argument at its commas. Raises `BadRequest` if nothing is left."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise BadRequest(f"--{what} is empty")
    return parts


def whole_numbers(text: str, what: str) -> list[int]:
    """Read a comma-separated argument as whole numbers. Raises `BadRequest`."""
    parts = comma_separated(text, what)
    for part in parts:
        if not part.isdecimal():
            raise BadRequest(f"--{what} wants whole numbers, not {part[:40]!r}")
        if len(part.lstrip("0")) > LONGEST:
            raise BadRequest(f"--{what}: {part[:12]}... is too large; at most {LONGEST} digits")
    return [int(part) for part in parts]


def whole(option: str, value: int, *, least: int = 0, most: int = 1 << 30) -> int:
    """Return a whole number of an option if it lies within its bounds. Raises `BadRequest`."""
    if not least <= value <= most:
        raise BadRequest(f"{option} wants a whole number from {least:,} to {most:,}")
    return value


def duration(what: str, text: str) -> float:
    """The seconds that the option `what` names as `90`, `90s`, `8m` or `1h`. Raises `BadRequest`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise BadRequest(f"{what}: {text!r} is no duration; write 90s, 8m or 1h")
    return seconds(what, float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]])


def short_duration(what: str, text: str) -> float:
    """The seconds that an option names as `50ms`, `0.05s` or `800us`. Raises `BadRequest`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s|ms|us)", text.strip())
    if not match:
        raise BadRequest(f"{what}: {text[:40]!r} is no short duration with its unit; write 50ms, 0.05s or 800us")
    return seconds(what, float(match[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[match[2]])


def seconds(what: str, value: float) -> float:
    """Return a time to spend if it is positive and finite. Raises `BadRequest`."""
    if not 0 < value < math.inf:
        raise BadRequest(f"{what}: wants more than 0 seconds, not {value:g}")
    return value


def shard_number(text: str) -> tuple[int, int]:
    """`2/4` as (1, 4): the index from 0, and how many there are. BadRequest for anything else."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number) - 1, int(count)
    raise BadRequest(f"--shard {text!r}: wants i/n with i from 1 to n, e.g. 1/4")
