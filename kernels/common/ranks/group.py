"""Rank 0's end: it starts the other ranks, launches with them, and names the one that died or does not come.

Ranks of one way and number are shared by all launches that are prepared while one of these lives. They end with the
last launch, or with this process. The nursery that forks them stays, since what it has imported is needed again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels.common.ranks.cases import RankedCase
from kernels.common.ranks.member import CONTROL_BYTES, LIMIT_S, Member, Message, way
from kernels.common.ranks.nursery import receive, send
from kernels.common.ranks.segment import Segment, mapped

if TYPE_CHECKING:
    import torch

START_S = 120.0
"""The nursery imports torch, which takes its time on a cold disk."""

TROUBLE_S = 0.3
"""After the first sign of trouble, so long the signs of other ranks are collected: where one dies, others fail next."""


class RankLost(RuntimeError):
    """A rank died, failed or does not come; the message names it. The group is of no use any more."""


class Nursery:
    """The process of `nursery.py`, and how the ranks that it forked ended."""

    def __init__(self) -> None:
        self.channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.codes: dict[int, int] = {}
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kernels.common.ranks.nursery", str(far.fileno())],
            pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **alone, "PYTHONPATH": path},
        )
        far.close()

    def code(self, pid: int, patience_s: float) -> int | None:
        """The exit code of a rank, minus the signal that ended it. None if it has not ended in time."""
        until = time.monotonic() + patience_s
        while pid not in self.codes and select.select([self.channel], [], [], max(0.0, until - time.monotonic()))[0]:
            said, _ = receive(self.channel)
            if said is None:
                break
            self.codes[said["ended"]] = said["code"]
        return self.codes.get(pid)


_nurseries: dict[int, Nursery] = {}


def nursery() -> Nursery:
    """The nursery of this process, if it lives. A fork of this process starts its own."""
    found = _nurseries.get(os.getpid())
    if found is None or found.process.poll() is not None:
        found = _nurseries[os.getpid()] = Nursery()
    return found


class Group:
    """Rank 0 with all others. Raises `RankLost` if they do not start."""

    def __init__(self, name: str, ranks: int, dtype: str) -> None:
        self.ranks, self.lost = ranks, ""
        join = way(name, dtype)  # before the nursery does the same, so that it finds what was compiled
        self.nursery = nursery()
        self.pids: dict[int, int] = {}
        self.slots = count()
        control = os.memfd_create("decodebench-control")
        os.ftruncate(control, CONTROL_BYTES)
        folder = tempfile.TemporaryDirectory(prefix="decodebench-ranks-")
        self.channels: dict[int, socket.socket] = {}
        self._end = weakref.finalize(self, ended, self.nursery, self.channels, self.pids, folder)
        for r in range(1, ranks):
            self.channels[r], far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with far:
                order = {"way": name, "dtype": dtype, "rank": r, "ranks": ranks, "folder": folder.name}
                send(self.nursery.channel, order, [far.fileno(), control])
        self.member = Member(0, ranks, mapped(control), self.look)
        os.close(control)
        self.pids.update(self.answers("up"))
        self.part_of = self.guarded(lambda: join(self.member, folder.name))

    def answers(self, name: str) -> dict[int, Any]:
        """What each rank says under this name when it has done what it was told."""
        found = {}
        until = time.monotonic() + START_S
        for r, channel in self.channels.items():
            if not select.select([channel], [], [], max(0.0, until - time.monotonic()))[0]:
                self.lose(f"rank {r} of {self.ranks} was not ready within {START_S:.0f} s")
            said, _ = receive(channel)
            if said is None or name not in said:
                self.lose(f"rank {r} of {self.ranks} {self.failure(r, said)}")
            found[r] = said[name]
        return found

    def failure(self, r: int, said: dict[str, Any] | None) -> str:
        return f"died: {self.ending(r)}" if said is None else f"failed: {said.get('failed')}"

    def guarded(self, function: Callable[[], Any]) -> Any:
        """Its result. An error that a library raises because a rank is gone becomes that rank's."""
        try:
            return function()
        except RankLost:
            raise
        except Exception as error:
            self.trouble(TROUBLE_S)
            self.lose(f"rank 0 of {self.ranks} failed: {type(error).__name__}: {error}")

    def look(self, phase: int, since: float) -> None:
        """Called while rank 0 waits for the others."""
        self.trouble(0.0)
        waited = time.monotonic() - since
        if waited > LIMIT_S:
            late = self.member.behind(phase)
            names = ", ".join(f"{r} (process {self.pids.get(r)}, {state(self.pids.get(r))})" for r in late)
            self.lose(f"of {self.ranks} ranks, rank {names} did not come within {LIMIT_S:g} s")

    def trouble(self, patience_s: float) -> None:
        """Raise `RankLost` if a rank has died or failed. One that died goes before those that failed because of it."""
        if not select.select([*self.channels.values()], [], [], patience_s)[0]:
            return
        time.sleep(TROUBLE_S)
        found = []
        for r, channel in self.channels.items():
            if select.select([channel], [], [], 0)[0]:
                said, _ = receive(channel)
                found.append((said is not None, f"rank {r} of {self.ranks} {self.failure(r, said)}"))
        self.lose(min(found)[1])

    def ending(self, r: int) -> str:
        code = self.nursery.code(self.pids.get(r, 0), 1.0)
        if code is None:
            return "nobody knows how"
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"

    def lose(self, reason: str) -> None:
        self.lost = reason
        self._end()
        raise RankLost(reason)

    def tell(self, order: dict[str, Any], fds: Sequence[int] = ()) -> None:
        data = [json.dumps(order).encode()]
        for channel in self.channels.values():
            try:
                socket.send_fds(channel, data, list(fds))
            except OSError:
                self.trouble(TROUBLE_S)
                raise

    def launch(self, slot: int, part: Callable[[], None]) -> None:
        if self.lost:
            raise RankLost(self.lost)
        self.tell({"launch": slot})
        self.guarded(lambda: self.member.launch(part, wait=True))

    def forget(self, slot: int) -> None:
        if not self.lost:
            self.tell({"forget": slot})


def ended(nursery: Nursery, channels: dict[int, socket.socket], pids: dict[int, int], folder: Any) -> None:
    """End the ranks of a group."""
    for channel in channels.values():
        channel.close()
    if nursery.process.poll() is None:
        send(nursery.channel, {"kill": list(pids.values())})
    folder.cleanup()


def state(pid: int | None) -> str:
    """What Linux says of a process: `stopped`, `sleeping`, `running`."""
    try:
        said = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "gone"
    return next((line.split("(")[-1].rstrip(")") for line in said.splitlines() if line.startswith("State:")), "unknown")


_groups: weakref.WeakValueDictionary[tuple[str, int, int], Group] = weakref.WeakValueDictionary()


def group(name: str, ranks: int, dtype: str) -> Group:
    """The ranks of this way and number. They are started, ready for `dtype`, unless a launch that lives has them."""
    key = (name, ranks, os.getpid())
    found = _groups.get(key)
    if found is None or found.lost:
        found = _groups[key] = Group(name, ranks, dtype)
    return found


class Collective:
    """A prepared launch on a host. All ranks meet at a barrier, do their part, and it returns when all have finished.

    `x` and `y` are what all ranks have and get, [ranks, ...]; y is its output. Raises `RankLost` if a rank died, or did
    not come in time.
    """

    def __init__(self, way: str, case: RankedCase, x: Segment, y: Segment, shots: int = 1) -> None:
        self.group = group(way, case.ranks, case.dtype)
        self.output = y.tensor
        self.slot = next(self.group.slots)
        message: dict[str, Any] = {"case": case.as_dict(), "shots": shots}
        self.part = self.group.part_of(Message(x=mapped(x.fd), y=mapped(y.fd), **message))
        self.group.tell({"take": self.slot, "message": message}, [x.fd, y.fd])
        self.group.answers("taken")
        weakref.finalize(self, self.group.forget, self.slot).atexit = False

    @property
    def seconds(self) -> list[float]:
        """Of each rank in the last launch, from the barrier to the end of its own part. The launch took the largest."""
        return self.group.member.seconds.tolist()

    def __call__(self) -> torch.Tensor:
        self.group.launch(self.slot, self.part)
        return self.output
