"""Public models whose layers keep Mamba's or KDA's states. Standard library only."""

from __future__ import annotations

from typing import Any

from kernels.models.shape import ModelShape, StateMixer


def mamba(layers: int, hidden: int, inner: int, rank: int) -> StateMixer:
    """Mamba-1 with states of 16 and 4 taps: x and z, then dt of low rank, B and C, then dt."""
    return StateMixer(
        kind="mamba",
        layers=layers,
        inputs=((2 * inner, hidden),),
        inner=((rank + 2 * 16, inner), (inner, rank)),
        output=(hidden, inner),
        state=inner * 16,
        conv=inner * 3,
    )


NO_ATTENTION: dict[str, Any] = {"head_dim": 1, "ffn": 1, "max_context": 1 << 20}
"""Of models without attention and FFNs. They have no longest context, and tensor parallelism shares their heads or
channels, as `kernels/model_config` reads them."""


def without_attention(name: str, repository: str, read_in: str, mixer: StateMixer, **more: Any) -> ModelShape:
    layers, (hidden, _) = mixer.layers, mixer.output
    sizes = NO_ATTENTION | {"kv_heads": more["heads"], "layers": layers, "hidden": hidden}
    sizes |= {"attention_free_layers": layers, "plain_layers": layers, "state_mixer": mixer}
    return ModelShape(name=name, source=f"config.json of {repository} on Hugging Face, {read_in}", **sizes, **more)


STATE_MODELS = (
    ModelShape(
        name="jamba-v0.1",
        source="config.json of ai21labs/Jamba-v0.1 on Hugging Face: the defaults of transformers' JambaConfig",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=65536,
        max_context=262144,
        experts=16,
        experts_per_token=2,
        expert_ffn=14336,
        dense_layers=16,
        attention_free_layers=28,
        state_mixer=mamba(28, 4096, 8192, 256),
    ),
    ModelShape(
        name="kimi-linear-48b-a3b",
        source="config.json of moonshotai/Kimi-Linear-48B-A3B-Instruct on Hugging Face: the defaults of "
        "transformers' KimiLinearConfig; which layers attend: quoted by others",
        layers=27,
        hidden=2304,
        heads=32,
        kv_heads=32,
        head_dim=128,
        ffn=9216,
        vocab=163840,
        max_context=1048576,
        experts=256,
        experts_per_token=8,
        expert_ffn=1024,
        shared_experts=1,
        dense_layers=1,
        kv_latent=512,
        rope_dim=64,
        v_head_dim=128,
        attention_free_layers=20,
        state_mixer=StateMixer(  # 32 heads of 128; decays and the gate of the norm have the rank of a head
            kind="KDA",
            layers=20,
            inputs=((3 * 4096, 2304), (32 + 2 * 128, 2304)),
            inner=((2 * 4096, 128),),
            output=(2304, 4096),
            state=4096 * 128,
            conv=3 * 4096 * 3,
        ),
    ),
    without_attention(
        "mamba-130m",
        "state-spaces/mamba-130m-hf",
        "as quoted by others",
        mamba(24, 768, 1536, 48),
        heads=1536,
        vocab=50280,
        tied_embeddings=True,
    ),
    without_attention(
        "falcon-mamba-7b",
        "tiiuae/falcon-mamba-7b",
        "as quoted by others",
        mamba(64, 4096, 8192, 256),
        heads=8192,
        vocab=65024,
    ),
    without_attention(
        "mamba-codestral-7b",
        "mistralai/Mamba-Codestral-7B-v0.1",
        "whose sizes are the defaults of transformers' Mamba2Config",
        StateMixer(  # 128 heads of 64, states of 128, 8 groups
            kind="mamba2",
            layers=64,
            inputs=((2 * 8192 + 2 * 8 * 128 + 128, 4096),),
            output=(4096, 8192),
            state=8192 * 128,
            conv=(8192 + 2 * 8 * 128) * 3,
        ),
        heads=128,
        vocab=32768,
    ),
)
