"""How layers with Mamba's or KDA's states are wired, as fields of `Wiring`, and toys of them. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kernels.decode_step.angles import Rope
from kernels.rmsnorm.op import EPSILON
from kernels.state_update.cases import StateCase


@dataclass(frozen=True, kw_only=True)
class Selective:
    """What Mamba computes between its convolution and its state: from the convolved channels, dt of this rank, B and C;
    from dt, that of each channel. `norms` tells whether dt, B and C are normalized before, and whether with weights."""

    rank: int
    taps: int = 4
    norms: Literal["", "plain", "weighted"] = ""
    epsilon: float = EPSILON


def mamba1(V: int) -> StateCase:
    """The convolution is an operation of its own, and the token comes from three products."""
    return StateCase(kind="mamba1", B=1, V=V, K=16, conv=0, apart=True)


Said = Mapping[str, Mapping[str, Any]]
TOY_MAMBA1 = mamba1(128)
TOY_MAMBA2 = StateCase(kind="mamba2", B=1, H=8, G=2, V=16, K=16)

FAMILIES: Said = {
    "kimi-linear": {
        "rope": Rope(kind="none"),
        "latent_epsilon": 1e-6,
        "router": (("score", "sigmoid"), ("groups", 1), ("top_groups", 1), ("scaling", 2.446)),
        "states": (*(True, True, True, False) * 6, True, True, False),
        "state": StateCase(kind="kda", B=1, H=32, G=32, V=128, K=128, apart=True),
    },
    "jamba": {
        "rope": Rope(kind="none"),
        "epsilon": 1e-6,
        "states": tuple(layer != 4 for layer in range(8)),
        "sparse": (False, True),
        "router": (("renormalize", False),),
        "state": mamba1(8192),
        "selective": Selective(rank=256, norms="weighted", epsilon=1e-6),
    },
    "falcon-mamba": {
        "states": (True,),
        "state": mamba1(8192),
        "selective": Selective(rank=256, norms="plain", epsilon=1e-6),
    },
    "mamba-codestral": {"states": (True,), "state": StateCase(kind="mamba2", B=1, H=128, G=8, V=64, K=128)},
    "mamba-130m": {"states": (True,), "state": mamba1(1536), "selective": Selective(rank=48)},
    "mamba2": {"states": (True,), "state": TOY_MAMBA2},
    "mamba": {"states": (True,), "state": TOY_MAMBA1, "selective": Selective(rank=8)},
}

NO_ATTENTION: Mapping[str, Any] = {
    "heads": 1,
    "kv_heads": 1,
    "head_dim": 1,
    "plain_layers": 2,
    "attention_free_layers": 2,
}

TOYS: Said = {
    "toy-jamba": {
        "experts": 4,
        "experts_per_token": 2,
        "expert_ffn": 96,
        "dense_layers": 1,
        "attention_free_layers": 1,
    },
    "toy-kimi-linear": {
        "kv_heads": 4,
        "experts": 16,
        "experts_per_token": 4,
        "expert_ffn": 32,
        "dense_layers": 1,
        "shared_experts": 1,
        "kv_latent": 32,
        "rope_dim": 16,
        "v_head_dim": 24,
        "attention_free_layers": 1,
    },
    "toy-mamba": {**NO_ATTENTION, "tied_embeddings": True},
    "toy-falcon-mamba": NO_ATTENTION,
    "toy-mamba2": NO_ATTENTION,
}
"""What their shapes have otherwise than other toys."""

TOY_WIRING: Said = {
    "toy-kimi-linear": {
        "states": (True, False),
        "state": StateCase(kind="kda", B=1, H=4, G=4, V=16, K=16, apart=True),
    },
    "toy-jamba": {
        "states": (True, False),
        "state": TOY_MAMBA1,
        "selective": Selective(rank=8, norms="weighted", epsilon=1e-6),
    },
    "toy-falcon-mamba": {"state": TOY_MAMBA1, "selective": Selective(rank=8, norms="plain", epsilon=1e-6)},
}
