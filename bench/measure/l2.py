"""No kernel may keep its data in the L2 from one replay to the next.

Since the A100 a program can set a part of the L2 aside and give a stream an access-policy window, whose lines then stay
while others are evicted. A kernel that pins one copy of its inputs that way reads up to a fifth of the rotating copies
from the L2, although they are four times larger than it. The set-aside is 0 unless a program asks for it. With 0, lines
of a window are evicted as all others.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

PERSISTING_L2_CACHE_SIZE = 6
"""`CU_LIMIT_PERSISTING_L2_CACHE_SIZE` of cuda.h."""


@cache
def driver() -> Any:
    """CUDA's driver library, None where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def set_aside(library: Any) -> int:
    """Bytes of the L2 that are set aside for persisting lines; 0 where the part or the driver cannot do it."""
    size = ctypes.c_size_t(0)
    refused = library.cuCtxGetLimit(ctypes.byref(size), PERSISTING_L2_CACHE_SIZE)
    return 0 if refused else size.value


def forbid_pinning() -> None:
    """Give back what is set aside, and turn persisting lines into normal ones. Raises RuntimeError if that fails.

    NVBench does the same. It costs one call of the driver where nothing is set aside.
    """
    library = driver()
    if library is None or not set_aside(library):
        return
    refused = library.cuCtxSetLimit(PERSISTING_L2_CACHE_SIZE, ctypes.c_size_t(0))
    refused = refused or library.cuCtxResetPersistingL2Cache()
    if refused or set_aside(library):
        raise RuntimeError(f"the L2 that a kernel set aside for itself cannot be taken back (CUDA error {refused})")
