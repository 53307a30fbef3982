"""Marks: what the inputs of attention carry so that the loss of a single token shows in the output.

With ordinary random inputs a token's share of the softmax is about 1 / T, and no tolerance can see that it is missing.
So every token gets a mark: the query heads of one class attend to it, and its value stands out in one dim.

- **Cells.** A cell is (KV head, class, dim); the query heads of a KV head are divided among the classes. Consecutive
  tokens get different cells in a drawn order. If there are fewer cells than tokens, half of the classes share all
  tokens among them, `depth` tokens to a cell; the other half attend to chosen tokens only, one to a cell.
- **Scores**, in units of ln 2. Each class has a channel, one dim of the keys. A query holds 1 / (KEY_STEP x softmax
  scale) units in the channel of its class, 0 in the other channels, and small random values elsewhere, which move its
  scores by 0.05 nats. In the channel of a class a key holds KEY_STEP times its score: `raised` + f with f ~ U(0, 1) for
  the tokens of this class, and `ground` for all others, which together take a thirtieth of the mass of the raised
  ones. The sink, the first token that every query sees, takes four fifths of the softmax in every class; its value is
  zero.
- **Values.** Ordinary values are drawn with a standard deviation of 1 (in some unit). A marked token has +-2^-f A in
  its dim, so that each mark adds the same a = p A to its cell.

**Ten tolerances.** Take a row with one token to a cell. The ordinary values of its `dims` tokens add noise of
sqrt(2.2 dims) p to each element (2.2 is the mean of 4^f); A = 10 sqrt(dims) makes this 0.15 a. The noise of its
score moves the mark itself by 5%. So an element is a (1 + 0.05 y + 0.15 z), with y and z ~ N(0, 1), and the row has an
rms of 1.01 a. If the token is missing, the element is wrong by a (1 + 0.05 y). Its `max_rel` (see `compare.py`) is
(1 + 0.05 y) / (2.01 + 0.05 y + 0.15 z): 0.50 without noise. The tolerance in bf16 is 8 x 2^-8 = 0.031. Ten of them are
missed where 0.11 y - 0.15 z < -1.19, which is 6.4 standard deviations: one token in 10^10. A doubled token adds a too,
and a misplaced one leaves its cell. The rows with chosen tokens are such rows for every T.

**One tolerance.** Where k = `depth` tokens share a cell, it has an rms of a sqrt(k), and a lost token is a `max_rel` of
1 / (sqrt(k) (1 + |z|)): above 0.031 for k = 64 and |z| < 3. Llama-3.1-8B with T = 131,072 has k = 64. So there 99% of
all tokens show, and the 2,048 chosen ones by ten tolerances.

The chosen differ from seed to seed. The first and the last token of every range and all tokens of a draft are always
among them, and no two of these share a cell, unless they are more than the cells. The edges between sixteenths of T
come next, and then the edges of pages and of blocks of 64, where splits begin and end: each is preferred to the other
tokens of its cell. A model with one query head for a KV head has no class to spare for them: if it has more tokens than
KV heads x dims, k of them share a cell. There only the ends are chosen, and their values are twice as large.

**Systematic errors** show too: the sink scores log2(6 tokens of a row) units more than the raised tokens, 5 to 9 nats.
A softmax scale that is off by 0.1% changes its share, and with it all other shares, by 0.4 to 0.7% (see `compare.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.common.integers import cdiv
from kernels.common.paging import Ranges
from kernels.common.random_inputs import RandomInputs, encoded, writable

if TYPE_CHECKING:
    import torch

UNIT = math.log(2.0)
"""Nats of one unit of score."""

KEY_STEP = -5 / 32
"""A key's value for a score of one unit. The largest score, about 19 units, is a value of -3 among values ~ N(0, 1).
It is negative so that -128, with which int8 caches are poisoned, scores high."""

SHARE_BELOW = 30.0
"""Raised tokens have this many times the mass of all others together."""

SINK_RATIO = 4.0
"""The sink has this many times the mass of the raised tokens."""

SHORTEST_WITH_SINK = 2
"""Tokens. If a sequence is a sink alone, its output is zero and shows nothing."""

NOISE = 0.05
"""Standard deviation of a score, in nats, that comes from the ordinary values of query and key."""

BLOCK = 64
"""Tokens of a block. Kernels cut sequences at multiples of it."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Tables over the tokens [0, T) on one device, int64 but for the scores.

    Token t is raised to `score[t]` for class `group[t]` of KV head `head[t]`. If `chosen[t]`, it is raised as much for
    class `second[t]`. Its value has the amplitude 2^-(score[t] - raised) A in `dim[t]`, times `emphasis` if it is
    chosen. Class c has the key's dim `channels + c` as its channel.
    """

    head: torch.Tensor
    group: torch.Tensor
    dim: torch.Tensor
    score: torch.Tensor
    """fp32."""
    chosen: torch.Tensor
    second: torch.Tensor
    T: int
    raised: float
    heads: int
    classes: int
    for_chosen: int
    """The first classes attend to chosen tokens only; 0 if each token has a cell of its own."""
    dims: int
    channels: int

    @property
    def depth(self) -> int:
        """Tokens that share a cell."""
        return cdiv(self.T, self.heads * (self.classes - self.for_chosen) * self.dims)

    @property
    def ground(self) -> float:
        """The score of a token that is not raised."""
        rivals = max(self.heads * self.classes - 1, self.T / self.dims if self.for_chosen else 0)
        return self.raised - (math.log2(SHARE_BELOW * rivals) if rivals else 0.0)

    @property
    def amplitude(self) -> float:
        """A, in standard deviations of ordinary values."""
        return 10 * self.dims**0.5

    @property
    def emphasis(self) -> float:
        """2 if chosen tokens share their cells with others."""
        return 2.0 if self.depth > 1 and not self.for_chosen else 1.0

    def sink_scores(self, tokens: int) -> list[float]:
        """For each class, the score of the sink of a sequence of so many tokens."""
        shared = tokens / (self.heads * (self.classes - self.for_chosen))
        raised = [min(self.dims, tokens / self.heads)] * self.for_chosen + [shared] * (self.classes - self.for_chosen)
        return [self.raised + math.log2(SINK_RATIO * 1.5 * max(1.0, count)) for count in raised]


def draw_marks(
    sequences: Sequence[Ranges],
    T: int,
    *,
    heads: int,
    classes: int,
    dims: int,
    channel_dims: int,
    raised: float,
    q_len: int = 1,
    page: int = 0,
    device: str = "cpu",
    seed: int = 0,
) -> Marks:
    """Marks for the tokens [0, T) of all sequences. The `classes` channels lie among the first `channel_dims` dims.

    `raised` is the least score of a raised token. If keys have scales, it is not near zero, so that a wrong scale moves
    it; else it is small, so that little is lost if scores are rounded.

    The tables are drawn on the host, so that they are the same for every device.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def drawn(high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=generator)

    for_chosen = classes // 2 if heads * classes * dims < T else 0
    others = classes - for_chosen
    cells = heads * others * dims
    t = torch.arange(T)
    cell = torch.randperm(cells, generator=generator)[(t + drawn(cells, cdiv(T, cells))[t // cells]) % cells]
    head, group, dim = cell // (others * dims), for_chosen + cell // dims % others, cell % dims
    second = drawn(max(1, for_chosen), T)
    wanted = torch.rand(T, generator=generator)
    for edge in {page, BLOCK} - {0, 1}:
        wanted += 0.5 * ((t % edge == 0) | (t % edge == edge - 1))
    wanted[[edge + side for edge in range(0, T, cdiv(T, 16)) if edge for side in (-1, 0)]] += 2.0
    row = head * max(1, for_chosen) + second
    at_an_end = ends(sequences, q_len)
    if cells < T or for_chosen:
        set_apart(at_an_end, row, dim, dims)
    wanted[at_an_end] = 8.0
    place = row * dims + dim
    best = torch.zeros(heads * max(1, for_chosen) * dims).scatter_reduce_(0, place, wanted, "amax")
    tables = {
        "head": head,
        "group": group,
        "dim": dim,
        "second": second,
        "score": raised + torch.rand(T, generator=generator),
        "chosen": wanted == 8.0 if cells < T and not for_chosen else wanted == best[place],
    }
    return Marks(
        **{name: table.to(device) for name, table in tables.items()},
        T=T,
        raised=raised,
        heads=heads,
        classes=classes,
        for_chosen=for_chosen,
        dims=dims,
        channels=int(drawn(channel_dims - classes + 1, 1)),
    )


def ends(sequences: Sequence[Ranges], q_len: int) -> list[int]:
    """Tokens that are chosen for every seed: the first and the last of each range, and all tokens of a draft."""
    found: set[int] = set()
    for ranges in sequences:
        for start, end in ranges:
            if end > start:
                found |= {start, *range(max(start, end - q_len), end)}
    return sorted(found)


def set_apart(tokens: Sequence[int], row: torch.Tensor, dim: torch.Tensor, dims: int) -> None:
    """Move these tokens to other dims of their row where two of them have the same one, as long as dims are left."""
    taken: set[tuple[int, int]] = set()
    for t in tokens:
        r, first = int(row[t]), int(dim[t])
        free = ((first + step) % dims for step in range(dims))
        dim[t] = next((d for d in free if (r, d) not in taken), first)
        taken.add((r, int(dim[t])))


@dataclass(frozen=True, kw_only=True)
class Slots:
    """A view `[pages, page, heads, dims]` of a cache of any type; its values are times `scale [pages, page, heads]`."""

    stored: torch.Tensor
    scale: torch.Tensor | None = None

    def put(self, where: tuple[Any, Any, Any], dims: Any, values: torch.Tensor) -> None:
        """Store values in `dims` of the vectors at `where` (page, slot, head), rounded to the type of the cache."""
        if self.scale is not None:
            values = values / self.scale[where]
        writable(self.stored)[(*where, dims)] = encoded(values, self.stored.dtype)

    def fill(self, first: int, count: int, value: torch.Tensor) -> None:
        """Store a value in `count` dims of all vectors."""
        values = value if self.scale is None else value / self.scale[..., None]
        writable(self.stored)[..., first : first + count] = encoded(values, self.stored.dtype)


@dataclass(frozen=True, kw_only=True)
class Sink:
    """Where the sink of a sequence of `tokens` visible tokens is stored."""

    page: int
    slot: int
    tokens: int


def write_marks(
    marks: Marks,
    *,
    keys: Slots,
    values: Slots,
    token: torch.Tensor,
    sinks: Sequence[Sink],
    unit: float,
    draw: RandomInputs,
) -> None:
    """Raise the scores of marked tokens and write their values; then write the sinks.

    `token [pages, page]` is the number of the token in a slot, anything for a slot that holds none. `unit` is the
    standard deviation of ordinary values.
    """
    import torch

    device = token.device
    pages, slots, heads = (torch.arange(n, device=device) for n in keys.stored.shape[:3])
    own = (pages[:, None], slots, marks.head[token])
    ground, score = torch.tensor(marks.ground * KEY_STEP, device=device), marks.score[token] * KEY_STEP
    keys.fill(marks.channels, marks.classes, ground)
    if marks.for_chosen:
        keys.put(own, marks.channels + marks.second[token], torch.where(marks.chosen[token], score, ground))
    keys.put(own, marks.channels + marks.group[token], score)
    sign = 2 * draw.integers(0, 2, tuple(token.shape)) - 1
    sign = sign * torch.where(marks.chosen[token], marks.emphasis, 1.0)
    values.put(own, marks.dim[token], sign * torch.exp2(marks.raised - marks.score[token]) * (marks.amplitude * unit))
    if sinks:
        page = torch.tensor([[s.page] for s in sinks], device=device)
        slot = torch.tensor([[s.slot] for s in sinks], device=device)
        scores = torch.tensor([marks.sink_scores(s.tokens) for s in sinks], device=device)
        for group in range(marks.classes):
            keys.put((page, slot, heads), marks.channels + group, scores[:, group, None] * KEY_STEP)
        writable(values.stored)[page[:, 0], slot[:, 0]] = 0


def raise_queries(marks: Marks, queries: torch.Tensor, unit: float) -> None:
    """`queries [B, q_len, query heads, D]` get `unit` in the channel of their class and 0 in the other channels.

    The query heads of a KV head belong to the classes in turn.
    """
    import torch

    within = torch.arange(queries.shape[2], device=queries.device) % (queries.shape[2] // marks.heads)
    channels = queries[..., marks.channels : marks.channels + marks.classes]
    channels.copy_(unit * (within[:, None] % marks.classes == torch.arange(marks.classes, device=queries.device)))
