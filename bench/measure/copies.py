"""The copies of a case's inputs that take turns, as far as memory has room for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.measure.gate import volatile_part
from bench.measure.timing import Rotation, plan_rotation
from kernels.op import Inputs, Op, Target

MAX_SEEDS = 1 << 20
"""The seeds of the inputs that the gate changes to begin this far beyond the seeds of the copies."""

SLOW_TO_DRAW = 128 << 20
"""Bytes whose drawing takes a host about a second."""

DRAWING_SHARE = 1 / 12
"""What drawing a copy takes for a while, as a share of the copy: 1% of a 16-bit KV cache and 8% of an 8-bit one."""


class DoesNotFit(Exception):
    """The inputs need more memory than is free; the message says how much of both."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """`fresh` is the volatile part of other inputs: the gate exchanges its values and those of the first copy."""

    copies: list[Inputs]
    fresh: Inputs
    rotation: Rotation


def draw_copies(
    op: Op, case: Any, target: Target, *, seed: int, repeat: int, memory_bytes: int, timed: bool = True
) -> Copies:
    """Draw the rotating copies, each from its own seed, and `fresh`. If nothing is timed, one copy is enough.

    `fresh` is drawn first. Most of the memory that this takes is free again when the copies need it. If memory has no
    room for three copies, or if a host is slow to draw one more, `fresh` is the volatile part of the last copy. Raises
    `DoesNotFit` if memory has no room for two.
    """
    work = op.work(case)
    # inputs have no fewer bytes than are read
    tight = room_for(work.bytes_read, memory_bytes) < 3 or (target.kind == "cpu" and work.bytes_read >= SLOW_TO_DRAW)
    fresh = {} if tight else volatile_part(op, op.inputs(case, target.device, seed + MAX_SEEDS + repeat))
    first = op.inputs(case, target.device, seed)
    size = tensor_bytes(first)
    room_for(size, memory_bytes)
    rotation = plan_rotation(size, work.bytes, target, memory_bytes)
    count = rotation.copies if timed else 2 if tight else 1
    copies = [first, *(op.inputs(case, target.device, seed + i) for i in range(1, count))]
    return Copies(copies=copies, fresh=fresh or volatile_part(op, copies[-1]), rotation=rotation)


def room_for(copy_bytes: int, memory_bytes: int) -> int:
    """How many copies of inputs with so many bytes memory has room for. Raises `DoesNotFit` for fewer than two."""
    room = int(memory_bytes / max(1, copy_bytes) - DRAWING_SHARE)
    if room < 2:
        need = (2 + DRAWING_SHARE) * copy_bytes
        raise DoesNotFit(
            f"needs {need / 1e9:.1f} GB of memory for two copies of its inputs, {memory_bytes / 1e9:.1f} GB are free"
        )
    return room


def tensor_bytes(inputs: Inputs) -> int:
    """Bytes of all tensors among the inputs."""
    return sum(value.numel() * value.element_size() for value in inputs.values() if hasattr(value, "numel"))
