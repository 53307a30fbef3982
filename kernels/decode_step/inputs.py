"""What a step reads: weights of every layer, caches, and who has which page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kernels.common import paging
from kernels.common.integers import cdiv
from kernels.common.quantization import random_weights
from kernels.common.random_inputs import RandomInputs
from kernels.decode_step.parts import Part, lengths, parts, rope_case, windowed
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.ffn_gemv.op import GemvCase
from kernels.kv_append.op import cache_shape
from kernels.op import Inputs
from kernels.rope_append.op import rotations

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
        at = f"{part.layer}."
        if isinstance(part.case, GemvCase) and part.name != "lm_head":
            yield at + part.name, (part.case.N, part.case.K), part.case.weights
        elif part.name == "ffn":
            for name in ("gate", "up"):
                yield at + name, (shape.ffn, shape.hidden), dtype
            yield at + "down", (shape.hidden, shape.ffn), dtype
        elif part.name == "experts":
            yield at + "experts_gate_up", (shape.experts, 2 * shape.expert_ffn, shape.hidden), case.weights
            yield at + "experts_down", (shape.experts, shape.hidden, shape.expert_ffn), case.weights


def vectors(case: StepCase) -> Iterator[tuple[str, int]]:
    """Name and size of each norm's weights and each bias."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    for part in parts(case):
        if part.op == "rmsnorm":
            yield named(part), shape.hidden
        elif part.op == "rope_append":
            norm, bias = shape.head_dim if wiring.qk_norm else 0, rope_case(case).heads * shape.head_dim
            yield from ((f"{part.layer}.q_norm", norm), (f"{part.layer}.k_norm", norm))
            yield f"{part.layer}.bias", bias if wiring.qkv_bias else 0


def named(part: Part) -> str:
    return part.name if part.layer < 0 else f"{part.layer}.{part.name}"


def inputs(case: StepCase, device: str, seed: int) -> Inputs:
    """Weights of order K^-1/2, norms 1 + N(0, 1) / 8, biases and caches N(0, 1); `next` is where the step puts its
    tokens (int64 [B], like `tokens`). `<layer>.memory` holds queries and cache, see `kernels/rope_append`.

    Quantized matrices have their scales and zero points beside them: `0.qkv_scale`.
    """
    import torch

    draw, shape, rope = RandomInputs(device, seed), shape_of(case.model), rope_case(case)
    made: Inputs = {"tokens": draw.integers(0, shape.vocab, (case.B,), "int64")}
    made["next"] = torch.zeros_like(made["tokens"])
    for name, size, stored in matrices(case):
        if stored == case.dtype:
            made[name] = draw.normal(size, stored, scale=size[-1] ** -0.5)
        else:
            packed = random_weights(draw, stored, math.prod(size[:-1]), size[-1], case.dtype, height_of(case, name))
            made[name] = packed.pop("w").unflatten(0, size[:-1])
            made |= {name + part.removeprefix("w"): tensor for part, tensor in packed.items()}
    for name, length in vectors(case):
        made[name] = draw.normal((length,), case.dtype, scale=1.0 if name.endswith("bias") else 0.125)
        if device != "meta" and not name.endswith("bias"):
            made[name] += 1
    rows = rope.q_rows + math.prod(cache_shape(rope.append)[:-1])
    for layer in range(case.measured_layers):
        made[f"{layer}.memory"] = draw.normal((rows, shape.head_dim), case.dtype)
    return made | bookkeeping(case, device, seed)


def height_of(case: StepCase, name: str) -> int:
    """Rows of one matrix of stacked experts, 0 for other matrices."""
    shape = shape_of(case.model)
    heights = {"experts_gate_up": shape.expert_ffn, "experts_down": shape.hidden}
    return heights.get(name.partition(".")[2], 0)


def bookkeeping(case: StepCase, device: str, seed: int) -> Inputs:
    """`lengths` with the new token and `positions` of it, int32 [B]; the block table; the angles of all positions."""
    import torch

    found = torch.tensor(lengths(case), dtype=torch.int32)
    table = torch.empty(case.B, 0, dtype=torch.int32)
    if case.page:
        columns, pages = cdiv(case.T, case.page), cache_shape(rope_case(case).append)[1]
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed))
        table = torch.full((case.B, columns + 1), paging.GARBAGE[0], dtype=torch.int32)
        table[:, :columns] = order[: case.B * columns].view(case.B, columns)
    wiring, D = wiring_of(case.model), shape_of(case.model).head_dim
    made = {"lengths": found, "positions": found - 1, "block_table": table}
    made = {name: tensor.to(device) for name, tensor in made.items()}
    made["rotations"] = rotations(case.T, D, wiring.theta, device)
    if wiring.window_theta:
        made["window_rotations"] = rotations(case.T, D, wiring.window_theta, device)
    return made


def angles(case: StepCase, inputs: Inputs, layer: int) -> torch.Tensor:
    """The angles that a layer rotates by."""
    own = wiring_of(case.model).window_theta and windowed(case, layer)
    return inputs["window_rotations" if own else "rotations"]


def head_of(case: StepCase) -> str:
    """The matrix of the LM head."""
    return "embedding" if shape_of(case.model).tied_embeddings else "lm_head"
