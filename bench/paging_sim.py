"""What KV-cache allocation wastes: requests enter and leave a real free list, under three allocators.

- `reserved`: one slot of `max_tokens` per request, as serving systems did before paging
- `contiguous`: an oracle knows each final length and reserves exactly that, first fit in one address space
- `paged`: pages of `page` tokens taken as tokens come; out of pages, the youngest request is put back in the queue,
  to return with the tokens it had as its prompt

Memory is counted in token slots, time in decode steps; every step gives every running request one token. The queue is
never empty (a saturated server), first come first served. `waste` is the share of the memory held by requests, or
made unusable by fragmentation, in which no token is stored.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

ASSUMED_LOG_SD = 1.0
"""Spread of the natural logarithm of lengths where only a mean or a median is published: an assumption, swept in the
claim over `LOG_SDS`."""

LOG_SDS = (0.5, 1.0, 1.5)


@dataclass(frozen=True, kw_only=True)
class Lognormal:
    """Lengths in tokens: exp(N(ln median, log_sd))."""

    median: float
    log_sd: float

    @classmethod
    def of_mean(cls, mean: float, log_sd: float) -> Lognormal:
        """The mean of a lognormal is median x exp(log_sd^2 / 2)."""
        return cls(median=mean * math.exp(-(log_sd**2) / 2), log_sd=log_sd)

    @property
    def mean(self) -> float:
        return self.median * math.exp(self.log_sd**2 / 2)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return np.maximum(1, np.rint(np.exp(rng.normal(math.log(self.median), self.log_sd, n)))).astype(int)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompt and output lengths, and where their middle is published."""

    name: str
    prompt: Lognormal
    output: Lognormal
    source: str


def sharegpt(log_sd: float = ASSUMED_LOG_SD) -> Workload:
    """Conversations with a chatbot: means of 161.31 prompt and 337.99 output tokens."""
    return Workload(
        name="ShareGPT",
        prompt=Lognormal.of_mean(161.31, log_sd),
        output=Lognormal.of_mean(337.99, log_sd),
        source="means: Kwon et al., PagedAttention, SOSP 2023, figure 11a",
    )


def azure_conversation(log_sd: float = ASSUMED_LOG_SD) -> Workload:
    """A chat service in November 2023: medians of 1,020 prompt and 129 output tokens."""
    return Workload(
        name="Azure conversation 2023",
        prompt=Lognormal(median=1020, log_sd=log_sd),
        output=Lognormal(median=129, log_sd=log_sd),
        source="medians: Patel et al., Splitwise, ISCA 2024, section III; trace in Azure/AzurePublicDataset",
    )


WORKLOADS = (sharegpt, azure_conversation)

SLOTS = 15_700
"""Token slots of OPT-13B's cache on an A100 of 40 GB: Kwon et al., SOSP 2023, table 1 (12 GB)."""

MAX_TOKENS = 2048
"""Longest request of OPT-13B (its config.json: max_position_embeddings)."""


class Allocator(Protocol):
    """Holds token slots. `admit` and `grow` return False where there is no room."""

    held: int

    def admit(self, request: int, prompt: int, final: int) -> bool: ...
    def grow(self, request: int, tokens: int) -> bool: ...
    def release(self, request: int) -> None: ...
    def fragmented(self, prompt: int, final: int) -> int:
        """Free slots that would be enough for this request if they were contiguous, else 0."""
        ...


class FirstFit:
    """One address space of `slots`; a request takes the first hole that is large enough."""

    def __init__(self, slots: int, reserve: int | None = None) -> None:
        self.held = 0
        self._reserve = reserve
        self._slots = slots
        self._blocks: list[tuple[int, int, int]] = []
        """(start, end, request), ascending."""

    def _need(self, final: int) -> int:
        return final if self._reserve is None else self._reserve

    def admit(self, request: int, prompt: int, final: int) -> bool:
        need, free_from = self._need(final), 0
        for index, (start, end, _) in enumerate([*self._blocks, (self._slots, self._slots, -1)]):
            if start - free_from >= need:
                self._blocks.insert(index, (free_from, free_from + need, request))
                self.held += need
                return True
            free_from = end
        return False

    def grow(self, request: int, tokens: int) -> bool:
        return True

    def release(self, request: int) -> None:
        index = next(i for i, block in enumerate(self._blocks) if block[2] == request)
        start, end, _ = self._blocks.pop(index)
        self.held -= end - start

    def fragmented(self, prompt: int, final: int) -> int:
        free = self._slots - self.held
        return free if free >= self._need(final) else 0


class Paged:
    """A free list of equal pages; no request needs neighbours."""

    def __init__(self, slots: int, page: int) -> None:
        self.held = 0
        self._page = page
        self._free = list(range(slots // page))
        self._tables: dict[int, list[int]] = {}

    def admit(self, request: int, prompt: int, final: int) -> bool:
        need = -(-(prompt + 1) // self._page)
        if need > len(self._free):
            return False
        self._tables[request] = [self._free.pop() for _ in range(need)]
        self.held += need * self._page
        return True

    def grow(self, request: int, tokens: int) -> bool:
        table = self._tables[request]
        if tokens <= len(table) * self._page:
            return True
        if not self._free:
            return False
        table.append(self._free.pop())
        self.held += self._page
        return True

    def release(self, request: int) -> None:
        pages = self._tables.pop(request)
        self._free.extend(pages)
        self.held -= len(pages) * self._page

    def fragmented(self, prompt: int, final: int) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Means over the steps after the warm-up; `waste_over_time` and `running_over_time` hold every such step."""

    waste: float
    running: float
    """Requests that are being served at a time."""
    finished: int
    preempted: int
    waste_over_time: tuple[float, ...]
    running_over_time: tuple[int, ...]


def simulate(
    allocator: Allocator,
    workload: Workload,
    *,
    max_tokens: int = MAX_TOKENS,
    steps: int = 3000,
    warm_up: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Serve for `steps` decode steps. Lengths depend on the seed alone, so allocators see the same requests."""
    rng = np.random.default_rng(seed)
    queue: deque[tuple[int, int, int]] = deque()
    arrived = 0
    running: dict[int, list[int]] = {}
    """request -> [prompt, tokens stored, final length], oldest first"""
    finished = preempted = 0
    waste: list[float] = []
    served: list[int] = []
    for step in range(steps):
        while True:
            if not queue:
                prompts = np.minimum(workload.prompt.draw(rng, 256), max_tokens - 1)
                finals = np.minimum(prompts + workload.output.draw(rng, 256), max_tokens)
                queue.extend(zip(range(arrived, arrived + 256), prompts.tolist(), finals.tolist(), strict=True))
                arrived += 256
            request, prompt, final = queue[0]
            if not allocator.admit(request, prompt, final):
                break
            queue.popleft()
            running[request] = [prompt, prompt, final]
        for request in list(running):
            if request not in running:
                continue
            state = running[request]
            while not allocator.grow(request, state[1] + 1):
                youngest = next(reversed(running))
                allocator.release(youngest)
                _, stored, final = running.pop(youngest)
                queue.appendleft((youngest, stored, final))
                preempted += 1
                if youngest == request:
                    break
            if request not in running:
                continue
            state[1] += 1
        if step >= warm_up:
            tokens = sum(stored for _, stored, _ in running.values())
            occupied = allocator.held + allocator.fragmented(queue[0][1], queue[0][2])
            waste.append(1 - tokens / occupied)
            served.append(len(running))
        for request in [r for r, (_, stored, final) in running.items() if stored == final]:
            allocator.release(request)
            del running[request]
            finished += 1
    return Outcome(
        waste=float(np.mean(waste)),
        running=float(np.mean(served)),
        finished=finished,
        preempted=preempted,
        waste_over_time=tuple(waste),
        running_over_time=tuple(served),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The three allocators on the same requests."""

    workload: Workload
    reserved: Outcome
    contiguous: Outcome
    paged: dict[int, Outcome]
    """By page size in tokens."""


def compare_allocators(
    workload: Workload, *, slots: int = SLOTS, max_tokens: int = MAX_TOKENS, pages: Sequence[int] = (16,), seed: int = 0
) -> Comparison:
    def run(allocator: Allocator) -> Outcome:
        return simulate(allocator, workload, max_tokens=max_tokens, seed=seed)

    return Comparison(
        workload=workload,
        reserved=run(FirstFit(slots, reserve=max_tokens)),
        contiguous=run(FirstFit(slots)),
        paged={page: run(Paged(slots, page)) for page in pages},
    )
