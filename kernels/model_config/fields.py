"""The fields of one config.json, each read as what it must be, or refused in one line that names it."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

LARGEST = 1 << 31
"""No dimension of a model is larger. A number beyond it would also be slow to count with."""


class BadConfig(ValueError):
    """No shape can be read from a config.json; the message is one line and names the field."""


SIZES = frozenset(
    (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "vocab_size",
        "num_attention_heads",
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "num_experts_per_tok",
        "moe_k",
    )
)
"""Fields that make one model another. transformers writes them into every file. Only inside a `text_config` it leaves
them out where they equal the default of the class."""


@cache
def _class_defaults() -> Mapping[str, Mapping[str, Any]]:
    text = files(__package__).joinpath("defaults.json").read_text(encoding="utf-8")
    return json.loads(text)


def class_defaults(model_type: str, *, nested: bool) -> dict[str, Any]:
    """What transformers' configuration class of this `model_type` has where a file has nothing."""
    known = _class_defaults().get(model_type) or {}
    return {name: value for name, value in known.items() if nested or name not in SIZES}


@dataclass(frozen=True)
class Fields:
    """What a file has, and what it may leave out. A null in the file means that there is no such thing."""

    model_type: str
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]
    called: Mapping[str, str] = field(default_factory=dict)
    """What the file calls fields that have another name here."""

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> Any:
        return self.given[name] if name in self.given else self.defaults.get(name)

    def plus(self, more: Mapping[str, Any]) -> Fields:
        """The same, with more in the file."""
        return Fields(self.model_type, {**self.given, **more}, self.defaults, self.called)

    def present(self, *names: str) -> str:
        """The first of these names that the file has, else the first that has a default."""
        found = next((name for name in names if self.given.get(name) is not None), None)
        found = found or next((name for name in names if name in self), None)
        if found is None:
            name = self.called.get(names[0], names[0])
            raise BadConfig(f"config.json: field {name!r} is missing (model_type {self.model_type!r})")
        return found

    def wrong(self, name: str, wanted: str) -> BadConfig:
        return BadConfig(
            f"config.json: field {self.called.get(name, name)!r} is {reprlib.repr(self.get(name))}, not {wanted}"
        )

    def whole(self, *names: str, least: int = 1, most: int = LARGEST) -> int:
        """A whole number, or a list that repeats one for each layer. Fields that count something are at least 1."""
        found = self.present(*names)
        value = self.get(found)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(found, "a positive whole number" if least else "a whole number from 0 on")
        if value > most:
            raise self.wrong(found, f"at most {most:,}")
        return value

    def whole_or(self, default: int, *names: str) -> int:
        """A whole number; the default where the file has none of these fields, or 0."""
        found = next((name for name in names if name in self), None)
        if found is None or (self.get(found) == 0 and not isinstance(self.get(found), bool)):
            return default
        return self.whole(found)

    def share(self, total: str, parts: str) -> int:
        """`total` / `parts`, which must be whole."""
        if self.whole(total) % self.whole(parts):
            raise self.wrong(total, f"a multiple of the {self.get(parts)} of {parts!r}")
        return self.whole(total) // self.whole(parts)

    def truth(self, name: str, *, default: bool) -> bool:
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def real(self, name: str) -> float:
        """A number from 0 on; 0 if the file has none."""
        value = self.get(name) if name in self else 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.wrong(name, "a number from 0 on")
        return float(value)

    def listed(self, name: str, *, length: int, known: Sequence[object]) -> list[Any]:
        """A list of this length that has only known entries."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) != length or any(each not in known for each in value):
            raise self.wrong(name, f"a list of {length}, each {' or '.join(map(str, known))}")
        return value

    def indices(self, name: str, *, first: int = 0) -> set[int]:
        """A list of layers, which the file counts from `first` on; from 0 on here. Empty if the file has none."""
        value = self.get(name) if name in self else []
        if not isinstance(value, list) or any(isinstance(each, bool) or not isinstance(each, int) for each in value):
            raise self.wrong(name, "a list of whole numbers")
        return {each - first for each in value}

    def part(self, name: str) -> Fields:
        """The fields of an object in this field; empty if the file has none."""
        value = self.get(name) if name in self else {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return Fields(self.model_type, value, {})
