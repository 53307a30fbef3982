"""All-reduce against the sum in fp64: among processes of a host, where a rank that dies or hangs is named, and among
pretended GPUs; what is counted.
"""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from threading import Timer

import pytest
import torch

from bench.ceilings import Ceilings
from bench.devices import find
from bench.inspection.emulate import program
from bench.inspection.emulator.execute import execute
from bench.measure.case import usable
from bench.measure.gate import check
from bench.measure.timing import HostTimer
from bench.predict.roofline import predict_from_ceilings, predict_from_datasheet
from kernels.all_reduce import peers_nccl
from kernels.all_reduce.op import OP, ReduceCase, decoded, of_model, work
from kernels.common.compare import compare
from kernels.common.ranks import group as ranks
from kernels.common.ranks import member
from kernels.common.ranks.cases import NAMES, too_few
from kernels.op import Target, implementations, total
from tests.support.uninterpreted import elsewhere

HOST = Target(kind="cpu", name="cpu", sm_count=4, l2_bytes=1 << 20)
"""A host of four cores. This one may have fewer: the ranks then wait for each other."""

H200 = find("h200").target()
IMPLS = {impl.name: impl for impl in implementations("all_reduce")[0]}
ODD = ReduceCase(B=3, hidden=683, ranks=3)
"""2,049 elements: one more than the kernel adds up at once, and no multiple of the ranks."""


@pytest.fixture(scope="module")
def shared() -> Iterator[ranks.Collective]:
    """Three ranks that share memory, for all tests that lose none. They end with the last launch that has them."""
    launch = IMPLS["shared-one-shot"].prepare(ODD, OP.inputs(ODD, "cpu", 5), HOST)
    nursery, pid = launch.group.nursery, launch.group.pids[1]
    yield weakref.proxy(launch)
    assert nursery.code(pid, 0.0) is None
    del launch
    gc.collect()
    assert nursery.code(pid, 5.0) is not None


@pytest.mark.parametrize("name", ["shared-one-shot", "shared-two-shot"])
def test_ranks_that_share_memory_get_the_sum(shared: ranks.Collective, name: str) -> None:
    for case in (ODD, replace(ODD, dtype="fp32"), replace(ODD, B=1, hidden=1)):
        assert check(OP, IMPLS[name], case, HOST).reason is None, case.id


def gloo_sums(n: int) -> ranks.Collective:
    case = replace(ODD, ranks=n)
    launch = IMPLS["gloo"].prepare(case, OP.inputs(case, "cpu", 5), HOST)
    for each in (case, replace(case, dtype="fp32", B=1)):
        assert check(OP, IMPLS["gloo"], each, HOST).reason is None, each.id
    return launch


def test_gloo_gives_the_sum_until_a_rank_is_killed() -> None:
    launch = gloo_sums(3)
    launch()
    os.kill(launch.group.pids[2], signal.SIGKILL)
    with pytest.raises(ranks.RankLost, match=r"rank 2 of 3 died: signal 9 \(SIGKILL\)"):
        launch()
    assert all(launch.group.nursery.code(pid, 5.0) is not None for pid in launch.group.pids.values())


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_gloo_gives_the_sum_of_two_and_four(n: int) -> None:
    gloo_sums(n)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", ["shared-one-shot", "shared-two-shot"])
def test_two_and_four_ranks_share_memory(name: str, n: int) -> None:
    for case in (each for each in OP.cases("test") if not each.fused):
        assert check(OP, IMPLS[name], replace(case, ranks=n), HOST).reason is None, case.id


def test_the_time_of_a_launch_is_that_of_its_slowest_rank(shared: ranks.Collective) -> None:
    timer = HostTimer([shared])
    start = time.perf_counter()
    sample = timer.sample()
    assert sample == max(shared.seconds)
    assert all(0 < each < time.perf_counter() - start for each in shared.seconds)
    assert len(shared.seconds) == 3


def test_what_is_lost_shows(shared: ranks.Collective) -> None:
    """A rank that does not add one input, or that keeps an old output."""
    output = shared()
    inputs = OP.inputs(ODD, "cpu", 5)
    for name in NAMES[:3]:
        lacking = OP.reference(ODD, inputs) - inputs[name].double()
        assert not torch.allclose(lacking, decoded(ODD, output).double(), rtol=0.1)
    assert decoded(ODD, output).isfinite().all()
    output[2, 1, 7] += 1
    assert decoded(ODD, output).isnan().nonzero().tolist() == [[1, 7]]


SMALL = ReduceCase(B=1, hidden=64, ranks=2)


def test_a_rank_that_hangs_is_named_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = IMPLS["shared-two-shot"].prepare(SMALL, OP.inputs(SMALL, "cpu", 0), HOST)
    launch()
    monkeypatch.setattr(ranks, "LIMIT_S", 0.5)
    group = launch.group
    os.kill(group.pids[1], signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ranks.RankLost, match=r"of 2 ranks, rank 1 \(process \d+, stopped\) did not come within 0.5 s"):
        launch()
    assert time.monotonic() - started < member.LIMIT_S
    with pytest.raises(ranks.RankLost, match="rank 1"):
        launch()
    assert group.nursery.code(group.pids[1], 5.0) == -signal.SIGKILL, "no rank stays behind"


@pytest.mark.slow
def test_after_a_loss_the_next_launch_gets_new_ranks() -> None:
    """The rank is killed while both are at work: the launch that is lost says so, and the next one is right."""
    launch = IMPLS["shared-one-shot"].prepare(SMALL, OP.inputs(SMALL, "cpu", 0), HOST)
    Timer(0.2, os.kill, (launch.group.pids[1], signal.SIGKILL)).start()
    with pytest.raises(ranks.RankLost, match="rank 1 of 2 died: signal 9"):
        deque((launch() for _ in count()), maxlen=0)
    assert check(OP, IMPLS["shared-one-shot"], SMALL, HOST).reason is None


def test_a_machine_with_too_few_cores_or_gpus_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    case = of_model("llama-3.1-70b", 1, 8)
    assert too_few(case, HOST) == "needs a core for each of 8 ranks, 4 are usable"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert too_few(case, H200) == "needs a GPU for each of 8 ranks, 4 are here"
    assert too_few(replace(case, ranks=4), H200) is None
    fused = replace(case, ranks=4, fused=True)
    assert all("only adds up" in IMPLS[name].supports(fused, HOST) for name in IMPLS if name.startswith("shared"))
    assert IMPLS["triton-fused"].supports(fused, H200) is None
    assert IMPLS["triton-one-shot"].supports(fused, H200) is not None
    assert IMPLS["triton-fused"].supports(replace(fused, fused=False), H200) is not None
    with pytest.raises(ValueError, match="ranks 9: 2 to 8"):
        replace(case, ranks=9)


def test_the_full_suite_has_the_messages_of_decode() -> None:
    """8 KiB to 16 MiB, alone and fused, among 2, 4 and 8."""
    found = {(case.fused, case.ranks): set() for case in OP.cases("full")}
    for case in OP.cases("full"):
        found[case.fused, case.ranks].add(case.size)
    assert found == {(fused, n): {8 << 10, 16 << 10, 1 << 20, 16 << 20} for fused in (False, True) for n in (2, 4, 8)}


def test_work_by_hand() -> None:
    """Batch 16 of a hidden size of 8,192 in bf16 are 256 KiB, which each rank reads and writes."""
    case = of_model("llama-3.1-70b", 16, 4)
    assert (work(case).bytes_read, work(case).bytes_written) == (1 << 18, 1 << 18)
    assert work(case).flops["fma_fp32"] == 3 * 16 * 8192 // 4
    fused = work(replace(case, fused=True))
    assert (fused.bytes_read, fused.bytes_written) == ((2 << 18) + (1 << 14), 2 << 18), "residual, w and h too"
    assert total(IMPLS["shared-one-shot"].stages(case, HOST)).bytes == 4 * (1 << 19)


def test_predictions_know_the_link_between_gpus() -> None:
    """One shot among 8: 7 x 4 MiB come over 450 GB/s in 65 us; two shots, as NCCL may, 2 x 7 / 8 of them in 16 us.
    What the link gives is measured by nobody, so there is no prediction from measured ceilings."""
    case = of_model("llama-3.1-70b", 256, 8)
    spec = find("h200")
    for name, sent in (("triton-one-shot", 7 * (1 << 22)), ("nccl", 7 * (1 << 20))):
        stages = IMPLS[name].stages(case, H200)
        assert sum(stage.peer_bytes for stage in stages) == sent
        found = predict_from_datasheet(stages, spec)
        assert (found.seconds, found.bound) == (pytest.approx(sent / 450e9), "peers")
        measured = predict_from_ceilings(stages, Ceilings(read_points=((1 << 20, 2e-6),), best_read=4e12), H200)
        assert measured.missing == ("fma_fp32", "link_bandwidth")
        assert usable(measured) is None


def emulated(fused: bool, ranks: int, rounds: int) -> list[str | None]:
    """What the gate says of each launch of compiled kernels of so many ranks on one part, one order of warps each."""
    from kernels.all_reduce import triton_fused, triton_one_shot

    case = ReduceCase(B=3, hidden=200 if fused else 2731, ranks=ranks, fused=fused)
    kernels = triton_fused if fused else triton_one_shot
    inputs, part = OP.inputs(case, "cpu", 0), replace(H200, sm_count=2)
    built = kernels.MEETING.pretended(case, inputs, part)
    made, found = program(built.launches[0], 90), []
    for seed in range(rounds):
        OP.poison(case, inputs, built.output)
        execute(made, seed=seed)
        found.append(compare(decoded(case, built.output), OP.reference(case, inputs), OP.tolerance(case)).reason)
        flags = [built.launches[0].args[f"flags{r}"] for r in range(ranks)]
        assert all(bool((flag == 2 * seed + 2).all()) for flag in flags), "two barriers a launch, each of all ranks"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_pretended_gpus_wait_for_each_other_and_get_the_same_sum(fused: bool) -> None:
    """The compiled code of sm_90, on the emulator: two ranks, launch after launch with the same flags."""
    assert elsewhere("tests.kernels.test_all_reduce", f"t.emulated({fused}, 2, 3)") == [None] * 3


def test_what_surrounds_nccl_passes_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended NCCL adds up on the host; the streams are numbers."""

    def pretended(xs: list[torch.Tensor], ys: list[torch.Tensor], streams: list[int]) -> None:
        assert streams == list(range(len(xs)))
        for y in ys:
            y.copy_(torch.stack(xs).double().sum(0))

    monkeypatch.setattr(torch.cuda.nccl, "all_reduce", pretended)
    monkeypatch.setattr(peers_nccl, "Forked", lambda n: lambda work: work(range(n)))
    for case in (ODD, replace(ODD, fused=True)):
        assert check(OP, IMPLS["nccl"], case, HOST).reason is None, case.id
