"""Progress on the screen: a bar with the time left, and each result when it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bench.records import Record
from bench.units import duration, si, signed
from kernels.op import Target


class TimeLeft(TimeRemainingColumn):
    """`0:01:20 left`; empty while the amount of work is unknown."""

    def render(self, task: Task) -> Text:
        time = super().render(task)
        return time.append(" left") if time else time


@contextmanager
def counting(what: str, name: Callable[[Any], str]) -> Iterator[Callable[[int, int, Any], None]]:
    """A bar on stderr. The function that it yields takes: how many are done, of how many, and the last one."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, last: bar.update(task, completed=done, total=total, description=name(last))


def stored(record: Record) -> float | None:
    """Seconds that were predicted before the measurement."""
    found = record.prediction.get("measured")
    return float(found["seconds"]) if found else None


class Live:
    """Shows a run on a console. A console that is no terminal gets plain lines and no bar.

    `expected` says for a record how many seconds were predicted."""

    def __init__(self, console: Console, expected: Callable[[Record], float | None] = stored) -> None:
        self.console, self.expected = console, expected
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._working = False

    @classmethod
    def on(cls, *, stderr: bool, expected: Callable[[Record], float | None] = stored) -> Live:
        """On stderr or stdout."""
        return cls(Console(stderr=stderr), expected)

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._working and kind is None:
            self._advance()
        self._progress.stop()

    def begin(self, target: Target, directory: Path, total: int, done: int) -> None:
        where = "the GPU" if target.kind == "cuda" else "the CPU (no GPU is used)"
        self._print(f"[bold]{escape(target.name)}[/bold], measuring on {where}")
        self._print(f"writing to {escape(str(directory))}" + (f", {done} of {total} cases are done" if done else ""))
        self._progress.update(self._task, total=total, completed=done)

    def working(self, op: str, case_id: str) -> None:
        if self._working:
            self._advance()
        self._working = True
        self._progress.update(self._task, description=escape(f"{op} {case_id}"))

    def _advance(self) -> None:
        """One case more is done. A case that is measured again is one more than was announced."""
        task = self._progress.tasks[0]
        done = task.completed + 1
        self._progress.update(self._task, completed=done, total=task.total and max(task.total, done))

    def record(self, record: Record) -> None:
        if record.status in ("refused", "skipped"):
            return
        wide = self.console.width if self.console.is_terminal else WIDEST
        name = [f"{record.op:17}", f"{record.case_id:44}", f"{record.impl:12}"]
        if record.status != "ok" or record.seconds is None:
            self._print(f"[red]{escape(' '.join(name))} {record.status}: {escape(record.reason or '')}[/red]")
            return
        rate = si(record.bytes / record.seconds, "B/s")
        flops = si(record.flops / record.seconds, "FLOP/s") if record.flops else ""
        said = [f"{duration(record.seconds):>9}", f"{rate:>10}", f"{flops:>13}", versus(record, self.expected(record))]
        flags = ", ".join(record.flags)
        for line in fitting(name, said, flags, wide):
            self._print(escape(line).replace(FLAGS_HERE, f"[yellow]{escape(flags)}[/yellow]"))

    def note(self, text: str) -> None:
        self._print(f"[yellow]{escape(text)}[/yellow]")

    def _print(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)


class Fleet:
    """Shows a fleet on stderr: a bar for each share. A console that is no terminal gets only the notes."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Fleet:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def at(self, name: str, done: int, total: int, what: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(escape(name), what="")
        self._progress.update(self._tasks[name], completed=done, total=total, what=escape(what))

    def note(self, text: str) -> None:
        self._progress.console.print(f"[yellow]{escape(text)}[/yellow]", highlight=False, soft_wrap=True)


WIDEST = 1000
"""Columns of what is no terminal."""

FLAGS_HERE = "\0"


def fitting(name: list[str], said: list[str], flags: str, width: int) -> list[str]:
    """A result as one line or, where that is too long, as two of which the second is indented. No number is split.

    `FLAGS_HERE` stands where the flags belong.
    """
    end = f"  {FLAGS_HERE}" if flags else ""
    whole = " ".join([*name, *said[:-1]]) + said[-1]
    if len(whole) + len(flags) + 2 <= width:
        return [whole + end]
    first = " ".join(each.strip() for each in name)
    kept = [each.strip() for each in (said[0], said[-1], said[1], said[2]) if each.strip()]
    while len(kept) > 1 and len("  ".join(kept)) + len(flags) + 4 > width:
        kept.pop()
    return [first, "  " + "  ".join(kept) + end]


def versus(record: Record, expected: float | None) -> str:
    """The predicted time, and by how much the measured time differs from it."""
    if not expected or not record.seconds:
        return ""
    error = f"({signed(record.seconds / expected - 1)})"
    return f"  predicted {duration(expected):>9} {error:>9}"
