"""Texts without what names a machine or a person: host and user names, serials, UUIDs, addresses, paths.

Two things are hidden: what has the form of such a name, and every name that stands anywhere in a run under a key that
says so (`host`, `user`, `serial`), also where it stands inside another text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

HIDDEN = "(hidden)"
NAMING = re.compile(
    r"(.*_)?(host|host_?name|node|node_?name|fqdn|domain|user|user_?name|login|owner|e?mail|serial|serial_?number|uuid"
    r"|guid|board|board_?id|part_?number|machine_?id|pci|pci_\w+|pcie_address|bus_?id|busid|mac|ip|address|home|cwd|pwd"
    r"|path|directory)",
    re.IGNORECASE,
)
"""Keys whose values name a machine or a person."""

HEX = "[0-9a-fA-F]"
FORMS = (
    r"\w+://\S+",
    r"[\w.+-]+@[\w-][\w.-]*(?::[\w./~-]+)?",
    rf"\b(?:(?:GPU|MIG)-)*{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}(?:/\d+)*",
    rf"\b(?:GPU|MIG)-{HEX}{{6,}}[\w/-]*",
    rf"\b{HEX}{{32,}}\b",
    rf"(?<![\w:.])(?:{HEX}{{4,8}}:)?{HEX}{{2}}:{HEX}{{2}}\.{HEX}(?![\w.])",
    rf"\b(?:{HEX}{{2}}[:-]){{5,7}}{HEX}{{2}}\b",
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])",
    rf"(?<![\w:.])(?:{HEX}{{1,4}}:){{7}}{HEX}{{1,4}}|(?<![\w:.]){HEX}{{1,4}}(?::{HEX}{{1,4}})*::(?:{HEX}{{1,4}}:?)*",
    r"(?:\b[A-Za-z]:|~[\w.-]*)?(?<![\w.)])[/\\][\w.+~@%-]+(?:[/\\][^\s'\"`,;:()\[\]{}<>|]*)*",
    r"\b(?:home|Users|mnt|scratch)[/\\][^\s'\"`,;:()\[\]{}<>|]+",
    r"\b(?:[\w-]+\.)+(?:com|net|org|edu|gov|dev|cloud|local|localdomain|internal|intranet|lan|corp|cluster|arpa)\b",
    r"\b[\w-]*[\d-][\w-]*(?:\.[\w-]+)*\.(?:io|ai|de|uk|fr|ch|nl|jp|cn|kr|eu|us|ca|in)\b",
    r"(?i:\b(?:host ?name|host|node|user ?name|user|login|serial(?: ?number)?|s/n)\b ?[:=#] ?)[^\s,;)\]]+",
)
"""Web and mail addresses, UUIDs and other long hexadecimal numbers, PCI, MAC and IP addresses, paths, host names with
their domain, and what a text itself calls a host, a user or a serial number."""
FORM = re.compile("|".join(FORMS))
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?")
OWNED = re.compile(
    rf"[/\\](?:home|Users)[/\\]([\w.+-]+)|([\w.+-]+)@([\w-][\w.-]*)|({HEX}{{4,8}}:{HEX}{{2}}:{HEX}{{2}}\.0)"
)
"""Names inside texts: those of home directories, of users and hosts in `user@host`, and addresses on PCI."""
COMMON = frozenset(
    ("root", "localhost", "ubuntu", "debian", "user", "admin", "runner", "home", "local", "main", "none", "git")
)
"""Names that many machines have, and that are words in texts as well."""


def pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value inside a value, at any depth. Members of a list have the key of the list."""
    todo = [("", value)]
    while todo:
        key, each = todo.pop()
        if isinstance(each, dict):
            todo += [(str(name), inner) for name, inner in each.items()]
        elif isinstance(each, list | tuple):
            todo += [(key, inner) for inner in each]
        else:
            yield key, each


def names(value: Any, words: Collection[str] = ()) -> set[str]:
    """The names of machines and people in a value, without `words`, which mean something else here."""
    found: set[str] = set()
    for key, each in pairs(value):
        if isinstance(each, bool | float) or each is None:
            continue
        text = str(each)
        if NAMING.fullmatch(key):
            found.add(text)
            if re.fullmatch(r"[\w-]+(\.[\w-]+)+", text):
                found.add(text.split(".")[0])  # a host without its domain
        if isinstance(each, str):
            for match in OWNED.finditer(each):
                found |= {name for group in match.groups() if group for name in (group, group.split(".")[0])}
    known = COMMON | {word.lower() for word in words}
    return {name for name in found if len(name) > (5 if name.isdecimal() else 2) and name.lower() not in known}


def hider(hidden: Collection[str]) -> Callable[[str], str]:
    """A function that hides these names in a text, and all that has the form of a name."""
    longest_first = sorted(hidden, key=lambda name: (-len(name), name))
    listed = "|".join(map(re.escape, longest_first))
    named = re.compile(rf"(?<![A-Za-z0-9])(?:{listed})(?![A-Za-z0-9])", re.IGNORECASE) if listed else None

    def hide(text: str) -> str:
        if TIME.fullmatch(text):
            return text
        text = FORM.sub(HIDDEN, text)
        return named.sub(HIDDEN, text) if named else text

    return hide


def without_names(value: Any, hide: Callable[[str], str], *, drops: bool = True) -> Any:
    """The value with every text hidden as needed and, where `drops`, without fields whose key names somebody."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if not (drops and NAMING.fullmatch(str(key)))}
        return {hide(str(key)): without_names(each, hide, drops=drops) for key, each in kept.items()}
    if isinstance(value, list | tuple):
        return [without_names(each, hide, drops=drops) for each in value]
    return hide(value) if isinstance(value, str) else value
