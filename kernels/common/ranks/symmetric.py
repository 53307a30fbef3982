"""torch's symmetric memory, which wants a process for each GPU: `python -m kernels.common.ranks.symmetric ORDER`.

This process is rank 0, and its CUDA graph cannot hold what other processes launch. So the other ranks launch without
end: each of their launches begins with a barrier on the GPU, where it waits for that of rank 0. They replay graphs of
many launches, so that they never are the slow ones. They end when their standard input closes, with rank 0.

No machine with two GPUs has run this yet: tests hold the refusals, the calls and their order.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels.op import Target

if TYPE_CHECKING:
    import torch

START_S = 60.0
"""So long the ranks wait for each other when they find the memory of all."""

LAUNCHES, AHEAD = 32, 2
"""Launches of a graph of another rank, and how many graphs it has given to its GPU before it waits."""

Reduce = Callable[["torch.Tensor", str, "torch.Tensor"], "torch.Tensor"]
"""`reduce(buffer, group, y)`: the sum over all ranks' buffers, in `y` or in the buffer itself."""

_names = count()


def one_shot(buffer: torch.Tensor, group: str, y: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.ops.symm_mem.one_shot_all_reduce_out(buffer, "sum", group, y)


def two_shot(buffer: torch.Tensor, group: str, y: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.ops.symm_mem.two_shot_all_reduce_(buffer, "sum", group)


def multimem(buffer: torch.Tensor, group: str, y: torch.Tensor) -> torch.Tensor:
    """The switch adds up."""
    import torch

    return torch.ops.symm_mem.multimem_all_reduce_(buffer, "sum", group)


REDUCES: dict[str, Reduce] = {"one-shot": one_shot, "two-shot": two_shot, "multimem": multimem}


class SymmetricRank:
    """One rank's launch: all meet, each copies its x into memory that all can reach, and they add up."""

    def __init__(self, way: str, x: torch.Tensor, rank: int, ranks: int, group: str, folder: str) -> None:
        import torch
        from torch import distributed
        from torch.distributed import _symmetric_memory as symmetric

        store = distributed.FileStore(f"{folder}/store", ranks)
        store.set_timeout(timedelta(seconds=START_S))
        symmetric._SymmetricMemory.set_group_info(group, rank, ranks, store)
        self.reduce, self.x, self.group = REDUCES[way], x, group
        self.buffer = symmetric.empty(x.shape, dtype=x.dtype, device=x.device)
        self.handle = symmetric._SymmetricMemory.rendezvous(self.buffer, group)
        self.y = torch.empty_like(x)

    def __call__(self) -> torch.Tensor:
        self.handle.barrier()
        self.buffer.copy_(self.x)
        return self.reduce(self.buffer, self.group, self.y)


def launched(way: str, xs: list[torch.Tensor]) -> SymmetricRank:
    """Rank 0's launch. The processes of the others end with it."""
    import torch
    from torch.multiprocessing.reductions import reduce_tensor

    folder = tempfile.TemporaryDirectory(prefix="decodebench-symmetric-")
    group = f"decodebench-{os.getpid()}-{next(_names)}"
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    processes = []
    for rank, x in enumerate(xs[1:], start=1):
        order = Path(folder.name) / str(rank)
        said = {"way": way, "rank": rank, "ranks": len(xs), "group": group, "folder": folder.name}
        order.write_bytes(pickle.dumps({**said, "x": reduce_tensor(x)}))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "kernels.common.ranks.symmetric", str(order)],
                stdin=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        )
    try:
        launch = SymmetricRank(way, xs[0], 0, len(xs), group, folder.name)
        launch()  # as each other rank does once before it captures its graph
        torch.cuda.synchronize()
    except BaseException:
        ended(processes, folder)
        raise
    weakref.finalize(launch, ended, processes, folder)
    return launch


def ended(processes: list[subprocess.Popen[bytes]], folder: Any) -> None:
    for process in processes:
        process.kill()
        process.wait()
    folder.cleanup()


def serve(order: dict[str, Any]) -> None:
    """The life of another rank. Never returns."""
    import torch

    torch.cuda.set_device(order["rank"])
    rebuild, arguments = order.pop("x")
    launch = SymmetricRank(x=rebuild(*arguments), **order)
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            launch()
    given: list[torch.cuda.Event] = []
    while True:
        graph.replay()
        given.append(torch.cuda.Event())
        given[-1].record()
        if len(given) > AHEAD:
            given.pop(0).synchronize()


def refused(way: str, target: Target) -> str | None:
    """The refusal where there is no symmetric memory among GPUs, or no switch that adds up."""
    import torch
    from torch import distributed

    if target.kind != "cuda":
        return "needs NVIDIA GPUs, one for each rank"
    if not (distributed.is_available() and hasattr(torch.ops.symm_mem, "one_shot_all_reduce_out")):
        return "needs torch's symmetric memory, which this torch was built without"
    found = torch.cuda.device_count()
    if any(not torch.cuda.can_device_access_peer(0, r) for r in range(1, found)):
        return "needs GPUs that reach each other's memory"
    if way == "multimem" and found:
        from torch.distributed._symmetric_memory import _SymmetricMemory

        if not _SymmetricMemory.has_multicast_support(torch._C._autograd.DeviceType.CUDA, 0):
            return "needs a switch that adds up (NVLink SHARP)"
    return None


if __name__ == "__main__":
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    serve(pickle.loads(Path(sys.argv[1]).read_bytes()))
