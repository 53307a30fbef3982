"""Shapes of small models, one of each family, whose steps tests hold against transformers. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.decode_step import mamba_wiring
from kernels.models import ModelShape


def _toy(name: str, **more: Any) -> ModelShape:
    sizes: dict[str, Any] = {
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ffn": 96,
        "vocab": 130,
    }
    return ModelShape(name=name, **sizes | {"max_context": 256, "source": "made up for tests"} | more)


TOYS: Mapping[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _toy("toy-llama-3"),
        _toy("toy-qwen2.5", tied_embeddings=True),
        _toy("toy-qwen3", head_dim=32),
        _toy("toy-mistral", window=7, windowed_layers=2),
        _toy("toy-mixtral", experts=4, experts_per_token=2, expert_ffn=96),
        _toy("toy-qwen3-moe", experts=8, experts_per_token=3, expert_ffn=48),
        _toy("toy-gemma-3", window=6, windowed_layers=1, tied_embeddings=True),
        _toy("toy-gpt-oss", experts=8, experts_per_token=3, expert_ffn=48, window=7, windowed_layers=1),
        _toy(
            "toy-deepseek-v3",
            kv_heads=4,
            experts=32,
            experts_per_token=6,
            expert_ffn=32,
            dense_layers=1,
            shared_experts=1,
            kv_latent=32,
            q_latent=24,
            rope_dim=16,
            v_head_dim=24,
        ),
        _toy(
            "toy-qwen3-next",
            head_dim=32,
            experts=8,
            experts_per_token=3,
            expert_ffn=48,
            shared_ffn=40,
            gate_width=128,
            attention_free_layers=1,
        ),
        _toy("toy-qwen3.5", head_dim=32, gate_width=128, attention_free_layers=1),
        _toy(
            "toy-qwen3.5-moe",
            head_dim=32,
            experts=8,
            experts_per_token=3,
            expert_ffn=48,
            shared_ffn=48,
            gate_width=128,
            attention_free_layers=1,
        ),
        _toy("toy-bamba", attention_free_layers=1),
        _toy(
            "toy-granite-4.0-h",
            experts=8,
            experts_per_token=3,
            expert_ffn=48,
            shared_ffn=40,
            attention_free_layers=1,
            tied_embeddings=True,
        ),
        _toy(
            "toy-nemotron-h",
            layers=5,
            experts=8,
            experts_per_token=3,
            expert_ffn=48,
            shared_ffn=40,
            expert_hidden=32,
            gated_ffn=False,
            dense_layers=1,
            plain_layers=2,
            attention_free_layers=4,
        ),
        _toy("toy-falcon-h1", parallel_mixers=True),
        _toy("toy-falcon-h1-34b", parallel_mixers=True),
        *(_toy(name, **more) for name, more in mamba_wiring.TOYS.items()),
    )
}
