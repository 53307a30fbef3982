"""gloo, which torch brings: what servers call on a host."""

from __future__ import annotations

import importlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kernels.common.ranks.member import LIMIT_S, Member
from kernels.op import Target

if TYPE_CHECKING:
    import mmap

    import torch


def warm(dtype: str) -> None:
    importlib.import_module("torch.distributed")


def joined(member: Member, folder: str) -> Any:
    """A process group of ranks that talk over the loopback interface. They find each other by a file."""
    from torch import distributed

    backend: Any = distributed.ProcessGroupGloo
    options = backend._Options()
    options._devices = [backend.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=LIMIT_S)
    store = distributed.FileStore(f"{folder}/store", member.ranks)
    return backend(store, member.rank, member.ranks, options)


def of_rank(memory: mmap.mmap, rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The part of one rank in [ranks, *shape]."""
    import torch

    count = 1
    for each in shape:
        count *= each
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=rank * count * dtype.itemsize).view(shape)


def refused(target: Target) -> str | None:
    """The refusal where there is no gloo."""
    from torch import distributed

    if target.kind != "cpu":
        return "needs a host: it works on the host's own cores"
    if not (distributed.is_available() and distributed.is_gloo_available()):
        return "needs gloo, which this torch was built without"
    return None
