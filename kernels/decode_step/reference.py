"""The step in fp32, in plain torch and with no rounding between the operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common import gated, paging
from kernels.common.quantization import BESIDE, SCALE_GROUP, dequantize
from kernels.decode_step import low_rank, states
from kernels.decode_step.blocks import attends, feeds, mixes, stateful
from kernels.decode_step.inputs import angles, embedding_factor, head_of, height_of
from kernels.decode_step.parts import (
    attention_case,
    in_one,
    latent_case,
    lengths,
    mla_case,
    prefix_of,
    rope_case,
    routed,
    router_case,
)
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.kv_append.op import slots as kv_append_slots
from kernels.latent_append.op import cache_of as latents_of
from kernels.op import Inputs
from kernels.rope_append.op import cache_of, rounded_to, widened
from kernels.router.op import reference as routing

if TYPE_CHECKING:
    import torch

    from kernels.decode_step.op import StepCase


SMALL = 1 << 20
"""Elements of an embedding. With fewer a model is a toy, and its reference is computed in fp64. A whole model would
need twice the memory, and on a host minutes."""


def precision(case: StepCase) -> torch.dtype:
    import torch

    return torch.float64 if shape_of(case.model).vocab * shape_of(case.model).hidden < SMALL else torch.float32


def weight(case: StepCase, inputs: Inputs, name: str) -> torch.Tensor:
    """A matrix in the `precision` of the reference, that of experts as [E, N, K]."""
    w = inputs[name]
    if f"{name}_scale" not in inputs:
        return w.to(precision(case))
    rows = w.flatten(0, -2)
    packed = {"w": rows} | {f"w_{p}": inputs[f"{name}_{p}"] for p in BESIDE if f"{name}_{p}" in inputs}
    kind = case.experts_in if ".experts_" in name else case.weights
    whole = dequantize(kind, packed, 0, len(rows), height_of(case, name)).unflatten(0, w.shape[:-1])
    return whole.to(precision(case))


def normed(x: torch.Tensor, w: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * w.to(x.dtype)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    import torch

    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attended(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor) -> torch.Tensor:
    """[B, H_q D], with the new token in the place of what the cache holds there."""
    import torch

    rope, attention = rope_case(case), attention_case(case, layer)
    qkv = x @ weight(case, inputs, f"{layer}.qkv").T
    qkv, gate = qkv[:, : rope.heads * rope.D].unflatten(1, (rope.heads, rope.D)), qkv[:, rope.heads * rope.D :]
    if rope.bias:
        qkv = qkv + inputs[f"{layer}.bias"].to(x.dtype).view(rope.heads, rope.D)
    q, k, v = qkv.split([rope.H_q, rope.H_kv, rope.H_kv], dim=1)
    if rope.qk_norm:
        q, k = (normed(x, inputs[f"{layer}.{n}_norm"], rope.epsilon) for x, n in ((q, "q"), (k, "k")))
    cos, sin = angles(case, inputs, layer)[inputs["positions"].long()][:, None].chunk(2, dim=-1)
    q, k = (torch.cat([turned(x[..., : rope.R], cos, sin), x[..., rope.R :]], -1) for x in (q, k))
    cache, out = cache_of(rope, inputs[f"{layer}.memory"]), torch.empty_like(q)
    if case.kv:
        of_k, of_v = (inputs[f"{layer}.{name}"] for name in ("k_scale", "v_scale"))
        slots = {"block_table": inputs["block_table"], "lengths": inputs["positions"]}
        _, physical, slot = kv_append_slots(rope.append, slots).T
        place = physical, slot // SCALE_GROUP
        k, v = (rounded_to(case.kv, x, scale[place][..., None]) for x, scale in ((k, of_k), (v, of_v)))
        cache = widened(rope, cache, of_k, of_v)
    for b, length in enumerate(lengths(case)):
        row = inputs["block_table"][b] if case.page else torch.tensor([b], device=x.device)
        first = max(0, length - attention.window) if attention.window else 0
        old = (paging.gather(half, row, first, length - 1, attention.tokens_per_page).to(x.dtype) for half in cache)
        keys, values = (torch.cat([o, new[b : b + 1]]) for o, new in zip(old, (k, v), strict=True))
        scores = torch.einsum("hgd,thd->hgt", q[b].unflatten(0, (rope.H_kv, -1)), keys) * attention.softmax_scale
        if attention.sink_logits:
            sinks = inputs[f"{layer}.sink_logits"].view(rope.H_kv, -1, 1)
            scores = torch.cat([scores, sinks], -1)
        shares = scores.softmax(-1)[..., : len(keys)]
        out[b] = torch.einsum("hgt,thd->hgd", shares, values).flatten(0, 1)
    return out.flatten(1) * (gate.sigmoid() if gate.shape[1] else 1.0)


def attended_latents(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor) -> torch.Tensor:
    """[B, H D_v] of MLA without absorption: keys and values of each head are made from the latents."""
    import torch

    mla, latent, wiring = mla_case(case), latent_case(case), wiring_of(case.model)
    qkv = x @ weight(case, inputs, f"{layer}.qkv").T
    q, new, key = qkv.split([qkv.shape[1] - mla.L - mla.R, mla.L, mla.R], dim=1)
    if shape_of(case.model).q_latent:
        q = normed(q, inputs[f"{layer}.q_norm"], wiring.latent_epsilon) @ weight(case, inputs, f"{layer}.q_b").T
    q, rotary = q.view(case.B, mla.H, -1).split([latent.D, mla.R], dim=-1)
    cos, sin = inputs["rotations"][inputs["positions"].long()].chunk(2, dim=-1)
    q = torch.cat([q, turned(rotary, cos[:, None], sin[:, None])], -1)
    new = torch.cat([normed(new, inputs[f"{layer}.latent_norm"], latent.epsilon), turned(key, cos, sin)], -1)
    cache, to_keys = latents_of(latent, inputs[f"{layer}.memory"]), inputs[f"{layer}.kv_b_keys"].to(x.dtype)
    to_values, out = inputs[f"{layer}.kv_b_values"].to(x.dtype), []
    for b, length in enumerate(lengths(case)):
        row = inputs["block_table"][b] if case.page else torch.tensor([b], device=x.device)
        old = paging.gather(cache, row, 0, length - 1, case.page or case.T).to(x.dtype)
        tokens, shared = torch.cat([old, new[b : b + 1]]).split([mla.L, mla.R], dim=-1)
        keys = torch.einsum("tl,hld->htd", tokens, to_keys)
        keys = torch.cat([keys, shared.expand(mla.H, -1, -1)], -1)
        shares = (torch.einsum("hd,htd->ht", q[b], keys) * mla.softmax_scale).softmax(-1)
        out.append(torch.einsum("ht,htd->hd", shares, torch.einsum("tl,hdl->htd", tokens, to_values)))
    return torch.stack(out).flatten(1)


def mixed(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor) -> torch.Tensor:
    """What attention and a state mixer add to the residual."""
    y = x.new_zeros(x.shape)
    if attends(case, layer):
        attention = attended_latents if shape_of(case.model).is_mla else attended
        y = y + attention(case, inputs, layer, x) @ weight(case, inputs, f"{layer}.o").T
        y = y + inputs[f"{layer}.o_bias"].to(x.dtype) if wiring_of(case.model).o_bias else y
    if stateful(case, layer):
        first = x @ weight(case, inputs, f"{layer}.state_in").T
        behind = (low_rank if states.state_case(case).apart else states).reference(case, inputs, layer, first)
        y = y + behind @ weight(case, inputs, f"{layer}.state_out").T
    return y


def fed_forward(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor) -> torch.Tensor:
    if not routed(case, layer):
        return dense(case, inputs, layer, x, "ffn")
    logits = x @ weight(case, inputs, f"{layer}.router").T
    latent = shape_of(case.model).expert_hidden
    inside = x @ weight(case, inputs, f"{layer}.latent_in").T if latent else x
    y = routed_experts(case, inputs, layer, inside, logits[:, : shape_of(case.model).experts])
    y = y @ weight(case, inputs, f"{layer}.latent_out").T if latent else y
    if not shape_of(case.model).shared_width:
        return y
    share = logits[:, -1:].sigmoid() if wiring_of(case.model).shared_gate else 1.0
    return y + share * dense(case, inputs, layer, x, "shared")


def dense(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor, name: str) -> torch.Tensor:
    import torch

    names, at = ("gate", "up") if in_one(case) else ("gate_up",), f"{layer}.{prefix_of(name)}"
    kind = wiring_of(case.model).activation
    gate, up = gated.halves(kind, torch.cat([x @ weight(case, inputs, at + n).T for n in names], 1))
    return gated.hidden(kind, gate, up) @ weight(case, inputs, f"{at}down").T


def routed_experts(case: StepCase, inputs: Inputs, layer: int, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Each expert hit, with its tokens. Routing is that of `kernels/router`, by its reference."""
    import torch

    kind, route = wiring_of(case.model).activation, router_case(case)
    shares = routing(route, {"logits": logits, "bias": inputs[f"{layer}.router_bias"]}).to(x.dtype)
    y, (first, second) = (
        torch.zeros_like(x),
        (weight(case, inputs, f"{layer}.experts_{n}") for n in ("gate_up", "down")),
    )
    biases = [inputs.get(f"{layer}.experts_{n}_bias") for n in ("gate_up", "down")]
    for e in shares.any(0).nonzero().flatten().tolist():
        (token,) = shares[:, e].nonzero(as_tuple=True)
        found = x[token] @ first[e].T
        gate, up = gated.halves(kind, found if biases[0] is None else found + biases[0][e].to(x.dtype))
        found = gated.hidden(kind, gate, up) @ second[e].T
        y.index_add_(
            0, token, (found if biases[1] is None else found + biases[1][e].to(x.dtype)) * shares[token, e, None]
        )
    return y


def reference(case: StepCase, inputs: Inputs) -> torch.Tensor:
    """Logits [B, V]."""
    wiring = wiring_of(case.model)
    x = inputs["embedding"][inputs["tokens"]].to(precision(case)) * embedding_factor(case)
    for layer in range(case.measured_layers):
        for name, block, has in (("attention", mixed, mixes), ("ffn", fed_forward, feeds)):
            if not has(case, layer):
                continue
            y = block(case, inputs, layer, normed(x, inputs[f"{layer}.{name}_norm"], wiring.epsilon))
            x = x + (normed(y, inputs[f"{layer}.{name}_post_norm"], wiring.epsilon) if wiring.post_norms else y)
    return normed(x, inputs["final_norm"], wiring.epsilon) @ inputs[head_of(case)].to(x.dtype).T
