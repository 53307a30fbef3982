"""The head of a fleet: it starts every node, writes down what they send, and can go on after any of them was lost.

`DIR/fleet.json` says what was asked for and what each node has. `DIR/<node>/<share>/records.jsonl` is the run file of a
share, `summary.json` what of it counts in the fleet. The head keeps no sample in memory.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.errors import BadRequest, describe
from bench.files import Lock, write_text
from bench.judge.fleet.deviations import Member
from bench.judge.fleet.summary import summarize
from bench.judge.fleet.verdict import Verdict
from bench.measure.schedule import Request
from bench.operate.fleet.engines import Engine
from bench.operate.fleet.node import Event, Task
from bench.records import FILE, mend_tail
from bench.run import load_run
from bench.units import duration

STATE, SUMMARY, ALONE = "fleet.json", "summary.json", "alone"

WAIT_S = 0.5

ALONE_OPS = ("stream", "ffn_gemv", "gemm_peak", "host_link")
"""What is measured again of each share alone: the roof, an operation that follows it, what takes the most power, and
the link to the host."""


class Display(Protocol):
    """Where progress is shown."""

    def at(self, name: str, done: int, total: int, what: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(kw_only=True)
class State:
    """What `fleet.json` holds. It has host names and serial numbers, so it is not for publication."""

    engine: str
    request: dict[str, Any]
    cpu_shares: int = 1
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By node: its host, and its shares as dicts."""
    lost: dict[str, str] = field(default_factory=dict)
    """By node, or node and share: why it has nothing or not everything."""


@dataclass
class Head:
    """Collects what the nodes of an engine send."""

    directory: Path
    engine: Engine
    state: State
    display: Display

    def __post_init__(self) -> None:
        self._guard = threading.Lock()
        self._changed = False
        self._started: set[str] = set()
        self._given_up: set[str] = set()

    def run(self, request: Request, *, alone: bool = False) -> None:
        """Measure on every node at once, in one thread a node. With `alone`, one share of a node after the other."""
        prefix = ALONE if alone else ""
        self._started = set()
        threads = {
            name: threading.Thread(
                target=self.follow, args=(name, self.task(name, request, prefix), prefix), daemon=True
            )
            for name in self.engine.nodes()
            if name not in self._given_up
        }
        began = time.monotonic()
        for thread in threads.values():
            thread.start()
        try:
            for name, thread in threads.items():
                while thread.is_alive() and name not in self._given_up:
                    thread.join(WAIT_S)  # an interrupt gets through between two waits
                    self.save()
                    if time.monotonic() - began > self.engine.start_within_s:
                        self.give_up(set(threads) - self._started)
        except KeyboardInterrupt:
            self.engine.close()
            for thread in threads.values():
                thread.join(10)
            raise
        finally:
            self.save()

    def give_up(self, names: set[str]) -> None:
        """Of nodes that have sent nothing, nothing is awaited or written any more."""
        within = duration(self.engine.start_within_s)
        for name in sorted(names - self._given_up):
            with self._guard:
                if name in self._started:
                    continue
                self._given_up.add(name)
            self.lose(name, f"it did not start within {within} (--start-within): the same command asks it again")

    def task(self, name: str, request: Request, prefix: str) -> Task:
        """What is left on this node: shares that are finished are not measured again, others go on."""
        have, finished = {}, []
        for file in sorted((self.directory / name).glob(f"*/{prefix}/{FILE}" if prefix else f"*/{FILE}")):
            share = file.relative_to(self.directory / name).parts[0]
            mend_tail(file)
            try:
                run = load_run(file)
            except BadRequest:  # nothing in it can be used
                continue
            if run.complete and not any(record.status == "skipped" for record in run.records):
                finished.append(share)
            else:
                have[share] = file.read_text(encoding="utf-8", errors="replace")
        return Task(
            request=request,
            cpu_shares=self.state.cpu_shares,
            in_turn=bool(prefix),
            have=have,
            finished=tuple(finished),
        )

    def follow(self, name: str, task: Task, prefix: str) -> None:
        with self._guard:
            for key in [key for key in self.state.lost if key.split("/")[0] == name]:
                del self.state.lost[key]
        waiting: set[str] = set()
        try:
            for event in self.engine.run(name, task):
                with self._guard:
                    if name in self._given_up:
                        return
                    self._started.add(name)
                self.hear(name, event, prefix, waiting, task)
        except Exception as error:  # whatever an engine raises: the node is lost, the others go on
            if name in self._given_up:
                return
            self.lose(name, describe(error))
        for share in sorted(waiting):
            self.lose(f"{name}/{share}", "its node was lost before it ended")

    def hear(self, name: str, event: Event, prefix: str, waiting: set[str], task: Task) -> None:
        kind = event["kind"]
        if kind == "start":
            return
        if kind == "node":
            shares = {each["name"]: each for each in event["shares"]}
            for folder_name in (name, *shares):
                check_name(folder_name)
            before = self.state.nodes.get(name, {}).get("shares", {})
            for gone in sorted(set(before) - set(shares)):
                self.lose(f"{name}/{gone}", "it is not there any more")
            self.change(lambda s: s.nodes.update({name: {"host": event["host"], "shares": {**before, **shares}}}))
            waiting |= set(shares) - set(task.finished)
            return
        share = event["share"]
        check_name(share)
        folder = self.directory / name / share / prefix
        if kind == "at":
            self.display.at(f"{share} of {name}", event["done"], event["total"], event["what"])
        elif kind == "records":
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / FILE).open("a", encoding="utf-8") as file:
                file.write(event["text"])
        elif kind == "end":
            waiting.discard(share)
            if event["summary"]:
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / SUMMARY, json.dumps(event["summary"], separators=(",", ":")))
            if event["code"] not in (0, 1):
                self.lose(f"{name}/{share}", event["said"] or f"exit code {event['code']}")
            elif event["said"]:
                self.display.note(f"{share} of {name}: {event['said']}")

    def lose(self, key: str, why: str) -> None:
        self.change(lambda s: s.lost.update({key: why}))
        self.display.note(f"lost {key}: {why}")

    def change(self, how: Callable[[State], None]) -> None:
        """Change the state in memory. Whoever waits for the nodes saves it soon: a state for each of many nodes would
        cost time with the square of their number."""
        with self._guard:
            how(self.state)
            self._changed = True

    def save(self) -> None:
        """Write `fleet.json` if the state has changed since."""
        with self._guard:
            if not self._changed:
                return
            text, self._changed = json.dumps(dataclasses.asdict(self.state), indent=1), False
        write_text(self.directory / STATE, text)


def read_state(directory: Path) -> State | None:
    """None where no fleet was begun. BadRequest for a file that is damaged."""
    path = directory / STATE
    if not path.is_file():
        return None
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BadRequest(f"{path} is damaged ({error}); the records beside it are whole") from None


def check_name(name: str) -> None:
    """BadRequest for a name that is no folder's name: it came from another machine, or from a log."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise BadRequest(f"{name[:80]!r} is no name of a machine or of a share")


def hosts(directory: Path) -> dict[str, str]:
    """By node, the host on which it ran: a job of Slurm must go on there, since a share belongs to one board."""
    state = read_state(directory)
    return {name: node["host"] for name, node in state.nodes.items()} if state else {}


def members(directory: Path, state: State, prefix: str = "") -> Iterator[Member]:
    """Every share that has measured something. A summary that is missing is made from the records."""
    for name, found in sorted(state.nodes.items()):
        for share, each in found["shares"].items():
            folder = directory / name / share / prefix
            if summary := summary_of(folder):
                yield Member(
                    node=name,
                    share=share,
                    host=found["host"],
                    slot=each["slot"],
                    serial=each["serial"],
                    summary=summary,
                )


def summary_of(folder: Path) -> dict[str, Any] | None:
    path, records = folder / SUMMARY, folder / FILE
    if path.is_file() and (not records.is_file() or path.stat().st_mtime >= records.stat().st_mtime):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # made again below
            pass
    try:
        summary = summarize(load_run(records))
    except BadRequest:
        return None
    write_text(path, json.dumps(summary, separators=(",", ":")))
    return summary


def verdict(directory: Path, threshold: float | None = None) -> Verdict:
    """What the fleet in this directory came to. BadRequest where there is none."""
    state = read_state(directory)
    if state is None:
        raise BadRequest(f"no fleet in {directory}: it has no {STATE}")
    found = tuple(members(directory, state))
    whole = {(m.node, m.share) for m in found if m.summary.get("complete")}
    missing = [f"{key}: {why}" for key, why in state.lost.items()]
    missing += [
        f"{name}/{share}: its run is not finished"
        for name, node in state.nodes.items()
        for share in node["shares"]
        if (name, share) not in whole and f"{name}/{share}" not in state.lost
    ]
    return Verdict(
        members=found,
        alone=tuple(members(directory, state, ALONE)),
        missing=tuple(missing),
        threshold=threshold,
    )


def measure(
    directory: Path,
    request: Request,
    engine_name: str,
    engine: Engine,
    display: Display,
    *,
    cpu_shares: int = 1,
    alone: bool = False,
) -> bool:
    """Begin a fleet in `directory`, or go on with the one that lies there. False: interrupted.

    BadRequest where something else was asked for in this directory before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = Lock(directory)
    try:
        asked = json.loads(json.dumps({**dataclasses.asdict(request), "argv": []}))
        state = read_state(directory) or State(engine=engine_name, request=asked, cpu_shares=cpu_shares)
        changed = [name for name in asked if state.request.get(name) != asked[name] and name not in ("budget_s",)]
        if changed:
            raise BadRequest(
                f"{directory} holds a fleet with another --{changed[0].removesuffix('_s')} "
                f"({state.request.get(changed[0])}): choose another --out, or ask for the same"
            )
        head = Head(directory, engine, state, display)
        head.change(lambda state: None)
        head.save()
        head.run(request)
        if alone:
            ops = tuple(op for op in ALONE_OPS if not request.ops or op in request.ops)
            head.run(dataclasses.replace(request, ops=ops or request.ops), alone=True)
        return True
    except KeyboardInterrupt:
        return False
    finally:
        engine.close()
        lock.release()
