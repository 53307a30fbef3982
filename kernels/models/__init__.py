"""Public model architectures: what a shape is, the shapes whose layers the cases use, and what they add up to."""

from __future__ import annotations

from kernels.models.counts import (
    Module,
    active_parameters,
    attention_projections,
    ffn_projections,
    grown_rows,
    index_projections,
    kept_tokens,
    kv_bytes,
    kv_bytes_per_token,
    kv_elements_per_layer,
    modules,
    parameters,
    projections,
)
from kernels.models.shape import Extra, Indexer, Kind, ModelShape, StateMixer
from kernels.models.table import DIMS, HEADS, MODELS, UnknownModel, attention_heads, model, nearest

__all__ = [
    "DIMS",
    "HEADS",
    "MODELS",
    "Extra",
    "Indexer",
    "Kind",
    "ModelShape",
    "Module",
    "StateMixer",
    "UnknownModel",
    "active_parameters",
    "attention_heads",
    "attention_projections",
    "ffn_projections",
    "grown_rows",
    "index_projections",
    "kept_tokens",
    "kv_bytes",
    "kv_bytes_per_token",
    "kv_elements_per_layer",
    "model",
    "modules",
    "nearest",
    "parameters",
    "projections",
]
