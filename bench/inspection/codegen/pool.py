"""Processes that compile. One that the compiler kills costs only the item that it was working on."""

from __future__ import annotations

import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

KILLED = "the compiler killed its process"


def compile_each(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, limit_s: float | None = None
) -> Iterator[tuple[Item, Result | None]]:
    """Yield each item with `work(item)` as soon as it is there, or with None where its process was killed.

    `work` runs in at most `workers` processes, so this one needs neither torch nor triton. What it raises is raised
    here. After `limit_s` seconds nothing more is yielded. At the end the processes are killed.
    """
    ends = None if limit_s is None else time.monotonic() + limit_s
    context = get_context("spawn")
    todo = deque(items)
    processes: list[SpawnProcess] = []
    busy: dict[Connection, Item] = {}

    def start() -> Connection:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(work, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        return ours

    def give(connection: Connection) -> None:
        busy[connection] = todo.popleft()
        with suppress(OSError):  # the process may be gone already: `wait` tells
            connection.send(busy[connection])

    try:
        while todo and len(busy) < workers:
            give(start())
        while busy:
            left = None if ends is None else max(0.0, ends - time.monotonic())
            for connection in wait(list(busy), left):
                assert isinstance(connection, Connection)
                item, answer = busy.pop(connection), received(connection)
                if todo:
                    give(connection if answer else start())
                result, error = answer or (None, None)
                if error:
                    raise RuntimeError(error)
                yield item, result
            if left == 0:
                return
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def received(connection: Connection) -> Any:
    """An answer, or None where the process was killed."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """In a process: answer each item with a result or the text of an exception, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    with suppress(EOFError, OSError):
        while True:
            item = connection.recv()
            answer: tuple[Any, str | None]
            try:
                answer = work(item), None
            except Exception:
                answer = None, traceback.format_exc()
            connection.send(answer)
