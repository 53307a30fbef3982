"""On a host each sample lies between two reads of the roof. What follows from them does not depend on the memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bench.ceilings import Ceilings
from bench.judge.interventions import points
from bench.judge.view import View
from bench.measure.case import Settings, measure
from bench.measure.roof import SMALLEST_READ, ReadRoof, read_roof
from bench.measure.timing import sample_interleaved
from bench.records import Record, as_line, comparable, from_line
from kernels.op import Target
from tests.support import planted
from tests.support.heard import Heard
from tests.support.synthetic_run import ON_A_CPU, predicted, record, stream, view

MiB = 1 << 20


class Scripted:
    """A timer that takes what it is told, and says when it was asked."""

    def __init__(self, name: str, asked: list[str], *seconds: float) -> None:
        self.name, self.asked, self.seconds = name, asked, seconds
        self.outputs: list[Any] = []
        self.count = 0

    def sample(self) -> float:
        self.asked.append(self.name)
        self.count += 1
        return self.seconds[(self.count - 1) % len(self.seconds)]

    def close(self) -> None: ...


def test_each_sample_lies_between_two_reads() -> None:
    asked: list[str] = []
    a, b, roof = Scripted("A", asked, 1.0), Scripted("B", asked, 2.0), Scripted("R", asked, 1.0, 1.1)
    found = sample_interleaved({"A": a, "B": b}, cap_s=0.0, aim=0.2, roof=roof, clock=lambda: 0.0)
    assert "".join(asked[:9]) == "RARBRARBR"
    for each in found.values():
        assert len(each.samples_s) == len(each.before_s) == len(each.after_s)
    assert found["A"].before_s[:3] == [1.0, 1.0, 1.0]
    assert found["A"].after_s[:3] == [1.1, 1.1, 1.1]
    assert found["B"].after_s[:3] == [1.0, 1.0, 1.0]


def test_sampling_goes_on_until_the_ratio_is_known() -> None:
    """The samples alone would have been known after 12."""
    wild = Scripted("R", [], 1.0, 3.0, 1.0, 9.0, 1.0, 5.0, 2.0)
    steady = {"A": Scripted("A", [], 1.0)}
    with_roof = sample_interleaved(steady, cap_s=1e9, roof=wild, clock=lambda: 0.0)["A"]
    assert len(with_roof.samples_s) > 12 == len(sample_interleaved(steady, cap_s=1e9, clock=lambda: 0.0)["A"].samples_s)


def test_the_record_keeps_the_reads() -> None:
    heard, roof = Heard(), ReadRoof([lambda: None, lambda: None], SMALLEST_READ, lambda: None)
    target = Target(kind="cpu", name="cpu", sm_count=1, l2_bytes=1 << 16)
    settings = Settings(cap_s=0.01, aa=True, roof=lambda: roof)
    measure(planted.OP, planted.ToyCase(), [planted.HONEST], target, settings, heard)
    found = heard.records["honest"]
    assert found.roof["bytes"] == SMALLEST_READ
    assert len(found.roof["before_s"]) == len(found.roof["after_s"]) == len(found.samples_s)
    assert from_line(json.loads(json.dumps(as_line(found)))).roof == found.roof
    (note,) = [content for kind, content in heard.lines if kind == "note"]
    assert [len(each["before_s"]) for each in note["roof"]] == [len(each) for each in note["samples_s"]]
    damaged = {**found.roof, "before_s": found.roof["before_s"][1:]}
    with pytest.raises(ValueError, match="two reads for each sample"):
        from_line(json.loads(json.dumps(as_line(dataclasses.replace(found, roof=damaged)))))


def test_only_a_host_has_a_roof_and_only_with_streams() -> None:
    assert read_roof("kernels.op", Target(kind="cuda", name="gpu", sm=90)) is None
    assert read_roof("tests.support.planted", Target(kind="cpu", name="cpu")) is None


def beside(found: Record, read_s: float, seconds: float) -> Record:
    """The record as measured while the roof's read of 32 MiB took so long."""
    wiggle = [1 + 0.001 * (i % 5 - 2) for i in range(20)]
    reads = [read_s * each for each in wiggle]
    roof = {"bytes": 32 * MiB, "before_s": reads, "after_s": reads}
    return dataclasses.replace(found, roof=roof, samples_s=[seconds * each for each in wiggle])


def moves(case_id: str, size: int, flops: int, slower: float) -> Record:
    """A case that reads at the roof, while the memory is so many times slower than at the ceilings' time."""
    case = {"B": flops, "N": 1, "K": 1, "dtype": "fp32"}
    found = record("ffn_gemv", "numba", case_id, ours=True, case=case, read=size, flops={"fma_fp32": flops})
    return beside(predicted(found, ROOFS), 0.001 * slower, size / SPEED * slower)


SPEED = 32 * MiB / 0.001
READ = beside(stream("read-64MiB", kind="read", impl="numba", read=64 * MiB), 0.001, 0.002)
ROOFS = Ceilings(read_points=((64 * MiB, 0.002),))


def shown(tmp_path: Path, *records: Record) -> View:
    return view(tmp_path, [READ, *records], **ON_A_CPU)


def test_a_slower_memory_is_no_error_of_the_prediction(tmp_path: Path) -> None:
    found = shown(tmp_path, moves("quick", 64 * MiB, 100, 1.0), moves("slow", 64 * MiB, 200, 1.9))
    for point, slower in zip(found.points, (1.0, 1.9), strict=True):
        assert point.error("measured") == pytest.approx(0, abs=0.01)
        assert point.share == pytest.approx(1, abs=0.01)
        assert point.slower == pytest.approx(slower / found.run.ceilings.usual_read_s * 0.001, rel=0.01)  # type: ignore[union-attr]
    assert found.points[1].record.prediction["measured"]["seconds"] == pytest.approx(0.002), "what was stored stays"
    assert found.accuracy
    assert found.accuracy.median < 0.01
    assert found.paired == pytest.approx((SPEED / 1.9, SPEED), rel=0.01)


def test_a_run_at_the_usual_speed_of_its_memory(tmp_path: Path) -> None:
    """Claims read these times: two cases that move as many bytes take as long, however slow the memory was for one."""
    found = shown(tmp_path, moves("quick", 64 * MiB, 100, 1.0), moves("slow", 64 * MiB, 200, 1.9)).run
    before, after = found.ceilings, found.at_usual_speed()
    quick, slow = (r.seconds or 0.0 for r in after.records if r.op == "ffn_gemv")
    assert slow == pytest.approx(quick, rel=0.01)
    assert before
    assert after.ceilings
    assert after.ceilings.read_roof == pytest.approx(before.read_roof, rel=1e-6)
    assert after.at_usual_speed() is after, "nothing is left to change"


def test_times_in_reads_are_compared_only_if_all_have_them() -> None:
    quick, slow = moves("quick", 64 * MiB, 100, 1.0), moves("slow", 128 * MiB, 100, 2.0)
    first, second = comparable([quick, slow])
    assert second / first == pytest.approx(2.0, rel=0.02)
    plain = dataclasses.replace(slow, roof={})
    assert comparable([quick, plain])[1] == pytest.approx(slow.ordered)
    assert points([quick, slow])[1].samples_s == pytest.approx(second)
