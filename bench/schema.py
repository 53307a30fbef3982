"""What a line of a run file must look like, down to the last nested field: one description for every kind of line.

A `Shape` takes a JSON value and says what is wrong with it, or nothing. Fields that are not described are not read, and
may be anything. Numbers are finite and below `LARGEST`, so that no sum or square of them overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LARGEST = 1e30

Shape = Callable[[Any], str]
"""Returns the empty text for a value that fits, else what is wrong, such as `: not a number` or `.name: not a text`."""


def _type(what: str, *types: type) -> Shape:
    def check(value: Any) -> str:
        return "" if isinstance(value, types) and (bool in types or not isinstance(value, bool)) else f": not {what}"

    return check


text = _type("a text", str)
truth = _type("a truth value", bool)
anything: Shape = lambda value: ""  # noqa: E731


def number(
    what: str = "a number", *, least: float = -LARGEST, whole: bool = False, above: float = -2 * LARGEST
) -> Shape:
    types = frozenset((int,) if whole else (int, float))

    def check(value: Any) -> str:
        fits = type(value) in types and least <= value <= LARGEST and value > above  # NaN is in no order
        return "" if fits else f": not {what}"

    return check


real = number()
amount = number("a number from 0 on", least=0)
count = number("a whole number from 0 on", least=0, whole=True)
whole = number("a whole number", whole=True)
seconds = number("a time above 0 s", above=0)


def maybe(shape: Shape) -> Shape:
    """Also null."""
    return lambda value: "" if value is None else shape(value)


def array(of: Shape, *, length: int | None = None, least: int = 0) -> Shape:
    def check(value: Any) -> str:
        if not isinstance(value, list):
            return ": not a list"
        if length is not None and len(value) != length:
            return f": not {length} values"
        if len(value) < least:
            return f": not at least {least} value{'s' * (least != 1)}"
        for index, each in enumerate(value):
            if wrong := of(each):
                return f"[{index}]{wrong}"
        return ""

    return check


def table(of: Shape) -> Shape:
    """An object with any names, whose values are alike."""

    def check(value: Any) -> str:
        if not isinstance(value, dict):
            return ": not an object"
        return next((f".{name}{wrong}" for name, each in value.items() if (wrong := of(each))), "")

    return check


def fields(needed: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    every = {**needed, **(optional or {})}

    def check(value: Any) -> str:
        if not isinstance(value, dict):
            return ": not an object"
        for name, shape in every.items():
            if name in value:
                if wrong := shape(value[name]):
                    return f".{name}{wrong}"
            elif name in needed:
                return f": lacks the field {name}"
        return ""

    return check


leaf: Shape = lambda value: "" if value is None or isinstance(value, str | bool) else real(value)  # noqa: E731


def plain(value: Any) -> str:
    """A tree of objects and lists whose leaves are texts, truth values, nulls and finite numbers."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, list):
            todo += each
        elif wrong := leaf(each):
            return wrong
    return ""


quantity = fields({"value": amount, "unit": text, "kind": text, "source": text})
work = fields({"flops": table(count), "bytes_read": count, "bytes_written": count})
stage = fields(
    {},
    {
        "name": text,
        "work": work,
        "l2_bytes": amount,
        "link_bytes": amount,
        "peer_bytes": amount,
        "instructions": amount,
        "ctas": count,
        "ctas_per_sm": count,
        "loads_before": table(amount),
        "loads_after": table(amount),
        "pieces": array(array(amount, length=2)),
    },
)
STAGE: dict[str, Any] = {"name": "", "work": {"flops": {}, "bytes_read": 0, "bytes_written": 0}, "l2_bytes": 0}
"""What a stage has where a record does not say it."""

prediction = fields(
    {"seconds": amount},
    {"terms": table(amount), "bound": text, "basis": text, "missing": array(text)},
)


def times(value: Any) -> str:
    """A list of `seconds`. Records hold thousands, so a good list is seen at once; a bad one is searched."""
    good = type(value) is list and (
        not value or (set(map(type, value)) == {float} and min(value) > 0 and sum(value) <= LARGEST)
    )
    return "" if good else array(seconds)(value)


reads = {"bytes": count, "before_s": times, "after_s": times}


def roof(value: Any) -> str:
    """Reads around samples; an empty object without."""
    return fields(reads)(value) if value else "" if isinstance(value, dict) else ": not an object"


in_caches = fields(
    {
        "case_id": text,
        "times": number("a number above 0", above=0),
        "samples_s": array(seconds, least=1),
        "empty_s": array(seconds, least=1),
    }
)


def core(value: Any) -> str:
    """A smaller case in the caches of the cores; an empty object without."""
    return in_caches(value) if value else "" if isinstance(value, dict) else ": not an object"


part = fields(
    {"name": text, "calls": count, "alone_s": array(seconds, least=1)},
    {
        **{name: array(seconds) for name in ("in_step_s", "alone_reads_s", "in_step_reads_s")},
        "core": array(in_caches, least=1),
    },
)
error = fields({}, {"max_abs": maybe(anything), "max_rel": maybe(anything)})

RECORD: dict[str, Shape] = {
    "work": work,
    "stages": array(stage),
    "prediction": fields({}, {"datasheet": maybe(prediction), "measured": maybe(prediction), "at": text}),
    "samples_s": times,
    "roof": roof,
    "core": core,
    "ranks_s": array(array(seconds, least=2)),
    "isolated_s": times,
    "parts": array(part),
    "rotation": table(leaf),
    "telemetry": plain,
    "counters": plain,
    "config": fields({}, {"launches": array(plain), "tuned": maybe(table(anything))}),
    "repeat": count,
}
"""The nested fields of a record, beside the types of its fields."""

named = {"op": text, "impl": text, "case_id": text}

NOTES: dict[str, Shape] = {
    "aa": fields({**named, "samples_s": array(array(seconds, least=1), length=2)}, {"roof": array(roof, length=2)}),
    "counters": fields(named),
    "counters denied": fields({"reason": text}),
    "missing": fields({}, {"op": text, "module": text, "reason": text}),
}
"""What a note must have, by what it is about. Notes of other kinds only have words and numbers."""

LINES: dict[str, Shape] = {
    "run": fields(
        {},
        {
            "run_id": text,
            "started": text,
            "suite": maybe(text),
            "argv": array(text),
            "request": fields({}, {"suite": maybe(text), "impls": array(text), "ops": array(text), "case": text}),
            "target": fields(
                {},
                {"kind": text, "name": text, "sm": count, "sm_count": count, "l2_bytes": count, "smem_per_sm": count},
            ),
            "device": fields(
                {},
                {
                    "key": maybe(text),
                    "name": maybe(text),
                    "memory_bandwidth": maybe(quantity),
                    "peaks": maybe(table(maybe(quantity))),
                },
            ),
            "environment": fields(
                {},
                {"packages": maybe(table(leaf)), "gpu": maybe(table(anything)), "git": maybe(table(leaf))}
                | {"variables": maybe(table(leaf)), "precision": maybe(table(leaf))},
            ),
            "decodebench": text,
        },
    ),
    "note": fields({"note": text}),
    "prediction": plain,
    "end": anything,
}
"""What the other lines must have, by their kind."""


def check_line(kind: str, line: Mapping[str, Any]) -> None:
    """ValueError that names the field at fault."""
    wrong = LINES[kind](line) or plain(line)
    if kind == "note" and not wrong:
        wrong = NOTES.get(line["note"], anything)(line)
    if wrong:
        raise ValueError(_said(wrong))


def check_record(line: Mapping[str, Any]) -> None:
    """ValueError that names the nested field at fault."""
    for name, shape in RECORD.items():
        if name in line and (wrong := shape(line[name])):
            raise ValueError(_said(f".{name}{wrong}"))


def _said(wrong: str) -> str:
    """`.work.flops.mma: not a number` -> `field work.flops.mma is not a number`."""
    where, _, what = wrong.partition(": ")
    where = "".join(each if each.isprintable() else "?" for each in where.removeprefix("."))[:120]
    if what.startswith("lacks"):
        return f"field {where} {what}" if where else what
    return f"field {where} is {what}" if where else f"a value is {what}"
