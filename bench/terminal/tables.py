"""A table as lines that fit a terminal: whole numbers and names, the header once, and what was left out is said.

In this order, until the table fits: long texts wrap between words; columns without content go; columns go that the
caller calls least important; columns go that say the same in every row, which one line then says; a row takes two
lines, of which the first has what identifies it; the last columns go.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

GAP = 2
PROSE = 32
"""A longer cell with spaces is a text, which may wrap. Others are numbers and names, which stay whole."""

GLUE = "\u00a0"
"""A space at which no line ends."""

NARROW = 24
"""The narrowest column of a text. Longer words in it, such as addresses, are cut."""

IDENTITY = frozenset(
    ("op", "operation", "case", "impl", "implementation", "kind", "stored", "size", "software", "part")
)
"""Leading columns with these headers identify a row. Where two lines are needed, they have the first for themselves."""

Rows = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A table as it fits, and what it does not show."""

    headers: list[str]
    rows: Rows
    split: int = 0
    """How many columns stand on the first line of a row; the others stand on the second. 0 for one line."""
    gone: tuple[str, ...] = ()
    everywhere: tuple[tuple[str, str], ...] = ()
    """Headers and the one value that their columns have in every row."""

    def column(self, at: int) -> list[str]:
        return [row[at] for row in self.rows]

    def without(self, at: int) -> Fitted:
        drop = lambda cells: [*cells[:at], *cells[at + 1 :]]  # noqa: E731
        return replace(self, headers=drop(self.headers), rows=[drop(row) for row in self.rows])

    def least(self, at: int) -> int:
        """The least width of a column."""
        longest = max((len(word) for word in self.headers[at].split()), default=0)
        for cell in self.column(at):
            longest = max(longest, min(NARROW, len(cell)) if is_prose(cell) else len(cell))
        return longest

    def parts(self) -> list[range]:
        count = len(self.headers)
        return [range(self.split), range(self.split, count)] if self.split else [range(count)]

    def fits(self, width: int) -> bool:
        """A column that has a line for itself may be wider: a name is never cut."""
        return all(len(part) == 1 or _needed([self.least(at) for at in part]) <= width for part in self.parts())


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def is_prose(cell: str) -> bool:
    return len(cell) > PROSE and " " in cell


def fit(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, least_important: Sequence[str]) -> Fitted:
    """The table as it fits into `width` columns. The first column always stays, however wide it is."""
    found = Fitted(headers=list(headers), rows=[list(row) for row in rows])
    if found.fits(width):
        return found
    for at in reversed(range(1, len(found.headers))):
        if not any(found.column(at)):
            found = found.without(at)
    for name in least_important:
        if not found.fits(width) and name in found.headers[1:]:
            found = replace(found.without(found.headers.index(name, 1)), gone=(*found.gone, name))
    for at in reversed(range(1, len(found.headers))):
        values = set(found.column(at))
        if not found.fits(width) and len(found.rows) > 1 and len(values) == 1 and not is_prose(next(iter(values))):
            said = (found.headers[at], next(iter(values)))
            found = replace(found.without(at), everywhere=(said, *found.everywhere))
    names = [name in IDENTITY for name in found.headers]
    if not found.fits(width) and names[0] and False in names:
        found = replace(found, split=names.index(False))
    while not found.fits(width):
        at = _last_of_the_widest(found, width)
        found = replace(found.without(at), gone=(*found.gone, found.headers[at]), split=min(found.split, at))
    return found


def _last_of_the_widest(found: Fitted, width: int) -> int:
    """The last column of the line that is too wide."""
    parts = [part for part in found.parts() if len(part) > 1 and _needed([found.least(at) for at in part]) > width]
    return parts[-1][-1]


def widths_of(found: Fitted, part: range, width: int) -> list[int]:
    """What each column gets: its least width, and of what is left, texts get as much as they need."""
    least = [found.least(at) for at in part]
    full = [max(len(found.headers[at]), *(len(cell) for cell in found.column(at))) for at in part]
    spare = width - _needed(least)
    for order in sorted(range(len(least)), key=lambda i: full[i] - least[i]):
        more = max(0, min(full[order] - least[order], spare))
        least[order] += more
        spare -= more
    return least


def lines(found: Fitted, width: int) -> tuple[list[str], list[str]]:
    """The lines of the header and those of the rows."""
    columns = [(part, widths_of(found, part, width)) for part in found.parts()] if found.rows else []
    if not columns:
        return [(" " * GAP).join(found.headers)], []

    def laid_out(row: Sequence[str], wrap: Callable[[str, int], list[str]]) -> list[str]:
        said = []
        for number, (part, widths) in enumerate(columns):
            cells = [wrap(row[at], size) for at, size in zip(part, widths, strict=True)]
            for height in range(max(map(len, cells))):
                texts = [cell[height] if height < len(cell) else "" for cell in cells]
                line = (" " * GAP).join(f"{text:<{size}}" for text, size in zip(texts, widths, strict=True)).rstrip()
                said.append(" " * GAP * number + line if number and len(line) + GAP <= width else line)
        return said

    def header(name: str, size: int) -> list[str]:
        return textwrap.wrap(name, size, break_on_hyphens=False) or [""]

    return laid_out(found.headers, header), [line for row in found.rows for line in laid_out(row, wrapped)]


def wrapped(cell: str, width: int) -> list[str]:
    """The lines of a cell. A number stays with the word behind it, which may be its unit."""
    if len(cell) <= width and "\n" not in cell:
        return [cell]
    bound = _with_units(cell)
    cut = [line for text in bound.split("\n") for line in textwrap.wrap(text, width, break_on_hyphens=False) or [""]]
    return [line.replace(GLUE, " ") for line in cut]


def paragraph(text: str, width: int) -> list[str]:
    """The lines of one line of text: the later ones are indented by two more. Names and paths are never cut."""
    if len(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()) + GAP)
    how: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False, "subsequent_indent": indent}
    return [line.replace(GLUE, " ") for line in textwrap.wrap(_with_units(text), width, **how)]


def _with_units(text: str) -> str:
    """The text with `GLUE` between a number and the word behind it, which may be its unit."""
    return re.sub(r"(?<=\d) (?=[^\W\d])", GLUE, text)
