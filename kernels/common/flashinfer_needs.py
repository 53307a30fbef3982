"""What FlashInfer needs from a machine, and its name in a record. Standard library only at import."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from kernels.op import Stage, Target, Work, needs

WORKSPACE_BYTES = 128 << 20
"""Workspace for split partials, in the size that FlashInfer's documentation recommends. It demands zeros at first."""

CUDA = Path("/usr/local/cuda")
"""Where FlashInfer looks for nvcc if neither CUDA_HOME nor CUDA_PATH nor the search path leads to it."""


def missing(target: Target) -> str | None:
    """None if FlashInfer can run on this part, else the reason.

    It compiles its kernels with ninja and nvcc at their first use, unless `flashinfer-jit-cache` is installed. ninja
    comes with FlashInfer, but into the environment's scripts: they are on the search path only in an activated
    environment.
    """
    if target.kind != "cuda" or target.sm < 80:
        return "needs an NVIDIA GPU of sm_80 or later"
    if reason := needs("flashinfer"):
        return f"{reason} (pip install flashinfer-python)"
    if find_spec("flashinfer_jit_cache"):
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home or CUDA) / "bin" / "nvcc"
    found = {"nvcc": nvcc.is_file() or (not home and shutil.which("nvcc")), "ninja": shutil.which("ninja")}
    if absent := [tool for tool, path in found.items() if not path]:
        return f"compiles its kernels with {' and '.join(absent)}, not found; flashinfer-jit-cache brings them compiled"
    return None


def refresh_stage(entries: int) -> Stage:
    """Each launch gathers the live entries of the block table into the flat list that FlashInfer reads."""
    return Stage(name="page list", work=Work(bytes_read=4 * entries, bytes_written=4 * entries))


def version() -> str:
    """The installed version. Nothing is imported, so a record of a failed import has it too."""
    return f"flashinfer {metadata.version('flashinfer-python')}"
