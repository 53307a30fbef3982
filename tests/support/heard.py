"""A listener of a measurement and a display of a run that keep what they hear."""

from __future__ import annotations

from typing import Any

from bench.records import Record


class Silent:
    """A display that shows nothing, and keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, *_: Any) -> None: ...
    def working(self, *_: Any) -> None: ...
    def record(self, record: Record) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


class Heard:
    """A `bench.measure.case.Listener` that keeps what it hears, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []

    def entering(self, impl: str, phase: str) -> None:
        self.lines.append(("entering", (impl, phase)))

    def prediction(self, line: dict[str, Any]) -> None:
        self.lines.append(("prediction", line))

    def record(self, record: Record) -> None:
        self.lines.append(("record", record))

    def note(self, line: dict[str, Any]) -> None:
        self.lines.append(("note", line))

    @property
    def records(self) -> dict[str, Record]:
        return {content.impl: content for kind, content in self.lines if kind == "record"}

    @property
    def entered(self) -> list[tuple[str, str]]:
        """Implementation and phase, in the order in which they were entered."""
        return [content for kind, content in self.lines if kind == "entering"]

    @property
    def notes(self) -> list[str]:
        """The name of each note."""
        return [content["note"] for kind, content in self.lines if kind == "note"]
