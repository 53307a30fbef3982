"""The dimensions of one decoder. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StateMixer:
    """Layers that keep a state of constant size for each request, and no KV cache: Mamba, delta rules, convolutions.

    A step reads and writes the state of a request once: `state` elements in `state_bytes`, and the last inputs of the
    short convolution, `conv` elements in 16 bits. Both numbers are those of one layer.
    """

    kind: str
    """`mamba`, `mamba2`, `gated delta rule`, `KDA`, `lightning attention` or `short convolution`."""
    layers: int
    inputs: tuple[tuple[int, int], ...]
    """`(N, K)` of the matrices that multiply the hidden state."""
    inner: tuple[tuple[int, int], ...] = ()
    """`(N, K)` of the matrices that multiply what `inputs` gave."""
    output: tuple[int, int]
    state: int
    conv: int = 0
    state_bytes: int = 4

    @property
    def bytes_per_request(self) -> int:
        """Over all layers."""
        return self.layers * (self.state * self.state_bytes + self.conv * 2)


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """What chooses the tokens that sparse attention reads (DeepSeek-V3.2): `heads` queries of `dim` against one key.

    The key of a token is cached in fp8 with a fp32 scale. Attention then reads the `top` best tokens.
    """

    heads: int
    dim: int
    top: int
    layers: int
    ratio: int = 1
    """Tokens that share a key, and are chosen together (DeepSeek-V4)."""
    key_rows: int = 0
    """Rows of the matrix that makes keys and the weights of heads; 0: `dim` + `heads`."""
    latent: bool = True
    """Whether queries are made from the latent of attention's queries, if these have one."""
    scales: int = 4
    """Bytes of scales with a key of 8 bits; 0: the key has 16 bits and none."""

    @property
    def bytes_per_token(self) -> int:
        """Over all layers that choose; the others reuse their choice."""
        return self.layers * (self.dim + self.scales if self.scales else 2 * self.dim) // self.ratio


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Further equal matrices `[n, k]` of a kind, `copies` in each of `layers` layers.

    Each token is multiplied with `used` of the copies. A `table` is only looked up: a token reads one row of each.
    """

    name: str
    n: int
    k: int
    layers: int
    copies: int = 1
    used: int = 1
    table: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Attention layers that are alike: how many they are, and in which fields of the shape they differ from it."""

    layers: int
    suffix: str = ""
    """For names of operations; each kind has its own."""
    windowed: bool = False
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Dimensions of one decoder, in the terms of its `config.json`. `source` names the file that publishes them, and
    where it was read. Tests compare the parameter count with the published one; this also tells whether embeddings are
    tied.

    - MLA (DeepSeek) has `kv_latent` and `rope_dim`; `head_dim` is then the part of a head without position
    - MoE has `experts`, `experts_per_token`, `expert_ffn`, `shared_experts`, and `dense_layers` leading layers with a
      dense FFN of width `ffn`
    - `window` is the sliding window of `windowed_layers` layers; these may have other heads than the rest
    - models with several kinds of attention layers have `kinds`
    - hybrids have a `state_mixer`; its layers have no attention, unless `parallel_mixers`
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_context: int
    source: str
    tied_embeddings: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_experts: int = 0
    shared_ffn: int = 0
    """The width of all shared experts together; 0: `shared_experts` x `expert_ffn`."""
    expert_hidden: int = 0
    """The width of what experts read and write; 0: `hidden`. Two more matrices then project down and up again."""
    dense_layers: int = 0
    plain_layers: int = 0
    """Layers without any FFN."""
    gated_ffn: bool = True
    """Whether an FFN and an expert have three matrices; else up and down alone."""
    gate_width: int = 0
    """Rows of the matrix that gates the output of attention; 0 for none."""
    kv_latent: int = 0
    q_latent: int = 0
    rope_dim: int = 0
    v_head_dim: int = 0
    """The width of a value, of MLA and where it differs from `head_dim`."""
    window: int = 0
    windowed_layers: int = 0
    window_heads: int = 0
    """Heads of the layers with a window, where they differ; likewise the next two."""
    window_kv_heads: int = 0
    window_head_dim: int = 0
    softcap: float = 0.0
    kinds: tuple[Kind, ...] = ()
    """All layers with attention, if they are of more kinds than `window_heads` and so on can tell."""
    value_is_key: bool = False
    """Whether no matrix makes values: they are the keys before their norm."""
    shared_row: bool = False
    """Whether the cache holds one row for both key and value. No matrix makes values then."""
    reused_cache: bool = False
    """Whether these layers read the cache of others, and make no keys and values of their own."""
    ratio: int = 1
    """Tokens that share a row of the cache. If above 1, the last `window` tokens have rows of their own as well."""
    attention_input: int = 0
    """Width of what attention reads, where it is not `hidden`."""
    o_groups: int = 0
    """Parts of the output of attention, each of which is projected to `o_latent` before all are projected together."""
    o_latent: int = 0
    ffn_widths: tuple[tuple[int, int], ...] = ()
    """Width of the dense FFN and the number of layers that have it, where these differ; `ffn` is the widest."""
    zero_experts: int = 0
    """Experts without weights, that a token may choose instead of others; `experts_per_token` counts them."""
    weight_sets: int = 0
    """Sets of weights that the layers with attention and a dense FFN share (Zamba); 0: each has its own."""
    extras: tuple[Extra, ...] = ()
    """Matrices of kinds that few models have."""
    attention_free_layers: int = 0
    """Layers without attention."""
    state_mixer: StateMixer | None = None
    parallel_mixers: bool = False
    """Whether each layer has both attention and the state mixer (Falcon-H1)."""
    indexer: Indexer | None = None

    @property
    def is_mla(self) -> bool:
        return self.kv_latent > 0

    @property
    def is_moe(self) -> bool:
        return self.experts > 0

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers - self.plain_layers if self.is_moe else 0

    @property
    def dense_ffn_layers(self) -> int:
        return self.dense_layers if self.is_moe else self.layers - self.plain_layers

    @property
    def attention_layers(self) -> int:
        return self.layers - self.attention_free_layers

    @property
    def shared_width(self) -> int:
        return self.shared_ffn or self.shared_experts * self.expert_ffn

    @property
    def value_dim(self) -> int:
        """The width of one head's value."""
        return self.v_head_dim or self.head_dim

    @property
    def state_bytes_per_request(self) -> int:
        return self.state_mixer.bytes_per_request if self.state_mixer else 0

    @property
    def index_bytes_per_token(self) -> int:
        return self.indexer.bytes_per_token if self.indexer else 0

    @property
    def real_experts_per_token(self) -> float:
        """Those with weights, if a token chooses all alike."""
        if not self.zero_experts:
            return self.experts_per_token
        return self.experts_per_token * self.experts / (self.experts + self.zero_experts)

    def dense_ffns(self) -> Iterator[tuple[str, int, int]]:
        """For each width of a dense FFN, a suffix for names, the width, and the number of layers."""
        widths = self.ffn_widths or ((self.ffn, self.dense_ffn_layers),)
        for number, (width, layers) in enumerate(widths):
            if layers:
                yield f"_{number + 1}" if number else "", width, layers

    def attention_kinds(self) -> Iterator[tuple[str, ModelShape]]:
        """For each kind of attention layer, a suffix for names and a shape that has these layers alone.

        These are `kinds` if there are any. Else layers with a window are a kind of their own (`_window`) only where
        they have other heads.
        """
        if self.kinds:
            for each in self.kinds:
                changes: dict[str, Any] = {"attention_free_layers": 0, "kinds": ()} | dict(each.changes)
                inside = each.layers if each.windowed else 0
                yield each.suffix, replace(self, layers=each.layers, windowed_layers=inside, **changes)
            return
        if not (self.attention_free_layers or self.window_heads or self.window_kv_heads or self.window_head_dim):
            yield "", self
            return
        given = {name: getattr(self, f"window_{name}") for name in ("heads", "kv_heads", "head_dim")}
        other: dict[str, Any] = {name: n for name, n in given.items() if n and n != getattr(self, name)}
        alone: dict[str, Any] = {f"window_{name}": 0 for name in given}
        alone["attention_free_layers"] = 0
        full = self.attention_layers - (self.windowed_layers if other else 0)
        if full:
            unwindowed: dict[str, Any] = {"windowed_layers": 0} if other else {}
            yield "", replace(self, **(alone | unwindowed), layers=full)
        if other and self.windowed_layers:
            yield "_window", replace(self, **(alone | other), layers=self.windowed_layers)
