"""What a config.json says of steps with Mamba mixers alone, of Jamba and of Kimi-Linear. Standard library only.

Fields are those of `configuration_<model_type>.py` of transformers 5.24, and of the published files.
"""

from __future__ import annotations

from typing import Any

from kernels.decode_step.angles import Rope
from kernels.decode_step.hybrids import unlimited
from kernels.decode_step.mamba_wiring import Selective
from kernels.model_config.fields import BadConfig, Fields
from kernels.state_update.cases import StateCase


def no_bias(fields: Fields, *names: str) -> None:
    for name in names:
        if fields.truth(name, default=False):
            raise fields.wrong(name, "false: the products of a step's state mixers have no bias")


def inner(fields: Fields, expand: str) -> int:
    """Channels. Falcon Mamba's file says them, and another factor beside."""
    given = fields.given.get("intermediate_size") if fields.model_type == "falcon_mamba" else None
    return given or fields.whole(expand) * fields.whole("hidden_size")


def rank(fields: Fields, name: str) -> int:
    return fields.whole(name) if isinstance(fields.get(name), int) else -(-fields.whole("hidden_size") // 16)


def selective(V: int, K: int) -> StateCase:
    """The convolution is a part of its own, and the token comes from three products."""
    return StateCase(kind="mamba1", B=1, V=V, K=K, conv=0, apart=True)


def jamba(fields: Fields) -> StateCase:
    no_bias(fields, "mamba_proj_bias")
    return selective(inner(fields, "mamba_expand"), fields.whole("mamba_d_state"))


def jamba_wiring(fields: Fields) -> dict[str, Any]:
    """No head turns, and the weights of experts do not add up to 1."""
    eps = float(fields.get("rms_norm_eps") or 1e-6)
    taps = fields.whole("mamba_d_conv")
    found = Selective(rank=rank(fields, "mamba_dt_rank"), taps=taps, norms="weighted", epsilon=eps)
    return {"selective": found, "rope": Rope(kind="none"), "router": (("renormalize", False),)}


def mamba1(fields: Fields) -> StateCase:
    no_bias(fields, "use_bias")
    return selective(inner(fields, "expand"), fields.whole("state_size"))


def epsilon(fields: Fields) -> dict[str, Any]:
    return {"epsilon": float(fields.get("layer_norm_epsilon") or 1e-5)}


def mamba1_wiring(fields: Fields) -> dict[str, Any]:
    """Falcon Mamba normalizes dt, B and C without weights."""
    more: dict[str, Any] = {}
    if fields.model_type == "falcon_mamba":
        more = {"norms": "plain", "epsilon": float(fields.get("mixer_rms_eps") or 1e-6)}
    taps = fields.whole("conv_kernel")
    return epsilon(fields) | {"selective": Selective(rank=rank(fields, "time_step_rank"), taps=taps, **more)}


def mamba2(fields: Fields) -> StateCase:
    no_bias(fields, "use_bias")
    unlimited(fields)
    return StateCase(
        kind="mamba2",
        B=1,
        H=fields.whole("num_heads"),
        G=fields.whole("n_groups"),
        V=fields.whole("head_dim"),
        K=fields.whole("state_size"),
        conv=fields.whole("conv_kernel"),
    )


def kda(fields: Fields) -> StateCase:
    linear = fields.part("linear_attn_config")
    heads = linear.whole_or(fields.whole_or(32, "linear_num_heads"), "num_heads")
    dim = linear.whole_or(fields.whole_or(128, "linear_head_dim"), "head_dim")
    taps = linear.whole_or(fields.whole_or(4, "linear_conv_kernel_dim"), "short_conv_kernel_size")
    return StateCase(kind="kda", B=1, H=heads, G=heads, V=dim, K=dim, conv=taps, apart=True)


def kimi_wiring(fields: Fields) -> dict[str, Any]:
    """No head turns. The router is DeepSeek-V3's under other names, mostly with one group."""
    if fields.truth("mla_use_nope", default=True) is False:
        raise BadConfig("mla_use_nope false: heads of Kimi-Linear do not turn in a step")
    groups = fields.whole_or(fields.whole_or(1, "n_group"), "num_expert_group")
    renormalize = fields.get("moe_renormalize")
    router = {
        "score": "sigmoid",
        "groups": groups,
        "top_groups": fields.whole_or(1, "topk_group"),
        "scaling": float(fields.get("routed_scaling_factor") or 2.446),
        "renormalize": bool(fields.get("norm_topk_prob") if renormalize is None else renormalize),
    }
    found: dict[str, Any] = {"rope": Rope(kind="none"), "latent_epsilon": 1e-6, "router": tuple(router.items())}
    return found | {"score_factor": 1.0, "pairs_adjacent": False}
