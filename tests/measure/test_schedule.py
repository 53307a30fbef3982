"""What a run measures first, last and not at all. Nothing is launched; records are pretended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.measure import runner
from bench.measure.runner import COMPILED_SHAPES, LASTING
from bench.measure.schedule import Request, schedule_jobs
from bench.measure.settings import THROTTLE_RETRIES
from bench.measure.worker import Job
from bench.records import FILE, Record, Status
from kernels.op import Target, discover, implementations
from tests.support import planted
from tests.support.heard import Silent
from tests.support.synthetic_run import record


def jobs_of(suite: str) -> list[Job]:
    ops = discover()
    impls = {name: {"triton": True, "torch": False, "torch-compiled": False} for name in ops}
    slow = {"ffn_gemv": ("torch-compiled",)}
    return schedule_jobs(Request(suite=suite), ops, impls, None, "", None, slow)[0]


def test_ceilings_of_quick_come_first_and_the_others_take_turns_with_the_ops() -> None:
    """Before, all ceilings of `full` came first, about twice as many."""
    ops, jobs = discover(), jobs_of("full")
    ceilings = {op.name for op in ops.values() if op.is_ceiling}
    first = next(i for i, job in enumerate(jobs) if job.op not in ceilings)
    quick = {(op, case.id) for op in ceilings for case in ops[op].cases("quick")}
    assert {(job.op, job.case.id) for job in jobs[:first]} == quick
    later = [job for job in jobs[first:] if job.op in ceilings]
    assert {job.case.id for job in later if job.op == "stream"} >= {"read-4GiB", "copy-16MiB"}
    # none before the other ops' cases of `quick`
    of_quick = {(op.name, case.id) for op in ops.values() for case in op.cases("quick")}
    last_quick = max(i for i, job in enumerate(jobs) if (job.op, job.case.id) in of_quick and len(job.impls) > 1)
    assert all(jobs.index(job) > last_quick for job in later)
    assert {job.op for job in jobs[last_quick + 1 : last_quick + 9]} >= {"stream", "ffn_gemv"}
    everything = {(op.name, case.id) for op in ops.values() for suite in ("quick", "full") for case in op.cases(suite)}
    assert {(job.op, job.case.id) for job in jobs} == everything


def test_sweeps_are_measured_behind_the_ceilings_of_quick_alone() -> None:
    """Peaks and reads first, whole steps after them; what no step is predicted from is left out."""
    ops, jobs = discover(), jobs_of("sweeps")
    steps = [job for job in jobs if not ops[job.op].is_ceiling]
    assert {job.op for job in steps} == {"decode_step"}
    assert {job.case.id for job in steps} == {case.id for case in ops["decode_step"].sweeps()}
    before = jobs[: jobs.index(steps[0])]
    assert {job.case.id for job in before if job.op == "stream"} == {c.id for c in ops["stream"].cases("quick")}
    assert len(before) + len(steps) == len(jobs)


def test_the_ceilings_of_a_host_fit_it_in_every_suite() -> None:
    ops = discover()
    impls = {name: {"numba": True, "torch": False} for name in ops}
    request = Request(suite="quick", ops=("gemm_peak", "stream", "ffn_gemv"))
    jobs, _ = schedule_jobs(request, ops, impls, None, "", None, on_host=True)
    found = {name: {job.case.id for job in jobs if job.op == name} for name in request.ops}
    for name, suite in (("gemm_peak", "smoke"), ("stream", "smoke"), ("ffn_gemv", "quick")):
        assert found[name] == {case.id for case in ops[name].cases(suite)}


@pytest.mark.parametrize(
    ("suite", "ops", "measured"),
    [
        ("smoke", (), False),
        ("quick", (), True),
        ("quick", ("ffn_gemv",), False),
        ("quick", ("all_reduce",), True),
        ("smoke", ("peer_link",), True),
    ],
)
def test_a_link_is_measured_where_something_crosses_it(suite: str, ops: tuple[str, ...], measured: bool) -> None:
    impls = {name: {"numba": True, "torch": False} for name in discover()}
    jobs, _ = schedule_jobs(Request(suite=suite, ops=ops), discover(), impls, None, "", None, on_host=True)
    assert any(job.op == "peer_link" for job in jobs) is measured


def test_what_torch_compiles_comes_last() -> None:
    jobs = jobs_of("quick")
    slow = [job for job in jobs if "torch-compiled" in job.impls and job.op == "ffn_gemv"]
    assert slow == jobs[-len(slow) :]
    assert {job.impls for job in slow} == {("torch-compiled",)}
    assert {job.case.id for job in slow} == {case.id for case in discover()["ffn_gemv"].cases("quick")}


def test_the_peers_that_torch_compiles_say_so() -> None:
    found = {impl.name for op in discover() for impl in implementations(op)[0] if impl.by_torch_compile}
    assert found == {"torch-compiled", "torch-flex"}


def session(tmp_path: Path, slow: tuple[str, ...] = ()) -> runner.Session:
    writer: Any = SimpleNamespace(path=tmp_path / FILE, append=lambda kind, line: None)
    ready = SimpleNamespace(by_torch_compile={"toy": slow}, impls={"toy": {"honest": False, "slow": False}})
    worker: Any = SimpleNamespace(ready=ready)
    return runner.Session(Request(suite="smoke"), planted.discover(), worker, writer, Silent(), None)


def toy(K: int, *impls: str) -> Job:
    return Job(op="toy", case=planted.ToyCase(K=K), impls=impls)


def pretended(job: Job, impl: str, **changes: Any) -> Record:
    return record("toy", impl, job.case.id, read=10**6, seconds=1e-4, **changes)


@pytest.mark.parametrize(("status", "fourth"), [("ok", False), ("failed", False), ("refused", True)])
def test_three_shapes_of_what_torch_compiles(tmp_path: Path, status: Status, fourth: bool) -> None:
    """A refusal costs nothing, so it is not one of the three."""
    begun = session(tmp_path, slow=("slow",))
    for K in range(COMPILED_SHAPES):
        job = toy(4 * K + 4, "slow")
        assert begun.worth_measuring(job) == job
        begun.record(job, pretended(job, "slow", status=status))
    job = toy(4096, "honest", "slow")
    left = begun.worth_measuring(job)
    assert left
    assert left.impls == (("honest", "slow") if fourth else ("honest",))
    if not fourth:
        assert begun.outcome.records[-1].status == "refused"
        assert "no more than 3" in (begun.outcome.records[-1].reason or "")


def disturbed(others: float) -> dict[str, Any]:
    return {"telemetry": {"host": {"others": others}}, "flags": ["disturbed"] * (others > 0.1)}


@pytest.mark.parametrize(("then", "kept"), [(0.05, 0.05), (0.3, 0.3), (0.6, 0.5)])
def test_a_disturbed_time_is_taken_again_at_the_end_and_the_calmer_one_counts(
    tmp_path: Path, then: float, kept: float
) -> None:
    begun, asked = session(tmp_path), []
    others = {("honest", 1): 0.0, ("slow", 1): 0.5, ("honest", 2): 0.0, ("slow", 3): then}

    def do(job: Job, listener: runner.Session) -> None:
        asked.append((job.case.K, job.impls))
        for impl in job.impls:
            listener.record(job, pretended(job, impl, **disturbed(others[impl, len(asked)])))

    begun.worker = SimpleNamespace(ready=begun.worker.ready, do=do)  # type: ignore[assignment]
    begun.clock = lambda: 1e12  # type: ignore[method-assign]
    begun.compile = lambda jobs, target: None  # type: ignore[method-assign]
    begun.serve([toy(4, "honest", "slow"), toy(8, "honest")], Target(kind="cpu", name="cpu"))
    assert asked == [(4, ("honest", "slow")), (8, ("honest",)), (4, ("slow",))]
    found = [r for r in begun.outcome.records if r.impl == "slow"]
    assert [r.telemetry["host"]["others"] for r in found] == [kept]


def test_after_three_cases_in_a_row_that_stay_throttled_none_is_measured_again(tmp_path: Path) -> None:
    """Both implementations of a case have the same flag. A case that is not throttled ends it."""
    begun = session(tmp_path)
    for K in range(LASTING):
        assert begun.retries == THROTTLE_RETRIES
        for impl in ("honest", "slow"):
            begun.record(toy(4 * K + 4, impl), pretended(toy(4 * K + 4), impl, flags=["throttled"]))
    assert begun.retries == 0
    begun.record(toy(4096, "honest"), pretended(toy(4096), "honest"))
    assert begun.retries == THROTTLE_RETRIES
