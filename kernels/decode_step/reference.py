"""The step in fp32, in plain torch and with no rounding between the operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common import gated, paging
from kernels.common.quantization import BESIDE, dequantize
from kernels.decode_step.inputs import angles, head_of, height_of
from kernels.decode_step.parts import attention_case, lengths, rope_case
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.op import Inputs
from kernels.rmsnorm.op import EPSILON
from kernels.rope_append.op import cache_of

if TYPE_CHECKING:
    import torch

    from kernels.decode_step.op import StepCase


def weight(case: StepCase, inputs: Inputs, name: str) -> torch.Tensor:
    """A matrix in fp32, that of experts as [E, N, K]."""
    w = inputs[name]
    if f"{name}_scale" not in inputs:
        return w.float()
    rows = w.flatten(0, -2)
    packed = {"w": rows} | {f"w_{p}": inputs[f"{name}_{p}"] for p in BESIDE if f"{name}_{p}" in inputs}
    return dequantize(case.weights, packed, 0, len(rows), height_of(case, name)).unflatten(0, w.shape[:-1])


def normed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * w.float()


def attended(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor) -> torch.Tensor:
    """[B, H_q D], with the new token in the place of what the cache holds there."""
    import torch

    rope, attention = rope_case(case), attention_case(case, layer)
    qkv = (x @ weight(case, inputs, f"{layer}.qkv").T).view(case.B, rope.heads, rope.D)
    if rope.bias:
        qkv = qkv + inputs[f"{layer}.bias"].float().view(rope.heads, rope.D)
    q, k, v = qkv.split([rope.H_q, rope.H_kv, rope.H_kv], dim=1)
    if rope.qk_norm:
        q, k = normed(q, inputs[f"{layer}.q_norm"]), normed(k, inputs[f"{layer}.k_norm"])
    cos, sin = angles(case, inputs, layer)[inputs["positions"].long()][:, None].chunk(2, dim=-1)
    q, k = (torch.cat([a * cos - b * sin, b * cos + a * sin], -1) for a, b in (t.chunk(2, -1) for t in (q, k)))
    cache, out = cache_of(rope, inputs[f"{layer}.memory"]), torch.empty_like(q)
    for b, length in enumerate(lengths(case)):
        row = inputs["block_table"][b] if case.page else torch.tensor([b], device=x.device)
        first = max(0, length - attention.window) if attention.window else 0
        old = (paging.gather(half, row, first, length - 1, attention.tokens_per_page).float() for half in cache)
        keys, values = (torch.cat([o, new[b : b + 1]]) for o, new in zip(old, (k, v), strict=True))
        scores = torch.einsum("hgd,thd->hgt", q[b].unflatten(0, (rope.H_kv, -1)), keys) * attention.softmax_scale
        out[b] = torch.einsum("hgt,thd->hgd", scores.softmax(-1), values).flatten(0, 1)
    return out.flatten(1)


def fed_forward(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor) -> torch.Tensor:
    import torch

    shape, kind = shape_of(case.model), wiring_of(case.model).activation
    if not shape.is_moe:
        names = ("gate_up",) if case.quantized else ("gate", "up")
        gate, up = torch.cat([x @ weight(case, inputs, f"{layer}.{n}").T for n in names], 1).chunk(2, 1)
        return gated.hidden(kind, gate, up) @ weight(case, inputs, f"{layer}.down").T
    shares, ids = (x @ weight(case, inputs, f"{layer}.router").T).softmax(-1).topk(shape.experts_per_token)
    shares, y = shares / shares.sum(-1, keepdim=True), torch.zeros_like(x)
    first, second = (weight(case, inputs, f"{layer}.experts_{n}") for n in ("gate_up", "down"))
    for e in ids.unique().tolist():
        token, slot = (ids == e).nonzero(as_tuple=True)
        gate, up = (x[token] @ first[e].T).chunk(2, 1)
        y.index_add_(0, token, gated.hidden(kind, gate, up) @ second[e].T * shares[token, slot, None])
    return y


def reference(case: StepCase, inputs: Inputs) -> torch.Tensor:
    """Logits [B, V]."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    x = inputs["embedding"][inputs["tokens"]].float()
    if wiring.scaled_embedding:
        x = x * shape.hidden**0.5
    for layer in range(case.measured_layers):
        for name, block in (("attention", attended), ("ffn", fed_forward)):
            y = block(case, inputs, layer, normed(x, inputs[f"{layer}.{name}_norm"]))
            if name == "attention":
                y = y @ weight(case, inputs, f"{layer}.o").T
            x = x + (normed(y, inputs[f"{layer}.{name}_post_norm"]) if wiring.post_norms else y)
    return normed(x, inputs["final_norm"]) @ inputs[head_of(case)].float().T
