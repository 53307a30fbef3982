"""Public model architectures whose layer shapes the cases use. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Dimensions of one decoder, in the terms of its `config.json`; `source` says where they were read.

    `kv_latent` and `rope_dim` are set for MLA (DeepSeek); `experts`, `experts_per_token`, `shared_experts` and
    `dense_layers` (leading layers with a dense FFN) for MoE; `window` is the sliding window of `windowed_layers` layers.
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
    dense_layers: int = 0
    kv_latent: int = 0
    q_latent: int = 0
    rope_dim: int = 0
    v_head_dim: int = 0
    window: int = 0
    windowed_layers: int = 0
    softcap: float = 0.0
