"""What an FFN makes of gate g and up u, the two products of its input. sigma is the logistic function.

| activation       | h =                                                     | models                             |
|------------------|---------------------------------------------------------|------------------------------------|
| `swiglu`         | g sigma(g) u                                            | Llama, Qwen, DeepSeek, Mixtral     |
| `geglu`          | g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) / 2 u     | Gemma (`gelu_pytorch_tanh`)        |
| `swiglu_clamped` | min(g, 7) sigma(1.702 min(g, 7)) (clip(u, -7, 7) + 1)   | gpt-oss (`swiglu` in its model.py) |
| `glu`            | sigma(g) u                                              | Qwen3-Next, of what attention gave |
| `relu2`          | max(g, 0)^2, without a u                                | Nemotron-H (`relu2` of its config) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from kernels.common.fields import OneOf

if TYPE_CHECKING:
    import torch

ACTIVATIONS = ("swiglu", "geglu", "swiglu_clamped", "glu", "relu2")
UNGATED = ("relu2",)
"""Those of one product: such FFNs have two matrices, up and down, and g is what up gives."""
Activation = Annotated[str, OneOf(*ACTIVATIONS)]

LIMIT, ALPHA = 7.0, 1.702
"""`swiglu_limit` and `alpha` of gpt_oss/torch/model.py of openai/gpt-oss."""

CUBE = 0.044715
SQRT_2_OVER_PI = 0.7978845608028654


def suffix(activation: str) -> str:
    """The part of a case's id, empty for the usual activation."""
    return "" if activation == "swiglu" else f"-{activation}"


def matrices(activation: str) -> int:
    """How many matrices multiply the input of an FFN: gate and up, or up alone."""
    return 1 if activation in UNGATED else 2


def halves(activation: str, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up, of the columns that the first product gave; without a gate, both are all of them."""
    if activation in UNGATED:
        return both, both
    gate, up = both.chunk(2, dim=1)
    return gate, up


def hidden(activation: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """h by its formula, for references."""
    import torch

    if activation == "geglu":
        return gate * (1 + torch.tanh(SQRT_2_OVER_PI * (gate + CUBE * gate**3))) / 2 * up
    if activation == "swiglu_clamped":
        gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT) + 1
        return gate / (1 + torch.exp(-ALPHA * gate)) * up
    if activation == "glu":
        return up / (1 + torch.exp(-gate))
    if activation == "relu2":
        return gate.clamp(min=0) ** 2
    return gate / (1 + torch.exp(-gate)) * up


def by_torch(activation: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """h as model code in torch computes it, operator by operator in the type of the activations, for peers."""
    from torch.nn.functional import gelu, relu, silu

    if activation == "geglu":
        return gelu(gate, approximate="tanh") * up
    if activation == "swiglu_clamped":
        gate, up = gate.clamp(max=LIMIT), up.clamp(min=-LIMIT, max=LIMIT)
        return (up + 1) * (gate * (gate * ALPHA).sigmoid())
    if activation == "glu":
        return gate.sigmoid() * up
    if activation == "relu2":
        return relu(gate).square()
    return silu(gate) * up


OPERATORS = {
    "swiglu": {"silu": 2, "mul": 3},
    "geglu": {"gelu": 2, "mul": 3},
    "swiglu_clamped": {"clamp gate": 2, "clamp up": 2, "add": 2, "scale": 2, "sigmoid": 2, "mul": 3, "mul up": 3},
    "glu": {"sigmoid": 2, "mul": 3},
    "relu2": {"relu": 2, "square": 2},
}
"""The kernels of `by_torch`, and how many arrays of gate's size each reads and writes."""
