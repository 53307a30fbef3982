"""The same kernel in the caches of a host's cores: smaller cases, their times, and what a reader is told by them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench.ceilings import Ceilings
from bench.judge.answer import answer
from bench.judge.interventions import Bounds
from bench.judge.view import View, gap
from bench.measure.core import IN_CACHE, LARGEST, ROW_S, InCache, cores_of_parts, in_cache
from bench.measure.timing import sample_interleaved
from bench.predict.roofline import Expected, predict_beside
from bench.records import Record, as_line, from_line
from kernels.common.integers import MiB
from kernels.ffn_gemv.op import GemvCase
from kernels.moe_ffn.op import MoeCase
from kernels.op import Op, Target, discover, implementations
from kernels.state_update.cases import StateCase
from tests.measure.test_roof import READ, ROOFS, Scripted, beside, moves
from tests.support.synthetic_run import ON_A_CPU, view

CPU = Target(kind="cpu", name="cpu", sm_count=2, l2_bytes=32 * MiB)
WITH_SMALLER = [op for op in discover().values() if op.smaller]


def empty() -> Any: ...


# ---- smaller cases


@pytest.mark.parametrize("op", WITH_SMALLER, ids=lambda op: op.name)
def test_smaller_cases_fit_and_have_the_same_fields_but_sizes(op: Op) -> None:
    """Also the FLOPs for each byte are about the same."""
    assert op.smaller
    asked = [case for case in op.cases("smoke") if op.work(case).bytes > 8 * MiB and op.smaller(case, 9)]
    assert asked
    for case in asked:
        n = math.ceil(op.work(case).bytes / (CPU.sm_count * IN_CACHE))
        small = op.smaller(case, n)
        assert op.work(small).bytes <= LARGEST * CPU.sm_count * IN_CACHE, case.id
        changed = {name for name, value in case.as_dict().items() if value != getattr(small, name)}
        assert changed <= {"N", "T", "B", "F", "H", "E", "G", "H_q", "H_kv", "ffn", "hidden", "size"}, case.id
        intensity = [sum(w.flops.values()) / w.bytes for w in (op.work(case), op.work(small))]
        assert intensity[1] == pytest.approx(intensity[0], rel=0.25), case.id


def test_a_case_that_the_caches_hold_stays_as_it_is() -> None:
    gemv = discover()["ffn_gemv"]
    assert gemv.smaller
    small = GemvCase(B=1, N=64, K=128, dtype="fp32")
    assert gemv.smaller(small, 1) == small


def test_experts_keep_their_tokens() -> None:
    """16 tokens for 2 of 8 experts are 4 tokens each; 4 tokens for 2 of 2 experts too."""
    smaller = discover()["moe_ffn"].smaller
    assert smaller
    found = smaller(MoeCase(B=16, E=8, k=2, H=1024, F=512, dtype="fp32"), 200)
    assert (found.E, found.B * found.k / found.E) == (2, 4.0)


def test_heads_keep_their_groups() -> None:
    smaller = discover()["state_update"].smaller
    assert smaller
    found = smaller(StateCase(kind="mamba2", B=4, H=64, G=8, V=64, K=128, dtype="fp32"), 32)
    assert (found.B, found.H, found.G) == (1, 8, 1)


def test_only_our_kernels_on_a_host_are_timed_in_caches() -> None:
    gemv, case = discover()["ffn_gemv"], GemvCase(B=1, N=4096, K=4096, dtype="fp32")
    ours = next(impl for impl in implementations("ffn_gemv")[0] if impl.name == "numba")
    assert in_cache(gemv, case, ours, dataclasses.replace(CPU, kind="cuda"), empty) is None
    assert in_cache(gemv, case, dataclasses.replace(ours, ours=False), CPU, empty) is None
    assert in_cache(gemv, case, ours, CPU, None) is None
    assert in_cache(dataclasses.replace(gemv, smaller=None), case, ours, CPU, empty) is None  # 64 MiB

    for name in ("all_reduce", "peer_link"):
        op = discover()[name]
        for impl in implementations(name)[0]:
            assert in_cache(op, op.cases("test")[0], impl, CPU, empty) is None

    def refuses(case: GemvCase, n: int) -> GemvCase:
        raise ValueError("no such case")

    assert in_cache(dataclasses.replace(gemv, smaller=refuses), case, ours, CPU, empty) is None


# ---- their times


class Clock:
    """A launch takes `seconds` of this clock, an empty one a tenth."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.launches = 0.0, seconds, 0

    def launch(self) -> Any:
        self.now += self.seconds
        self.launches += 1

    def empty(self) -> Any:
        self.now += self.seconds / 10

    def timer(self) -> InCache:
        return InCache(case_id="N64", times=8.0, launch=self.launch, empty=self.empty, clock=lambda: self.now)


def test_launches_in_a_row_last_long_enough_for_the_clock() -> None:
    clock = Clock(ROW_S / 10)
    timer = clock.timer()
    before = clock.launches
    timer.sample()
    assert clock.launches - before == 1 + 10  # the first brings the data
    found = timer.as_dict()
    assert found["samples_s"] == [pytest.approx(ROW_S / 10)]
    assert found["empty_s"] == [pytest.approx(ROW_S / 100)]


def test_a_sample_in_the_caches_follows_each_sample() -> None:
    timer = Clock(1e-3).timer()
    steady = {"A": Scripted("A", [], 1.0), "B": Scripted("B", [], 1.0)}
    found = sample_interleaved(steady, cap_s=1e9, cores={"A": timer}, clock=lambda: 0.0)
    assert len(timer.samples_s) == len(found["A"].samples_s) == 12


def core(seconds: float, times: float = 8.0) -> dict[str, Any]:
    """A record's `core` that says that the instructions of the whole case take so long."""
    each, empty = seconds / times + 1e-6, 1e-6
    return {"case_id": "small", "times": times, "samples_s": [each] * 6, "empty_s": [empty] * 6}


def test_the_record_keeps_them() -> None:
    found = dataclasses.replace(moves("a", 64 * MiB, 100, 1.0), core=core(0.004))
    assert found.core_s == pytest.approx(0.004)
    assert from_line(json.loads(json.dumps(as_line(found)))).core == found.core
    for damage in ({"times": 0.0}, {"samples_s": [-1.0]}, {"case_id": None}):
        with pytest.raises(ValueError, match="core"):
            from_line(json.loads(json.dumps(as_line(dataclasses.replace(found, core={**found.core, **damage})))))


# ---- what a reader is told


def shown(tmp_path: Path, *records: Record) -> View:
    return view(tmp_path, [READ, *records], **ON_A_CPU)


def taking(case_id: str, seconds: float, core_s: float | None) -> Record:
    """A case of 64 MiB, which the memory brings in 2 ms."""
    found = beside(moves(case_id, 64 * MiB, 10**9, 1.0), 0.001, seconds)
    return dataclasses.replace(found, core=core(core_s) if core_s else {})


def test_a_kernel_with_too_many_instructions_is_told_from_a_memory_that_is_slow(tmp_path: Path) -> None:
    """Both take twice as long as their bytes. Without its time in the caches, each would be an error of the model."""
    slow, late, unknown = taking("slow", 0.004, 0.004), taking("late", 0.004, 0.001), taking("unknown", 0.004, None)
    seen = {p.record.case_id: p for p in shown(tmp_path, slow, late, unknown).points}
    assert seen["slow"].bound == "core"
    assert seen["slow"].error("measured") == pytest.approx(0.0, abs=0.01)
    assert "bound by its instructions (in the caches it computes 250 GFLOP/s)" in gap(seen["slow"], ROOFS)
    for name in ("late", "unknown"):
        assert seen[name].bound == "memory"
        assert seen[name].error("measured") == pytest.approx(1.0, abs=0.01)
        assert "the model does not explain it" in gap(seen[name], ROOFS)


def test_the_screen_says_what_the_report_will_say(tmp_path: Path) -> None:
    expected, slow = Expected(), taking("slow", 0.004, 0.004)
    assert expected(READ) is None
    assert expected(slow) == pytest.approx(shown(tmp_path, slow).points[0].predicted("measured"))
    assert expected(dataclasses.replace(slow, roof={})) == pytest.approx(0.002)


def test_each_part_of_a_step_waits_for_its_bytes_or_for_its_instructions() -> None:
    """One part of 32 MiB takes 1 ms for its bytes and 0.4 ms for its instructions, the other 1 ms and 3 ms."""
    found = taking("step", 0.004, None)
    (stage,) = found.stages
    half = {**stage["work"], "bytes_read": 32 * MiB, "flops": {}}
    stages = [{**stage, "name": name, "work": half} for name in ("0.qkv gemv", "0.attention split")]
    parts = [
        {"name": n, "calls": 1, "alone_s": [1.0], "core": [core(s)]} for n, s in (("qkv", 4e-4), ("attention", 3e-3))
    ]
    found = dataclasses.replace(found, stages=stages, parts=parts)
    predicted = predict_beside(found, ROOFS, CPU)
    assert predicted
    assert predicted.seconds == pytest.approx(0.001 + 0.003, rel=1e-3)
    assert predicted.bound == "core"
    assert from_line(json.loads(json.dumps(as_line(found)))).parts == parts
    damaged = [{**parts[0], "core": [{**parts[0]["core"][0], "samples_s": []}]}]
    with pytest.raises(ValueError, match="core"):
        from_line(json.loads(json.dumps(as_line(dataclasses.replace(found, parts=damaged)))))


def test_the_parts_of_a_step_are_timed_in_caches_where_all_their_cases_fit() -> None:
    step = discover()["decode_step"]
    ours = next(impl for impl in implementations("decode_step")[0] if impl.name == "numba")
    cores = cores_of_parts(ours, step.cases("test")[0], CPU, empty)
    assert {"qkv", "attention", "o", "ffn_norm", "lm_head"} <= cores.keys()
    assert all(core.times >= 1 for held in cores.values() for core in held)
    assert cores_of_parts(ours, step.cases("test")[0], dataclasses.replace(CPU, l2_bytes=0), empty) == {}


def test_only_cases_far_from_their_own_ridge_are_interventions() -> None:
    assert Bounds().regime(taking("memory", 0.002, 0.0013)) == "memory"
    assert Bounds().regime(taking("near", 0.002, 0.0014)) is None
    # the memory was twice as fast as in the median of the run
    assert Bounds(usual=0.002).regime(taking("memory", 0.002, 0.0013)) is None
    assert Bounds().regime(taking("core", 0.005, 0.005)) == "core"
    assert Bounds().regime(taking("both", 0.0028, 0.0028)) is None


@pytest.mark.parametrize(("core_s", "near"), [(0.0018, True), (0.0005, False)])
def test_the_first_screen_says_that_cases_are_near_their_ridge(tmp_path: Path, core_s: float, near: bool) -> None:
    tile = answer(shown(tmp_path, taking("a", 0.0025, core_s))).memory
    assert tile.answer == "NOT TESTED"
    assert ("near their ridge" in tile.because) is near


def test_the_bend_is_measured_by_streams_whose_arithmetic_was_timed_in_the_caches() -> None:
    """64 MiB take 2 ms alone, their multiply-adds 1 ms in the caches, and both together 2.4 ms."""
    stream = dataclasses.replace(READ, case={**READ.case, "kind": "fma_read", "passes": 8}, case_id="x8")
    stream = dataclasses.replace(stream, work={**READ.work, "flops": {"fma_fp32": 10**8}}, core=core(0.001))
    stream = beside(stream, 0.001, 0.0024)
    ceilings = Ceilings.from_records([READ, stream])
    assert ceilings
    assert ceilings.pipes["fma_fp32"] == pytest.approx(1e11)
    ((share, time),) = ceilings.fma_points
    assert (share, time) == (pytest.approx(0.5, rel=1e-3), pytest.approx(1.2, rel=1e-3))
    found = predict_beside(taking("a", 0.0024, 0.001), ceilings, CPU)
    assert found
    assert found.seconds == pytest.approx(0.0024, rel=1e-2)
