"""What was tuned offline: `kernels/<op>/tuned.json`, committed with its evidence, read by `Impl`.

`decodebench tune` writes one entry for each part, implementation and shape class:

    {"part": "NVIDIA H100 80GB HBM3", "impl": "triton", "shape_class": "read", "config": {"num_warps": 8},
     "evidence": {...}}

An empty `config` says that the reasoned configuration was raced against others and stands. Parts have the driver's
names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.op import Target

ROOT = Path(__file__).parents[1]
FILE = "tuned.json"
KEY = ("part", "impl", "shape_class")
SCHEMA = 1

EVIDENCE = ("case_id", "seconds", "default", "gain", "driver", "torch", "triton", "date", "git")
"""What an entry must tell about how it was found; `bench/operate/tune/search.py` says what each field holds."""

Key = tuple[str, str, str]


def overrides(op: str, impl: str, shape_class: str, target: Target) -> dict[str, int]:
    """Fields of a plan that must not have their reasoned values: those asked for, or those tuned for this part."""
    if target.config is not None:
        return dict(target.config)
    return lookup(op, impl, target.name, shape_class) or {}


def lookup(op: str, impl: str, part_name: str, shape_class: str) -> dict[str, int] | None:
    """The configuration tuned for a part; None where nothing was tuned."""
    entry = entries(op).get((part_name, impl, shape_class))
    return dict(entry["config"]) if entry else None


@cache
def entries(op: str, root: Path = ROOT) -> dict[Key, dict[str, Any]]:
    """All entries of an op; none if it has no file. Raises ValueError for a file that does not hold what it must."""
    path = root / op / FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return checked(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{op}/{FILE}: {error}") from error


def checked(content: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
    """The entries by part, implementation and shape class. Raises a ValueError that names what is wrong with one."""
    if content.get("schema") != SCHEMA:
        raise ValueError(f"schema {content.get('schema')!r}, expected {SCHEMA}")
    found: dict[Key, dict[str, Any]] = {}
    for number, entry in enumerate(content["entries"], start=1):
        missing = [name for name in (*KEY, "config", "evidence") if name not in entry]
        missing += [f"evidence.{name}" for name in EVIDENCE if name not in entry.get("evidence", {})]
        if missing:
            raise ValueError(f"entry {number} lacks {', '.join(missing)}")
        odd = [name for name, value in entry["config"].items() if type(value) is not int]
        if odd:
            raise ValueError(f"entry {number}: {', '.join(odd)} is no integer")
        key = (entry["part"], entry["impl"], entry["shape_class"])
        if key in found:
            raise ValueError(f"entry {number} is the second for {', '.join(key)}")
        found[key] = entry
    return found


def write(op: str, new: Mapping[Key, Mapping[str, Any]], root: Path = ROOT) -> Path:
    """Add entries to an op's file; they replace older ones of the same key. The file is sorted, so that a diff shows
    what is new."""
    merged = {**entries(op, root), **new}
    content = {"schema": SCHEMA, "entries": [merged[key] for key in sorted(merged)]}
    checked(content)
    path = root / op / FILE
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    entries.cache_clear()
    return path
