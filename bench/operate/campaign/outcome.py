"""What a call of a campaign came to: for a terminal, for machines, and as `summary.md`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SUMMARY = "summary.md"
MAX_FILES = 8
MAX_BYTES = 16_000_000
"""Some rented machines let nothing leave but 8 files of 16 MiB each. MB is used, which is a little less."""

State = Literal["done", "open", "failed", "skipped"]


@dataclass(kw_only=True)
class Progress:
    """One step as `campaign.json` keeps it. `found` says in words what it came to, `result` as data."""

    state: State = "open"
    seconds: float = 0.0
    found: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CampaignOutcome:
    """Where a call left the campaign.

    Exit code: 130 interrupted, 2 not fit to measure on, 1 something is wrong or broken, 3 nothing is, but a step is
    left for another call, 0 all done.
    """

    directory: Path
    run: Path | None
    """The directory of the run, once measuring has begun."""
    steps: dict[str, Progress]
    files: dict[str, int]
    """The files to bring home, and their bytes."""
    faults: list[str]
    answer: Sequence[str] = ()
    """What the run found, in the lines of `bench.judge.answer`. Empty before measuring has begun."""
    unfit: bool = False
    interrupted: bool = False

    @property
    def left(self) -> list[str]:
        return [name for name, step in self.steps.items() if step.state in ("open", "failed")]

    @property
    def exit_code(self) -> int:
        if self.interrupted or self.unfit:
            return 130 if self.interrupted else 2
        return 1 if self.faults else 3 if self.left else 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "directory": str(self.directory),
            "run": str(self.run) if self.run else None,
            "steps": {name: asdict(step) for name, step in self.steps.items()},
            "left": self.left,
            "files": self.files,
            "faults": self.faults,
            "answer": list(self.answer),
            "unfit": self.unfit,
            "interrupted": self.interrupted,
            "exit_code": self.exit_code,
        }

    def lines(self) -> list[str]:
        """For a terminal: the steps, what is wrong, what is left, what to bring home, and what the run found."""
        shown = []
        for name, step in self.steps.items():
            first, *more = step.found or [""]
            shown.append(f"{step.state:<8} {name:<10} {step.seconds:6.0f} s  {first}")
            shown += [f"{'':28}{line}" for line in more]
        shown += [f"wrong: {fault}" for fault in self.faults]
        if self.unfit:
            shown.append("not fit to measure on: nothing was measured in this call")
        elif self.left:
            shown.append(f"left for the next call with the same directory: {', '.join(self.left)}")
        total = sum(self.files.values())
        shown.append(f"to bring home: {len(self.files)} files, {total / 1e6:.1f} MB, in {self.directory}")
        shown += [f"too many files: at most {MAX_FILES} can leave some machines"] * (len(self.files) > MAX_FILES)
        if self.run:
            shown.append(f"there, redraw report and figures from {self.run.name}: decodebench report DIR")
        return [*shown, *self.answer]


def summary(outcome: CampaignOutcome, calls: Sequence[dict[str, Any]]) -> str:
    """The text of `summary.md`: what was found, the steps as a table, what is wrong, what is left, the files."""
    rows = [
        f"| {name} | {step.state} | {step.seconds:.0f} s | {'; '.join(step.found).replace('|', '/')} |"
        for name, step in outcome.steps.items()
    ]
    parts = [
        "# Campaign",
        *["\n".join(f"- {line}" for line in outcome.answer)] * bool(outcome.answer),
        f"{len(calls)} calls, the first at {calls[0]['began']}, the last at {calls[-1]['began']}.",
        "\n".join(["| step | state | took | found |", "| --- | --- | ---: | --- |", *rows]),
    ]
    if outcome.faults:
        parts += ["## Wrong", "\n".join(f"- {fault}" for fault in outcome.faults)]
    if outcome.left:
        parts += ["## Left", f"Another call with the same directory goes on with: {', '.join(outcome.left)}."]
    sizes = [f"| {name} | {size / 1e6:.2f} MB |" for name, size in outcome.files.items() if name != SUMMARY]
    parts += ["## Files", "\n".join(["| file | size |", "| --- | ---: |", *sizes])]
    return "\n\n".join(parts) + "\n"
