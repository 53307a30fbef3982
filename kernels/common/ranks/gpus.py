"""One process launches on all GPUs, so that a timer's CUDA graph holds the launches of all ranks.

A graph that only rank 0's process replays would leave ranks in other processes behind. How torch's symmetric memory is
measured, which wants a process for each GPU: `symmetric.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Forked:
    """Streams on GPUs 1 to n - 1 that begin behind the current stream of GPU 0, and that it waits for at the end."""

    def __init__(self, ranks: int) -> None:
        import torch

        self.others = [torch.cuda.Stream(device=r) for r in range(1, ranks)]
        self.start = torch.cuda.Event()
        self.ends = [torch.cuda.Event() for _ in self.others]

    def __call__(self, work: Callable[[Sequence[torch.cuda.Stream]], Any]) -> None:
        import torch

        here = torch.cuda.current_stream(0)
        self.start.record(here)
        for stream in self.others:
            stream.wait_event(self.start)
        work([here, *self.others])
        for stream, end in zip(self.others, self.ends, strict=True):
            end.record(stream)
            here.wait_event(end)


class AllGpus:
    """A prepared launch: one kernel on each GPU, which wait for each other. It ends with the slowest."""

    def __init__(self, launches: Sequence[Callable[[], Any]], output: torch.Tensor) -> None:
        import torch

        self.launches, self.output = launches, output
        self.forked = Forked(len(launches))
        for r in range(len(launches)):
            for q in range(len(launches)):
                # the first copy between two GPUs lets each read the other's memory
                torch.zeros(1, device=f"cuda:{r}").copy_(torch.zeros(1, device=f"cuda:{q}"))

    def __call__(self) -> torch.Tensor:
        self.forked(self.start)
        return self.output

    def start(self, streams: Sequence[torch.cuda.Stream]) -> None:
        import torch

        for stream, launch in zip(streams, self.launches, strict=True):
            with torch.cuda.stream(stream):
                launch()
