"""Attention as a right kernel computes it, and with one fault of every kind; in torch, for caches of any length.

A right kernel splits the tokens, rounds the probabilities of each split to the type of the cache's operands, adds up in
fp32, merges the splits and rounds the output once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from kernels.attention_decode import op as attention
from kernels.attention_decode.op import AttentionCase
from kernels.common.random_inputs import torch_dtype
from kernels.mla_decode import op as mla
from kernels.mla_decode.op import MlaCase
from kernels.op import Inputs


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the query rows of one KV head see: scores `[rows, T]` in nats (-inf: not seen) and values `[T, D]`, which
    are those of an 8-bit cache divided by their `scale [T]`. A learned sink is one more token, whose value is 0."""

    scores: torch.Tensor
    values: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Nothing is wrong by default."""

    counts: dict[int, float] = field(default_factory=dict)
    """How often these tokens count, instead of once."""
    moved: dict[int, int] = field(default_factory=dict)
    """The value of these tokens is read from other tokens."""
    softmax_scale: float = 1.0
    gain: float = 1.0
    offset: float = 0.0
    """Of the output, in units of its rms."""
    partial: torch.dtype = torch.float32
    """The type of the splits' results."""


def attention_heads(case: AttentionCase, inputs: Inputs, b: int, more: int = 0) -> list[Head]:
    """All KV heads of sequence b, which is read as if it had `more` tokens than it has."""
    length = attention.lengths(case)[b] + more
    ranges = attention.live(case, length)
    k, v = (attention.tokens(case, inputs, name, b, ranges) for name in ("k", "v"))
    t = torch.cat([torch.arange(*r) for r in ranges])
    scale = torch.ones(len(t), case.H_kv)
    if case.token_scales:
        page = case.tokens_per_page
        pages = inputs["block_table"][b][t // page].long() if case.page else torch.full_like(t, b)
        scale = inputs["v_scale"][pages, t % page // attention.SCALE_GROUP]
    last = torch.arange(length - case.q_len, length).repeat_interleave(case.group)[:, None]
    unseen = t > last
    if case.window:
        unseen |= (t <= last - case.window) & (t >= case.sinks)
    q = inputs["q"][b].float().view(case.q_len, case.H_kv, case.group, case.D)
    heads = []
    for h in range(case.H_kv):
        scores = q[:, h].flatten(0, 1) @ k[:, h].T * case.softmax_scale
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        scores, values, scales = scores.masked_fill(unseen, -torch.inf), v[:, h] / scale[:, h, None], scale[:, h]
        if case.sink_logits:
            logits = inputs["sink_logits"].view(case.H_kv, case.group)[h].repeat(case.q_len)
            scores = torch.cat([scores, logits[:, None]], dim=1)
            values, scales = (torch.cat([x, torch.ones_like(x[:1])]) for x in (values, scales))
            values[-1] = 0
        heads.append(Head(scores=scores, values=values, scale=scales))
    return heads


def mla_head(case: MlaCase, inputs: Inputs, b: int, more: int = 0) -> Head:
    """All heads of sequence b share the latents; a row is a head of a query. It is read as if it had `more` tokens."""
    length = mla.lengths(case)[b] + more
    cached = mla.tokens(case, inputs, b, length)
    q = torch.cat([inputs["q_latent"], inputs["q_rope"]], dim=-1)[b].float().flatten(0, 1)
    last = torch.arange(length - case.q_len, length).repeat_interleave(case.H)[:, None]
    scale = torch.ones(length)
    if case.kv == "fp8":
        t, page = torch.arange(length), case.page or case.T
        scale = inputs["latent_scale"][inputs["block_table"][b][t // page].long() if case.page else b, t % page]
    return Head(
        scores=(q @ cached.T * case.softmax_scale).masked_fill(torch.arange(length) > last, -torch.inf),
        values=cached[:, : case.L] / scale[:, None],
        scale=scale,
    )


def attend(head: Head, dtype: torch.dtype, fault: Fault, splits: int) -> torch.Tensor:
    """O `[rows, D]` in fp32, before its rounding; zeros for rows that see nothing."""
    scores, values = head.scores * fault.softmax_scale, head.values
    counts = torch.ones(scores.shape[1])
    for t, count in fault.counts.items():
        counts[t] = count
    if fault.moved:
        values = values.clone()
        for t, source in fault.moved.items():
            values[t] = head.values[source]
    parts, sizes, most = [], [], scores.amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0)
    for s, v, scale, count in zip(
        *(x.chunk(splits, dim=d) for x, d in ((scores, 1), (values, 0), (head.scale, 0), (counts, 0))), strict=True
    ):
        m = s.amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0)
        p = torch.exp(s - m) * count
        norm = p.sum(dim=-1, keepdim=True)
        o = ((p * scale).to(dtype).float() @ v) / norm.clamp_min(1e-30)
        parts.append(o.to(fault.partial).float())
        sizes.append(norm * torch.exp(m - most))
    size = torch.stack(sizes)
    o = (torch.stack(parts) * size).sum(dim=0) / size.sum(dim=0).clamp_min(1e-30)
    return o * fault.gain


def worth_of(heads: list[Head], tokens: torch.Tensor) -> torch.Tensor:
    """For each of these tokens, how wrong the output is without it: `max_rel` of `compare`, without any rounding."""
    best = torch.zeros(len(tokens))
    for head in heads:
        p, values = torch.softmax(head.scores, dim=-1), head.values * head.scale[:, None]
        o = p @ values
        scale = o.abs() + o.square().mean(dim=-1, keepdim=True).sqrt()
        for p_row, o_row, scale_row in zip(p[:, tokens], o, scale, strict=True):
            change = (p_row / (1 - p_row))[:, None] * (o_row - values[tokens])
            best = best.maximum((change.abs() / scale_row).amax(dim=-1))
    return best


def all_heads(case: Any, inputs: Inputs, more: int = 0) -> list[list[Head]]:
    """The heads of every sequence."""
    if isinstance(case, MlaCase):
        return [[mla_head(case, inputs, b, more)] for b in range(case.B)]
    return [attention_heads(case, inputs, b, more) for b in range(case.B)]


def output(case: Any, heads: list[list[Head]], fault: Fault | None = None, splits: int = 4) -> torch.Tensor:
    """The output of all sequences, whose heads are given, in the type of the case."""
    fault, dtype = fault or Fault(), torch_dtype(case.dtype)
    o = torch.stack([torch.stack([attend(head, dtype, fault, splits) for head in sequence]) for sequence in heads])
    o = o.unflatten(2, (case.q_len, -1)).transpose(1, 2).flatten(2, 3)  # [B, heads, q_len x group, D] before
    return (o + fault.offset * o.square().mean().sqrt()).to(dtype)
