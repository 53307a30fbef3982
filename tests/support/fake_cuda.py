"""Stands for torch.cuda's events, streams and graphs, with CPU tensors: what uses them is tested without a GPU.

Unlike a real capture, this one runs the launches once, and keeps torch's operators. A replay repeats the operators, and
writes their results where the first ones are. What a GPU does beside its host happens here one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.op import Target


@dataclass(frozen=True, kw_only=True)
class PretendedGpu(Target):
    """A CUDA target whose tensors live on the host."""

    @property
    def device(self) -> str:
        return "cpu"


GPU = PretendedGpu(kind="cuda", name="pretended", sm=90, sm_count=4, l2_bytes=256 << 10, smem_per_sm=228 << 10)


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self._at = 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds, as in torch."""
        return (end._at - self._at) * 1e3


class Stream:
    def wait_stream(self, other: Stream) -> None: ...
    def synchronize(self) -> None: ...


class Graph:
    def __init__(self) -> None:
        self.operators: list[Callable[[], None]] = []

    def replay(self) -> None:
        for operator in self.operators:
            operator()

    def reset(self) -> None:
        self.operators.clear()


class Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def run() -> Any:
            return operator(*args, **(kwargs or {}))

        def again() -> None:
            for first, now in zip(tree_leaves(results), tree_leaves(run()), strict=True):
                if isinstance(first, torch.Tensor) and first.data_ptr() != now.data_ptr():
                    first.copy_(now)

        results = run()
        self._graph.operators.append(again)
        return results


@contextmanager
def capture(graph: Graph) -> Iterator[None]:
    with Recorder(graph):
        yield


@contextmanager
def on(stream: Stream) -> Iterator[None]:
    yield


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put all of these in the place of torch's own."""
    here = Stream()
    pretended = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "stream": on,
        "current_stream": lambda: here,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "_sleep": lambda cycles: None,
        "memory_allocated": lambda: 0,
        "mem_get_info": lambda: (1 << 30, 1 << 30),
        "memory_stats": lambda: {"allocation.all.allocated": 0},
    }
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value)
