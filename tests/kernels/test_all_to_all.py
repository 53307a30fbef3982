"""All-to-all: every rank gets the rows that are meant for it, among processes of a host and among pretended GPUs."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.devices import find
from bench.inspection.emulate import program
from bench.inspection.emulator.execute import execute
from bench.measure.gate import check
from bench.predict.roofline import predict_from_datasheet
from kernels.all_to_all import peers_nccl
from kernels.all_to_all.exchange import exchange
from kernels.all_to_all.op import (
    DIRECTIONS,
    OP,
    AllToAllCase,
    decoded,
    destinations,
    dispatched,
    of_model,
    received,
    rows_of,
    shape,
    work,
)
from kernels.common.compare import compare
from kernels.common.ranks import group as ranks
from kernels.common.ranks import member, nccl
from kernels.op import Target, implementations, total
from tests.support.uninterpreted import elsewhere

HOST = Target(kind="cpu", name="cpu", sm_count=4, l2_bytes=1 << 20)
"""A host of four cores. This one may have fewer: the ranks then wait for each other."""

H200 = find("h200").target()
IMPLS = {impl.name: impl for impl in implementations("all_to_all")[0]}
ODD = AllToAllCase(direction="dispatch", ranks=3, B=5, E=6, k=2, hidden=2051)
"""A row is three elements longer than what the host's kernel adds up at once."""

BACK = replace(ODD, direction="combine")


@pytest.fixture(scope="module")
def shared() -> Iterator[ranks.Collective]:
    """Three ranks that share memory, for all tests that lose none."""
    launch = IMPLS["shared"].prepare(ODD, OP.inputs(ODD, "cpu", 5), HOST)
    yield weakref.proxy(launch)
    del launch
    gc.collect()


@pytest.mark.parametrize("case", [ODD, BACK], ids=DIRECTIONS)
def test_ranks_that_share_memory_get_their_rows(shared: ranks.Collective, case: AllToAllCase) -> None:
    for each in (case, replace(case, dtype="fp32", hidden=7), replace(case, hidden=1, idle=1)):
        assert check(OP, IMPLS["shared"], each, HOST).reason is None, each.id


def by_gloo(n: int) -> ranks.Collective:
    launches = []
    for case in (replace(ODD, ranks=n, E=2 * n), replace(BACK, ranks=n, E=2 * n, dtype="fp32", idle=1)):
        launches.append(IMPLS["gloo"].prepare(case, OP.inputs(case, "cpu", 5), HOST))
        assert check(OP, IMPLS["gloo"], case, HOST).reason is None, case.id
    return launches[0]


def test_gloo_exchanges_rows_until_a_rank_is_killed() -> None:
    launch = by_gloo(3)
    os.kill(launch.group.pids[2], signal.SIGKILL)
    with pytest.raises(ranks.RankLost, match=r"rank 2 of 3 died: signal 9 \(SIGKILL\)"):
        launch()


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_gloo_exchanges_rows_of_two_and_four(n: int) -> None:
    by_gloo(n)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_two_and_four_ranks_share_memory(n: int) -> None:
    for case in (ODD, BACK):
        assert check(OP, IMPLS["shared"], replace(case, ranks=n, E=2 * n, hidden=43), HOST).reason is None


def test_a_rank_that_hangs_is_named_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(ODD, ranks=2, hidden=8)
    launch = IMPLS["shared"].prepare(case, OP.inputs(case, "cpu", 0), HOST)
    launch()
    monkeypatch.setattr(ranks, "LIMIT_S", 0.5)
    os.kill(launch.group.pids[1], signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ranks.RankLost, match=r"of 2 ranks, rank 1 \(process \d+, stopped\) did not come within 0.5 s"):
        launch()
    assert time.monotonic() - started < member.LIMIT_S


@pytest.mark.parametrize("case", [ODD, BACK], ids=DIRECTIONS)
def test_a_row_that_is_lost_or_misplaced_shows(case: AllToAllCase) -> None:
    """Each row of every rank's output counts, and nothing behind them."""
    inputs = OP.inputs(replace(case, dtype="fp32"), "cpu", 3)
    right = OP.reference(case, inputs)
    for r in range(case.ranks):
        own = len(rows_of(case, r))
        for i in range(own):
            wrong = right.clone()
            wrong[r, i] = right[r, i - 1] if own > 1 else 0
            assert compare(decoded(case, wrong.float()), right, OP.tolerance(case)).reason is not None, (r, i)
        junk = right.clone()
        junk[r, own:] = float("nan")
        assert compare(decoded(case, junk.float()), right, OP.tolerance(case)).reason is None


def test_a_combine_is_the_way_back_of_its_dispatch() -> None:
    """What a rank got and sends back unchanged comes home as often as it was sent."""
    there, back = replace(ODD, dtype="fp32", hidden=4), replace(BACK, dtype="fp32", hidden=4)
    inputs = OP.inputs(there, "cpu", 1)
    got, home = OP.reference(there, inputs), OP.inputs(back, "cpu", 1)
    for r in range(there.ranks):
        home[f"x{r}"].copy_(got[r])
    for r, y in enumerate(OP.reference(back, home)):
        times = torch.tensor([len(to) for to in destinations(there)[r]])
        assert torch.equal(y, times[:, None] * inputs[f"x{r}"].double())


def test_an_idle_rank_receives_nothing_and_sends_nothing_back() -> None:
    case = replace(ODD, idle=1)
    assert [len(rows_of(case, r)) > 0 for r in range(3)] == [True, True, False]
    assert all(sources[2] == -1 for r in range(3) for sources in rows_of(replace(case, direction="combine"), r))
    assert exchange(case, 2).gets == (0, 0, 0)
    assert OP.inputs(replace(case, direction="combine"), "cpu", 0)["x2"].isnan().all()


def test_cases_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="the 3 ranks must have equally many"):
        replace(ODD, E=7)
    with pytest.raises(ValueError, match="at most the 2 experts of ranks that are not idle"):
        replace(ODD, k=3, idle=2)
    assert IMPLS["nccl"].supports(ODD, HOST) == "needs NVIDIA GPUs, one for each rank"
    assert IMPLS["shared"].supports(of_model("deepseek-v3", "dispatch", 1, 8), HOST) == (
        "needs a core for each of 8 ranks, 4 are usable"
    )


def test_work_by_hand() -> None:
    """Four ranks, two tokens each, all four experts chosen: every rank gets all eight tokens, six of them by links."""
    case = AllToAllCase(direction="dispatch", ranks=4, B=2, E=4, k=4, hidden=100)
    assert (received(case), shape(case)) == (8, (8, 100))
    assert (work(case).bytes_read, work(case).bytes_written) == (2 * 200 + 4 * 8, 8 * 200)
    back = replace(case, direction="combine")
    assert (work(back).bytes_read, work(back).bytes_written) == (8 * 200 + 4 * 8, 2 * 200)
    assert work(back).flops == {"fma_fp32": 3 * 2 * 100}
    for each in (case, back):
        assert total(IMPLS["shared"].stages(each, HOST)).bytes == 4 * work(each).bytes
        for name in ("triton", "nccl"):
            stages = IMPLS[name].stages(each, H200)
            assert sum(stage.peer_bytes for stage in stages) == 6 * 200, name


def test_a_large_dispatch_is_bound_by_the_links() -> None:
    case = of_model("deepseek-v3", "dispatch", 128, 8)
    found = predict_from_datasheet(IMPLS["triton"].stages(case, H200), find("h200"))
    others = max(sum(s != r for s, _ in rows) for r, rows in enumerate(dispatched(case)))
    assert (found.bound, found.seconds) == ("peers", pytest.approx(others * 7168 * 2 / 450e9))


def emulated(direction: str, rounds: int) -> list[str | None]:
    """What the gate says of each launch of the compiled kernel of two ranks on one part."""
    from kernels.all_to_all import triton_gather

    case = AllToAllCase(direction=direction, ranks=2, B=3, E=4, k=2, hidden=1100)
    inputs, part = OP.inputs(case, "cpu", 0), replace(H200, sm_count=1)
    built = triton_gather.MEETING.pretended(case, inputs, part)
    made, found = program(built.launches[0], 90), []
    for seed in range(rounds):
        OP.poison(case, inputs, built.output)
        execute(made, seed=seed)
        found.append(compare(decoded(case, built.output), OP.reference(case, inputs), OP.tolerance(case)).reason)
        flags = [built.launches[0].args[f"flags{r}"] for r in range(2)]
        assert all(bool((flag == 2 * seed + 2).all()) for flag in flags), "two barriers a launch, each of all ranks"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pretended_gpus_wait_for_each_other_and_get_their_rows(direction: str) -> None:
    """The compiled code of sm_90, on the emulator: two ranks, launch after launch with the same flags."""
    assert elsewhere("tests.kernels.test_all_to_all", f"t.emulated({direction!r}, 2)") == [None] * 2


class FakeNccl:
    """NCCL's calls on the host: what was sent is copied when the group ends."""

    def __init__(self) -> None:
        self.moves: dict[str, list[tuple[int, int, int, int]]] = {}
        self.groups = 0

    def ncclCommInitAll(self, comms: Any, count: int, devices: Any) -> int:
        for r in range(count):
            comms[r] = 1 + devices[r]
        return 0

    def ncclGroupStart(self) -> int:
        self.moves = {"send": [], "recv": []}
        return 0

    def ncclSend(self, at: Any, size: Any, kind: int, peer: int, comm: Any, stream: Any) -> int:
        assert stream.value == comm.value, "a rank's call is on its own stream"
        self.moves["send"].append((comm.value - 1, peer, size.value, at.value))
        return 0

    def ncclRecv(self, at: Any, size: Any, kind: int, peer: int, comm: Any, stream: Any) -> int:
        self.moves["recv"].append((peer, comm.value - 1, size.value, at.value))
        return 0

    def ncclGroupEnd(self) -> int:
        sent = {move[:3]: move[3] for move in self.moves["send"]}
        assert len(sent) == len(self.moves["send"]) == len(self.moves["recv"])
        for move in self.moves["recv"]:
            ctypes.memmove(move[3], sent[move[:3]], move[2])
        self.groups += 1
        return 0


def test_what_surrounds_nccl_passes_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host checks the output of all ranks, so here the launch gives all of them."""
    library, streams = FakeNccl(), [SimpleNamespace(cuda_stream=1 + r) for r in range(3)]
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(nccl, "communicators", lambda n: nccl.Communicators(library, n))
    monkeypatch.setattr(peers_nccl, "Forked", lambda n: lambda work: work(streams[:n]))

    def prepare(case: AllToAllCase, inputs: Any, target: Target) -> Any:
        launch = peers_nccl.prepare(case, inputs, target)
        return lambda: (launch(), torch.stack([rank.y for rank in launch.ranks]))[1]

    for case in (ODD, BACK, replace(ODD, idle=1), replace(BACK, idle=1, dtype="fp32")):
        assert check(OP, replace(IMPLS["nccl"], prepare=prepare), case, HOST).reason is None, case.id
    assert library.groups >= 8


def test_nccls_own_words_are_in_the_error() -> None:
    library = SimpleNamespace(
        ncclCommInitAll=lambda *_: 2, ncclGetErrorString=lambda code: f"unhandled error {code}".encode()
    )
    with pytest.raises(RuntimeError, match="ncclCommInitAll: unhandled error 2"):
        nccl.Communicators(library, 2)


def test_the_library_has_these_calls() -> None:
    """The one that this torch brings."""
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch was built without NCCL")
    library = ctypes.CDLL(nccl.LIBRARY)
    found = ctypes.c_int()
    assert library.ncclGetVersion(ctypes.byref(found)) == 0
    assert found.value // 10000 == 2
    names = ("ncclCommInitAll", "ncclGroupStart", "ncclGroupEnd", "ncclSend", "ncclRecv", "ncclGetErrorString")
    assert all(getattr(library, name) for name in names)
