"""What FlashInfer needs of a machine, and its name in a record. Standard library only at import."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from kernels.op import Stage, Target, Work, needs

WORKSPACE_BYTES = 128 << 20
"""For split partials, as FlashInfer's documentation recommends; zeroed, as it demands of a first use."""

CUDA = Path("/usr/local/cuda")
"""Where FlashInfer looks for nvcc if neither CUDA_HOME nor CUDA_PATH nor the search path leads to one."""


def missing(target: Target) -> str | None:
    """Its kernels are compiled by ninja and nvcc when first asked for, unless `flashinfer-jit-cache` is installed.

    ninja comes with FlashInfer, but into the environment's scripts, which an unactivated one has not in its path.
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
    """The block table's live entries gathered into the flat list that FlashInfer reads, in each launch."""
    return Stage(name="page list", work=Work(bytes_read=4 * entries, bytes_written=4 * entries))


def version() -> str:
    """As installed: nothing is imported, so that a record of a failed import has one, too."""
    return f"flashinfer {metadata.version('flashinfer-python')}"
