"""What a field of a case may hold, told by its type. Standard library only.

A plain `int` is a whole number from 1 on and a `Count` one from 0 on. A `float` is a finite number from 0 on. `OneOf`
lists the texts that a field may hold, as `Literal` does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """The smallest number that a field may hold."""

    least: int


class OneOf:
    """The texts that a field may hold."""

    def __init__(self, *names: str) -> None:
        self.names = names


Count = Annotated[int, AtLeast(0)]
TYPES = ("bf16", "fp16", "fp32")
Dtype = Annotated[str, OneOf(*TYPES)]
"""The type of activations, and of weights and caches where nothing else is said."""


def cache_type(kv: str, dtype: str) -> str:
    """The `kv` of a case, which is empty if the cache has the type of the activations. Raises ValueError for another
    16- or 32-bit type."""
    if kv in TYPES and kv != dtype:
        raise ValueError(f"kv {kv}: a cache of 16- or 32-bit elements is {dtype}, as dtype has it")
    return "" if kv == dtype else kv


@cache
def types(case_type: type) -> dict[str, Any]:
    """The types of a case's fields by name."""
    hints = get_type_hints(case_type, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(case_type)}


def names_of(kind: Any) -> tuple[str, ...]:
    """The texts that a field of this type may hold; none if it may hold any."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((each.names for each in getattr(kind, "__metadata__", ()) if isinstance(each, OneOf)), ())


def least_of(kind: Any) -> int:
    """The smallest number that a field of this type may hold."""
    return next((each.least for each in getattr(kind, "__metadata__", ()) if isinstance(each, AtLeast)), 1)


def expected(kind: Any, value: Any) -> str:
    """What a field of this type may hold, in words; empty if `value` is that."""
    plain = kind.__origin__ if get_origin(kind) is Annotated else kind
    names = names_of(kind)
    if names:
        return "" if value in names else f"one of {', '.join(map(repr, names))}"
    if plain is bool:
        return "" if isinstance(value, bool) else "true or false"
    if plain is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least_of(kind)
        return "" if fits else f"a whole number from {least_of(kind)} on"
    if plain is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        return "" if fits else "a number from 0 on"
    return "a text" if plain is str and not isinstance(value, str) else ""


def wrong(case_type: type, fields: Mapping[str, Any]) -> str:
    """What is wrong with the first of these fields that holds what it cannot; empty if none does.

    Fields that are absent, or that the type does not have, are left alone.
    """
    for name, kind in types(case_type).items():
        if name in fields and (wanted := expected(kind, fields[name])):
            return f"{name} is {fields[name]!r}: expected {wanted}"
    return ""
