"""How errors are said: those that a user can mend (one line and exit code 2), and any other in one line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class BadRequest(ValueError):
    """Something asked for that does not exist or does not fit; the message says what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadRequest:
    """`unknown op 'ffn_gem'; did you mean ffn_gemv?`, or the whole list where nothing is near.

    What goes on where the name ends is nearest: `h100` is an `h100-sxm` rather than an `h200`.
    """
    names = list(known)
    near = [each for each in names if name and each.startswith(name.lower())]
    near = near[:3] or difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return BadRequest(f"unknown {kind} {name!r}; {hint}")


def require(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """BadRequest for the first name that is not among the known ones."""
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)


def describe(error: BaseException) -> str:
    """The exception's type and the first line of its message, short enough for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
