"""A step over ranks is the step of one rank: two processes that share the heads and the FFN give its logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.errors import BadRequest
from bench.measure.split_step import measure_split, run_ranks
from bench.predict.step_request import Request
from kernels.decode_step.op import OP, StepCase
from kernels.decode_step.split import prepare, share, share_of
from kernels.decode_step.wiring import shape_of
from kernels.op import Target, implementations

CPU = Target(kind="cpu", name="cpu", sm_count=1)
IMPLS = {impl.name: impl for impl in implementations("decode_step")[0]}
CASE = StepCase(model="toy-qwen2.5", B=3, T=20, page=4, lengths="ragged", dtype="fp32")


@pytest.mark.parametrize("model", ["toy-llama-3", "toy-qwen2.5", "toy-qwen3", "toy-gemma-3"])
def test_shares_add_up_to_the_step(model: str) -> None:
    """Both ranks in this process, in lockstep: each all-reduce adds up what both have there. With biases, norms of
    heads, norms behind blocks, windows and tied embeddings. Fails without the all-reduces."""
    case = replace(CASE, model=model)
    inputs = OP.inputs(case, "cpu", 0)
    expected = IMPLS["torch"].prepare(case, {n: t.clone() for n, t in inputs.items()}, CPU)()
    met: list[list[torch.Tensor]] = [[], []]
    shares = [share(case, inputs, rank, 2) for rank in (0, 1)]
    launches = [prepare(share_of(case, 2), each, CPU, met[rank].append) for rank, each in enumerate(shares)]
    reduces = 0
    for first, second in zip(*(launch.parts for launch in launches), strict=True):
        assert first[0] == second[0]
        for _, call in (first, second):
            call()
        if first[0] == "all_reduce":
            a, b = met[0].pop(), met[1].pop()
            a += b
            b.copy_(a)
            reduces += 1
    assert reduces == 2 * shape_of(model).layers
    for rank, launch in enumerate(launches):
        torch.testing.assert_close(launch.output, expected, rtol=2e-4, atol=2e-4)
        assert torch.equal(shares[rank]["next"], expected.argmax(1))


@pytest.mark.slow
def test_two_processes_give_the_logits_of_one() -> None:
    inputs = OP.inputs(CASE, "cpu", 0)
    expected = IMPLS["torch"].prepare(CASE, inputs, CPU)()
    found = run_ranks({"case": CASE.as_dict(), "logits": True}, 2)
    for rank in found:
        torch.testing.assert_close(torch.tensor(rank["logits"]), expected, rtol=2e-4, atol=2e-4)
        assert rank["tokens"] == expected.argmax(1).tolist()
        assert all(0 < reduce < whole for reduce, whole in zip(rank["reduce_seconds"], rank["seconds"], strict=True))


@pytest.mark.slow
def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(BadRequest, match=r"rank [01] of 2 failed: .*no-such"):
        run_ranks({"case": CASE.as_dict() | {"model": "no-such"}}, 2)


def test_what_is_not_split_is_one_line() -> None:
    with pytest.raises(BadRequest, match="dense FFNs"):
        measure_split(Request(model="mixtral-8x7b", batch=1, context=128, devices=2))
    with pytest.raises(BadRequest, match=r"14 query heads, 2 KV heads .* 4 ranks cannot share them evenly"):
        measure_split(Request(model="qwen2.5-0.5b", batch=1, context=128, devices=4))
