"""Hybrids whose layers are wired in their own way: what their config.json says, and how their files name weights.

Nemotron-H: every layer is one block behind one norm; no head turns; FFNs and experts have no gate.
Falcon-H1: attention and Mamba-2 side by side in every layer. Its multipliers are constants of rows, so they are taken
into the weights when these are loaded. Formulas: `modeling_nemotron_h.py` and `modeling_falcon_h1.py` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kernels.decode_step.angles import Rope
from kernels.model_config import BadConfig, Reading
from kernels.model_config.fields import Fields
from kernels.state_update.cases import StateCase

if TYPE_CHECKING:
    import torch

PLAIN = {"attention_bias": "attention", "use_bias": "state mixers", "mamba_proj_bias": "state mixers"}
PLAIN |= {"projectors_bias": "state mixers", "attn_layer_indices": "layers without attention"}
"""Fields of which each is null or false: a step has no such bias, and attention in every layer of Falcon-H1."""


def unlimited(fields: Fields, name: str = "time_step_limit") -> None:
    """Raises `BadConfig` for a file that limits time steps."""
    least, most = fields.get(name) or (0.0, math.inf)
    if least > 0 or (isinstance(most, float | int) and most < math.inf):
        raise fields.wrong(name, "from 0 to infinity: a step limits no time step")


def refuse(text: Mapping[str, Any]) -> None:
    for name, what in PLAIN.items():
        if text.get(name):
            raise BadConfig(f"config.json: field {name!r} is {text[name]!r}: a step has none of it in {what}")


def nemotron_state(fields: Fields) -> StateCase:
    unlimited(fields)
    return StateCase(
        kind="mamba2",
        B=1,
        H=fields.whole("mamba_num_heads"),
        G=fields.whole("n_groups"),
        V=fields.whole("mamba_head_dim"),
        K=fields.whole("ssm_state_size"),
        conv=fields.whole("conv_kernel"),
    )


def falcon_state(fields: Fields) -> StateCase:
    unlimited(fields)
    heads = fields.whole("mamba_n_heads")
    inner = fields.whole_or(fields.whole_or(2, "mamba_expand") * fields.whole("hidden_size"), "mamba_d_ssm")
    if inner % heads or fields.get("mamba_d_head") not in (None, "auto", inner // heads):
        raise fields.wrong("mamba_d_head", f"the part of {heads} heads of the {inner} channels of mamba_d_ssm")
    return StateCase(
        kind="mamba2",
        B=1,
        H=heads,
        G=fields.whole("mamba_n_groups"),
        V=inner // heads,
        K=fields.whole("mamba_d_state"),
        conv=fields.whole("mamba_d_conv"),
    )


def wired(kind: str, text: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """The fields of `Wiring` that only these two families have."""
    refuse(text)
    return falcon(text) if kind == "falcon_h1" else nemotron(text, reading)


def nemotron(text: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    activation = text.get("mlp_hidden_act") or "relu2"
    if activation != "relu2":
        raise BadConfig(f"mlp_hidden_act {activation!r}: a step has relu2 in this model")
    letters = {"state": "M", "attention": "*"}
    blocks = "".join(letters.get(layer.mixer) or {"dense": "-", "moe": "E"}[layer.ffn] for layer in reading.layers)
    groups = int(text.get("n_group") or 1)
    router = {
        "score": "sigmoid",
        "groups": groups if groups > 1 else 0,
        "top_groups": int(text.get("topk_group") or 1) if groups > 1 else 0,
        "scaling": float(text.get("routed_scaling_factor") or 1.0),
        "renormalize": bool(text.get("norm_topk_prob", True)),
    }
    return {
        "activation": "relu2",
        "epsilon": float(text.get("layer_norm_epsilon") or text.get("rms_norm_eps") or 1e-5),
        "rope": Rope(kind="none"),
        "blocks": blocks,
        "router": tuple(router.items()),
    }


def falcon(text: Mapping[str, Any]) -> dict[str, Any]:
    def of(name: str) -> float:
        return float(text.get(f"{name}_multiplier") or 1.0)

    z, *tokens = (float(each) for each in text.get("ssm_multipliers") or [1.0] * 5)
    gate, down = (float(each) for each in text.get("mlp_multipliers") or [1.0] * 2)
    attention = of("attention_in")
    factors = {
        "qkv": (attention, attention * of("key"), attention),
        "o": (of("attention_out"),),
        "state_in": tuple(of("ssm_in") * each for each in (*tokens, z)),
        "state_out": (of("ssm_out"),),
        "gate": (gate,),
        "down": (down,),
    }
    normed = bool(text.get("mamba_rms_norm"))
    return {
        "embedding_factor": of("embedding"),
        "logits_factor": of("lm_head"),
        "factors": tuple(factors.items()),
        "states": (True,),
        "state_norm": normed,
        "norm_first": normed and bool(text.get("mamba_norm_before_gate", True)),
    }


# ---- weights as files have them


def kinds_of_rows(name: str, heads: tuple[int, int, int], state: StateCase) -> list[int]:
    """How many rows of each kind the matrix has of which `Wiring.factors` has several."""
    if name == "qkv":
        q, kv, dim = heads
        return [q * dim, kv * dim, kv * dim]
    return [*state.channels.values(), *state.gates.values(), state.H * state.V]


def scaled(w: torch.Tensor, factors: tuple[float, ...], rows: list[int]) -> torch.Tensor:
    """The rows of each kind times its factor, in fp32."""
    import torch

    if len(factors) == 1:
        return w.float() * factors[0]
    parts = w.float().split(rows)
    return torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)])


MIXERS = {"M": "mamba", "*": "self_attn", "-": "mlp", "E": "mlp"}
"""How other families name the only block of a layer of Nemotron-H."""

OUTER = {"embeddings.weight": "embed_tokens.weight", "norm_f.weight": "norm.weight"}


class Renamed(Mapping[str, "torch.Tensor"]):
    """The tensors of a file of Nemotron-H under the names that other families have: `layers.3.norm` becomes the norm
    before attention or before the FFN, `layers.3.mixer` what it is."""

    def __init__(self, stored: Mapping[str, torch.Tensor], blocks: str) -> None:
        self.stored = stored
        self.names = {renamed(name, blocks): name for name in stored}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.stored[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def renamed(name: str, blocks: str) -> str:
    before, inside, rest = name.partition("layers.")
    number, _, rest = rest.partition(".")
    if not inside or not number.isdigit() or int(number) >= len(blocks):
        return next((before.removesuffix(old) + new for old, new in OUTER.items() if before.endswith(old)), name)
    block = blocks[int(number)]
    if rest == "norm.weight":
        rest = "input_layernorm.weight" if block in "M*" else "post_attention_layernorm.weight"
    else:
        rest = rest.replace("mixer.", f"{MIXERS[block]}.", 1)
    return f"{before}layers.{number}.{rest}"
