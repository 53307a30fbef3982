"""Memory that several processes of a host share."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Segment:
    """A tensor in anonymous shared memory. `fd` can be sent to another process, which maps it with `mapped`.

    The memory belongs to no file system, so /dev/shm may be small. It is freed when the last process that maps it ends
    or lets it go.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        import torch

        count = 1
        for each in shape:
            count *= each
        self.fd = os.memfd_create("decodebench")
        os.ftruncate(self.fd, max(1, count * dtype.itemsize))
        weakref.finalize(self, os.close, self.fd)
        self.tensor = torch.frombuffer(mapped(self.fd), dtype=dtype, count=count).view(shape)


def mapped(fd: int) -> mmap.mmap:
    """All bytes behind a descriptor, which may be closed afterwards."""
    return mmap.mmap(fd, os.fstat(fd).st_size)


def words(memory: Any, dtype: str) -> Any:
    """Bytes as a numpy array of this type."""
    import numpy as np

    return np.frombuffer(memory, dtype=dtype)
