"""Matrix products as a right kernel computes them, and with one fault of every kind; in torch.

A right kernel adds up in fp32 and rounds to the type of the case where the operation has a value: gate and up, their
product, and the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernels.common.quantization import dequantize
from kernels.common.random_inputs import torch_dtype
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv.op import GemvCase
from kernels.moe_ffn.op import MoeCase, expert_weights
from kernels.op import Inputs


def gemv(case: GemvCase, inputs: Inputs, splits: int = 1, partial: torch.dtype = torch.float32) -> torch.Tensor:
    """y, added up from `splits` ranges of columns whose sums are kept in `partial`."""
    x = inputs["x"].float()
    if case.activations != case.dtype:
        x = x * inputs["x_scale"][:, None]
    w = dequantize(case.weights, inputs, 0, case.N) if case.quantized else inputs["w"].float()
    parts = [(a @ b.T).to(partial).float() for a, b in zip(x.chunk(splits, 1), w.chunk(splits, 1), strict=True)]
    return torch.stack(parts).sum(dim=0).to(torch_dtype(case.dtype))


def swiglu(x: torch.Tensor, weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """(silu(x W_gate^T) * (x W_up^T)) W_down^T in fp32; x W_gate^T, x W_up^T and the hidden values are rounded."""
    gate, up, down = weights
    g, u = ((x @ w.T).to(dtype).float() for w in (gate, up))
    return (g * torch.sigmoid(g) * u).to(dtype).float() @ down.T


def ffn(case: FfnCase, inputs: Inputs, gain: float = 1.0) -> torch.Tensor:
    dtype = torch_dtype(case.dtype)
    x, *weights = (inputs[name].float() for name in ("x", "w_gate", "w_up", "w_down"))
    return (swiglu(x, weights, dtype) * gain).to(dtype)


def moe(
    case: MoeCase, inputs: Inputs, gain: float = 1.0, pairs: Callable[[int, int], bool] = lambda e, slot: True
) -> torch.Tensor:
    """y of those (expert, slot of a token) for which `pairs` is true."""
    dtype, x, ids = torch_dtype(case.dtype), inputs["x"].float(), inputs["topk_ids"]
    y = torch.zeros_like(x)
    for e in sorted(set(ids.flatten().tolist())):
        weights = [*expert_weights(case, inputs, "w_gate_up", e).chunk(2), expert_weights(case, inputs, "w_down", e)]
        for b, slot in (ids == e).nonzero().tolist():
            if pairs(e, slot):
                y[b] += swiglu(x[b], weights, dtype).to(dtype).float() * inputs["topk_weights"][b, slot]
    return (y * gain).to(dtype)


def changed(inputs: Inputs, name: str, change: Callable[[torch.Tensor], Any]) -> Inputs:
    """The inputs with a changed copy of one of them."""
    copy = inputs[name].clone()
    change(copy)
    return inputs | {name: copy}
