"""A few lines of inline PTX, executed by the emulator on 32-bit registers."""

from __future__ import annotations

import numpy as np
import torch

from bench.inspection.emulator.execute import make_step
from bench.inspection.emulator.machine import Machine
from bench.inspection.emulator.memory import GlobalMemory
from bench.inspection.emulator.ptx import parse

MASK = (1 << 32) - 1


def halves(word: int, dtype: torch.dtype) -> torch.Tensor:
    """The two 16-bit floats of a register, as fp64, low half first."""
    bits = np.array([word & 0xFFFF, word >> 16], dtype=np.uint16)
    return torch.from_numpy(bits.view(np.int16)).view(dtype).double()


def register(pair: torch.Tensor, dtype: torch.dtype) -> int:
    """Two floats rounded to 16 bits each, the first in the low half."""
    low, high = pair.to(dtype).view(torch.int16).tolist()
    return (low & 0xFFFF) | (high & 0xFFFF) << 16


def run_ptx(text: str, outputs: int, inputs: list[int], kind: str = "b32") -> list[int]:
    """Execute the text. Its first `outputs` names `$0`, `$1`, ... are returned; the following ones are the inputs."""
    names = [f"%arg{i}" for i in range(outputs + len(inputs))]
    for i in reversed(range(len(names))):
        text = text.replace(f"${i}", names[i])
    machine = Machine(parse(text, dict.fromkeys(names, kind)), GlobalMemory([]), {}, 0, [(0, 0, 0)], (1, 1, 1))
    for name, value in zip(names[outputs:], inputs, strict=True):
        machine.registers[name][:] = value
    with np.errstate(all="ignore"):
        machine.run(make_step)
    return [int(machine.registers[name][0]) for name in names[:outputs]]
