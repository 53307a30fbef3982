"""A fleet from logs: every machine ran `fleet node`, and whatever started them collected what they printed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.errors import BadRequest
from bench.measure.schedule import Request
from bench.operate.fleet.engines import Local
from bench.operate.fleet.head import Head, State, check_name, read_state
from bench.operate.fleet.node import Event, Task

MARK = '{"node":'


class Collected(Local):
    """An engine whose nodes have run already. `logs` are the files in which each of them has events."""

    def __init__(self, logs: Mapping[str, Sequence[Path]]) -> None:
        super().__init__()
        self.logs = logs

    def nodes(self) -> list[str]:
        return list(self.logs)

    def run(self, name: str, task: Task) -> Iterator[Event]:
        for path in self.logs[name]:
            yield from (event for node, event in events(path) if node == name)


def events(path: Path) -> Iterator[tuple[str, Event]]:
    """The nodes and events in a log. Whatever stands before an event in its line, and every other line, is ignored."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            at = line.find(MARK)
            if at < 0:
                continue
            try:
                found = json.loads(line[at:])
                yield found["node"], found["fleet"]
            except (ValueError, KeyError):  # cut off in the middle
                continue


class Notes:
    """A display that only keeps what is noted."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def at(self, name: str, done: int, total: int, what: str) -> None: ...

    def note(self, text: str) -> None:
        self.said.append(text)


def collect(files: Sequence[Path], out: Path) -> list[str]:
    """Write the fleet of these logs into `out`, and return what is to be said. A node that is there is replaced.

    BadRequest where a file is missing or holds no event.
    """
    logs: dict[str, list[Path]] = {}
    for path in files:
        if not path.is_file():
            raise BadRequest(f"no such file: {path}")
        names = dict.fromkeys(node for node, _ in events(path))
        if not names:
            raise BadRequest(f"{path} holds nothing that `fleet node` printed")
        for name in names:
            check_name(name)
            logs.setdefault(name, []).append(path)
    out.mkdir(parents=True, exist_ok=True)
    for name in logs:
        shutil.rmtree(out / name, ignore_errors=True)
    notes = Notes()
    head = Head(out, Collected(logs), read_state(out) or State(engine="collect", request={}), notes)
    for name in logs:
        head.state.nodes.pop(name, None)
    head.run(Request())
    return notes.said
