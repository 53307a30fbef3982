"""One decode step of a whole model: each of B sequences gets one token, and the logits [B, V] of the next.

x = embedding[token]; in each layer x += attention(norm(x)), x += FFN(norm(x)); logits = norm(x) W^T; next = argmax.
Each layer has its own weights and its own cache. `parts.py` lists the operations, `wiring.py` what families do.

The step is the same each time that it is launched: a token is written into the slot where it was written before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kernels.attention_decode.op import lengths as drawn_lengths
from kernels.common import gated, paging
from kernels.common.compare import UNIT_ROUNDOFF
from kernels.common.fields import Count, Dtype
from kernels.common.integers import cdiv
from kernels.common.quantization import BESIDE, Weights, check_weights, dequantize, random_weights
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.decode_step.parts import Part, attention_case, parts, rope_case, windowed
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.ffn_gemv.op import GemvCase
from kernels.kv_append.op import cache_shape
from kernels.op import Case, Inputs, Op, Tolerance, Work
from kernels.rmsnorm.op import EPSILON
from kernels.rope_append.op import cache_of, rotations

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class StepCase(Case):
    """`model` names the shape; `layers` is how many of its layers are measured, 0 for all. `T` tokens are cached in the
    longest sequence, those of this step included; the others are drawn as `kernels/attention_decode` draws them.

    `weights` is the type of all products but the LM head and the router.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"lengths": "uniform"}

    B: int
    T: int
    layers: Count = 0
    page: Count = 16
    lengths: paging.Lengths = "uniform"
    seed: Count = 0
    grown: Count = 0
    dtype: Dtype = "bf16"
    weights: Weights = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = shape_of(self.model)
        object.__setattr__(self, "weights", self.weights or self.dtype)
        check_weights(self.weights, self.dtype, hidden=shape.hidden)
        if self.layers > shape.layers:
            raise ValueError(f"layers {self.layers}: {self.model} has {shape.layers}")
        if shape.max_context < self.T:
            raise ValueError(f"T = {self.T}: {self.model} is made for {shape.max_context}")
        if self.lengths == "holes":
            raise ValueError("lengths holes: each sequence of a step has its new token at least")
        assert attention_case(self, 0)

    @property
    def measured_layers(self) -> int:
        return self.layers or shape_of(self.model).layers

    @property
    def windowed_layers(self) -> int:
        """How many of the measured layers have the window of the model."""
        return sum(windowed(self, layer) for layer in range(self.measured_layers))

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype]

    @property
    def quantized(self) -> bool:
        return self.weights != self.dtype

    @property
    def id(self) -> str:
        found = [self.model, *([f"L{self.layers}"] if self.layers else []), f"B{self.B}-T{self.T}"]
        if self.lengths != "uniform":
            found.append(self.lengths + (str(self.seed) if self.seed else ""))
        found += [f"grown{self.grown}"] if self.grown else []
        found += [f"page{self.page}" if self.page else "contiguous", self.dtype]
        return "-".join([*found, *([f"w{self.weights}"] if self.quantized else [])])


def cases(suite: str) -> list[StepCase]:
    """A quick run has some layers of a model; a full one also all of them, where two copies fit into 80 GB."""
    if suite == "smoke":
        return [StepCase(model="qwen2.5-0.5b", layers=2, B=1, T=1024)]
    if suite == "quick":
        return [StepCase(model="llama-3.1-8b", layers=4, B=1, T=4096)]
    if suite == "full":
        return [
            *(StepCase(model="llama-3.1-8b", B=B, T=4096) for B in (1, 16)),
            StepCase(model="llama-3.2-1b", B=1, T=4096),
            StepCase(model="qwen3-32b", layers=8, B=1, T=4096),
            StepCase(model="gemma-3-27b", layers=6, B=1, T=4096),
        ]
    return [
        StepCase(model="toy-gemma-3", B=3, T=20, page=4, lengths="ragged", dtype="fp16"),
        StepCase(model="toy-qwen2.5", layers=1, B=2, T=9, page=0, dtype="fp16"),
    ]


def lengths(case: StepCase) -> tuple[int, ...]:
    """Cached tokens of each sequence, the new one included."""
    return drawn_lengths(attention_case(case, 0))


# ---- inputs


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


# ---- reference


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
    """Logits in fp32, with no rounding between the operations."""
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


def head_of(case: StepCase) -> str:
    """The matrix of the LM head."""
    return "embedding" if shape_of(case.model).tied_embeddings else "lm_head"


def work(case: StepCase) -> Work:
    """The work of all parts. What passes from one to the next is counted too, as `decodebench predict` does."""
    return sum((part.work for part in parts(case)), Work())


def tolerance(case: StepCase) -> Tolerance:
    """In fp32 the order of sums differs; else some roundings a layer, each of which the next layers pass on."""
    if case.dtype == "fp32":
        return Tolerance(max_rel=1e-3, rms_rel=1e-4, why="fp32 sums in another order, in every operation of the step")
    unit = UNIT_ROUNDOFF[case.dtype] * math.sqrt(2 + 4 * case.measured_layers)
    why = "each operation rounds its output once; errors of layers add up like independent ones"
    return Tolerance(max_rel=8 * unit, rms_rel=1.5 * unit, why=why)


OP = Op(
    name="decode_step",
    title="decode step",
    role="contrast",
    about="a whole decode step of a model: all operations of all layers, one after the other",
    formula="x += attention(norm(x)); x += FFN(norm(x)) in each layer; logits = norm(x) W^T",
    case_type=StepCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("tokens",),
)
