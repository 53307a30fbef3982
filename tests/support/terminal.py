"""Commands on a pseudo-terminal, as a person sees them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence

from tests.support import ROOT


def on_a_terminal(columns: int, *arguments: str, colour: bool = False, program: Sequence[str] = ("-m", "bench")) -> str:
    """What a command prints on a pseudo-terminal of this width. `program`: what Python runs, if not `decodebench`."""
    leader, follower = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(columns), "LINES": "50", "TERM": "xterm"}
    environ |= {} if colour else {"NO_COLOR": "1"}
    command = [sys.executable, *program, *arguments]
    process = subprocess.Popen(command, stdout=follower, stderr=subprocess.DEVNULL, cwd=ROOT, env=environ)
    os.close(follower)
    said = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(leader)
    assert process.wait() == 0
    return said.decode().replace("\r\n", "\n")
