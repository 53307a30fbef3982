"""NCCL's sends and receives among all GPUs of one process. torch brings the library, but these calls only in processes
of one GPU each, which a CUDA graph of this process could not hold.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LIBRARY = "libnccl.so.2"

INT8 = 0
"""`ncclInt8` of nccl.h: rows travel as bytes."""


class Communicators:
    """One communicator a GPU, 0 to n - 1. Raises RuntimeError with NCCL's own words."""

    def __init__(self, library: Any, ranks: int) -> None:
        self.library = library
        self.comms = (ctypes.c_void_p * ranks)()
        self.call("ncclCommInitAll", self.comms, ranks, (ctypes.c_int * ranks)(*range(ranks)))

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            self.library.ncclGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"{name}: {self.library.ncclGetErrorString(code).decode()}")

    @contextmanager
    def group(self) -> Iterator[None]:
        """Calls that NCCL takes together when the group ends."""
        self.call("ncclGroupStart")
        yield
        self.call("ncclGroupEnd")

    def send(self, rank: int, rows: torch.Tensor, to: int, stream: Any) -> None:
        self._move("ncclSend", rank, rows, to, stream)

    def receive(self, rank: int, rows: torch.Tensor, of: int, stream: Any) -> None:
        self._move("ncclRecv", rank, rows, of, stream)

    def _move(self, name: str, rank: int, rows: torch.Tensor, peer: int, stream: Any) -> None:
        size = ctypes.c_size_t(rows.nbytes)
        at, comm, on = map(ctypes.c_void_p, (rows.data_ptr(), self.comms[rank], stream.cuda_stream))
        self.call(name, at, size, INT8, peer, comm, on)


@cache
def communicators(ranks: int) -> Communicators:
    """Those of this process."""
    import torch  # noqa: F401  it loads the library

    return Communicators(ctypes.CDLL(LIBRARY), ranks)


def exchange(
    comms: Communicators,
    sent: Sequence[Sequence[torch.Tensor]],
    got: Sequence[Sequence[torch.Tensor]],
    streams: Sequence[Any],
) -> None:
    """`sent[r][q]` of rank r becomes `got[q][r]` of rank q, on each rank's stream. Empty ones do not travel."""
    with comms.group():
        for r, stream in enumerate(streams):
            for q in range(len(streams)):
                if sent[r][q].nbytes:
                    comms.send(r, sent[r][q], q, stream)
                if got[r][q].nbytes:
                    comms.receive(r, got[r][q], q, stream)


def refused(kind: str) -> str | None:
    """The refusal where there is no NCCL."""
    from torch import distributed

    if kind != "cuda":
        return "needs NVIDIA GPUs, one for each rank"
    if not (distributed.is_available() and distributed.is_nccl_available()):
        return "needs NCCL, which this torch was built without"
    return None


def version() -> str:
    from torch.cuda import nccl

    return "NCCL " + ".".join(str(part) for part in nccl.version())
