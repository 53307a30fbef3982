"""stdout and stderr that never end a command: a lost screen loses lines, not measurements."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from typing import Any, TextIO

PLAIN = {
    "µ": "u",
    "±": "+-",
    "×": "x",
    "–": "-",
    "—": "-",
    "…": "...",
    "’": "'",
    "·": ".",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
}
"""What stands for a character that the terminal's encoding lacks; others become `?`."""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


codecs.register_error("decodebench", _in_ascii)


class Forgiving:
    """A text stream that goes on without its screen: after the first failure nothing is written any more.

    `lost` is why. A closed pipe is no fault: who closed it has read enough.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        if self.lost is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
            except ValueError:  # closed
                self._give_up(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.lost is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)
            except ValueError:
                self._give_up(OSError(errno.EBADF, os.strerror(errno.EBADF)))

    def isatty(self) -> bool:
        return self.lost is None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """The interpreter flushes the stream again as it ends: let it write to nowhere."""
        self.lost = error
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass


def protect() -> None:
    """Put both streams of this process under protection. A stream that is closed from the start goes nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for as long as the process lives)
        if isinstance(stream, Forgiving):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="decodebench")
        setattr(sys, name, Forgiving(stream))


def lost_output() -> str:
    """Why stdout was lost, for one line; empty if it was not, or if who read it had enough."""
    if not isinstance(sys.stdout, Forgiving):
        return ""
    sys.stdout.flush()
    lost = sys.stdout.lost
    return "" if lost is None or lost.errno == errno.EPIPE else f"cannot write to stdout: {lost.strerror}"
