"""What a step reads: weights of every layer, caches, and who has which page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kernels.attention_decode.cases import AttentionCase
from kernels.common import paging
from kernels.common.integers import cdiv
from kernels.common.quantization import random_weights
from kernels.common.random_inputs import RandomInputs
from kernels.decode_step import low_rank, states
from kernels.decode_step.blocks import attends, has_attention, stateful
from kernels.decode_step.parts import (
    Part,
    latent_case,
    lengths,
    memory_shape,
    parts,
    prefix_of,
    rope_case,
    rotary,
    windowed,
)
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv.op import GemvCase
from kernels.head_gemv.op import HeadCase
from kernels.kv_append.op import cache_shape
from kernels.latent_append.op import LatentCase
from kernels.latent_append.op import cache_of as latents_of
from kernels.moe_ffn.op import MoeCase
from kernels.op import Inputs
from kernels.rmsnorm.op import NormCase
from kernels.rope_append.op import CODES_PER_UNIT, RopeCase, cache_of, rotations, scales
from kernels.router.op import RouterCase
from kernels.short_conv.op import ConvCase
from kernels.state_update.cases import StateCase

if TYPE_CHECKING:
    import torch

    from kernels.decode_step.op import StepCase


def matrices(case: StepCase) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and stored type of each weight matrix; the columns are the last dimension."""
    shape, dtype = shape_of(case.model), case.dtype
    yield "embedding", (shape.vocab, shape.hidden), dtype
    if not shape.tied_embeddings:
        yield "lm_head", (shape.vocab, shape.hidden), dtype
    for part in parts(case):
        at, each = f"{part.layer}.", part.case
        if isinstance(each, GemvCase) and part.name != "lm_head":
            yield at + part.name, (each.N, each.K), each.weights
        elif isinstance(each, HeadCase):
            yield at + part.name, (each.H, each.N, each.K), dtype
        elif isinstance(each, FfnCase):
            for name in ("gate", "up"):
                yield at + prefix_of(part.name) + name, (each.ffn, shape.hidden), dtype
            yield at + prefix_of(part.name) + "down", (shape.hidden, each.ffn), dtype
        elif isinstance(each, MoeCase):
            yield at + "experts_gate_up", (each.E, each.matrices * each.F, each.H), each.weights
            yield at + "experts_down", (each.E, each.H, each.F), each.weights


def vectors(case: StepCase) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of each norm's weights, each bias and the logits of sinks. What a model lacks has size 0."""
    shape, wiring, dtype = shape_of(case.model), wiring_of(case.model), case.dtype
    for part in parts(case):
        at, each = f"{part.layer}.", part.case
        if isinstance(each, NormCase):
            yield named(part), (each.D * (1 if each.shared else each.groups),), dtype
            if each.addend == "bias":
                yield at + "o_bias", (each.D,), dtype
        elif isinstance(each, RopeCase):
            norm, bias = shape.head_dim if wiring.qk_norm else 0, each.heads * shape.head_dim
            yield from ((at + name, (norm,), dtype) for name in ("q_norm", "k_norm"))
            yield at + "bias", (bias if wiring.qkv_bias else 0,), dtype
        elif isinstance(each, LatentCase):
            yield at + "latent_norm", (each.L,), dtype
        elif isinstance(each, AttentionCase):
            yield at + "sink_logits", (each.H_q if each.sink_logits else 0,), "fp32"
        elif isinstance(each, StateCase):
            yield from ((at + name, size, stored) for name, size, stored in states.vectors(each))
        elif isinstance(each, ConvCase):
            yield at + "conv_weight", (each.taps, each.C), dtype
            yield at + "conv_bias", (each.C,), dtype
        elif isinstance(each, RouterCase):
            yield at + "router_bias", (each.E if each.has_bias else 0,), "fp32" if each.score == "sigmoid" else dtype
        elif isinstance(each, MoeCase) and each.bias:
            yield at + "experts_gate_up_bias", (each.E, each.matrices * each.F), dtype
            yield at + "experts_down_bias", (each.E, each.H), dtype


def named(part: Part) -> str:
    return part.name if part.layer < 0 else f"{part.layer}.{part.name}"


def inputs(case: StepCase, device: str, seed: int) -> Inputs:
    """Weights of order K^-1/2, norms 1 + N(0, 1) / 8, biases and caches N(0, 1); `next` is where the step puts its
    tokens (int64 [B], like `tokens`). `<layer>.memory` holds queries and cache, see `kernels/rope_append` and
    `kernels/latent_append`.

    Quantized matrices have their scales and zero points beside them: `0.qkv_scale`.
    """
    import torch

    draw, shape = RandomInputs(device, seed), shape_of(case.model)
    made: Inputs = {"tokens": draw.integers(0, shape.vocab, (case.B,), "int64")}
    made["next"] = torch.zeros_like(made["tokens"])
    for name, size, stored in matrices(case):
        if stored == case.dtype:
            made[name] = draw.normal(size, stored, scale=size[-1] ** -0.5)
        else:
            packed = random_weights(draw, stored, math.prod(size[:-1]), size[-1], case.dtype, height_of(case, name))
            made[name] = packed.pop("w").unflatten(0, size[:-1])
            made |= {name + part.removeprefix("w"): tensor for part, tensor in packed.items()}
    for name, size, stored in vectors(case):
        own = (0.125, 1.0) if name.endswith("norm") else (1.0, 0.0)
        deviation, mean = states.PARAMETERS.get(name.rpartition(".")[2], own)
        made[name] = draw.normal(size, stored, scale=deviation)
        if device != "meta":
            made[name] += mean
    for layer in range(case.measured_layers):
        made |= drawn_memory(case, layer, draw)
    return made | bookkeeping(case, device, seed)


def drawn_memory(case: StepCase, layer: int, draw: RandomInputs) -> Inputs:
    """The cache of a layer and its states, those that it has."""
    found: Inputs = drawn_cache(case, layer, draw) if attends(case, layer) else {}
    if stateful(case, layer):
        found[states.memory_of(case, layer)] = states.drawn_memory(states.state_case(case), draw)
        found |= low_rank.drawn_ring(case, layer, draw)
    return found


def drawn_cache(case: StepCase, layer: int, draw: RandomInputs) -> Inputs:
    """Queries and cache of a layer ~ N(0, 1), and the scales of a cache in 8 bits."""
    import torch

    name, device = f"{layer}.memory", draw.device
    if not case.kv:
        return {name: draw.normal(memory_shape(case, layer), case.dtype)}
    rope, made = rope_case(case), torch.zeros(memory_shape(case, layer), dtype=torch.uint8, device=device)
    cache = cache_of(rope, made)
    codes = draw.normal(tuple(cache.shape), case.kv, scale=CODES_PER_UNIT[case.kv])
    if device != "meta":
        paging.poisonable(cache)[0].copy_(paging.poisonable(codes)[0])
    found = {f"{layer}.{half}": scale for half, scale in zip(("k_scale", "v_scale"), scales(rope, device), strict=True)}
    return {name: made} | found


def height_of(case: StepCase, name: str) -> int:
    """Rows of one matrix of stacked experts, 0 for other matrices."""
    shape = shape_of(case.model)
    heights = {"experts_gate_up": shape.expert_ffn, "experts_down": shape.expert_hidden or shape.hidden}
    return heights.get(name.partition(".")[2], 0)


def bookkeeping(case: StepCase, device: str, seed: int) -> Inputs:
    """`lengths` with the new token and `positions` of it, int32 [B]; the block table; the angles of all positions; and
    where states are."""
    import torch

    found = torch.tensor(lengths(case), dtype=torch.int32)
    table = torch.empty(case.B, 0, dtype=torch.int32)
    if case.page and has_attention(case):
        columns, pages = cdiv(case.T, case.page), cache_shape(rope_case(case).append)[1]
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed))
        table = torch.full((case.B, columns + 1), paging.GARBAGE[0], dtype=torch.int32)
        table[:, :columns] = order[: case.B * columns].view(case.B, columns)
    wiring = wiring_of(case.model)
    made = {"lengths": found, "positions": found - 1, "block_table": table}
    if wiring.state:
        made |= states.bookkeeping(case, made["positions"])
    made = {name: tensor.to(device) for name, tensor in made.items()}
    R = rotary(case) if has_attention(case) else 2
    for name, rope in (("rotations", wiring.rope), ("window_rotations", wiring.window_rope)):
        if rope:
            made[name] = rotations(case.T, rope.frequencies(R), device) * rope.magnitude
    return made


def caches(case: StepCase, memory: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of the keys and of the values [pages, page, H_kv, D]; of MLA one, of the latents [pages, page, L + R]."""
    if shape_of(case.model).is_mla:
        return (latents_of(latent_case(case), memory),)
    return tuple(cache_of(rope_case(case), memory))


def angles(case: StepCase, inputs: Inputs, layer: int) -> torch.Tensor:
    """The angles that a layer rotates by."""
    own = wiring_of(case.model).window_rope and windowed(case, layer)
    return inputs["window_rotations" if own else "rotations"]


def head_of(case: StepCase) -> str:
    """The matrix of the LM head."""
    return "embedding" if shape_of(case.model).tied_embeddings else "lm_head"


def embedding_factor(case: StepCase) -> float:
    """What rows of the embedding are multiplied by."""
    wiring = wiring_of(case.model)
    return shape_of(case.model).hidden ** 0.5 if wiring.scaled_embedding else wiring.embedding_factor
