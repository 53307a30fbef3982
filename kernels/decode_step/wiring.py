"""How the layers of each family are wired, beside their sizes; and toy models for tests. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kernels.models import MODELS, ModelShape


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What a layer of a family does that no size tells.

    `full_every`: every so many layers one has no window; 0: all layers have the window of the shape, if it has one.
    `window_theta` is the base of the angles in layers with a window, 0 for the same as in the others. `router` holds
    fields of `kernels/router`.
    """

    theta: float = 10000.0
    window_theta: float = 0.0
    full_every: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    """Norms also behind attention and behind the FFN, before the residual is added."""
    activation: str = "swiglu"
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    attention_scale: float = 0.0
    """0 for the inverse root of the size of a head."""
    router: tuple[tuple[str, Any], ...] = ()


FAMILIES: Mapping[str, Wiring] = {
    # config.json of each: rope_theta, and the family's model code in transformers
    "llama-2": Wiring(),
    "llama-3": Wiring(theta=500000.0),
    "qwen2.5": Wiring(theta=1e6, qkv_bias=True),
    "qwen3": Wiring(theta=1e6, qk_norm=True),
    "mistral": Wiring(),
    "mixtral": Wiring(theta=1e6),
    "gemma-3": Wiring(
        theta=1e6,
        window_theta=10000.0,
        full_every=6,
        qk_norm=True,
        post_norms=True,
        activation="geglu",
        scaled_embedding=True,
        attention_scale=168**-0.5,  # query_pre_attn_scalar of the 27B
    ),
}
"""By the beginning of a model's name."""


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
        _toy("toy-qwen3"),
        _toy("toy-mistral", window=7, windowed_layers=2),
        _toy("toy-mixtral", experts=4, experts_per_token=2, expert_ffn=96),
        _toy("toy-qwen3-moe", experts=8, experts_per_token=3, expert_ffn=48),
        _toy("toy-gemma-3", window=6, windowed_layers=1, tied_embeddings=True),
    )
}


def shape_of(model: str) -> ModelShape:
    """Raises ValueError for a model whose step is not composed here."""
    name = model.lower()
    shape = MODELS.get(name) or TOYS.get(name)
    if shape is None:
        raise ValueError(f"model {model!r}: expected one of {', '.join(composed())}")
    if family(name) is None or shape.is_mla or shape.state_mixer or shape.shared_width or shape.softcap:
        raise ValueError(f"model {model}: no step is composed for its family; there is for {', '.join(composed())}")
    return shape


def family(name: str) -> Wiring | None:
    plain = name.removeprefix("toy-")
    return next((wiring for begin, wiring in FAMILIES.items() if plain.startswith(begin)), None)


def wiring_of(model: str) -> Wiring:
    name = model.lower()
    found = family(name)
    assert found, name
    return replace(found, full_every=2, attention_scale=0.0) if name == "toy-gemma-3" else found


def composed() -> list[str]:
    """The models of the table whose step is composed."""
    return [name for name, shape in MODELS.items() if family(name) and not shape.is_mla]
