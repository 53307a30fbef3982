"""Files that are whole or absent: written beside and renamed; directories that one process at a time writes to."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.errors import BadRequest

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]


def cannot_write(path: Path | str, error: OSError) -> BadRequest:
    return BadRequest(f"cannot write to {path}: {error.strerror or error}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which takes its place at the end; a kill leaves the old file or the new one, whole.

    The new file has the suffix of the old one. If writing fails, it is deleted, and the old file stays. The OSError
    then names `path`.
    """
    fresh = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        try:
            yield fresh
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Put this text in the place of a file."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def new_directory(path: Path) -> Path:
    """Create a directory that did not exist: `path`, or with `-2` and so on behind it. BadRequest if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                candidate.mkdir()
                return candidate
    except OSError as error:
        raise cannot_write(path, error) from error
    raise AssertionError


def remove_if_empty(*directories: Path) -> None:
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


class Lock:
    """Holds a directory for this process. The kernel gives it back when the process ends, however it ends.

    BadRequest if another process holds it. On file systems without locks nothing is held.
    """

    def __init__(self, directory: Path) -> None:
        self._handle: int | None = None
        if fcntl is None:
            return
        try:
            self._handle = os.open(directory, os.O_RDONLY)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise BadRequest(f"another process is writing to {directory}: wait for it, or end it") from None
        except OSError:
            self.release()

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
