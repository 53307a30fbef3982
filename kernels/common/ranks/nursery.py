"""The processes of all ranks but rank 0: `python -m kernels.common.ranks.nursery SOCKET`.

This process is the nursery. It imports what a way needs, once, and forks each rank, which then starts at
once. It has no threads. It ends, and kills the ranks, when its socket closes: with the process that started it. A rank
ends when its own socket closes, or when the others do not come within `LIMIT_S`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any

from kernels.common.ranks.member import LIMIT_S, Member, Message, way
from kernels.common.ranks.segment import mapped

MOST_BYTES = 4096
REAP_S = 0.05
"""How often the nursery looks whether a rank has ended."""


def receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """A message, a dictionary, and its file descriptors; None when the other end has closed."""
    try:
        data, fds, _, _ = socket.recv_fds(channel, MOST_BYTES, 4)
    except ConnectionResetError:
        return None, []
    return (json.loads(data) if data else None), fds


def send(channel: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    socket.send_fds(channel, [json.dumps(message).encode()], fds or [])


def nursery(channel: socket.socket) -> None:
    """Fork ranks on request, kill them on request, and tell how each one ended."""
    alive: set[int] = set()
    channel.settimeout(REAP_S)
    while True:
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.discard(pid)
                send(channel, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})
        try:
            message, fds = receive(channel)
        except TimeoutError:
            continue
        if message is None:
            break
        if "kill" in message:
            kill(set(message["kill"]) & alive)
            continue
        join = way(message["way"], message["dtype"])
        pid = os.fork()
        if pid == 0:
            channel.close()
            born(join, message, *fds)
        alive.add(pid)
        for fd in fds:
            os.close(fd)
    kill(alive)


def kill(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def born(join: Any, message: dict[str, Any], channel_fd: int, control_fd: int) -> None:
    """The life of a rank. Never returns."""
    channel = socket.socket(fileno=channel_fd)
    try:
        send(channel, {"up": os.getpid()})
        member = Member(message["rank"], message["ranks"], mapped(control_fd), give_up)
        serve(member, channel, join(member, message["folder"]))
    except Exception as error:
        send(channel, {"failed": f"{type(error).__name__}: {error}"[: MOST_BYTES // 2]})
        os._exit(1)
    os._exit(0)


def give_up(phase: int, since: float) -> None:
    if time.monotonic() - since > LIMIT_S:
        raise TimeoutError(f"the other ranks did not come within {LIMIT_S:.0f} s")


def serve(member: Member, channel: socket.socket, part_of: Any) -> None:
    """Do as rank 0 says until it is gone: take a message, forget one, launch."""
    parts: dict[int, Any] = {}
    while True:
        order, fds = receive(channel)
        if order is None:
            return
        if "launch" in order:
            member.launch(parts[order["launch"]], wait=False)
        elif "forget" in order:
            parts.pop(order["forget"])
        else:
            x, y = (mapped(fd) for fd in fds)
            for fd in fds:
                os.close(fd)
            message = Message(x=x, y=y, **order["message"])
            parts[order["take"]] = part_of(message)
            send(channel, {"taken": order["take"]})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nursery(socket.socket(fileno=int(sys.argv[1])))
