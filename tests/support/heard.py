"""A `bench.measure.case.Listener` that keeps what it hears."""

from __future__ import annotations

from typing import Any

from bench.records import Record


class Heard:
    """Keeps what a measurement reports, in order."""

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
        """What each note is called."""
        return [content["note"] for kind, content in self.lines if kind == "note"]
