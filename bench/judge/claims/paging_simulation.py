"""How much memory KV-cache allocation wastes, simulated with requests that enter and leave a real free list.

Three allocators serve the same requests:

- `reserved`: each request gets one block of `max_tokens` slots, as in serving systems before paging
- `contiguous`: an oracle knows each final length and reserves exactly that many slots, first fit in one address space
- `paged`: a request takes pages of `page` tokens as its tokens come. When the pages run out, the youngest request goes
  back to the queue. It returns with the tokens that it had as its prompt

Memory is counted in token slots and time in decode steps. Each step gives each running request one token. The queue is
never empty (a saturated server), and requests are served first come, first served. `waste` is the share of slots
without a token, among the slots that requests hold or that fragmentation makes unusable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

ASSUMED_LOG_SD = 1.0
"""The assumed spread of the natural logarithm of lengths, where only a mean or a median is published. The claim varies
it over `LOG_SDS`. The requests in `AZURE_SAMPLE` have 0.96 for prompts and 0.92 for outputs."""

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


class Workload(Protocol):
    """Requests to serve."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and output tokens of `n` requests."""
        ...


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Prompt and output lengths that do not depend on each other. `source` says where their middle is published."""

    name: str
    prompt: Lognormal
    output: Lognormal
    source: str

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        return self.prompt.draw(rng, n), self.output.draw(rng, n)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Requests `(prompt, output)` from a real trace, drawn with replacement."""

    name: str
    requests: tuple[tuple[int, int], ...]
    source: str

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.array(self.requests)[rng.integers(len(self.requests), size=n)]
        return drawn[:, 0], drawn[:, 1]


def sharegpt(log_sd: float = ASSUMED_LOG_SD) -> Independent:
    """Conversations with a chatbot: means of 161.31 prompt and 337.99 output tokens."""
    return Independent(
        name="ShareGPT",
        prompt=Lognormal.of_mean(161.31, log_sd),
        output=Lognormal.of_mean(337.99, log_sd),
        source="means: Kwon et al., PagedAttention, SOSP 2023 (arXiv:2309.06180), figure 11a",
    )


def azure_conversation(log_sd: float = ASSUMED_LOG_SD) -> Independent:
    """A chat service in November 2023: medians of 1,020 prompt and 129 output tokens."""
    return Independent(
        name="Azure conversation 2023",
        prompt=Lognormal(median=1020, log_sd=log_sd),
        output=Lognormal(median=129, log_sd=log_sd),
        source="medians: Patel et al., Splitwise, ISCA 2024 (arXiv:2311.18677), section III-A",
    )


WORKLOADS = (sharegpt, azure_conversation)

AZURE_REQUESTS = """
412:117 1102:684 387:52 1000:59 1087:397 1140:467 402:102 1633:64 987:29 1123:400 1150:424 1160:385 1116:393 1111:935
4076:37 380:115 1084:404 1192:413 1609:62 399:95 402:116 1288:68 1103:404 1148:424 1092:389 376:58 1171:530 4080:40
91:16 394:80 2766:98 398:94 1167:414 1027:396 181:104 1319:209 1319:150 408:105 1139:435 1820:109 1034:403 1122:396
1113:375 181:78 203:217 397:115 1110:408 1149:407 2058:101 983:402 2022:68 4085:35 4141:45 4079:71 1062:383 1085:413
388:77 4089:38 215:217 4086:73 4116:58 1244:35 2731:55 1022:415 4100:37 1154:388 4078:52 1060:399 376:44 392:86 387:75
4082:108 398:105 404:88 4081:482 386:142 433:107 389:100 374:7 122:171 407:95 181:91 1073:464 4091:51 1071:415 438:81
1753:72 382:94 407:104 385:110 4073:46 1698:39 398:79 380:74 941:103 181:111 404:97 407:87 242:14 2265:144 1053:412
1230:86 411:101 1103:420 1877:109 124:210 1027:395 1064:411 1157:414 1083:403 1351:50 28:98 206:217 154:115 1022:375
1061:395 416:99 1404:67 681:85 403:160 1263:386 218:53 423:95 417:111 982:583 22:136 2265:144 1204:442 1004:411
3862:43 986:556 194:59 1329:522 1110:390 1035:421 984:395 1107:464 215:62 1238:371 796:94 1084:84 458:85 1068:514
422:97 1041:429 3618:113 1144:429 413:122 1025:394 1015:599 200:205 1035:414 408:87 181:116 1114:394 1351:195 1113:54
1066:400 397:184 194:179 1011:404 1101:382 1026:429 401:103 200:162 331:18 1065:398 908:108 1160:418 1069:394 442:77
1136:396 1306:114 3556:77 405:83 1129:372 36:131 411:92 1129:423 1024:420 1089:464 1068:381 1105:396 206:217 32:161
1119:535 403:106 1101:394 1090:383 1117:395 1321:185 1039:393
"""
"""`prompt:output` tokens of each request."""

AZURE_SAMPLE = Traced(
    name="Azure conversation 2023, sampled",
    requests=tuple((int(prompt), int(output)) for prompt, output in (r.split(":") for r in AZURE_REQUESTS.split())),
    source="Azure LLM inference trace 2023, (c) Microsoft, CC-BY: data/AzureLLMInferenceTrace_conv.csv in "
    "Azure/AzurePublicDataset on GitHub; described in Patel et al., Splitwise, ISCA 2024",
)
"""192 of the trace's 19,366 requests: 48 in a row at each of four evenly spaced places (18:27:39, 18:42:31, 18:54:36
and 19:12:08). Their medians of 1,056 and 134 tokens are within 4% of the whole trace's. Long prompts get short answers,
and many prompts were cut at about 4,080 tokens."""

SLOTS = 15_700
"""Token slots of OPT-13B's cache on an A100 of 40 GB: "15.7K" in 12 GB, Kwon et al. (arXiv:2309.06180), table 1."""

MAX_TOKENS = 2048
"""Longest request of OPT-13B (its config.json: max_position_embeddings)."""


class Allocator(Protocol):
    """Holds token slots. `admit` and `grow` return False if there is no room."""

    held: int

    def admit(self, request: int, prompt: int, final: int) -> bool: ...
    def grow(self, request: int, tokens: int) -> bool: ...
    def release(self, request: int) -> None: ...
    def fragmented(self, final: int) -> int:
        """The number of free slots if they would hold this request in one piece, else 0."""
        ...


class FirstFit:
    """One address space of `slots`. A request takes the first hole that is large enough for `reserve` or its length."""

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

    def fragmented(self, final: int) -> int:
        free = self._slots - self.held
        return free if free >= self._need(final) else 0


class Paged:
    """A free list of equal pages. A request may hold any pages, wherever they lie."""

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

    def fragmented(self, final: int) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Means over the steps after the warm-up."""

    waste: float
    running: float
    """Requests that are served at the same time."""
    finished: int
    preempted: int


def simulate(
    allocator: Allocator,
    workload: Workload,
    *,
    max_tokens: int = MAX_TOKENS,
    steps: int = 3000,
    warm_up: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Serve for `steps` decode steps. Lengths depend on the seed alone, so all allocators get the same requests."""
    rng = np.random.default_rng(seed)
    queue: deque[tuple[int, int, int]] = deque()
    arrived = 0
    running: dict[int, list[int]] = {}
    """request -> [tokens stored, final length], oldest first"""
    finished = preempted = 0
    waste: list[float] = []
    served: list[int] = []
    for step in range(steps):
        while True:
            if not queue:
                prompts, outputs = workload.draw(rng, 256)
                prompts = np.minimum(prompts, max_tokens - 1)
                finals = np.minimum(prompts + outputs, max_tokens)
                queue.extend(zip(range(arrived, arrived + 256), prompts.tolist(), finals.tolist(), strict=True))
                arrived += 256
            request, prompt, final = queue[0]
            if not allocator.admit(request, prompt, final):
                break
            queue.popleft()
            running[request] = [prompt, final]
        for request in list(running):
            while request in running and not allocator.grow(request, running[request][0] + 1):
                youngest, (stored, final) = running.popitem()
                allocator.release(youngest)
                queue.appendleft((youngest, stored, final))
                preempted += 1
            if request in running:
                running[request][0] += 1
        if step >= warm_up:
            tokens = sum(stored for stored, _ in running.values())
            occupied = allocator.held + allocator.fragmented(queue[0][2])
            waste.append(1 - tokens / occupied)
            served.append(len(running))
        for request in [r for r, (stored, final) in running.items() if stored == final]:
            allocator.release(request)
            del running[request]
            finished += 1
    return Outcome(waste=float(np.mean(waste)), running=float(np.mean(served)), finished=finished, preempted=preempted)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The three allocators on the same requests."""

    reserved: Outcome
    contiguous: Outcome
    paged: dict[int, Outcome]
    """By page size in tokens."""


def compare_allocators(workload: Workload, *, pages: Sequence[int] = (16,)) -> Comparison:
    return Comparison(
        reserved=simulate(FirstFit(SLOTS, reserve=MAX_TOKENS), workload),
        contiguous=simulate(FirstFit(SLOTS), workload),
        paged={page: simulate(Paged(SLOTS, page), workload) for page in pages},
    )
