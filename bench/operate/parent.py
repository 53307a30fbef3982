"""A process that must not outlive the one that started it."""

from __future__ import annotations

import os
import signal
import sys


def end_with_parent() -> None:
    """End this process, and what it started, when its parent ends. It must lead a process group of its own.

    A parent that was killed cannot end them, and they would hold the GPU. Nothing is ever sent through standard input;
    it ends when the parent does.
    """
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)
