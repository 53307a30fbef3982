"""What the values of options mean: lists, whole numbers, durations. Raises `BadRequest` naming the option."""

from __future__ import annotations

import math
import re
from typing import Any

import typer

from bench.errors import BadRequest


def split(param: typer.CallbackParam, values: list[str] | None) -> list[str]:
    """The names of an option that may be given again, or with several names and commas between them."""
    return [name for text in values or [] for name in comma_separated(text, str(param.name))]


def names(*flags: str, help: str) -> Any:
    """An option that takes names; `--op a --op b` is `--op a,b`."""
    return typer.Option(*flags, help=f"{help}; comma-separated, or given again", callback=split)


def comma_separated(text: str, what: str) -> list[str]:
    """The parts of an argument. Raises `BadRequest` where there are none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise BadRequest(f"--{what} is empty")
    return parts


def whole_numbers(text: str, what: str) -> list[int]:
    """A comma-separated argument as whole numbers. Raises `BadRequest`."""
    parts = comma_separated(text, what)
    for part in parts:
        if not part.isdecimal():
            raise BadRequest(f"--{what} wants whole numbers, not {part!r}")
    return [int(part) for part in parts]


def duration(what: str, text: str) -> float:
    """Seconds of `90`, `90s`, `8m` or `1h`, the value of the option `what`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise BadRequest(f"{what}: {text!r} is no duration; write 90s, 8m or 1h")
    return seconds(what, float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]])


def seconds(what: str, value: float) -> float:
    """A time to spend: more than none, and not for ever."""
    if not 0 < value < math.inf:
        raise BadRequest(f"{what}: wants more than 0 seconds, not {value:g}")
    return value
