"""Sparse attention: score all tokens, pick the best, read those. The three together, and when they take less time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from bench.ceilings import Ceilings
from bench.devices import find
from bench.predict.roofline import predict_from_ceilings
from kernels.attention_decode.cases import AttentionCase
from kernels.index_score.op import IndexCase, deepseek
from kernels.mla_decode.op import OP as MLA
from kernels.mla_decode.op import MlaCase
from kernels.op import Inputs, Target, discover, implementations
from kernels.topk.op import TopkCase, sparse, work

H200 = find("h200").target()


def triton(op: str) -> Any:
    return next(impl for impl in implementations(op)[0] if impl.name == "triton")


def attended(case: MlaCase, inputs: Inputs, b: int, tokens: torch.Tensor) -> torch.Tensor:
    """Latent attention of sequence b over these physical tokens, in fp64."""
    q = torch.cat([inputs["q_latent"], inputs["q_rope"]], dim=-1).double()[b, 0]
    cached = inputs["cache"].view(-1, case.L + case.R)[tokens].double()
    return torch.softmax(q @ cached.T * case.softmax_scale, dim=-1) @ cached[:, : case.L]


@pytest.mark.cuda(interpreted=True)
def test_scores_choice_and_reading_together(target: Target, half: str) -> None:
    """Both caches have the same pages of 16 tokens. What is picked is read where it lies, as pages of one token."""
    B, T, k, page = 2, 90, 24, 16
    index = IndexCase(B=B, T=T, H=16, D=32, page=page)
    dense = MlaCase(B=B, H=16, L=64, R=16, T=T, page=page, dtype=half)
    scored, cached = discover()["index_score"].inputs(index, target.device, 0), MLA.inputs(dense, target.device, 1)
    table = cached["block_table"]
    scored["block_table"] = table
    pages = len(cached["cache"])
    for name in ("keys", "key_scale"):  # no page is dead in one cache and live in the other
        scored[name] = (
            discover()["index_score"]
            .inputs(replace(index, T=pages * page, B=1, page=0), target.device, 2)[name]
            .view(pages, page, *scored[name].shape[2:])
        )
    scores = triton("index_score").prepare(index, scored, target)()
    found = triton("topk").prepare(TopkCase(B=B, N=T, k=k), {"scores": scores, "lengths": scored["lengths"]}, target)()
    best = torch.topk(discover()["index_score"].reference(index, scored), k).indices.sort().values
    assert torch.equal(found.long(), best)
    tokens = table.gather(1, found.long() // page) * page + found % page
    picked = replace(dense, T=k, page=1, context=T)
    at_once = {**cached, "cache": cached["cache"].view(-1, 1, dense.L + dense.R), "block_table": tokens.int()}
    at_once["lengths"] = torch.full((B,), k, dtype=torch.int32, device=target.device)
    output = triton("mla_decode").prepare(picked, at_once, target)().double()
    for b in range(B):
        expected = attended(dense, cached, b, tokens[b].long())
        assert float((output[b, 0] - expected).norm() / expected.norm()) < 5e-3
        elsewhere = attended(dense, cached, b, tokens[b].roll(1).long() ^ 1)
        assert float((output[b, 0] - elsewhere).norm() / elsewhere.norm()) > 0.1


@pytest.mark.parametrize("op", ["mla_decode", "attention_decode"])
def test_a_list_of_tokens_lies_in_a_larger_cache(op: str) -> None:
    for case in discover()[op].cases("test"):
        if not case.context:
            continue
        plain = replace(case, context=0)
        stored = "cache" if op == "mla_decode" else "k"
        caches = [discover()[op].inputs(each, "meta", 0)[stored] for each in (case, plain)]
        assert caches[0].shape[0] * case.page >= case.B * case.context > 2 * caches[1].shape[0] * case.page
        assert discover()[op].work(case) == discover()[op].work(plain)
        assert case.id != plain.id
        assert not case.is_plain


def test_senseless_cases_raise() -> None:
    for wrong in ({"context": 50}, {"page": 0}):
        fields: dict[str, Any] = {"T": 100, "page": 1, "context": 200} | wrong
        with pytest.raises(ValueError, match="context"):
            MlaCase(B=1, H=16, **fields)
        with pytest.raises(ValueError, match="context"):
            AttentionCase(B=1, H_q=2, H_kv=1, D=64, **fields)
    with pytest.raises(ValueError, match="no window"):
        AttentionCase(B=1, H_q=2, H_kv=1, D=64, T=100, page=1, context=200, window=10)


CEILINGS = Ceilings(
    read_points=tuple((size, 2e-6 + size / 4.3e12) for size in (1 << 20, 1 << 32)),
    copy_points=tuple((size, 2e-6 + size / 3.9e12) for size in (1 << 20, 1 << 32)),
    launch_s=1.5e-6,
    l2_bandwidth=7e12,
    pipes={"mma_bf16": 7.5e14, "mma_fp8": 1.4e15, "fma_fp32": 132 * 256 * 1.7e9},
    memory_loads=((1 << 32, 0.7e-6),),
    cached_loads=((1 << 24, 0.16e-6),),
)
"""An H200 as its predecessors are: 90% of 4.8 TB/s, 1.5 us from launch to launch, 270 clocks for a load of the L2."""


def seconds(op: str, case: Any) -> float:
    return predict_from_ceilings(triton(op).stages(case, H200), CEILINGS, H200).seconds


@cache
def times(H: int, B: int, T: int) -> tuple[float, float, float, float]:
    """Expected seconds of DeepSeek's attention with fp8 latents: dense; scores, choice and reading of sparse."""
    dense = seconds("mla_decode", MlaCase(B=B, H=H, T=T, page=64, kv="fp8"))
    reading = seconds("mla_decode", MlaCase(B=B, H=H, T=2048, page=1, context=T, kv="fp8"))
    return dense, seconds("index_score", deepseek(B, T)), seconds("topk", sparse(B, T)), reading


CONTEXTS = tuple(1 << n for n in range(12, 18))


@pytest.mark.parametrize(("H", "B", "pays_from"), [(16, 1, 131072), (128, 1, 65536), (16, 8, 16384), (128, 32, 4096)])
def test_from_which_context_on_sparse_attention_takes_less_time(H: int, B: int, pays_from: int) -> None:
    """The table of `kernels/README.md`, of contexts that are powers of two."""
    pays = [T for T in CONTEXTS if sum(times(H, B, T)[1:]) < times(H, B, T)[0]]
    assert pays == [T for T in CONTEXTS if pays_from <= T]


def test_what_of_it_is_overhead() -> None:
    """Alone, a sequence waits for the choice half of the time; many wait for the scores."""
    _, scores, choice, reading = times(128, 1, 131072)
    assert choice > 0.35 * (scores + choice + reading)
    _, scores, choice, reading = times(128, 64, 131072)
    assert scores > 0.7 * (scores + choice + reading)


def test_bytes_of_a_step() -> None:
    """Dense attention reads 644 bytes a token, sparse 132, and 4 each that are written and read as scores."""
    context = 131072
    dense = discover()["mla_decode"].work(MlaCase(B=1, H=16, T=context, page=64, kv="fp8")).bytes
    picked = MlaCase(B=1, H=16, T=2048, page=1, context=context, kv="fp8")
    parts = [discover()["index_score"].work(deepseek(1, context)), work(sparse(1, context))]
    whole = sum(each.bytes for each in parts) + discover()["mla_decode"].work(picked).bytes
    assert dense / whole == pytest.approx(4.25, abs=0.1)
