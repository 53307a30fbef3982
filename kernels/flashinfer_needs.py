"""What FlashInfer needs of a machine, and its name in a record. Standard library only at import."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from kernels.op import Stage, Target, Work, needs

WORKSPACE_BYTES = 128 << 20
"""For split partials, as FlashInfer's documentation recommends; zeroed, as it demands of a first use."""

NVCC = Path("/usr/local/cuda/bin/nvcc")


def missing(target: Target) -> str | None:
    """Its kernels are compiled with nvcc when they are first asked for, unless `flashinfer-jit-cache` is installed."""
    if target.kind != "cuda" or target.sm < 80:
        return "needs an NVIDIA GPU of sm_80 or later"
    if reason := needs("flashinfer"):
        return f"{reason} (pip install flashinfer-python)"
    if find_spec("flashinfer_jit_cache") or shutil.which("nvcc") or NVCC.is_file():
        return None
    return "compiles its kernels with nvcc, which is not here; flashinfer-jit-cache brings them compiled"


def refresh_stage(entries: int) -> Stage:
    """The block table's live entries gathered into the flat list that FlashInfer reads, in each launch."""
    return Stage(name="page list", work=Work(bytes_read=4 * entries, bytes_written=4 * entries))


def version() -> str:
    import flashinfer

    return f"flashinfer {flashinfer.__version__}"
