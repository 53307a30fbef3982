"""Counters of launches: the parent and its child, with a program in ncu's place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from bench import machine
from bench.cli import inspecting as cli
from bench.errors import BadRequest
from bench.inspection import counters, counters_child, ncu
from bench.inspection.counters import Choice, Counted, CountersDenied, Counts
from bench.inspection.ncu import SUMS
from kernels.op import Case, Impl, Op, Target, Tolerance, Work, implementations
from tests.support import DATA

H100 = Target(kind="cuda", name="NVIDIA H100 80GB HBM3", sm=90, sm_count=132, l2_bytes=50 << 20)


# ---- the parent around a child, with a program in ncu's place


FAKE_NCU = """#!{python}
import json, pathlib, sys
if sys.argv[1:] == ["--query-metrics"]:
    print(pathlib.Path({listing!r}).read_text())
    sys.exit(0)
argument = dict(zip(sys.argv[1:], sys.argv[2:]))
plan = pathlib.Path(sys.argv[-1])
assert json.loads(plan.read_text())["choice"]["suite"] == "quick"
assert argument["--clock-control"] == "none" and argument["--profile-from-start"] == "off"
assert "dram__bytes_read.sum" in argument["--metrics"] and "src_int8.sum" in argument["--metrics"]
assert sys.argv[-4:-1] == [{python!r}, "-m", "bench.inspection.counters_child"]
{body}
"""

WORKS = """
entries = [("ffn_gemv", "triton", "B1", None), ("attention_decode", "triton", "B8", None),
           ("ffn_gemv", "torch", "B1", "OutOfMemoryError: full"), ("stream", "torch", "none", None)]
with open(str(plan) + ".done", "w") as done:
    for index, (op, impl, case_id, error) in zip((0, 1, 7, 9), entries):
        fields = dict(index=index, op=op, impl=impl, case_id=case_id, error=error,
                      declared_read=8, declared_written=0)
        done.write(json.dumps(fields) + "\\n")
pathlib.Path(argument["--log-file"]).write_text(pathlib.Path({raw!r}).read_text())
"""

DENIED = """
pathlib.Path(argument["--log-file"]).write_text(pathlib.Path({denied!r}).read_text())
sys.exit(1)
"""

DIES = """
pathlib.Path(argument["--log-file"]).write_text("==ERROR== The application returned an error code (1).\\n")
print("ImportError: no module named nothing")
sys.exit(1)
"""


NOTHING = """
open(str(plan) + ".done", "w").close()
pathlib.Path(argument["--log-file"]).write_text("==WARNING== No kernels were profiled.\\n")
"""

SLOW = """
with open(str(plan) + ".done", "w") as done:
    fields = dict(index=0, op="ffn_gemv", impl="triton", case_id="B1", error=None, declared_read=8, declared_written=0)
    done.write(json.dumps(fields) + "\\n")
import time
time.sleep(60)
"""


def counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, timeout_s: float = 30.0
) -> Counts | CountersDenied:
    ncu = tmp_path / "ncu"
    body = body.replace("{raw!r}", repr(str(DATA / "ncu_raw_by_hand.csv")))
    body = body.replace("{denied!r}", repr(str(DATA / "ncu_denied.txt")))
    listing = str(DATA / "ncu_query_metrics_h100.txt")
    ncu.write_text(FAKE_NCU.format(python=sys.executable, listing=listing, body=body))
    ncu.chmod(ncu.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(machine, "driver_parameters", dict)
    return counters.count(Choice(), ncu=str(ncu), timeout_s=timeout_s)


def test_counts_are_joined_with_the_cases_that_were_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(tmp_path, monkeypatch, WORKS)
    assert isinstance(found, Counts)
    assert [(c.op, c.impl, c.case_id, len(c.kernels)) for c in found.counted] == [
        ("ffn_gemv", "triton", "B1", 1),
        ("attention_decode", "triton", "B8", 2),
    ]
    assert found.failed == {
        ("ffn_gemv", "torch", "B1"): "OutOfMemoryError: full",
        ("stream", "torch", "none"): "ncu saw no kernel of this launch",
    }
    assert "ffn_gemv B1 torch: OutOfMemoryError: full" in found.lines()
    json.dumps(found.as_dict())


def test_refusals_are_one_line_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = counted(tmp_path, monkeypatch, DENIED)
    assert isinstance(denied, CountersDenied)
    assert denied.reason == ncu.DENIED
    died = counted(tmp_path, monkeypatch, DIES)
    assert isinstance(died, CountersDenied)
    assert "error code (1)" in died.reason
    assert "ImportError" in died.reason
    assert "\n" not in died.reason


def test_a_time_out_is_no_denial_and_what_was_launched_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ncu writes at its end, so all that it had seen is lost."""
    found = counted(tmp_path, monkeypatch, SLOW, timeout_s=3.0)
    assert isinstance(found, Counts)
    assert found.failed == {("ffn_gemv", "triton", "B1"): counters.NO_TIME}
    assert not found.complete
    assert found.lines()[-1] == "ncu was ended when the time was up"


def test_where_all_was_counted_before_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(tmp_path, monkeypatch, NOTHING)
    assert found == Counts()
    assert found.complete


def test_without_ncu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "find_ncu", lambda: None)
    denied = counters.count(Choice())
    assert isinstance(denied, CountersDenied)
    assert "install Nsight Compute" in denied.reason


def test_a_misspelt_implementation_is_named_before_ncu_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "find_ncu", lambda: None)
    with pytest.raises(BadRequest, match="unknown implementation 'tritn'; did you mean triton"):
        cli.counters(suite="quick", op=["stream"], impl=["tritn"], case="")
    counters.check(Choice(ops=("stream",), impls=("triton", "torch")))
    counters.check(Choice())


@pytest.mark.parametrize("as_json", [False, True])
def test_denied_counters_are_a_request_that_cannot_be_met(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counters, "find_ncu", lambda: None)
    with pytest.raises(typer.Exit) as ended:
        cli.counters(suite="quick", op=["stream"], impl=["triton"], case="", as_json=as_json)
    assert ended.value.exit_code == 2
    out, err = capsys.readouterr()
    assert "install Nsight Compute" in (json.loads(out)["denied"] if as_json else err)
    assert (out if not as_json else err) == ""
    assert err.count("\n") == (0 if as_json else 1)


def test_counters_that_were_read_end_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(counters, "count", lambda choice: Counts(failed={("stream", "torch", "x"): "no time left"}))
    with pytest.raises(typer.Exit) as ended:
        cli.counters(suite="quick", op=["stream"], impl=None, case="")
    assert ended.value.exit_code == 0
    assert capsys.readouterr().out == "stream x torch: no time left\n"


def test_a_program_that_does_not_end_is_ended_with_its_children() -> None:
    status, output = machine.execute([sys.executable, "-c", "print('begun', flush=True); input()"], 0.0)
    assert (status, "ended after" in output) == (124, True)
    assert machine.execute([sys.executable, "-c", "print('done')"], 30) == (0, "done\n")


# ---- which cases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sized(Case):
    size: int
    dtype: str
    kv: str = ""

    @property
    def id(self) -> str:
        return f"{self.size}-{self.dtype}{self.kv}"


def test_one_case_per_precision_the_largest_that_is_supported() -> None:
    cases = [
        Sized(size=10, dtype="bf16"),
        Sized(size=40, dtype="bf16"),
        Sized(size=50, dtype="bf16"),
        Sized(size=counters_child.LARGEST + 1, dtype="bf16"),
        Sized(size=20, dtype="bf16", kv="fp8"),
        Sized(size=30, dtype="fp32"),
    ]
    op = Op(
        name="sized",
        title="sized",
        role="decode",
        about="",
        formula="",
        case_type=Sized,
        cases=lambda suite: cases,
        inputs=lambda case, device, seed: {},
        reference=lambda case, inputs: None,
        work=lambda case: Work(bytes_read=case.size),
        tolerance=lambda case: Tolerance(max_rel=0, rms_rel=0),
        volatile=(),
    )
    impl = Impl(
        name="x",
        stages=lambda case, target: (),
        prepare=lambda case, inputs, target: lambda: None,
        supports=lambda case, target: "too large" if case.size == 50 else None,
    )
    picked = counters_child.pick(op, impl, Choice(), H100)
    assert [case.id for case in picked] == ["40-bf16", "20-bf16fp8", "30-fp32"]
    assert [case.id for case in counters_child.pick(op, impl, Choice(case="fp8"), H100)] == ["20-bf16fp8"]


def test_every_kind_of_a_stream_is_counted_the_ops_take_turns_and_what_was_counted_is_left_out() -> None:
    chosen = counters_child.choose(Choice(ops=("stream", "ffn_gemv", "moe_ffn")), H100)
    kinds = {case.kind for op, _, case in chosen if op.name == "stream"}
    assert kinds == {"read", "copy", "triad", "l2_read", "chase", "launch"}
    assert {op.name for op, _, _ in chosen[:3]} == {"stream", "ffn_gemv", "moe_ffn"}
    done = tuple((op.name, impl.name, case.id) for op, impl, case in chosen[1:])
    assert counters_child.choose(Choice(ops=("stream", "ffn_gemv", "moe_ffn"), done=done), H100) == chosen[:1]


def test_the_child_launches_each_case_once_between_start_and_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    seen: list[str] = []

    @contextlib.contextmanager
    def marked(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    monkeypatch.setattr(machine, "gpu_target", machine.cpu_target)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: seen.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: seen.append("stop"))
    monkeypatch.setattr(torch.cuda.nvtx, "range", marked)
    plan = tmp_path / "plan.json"
    done = (("stream", "triton", "copy-4B"),)
    choice = dataclasses.asdict(
        Choice(suite="test", ops=("stream",), impls=("triton", "torch"), case="copy", done=done)
    )
    for budget in (60.0, 0.0):
        plan.write_text(json.dumps({"choice": choice, "budget_s": budget}))
        counters_child.child(plan)
    first, late = (json.loads(line) for line in (tmp_path / "plan.json.done").read_text().splitlines())
    assert seen == ["start", f"{ncu.MARK}0", "stop"]
    assert (first["op"], first["impl"], first["error"]) == ("stream", "torch", None)
    assert first["declared_read"] > 0
    assert late["error"] == "no time left"


def test_ranks_that_wait_for_each_other_are_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpu_target", lambda: H100)
    plan = tmp_path / "plan.json"
    choice = dataclasses.asdict(Choice(ops=("all_reduce", "all_to_all"), impls=("triton-one-shot", "triton")))
    plan.write_text(json.dumps({"choice": choice, "budget_s": 60.0}))
    counters_child.child(plan)
    said = [json.loads(line) for line in (tmp_path / "plan.json.done").read_text().splitlines()]
    assert {entry["op"] for entry in said} == {"all_reduce", "all_to_all"}
    assert {entry["error"] for entry in said} == {counters_child.WAITING}


def test_declared_counters_agree_with_the_fields_of_the_result() -> None:
    fields = {field.name for field in dataclasses.fields(Counted)}
    assert {"dram_read", "dram_written", "l2_hit_rate", "tensor_ops", "ffma", "occupancy", "intensity"} <= fields
    assert all(re.fullmatch(r"\w+__\w+\.sum", metric) for metric in SUMS.values())


@pytest.mark.cuda
def test_counters_of_a_read_match_what_it_must_read() -> None:
    found = counters.count(Choice(ops=("stream",), impls=(implementations("stream")[0][0].name,), case="read-256MiB"))
    if isinstance(found, CountersDenied):
        pytest.skip(found.reason)
    assert found.failed == {}
    assert found.counted[0].dram_read == pytest.approx(256 << 20, rel=0.02)
