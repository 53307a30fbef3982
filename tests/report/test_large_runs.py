"""Work of a report that must grow with the run, not with its square. Counted, for a clock would tell of the machine."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bench.ceilings import Ceilings
from bench.judge import goals, peers
from bench.judge.interventions import connected, families, interventions, one_field_groups
from bench.judge.view import View
from bench.records import Record
from bench.report import tables, text
from bench.run import load_run
from tests.support.synthetic_run import ceiling_records, gate, predicted, write_run

BATCHES = (1, 2, 4)


def grid(shapes: int) -> list[Record]:
    """So many weights at three batches each, by ours, which are slow, and by a peer, which takes the predicted time."""
    roofs = Ceilings.from_records(ceiling_records())
    assert roofs
    sizes = [4096 + 512 * number for number in range(shapes)]
    return [
        predicted(gate(share, impl, B=batch, N=n, K=4096), roofs)
        for n in sizes
        for batch in BATCHES
        for impl, share in (("triton_gemv", 0.6), ("torch", 0.95))
    ]


def calls(what: Any) -> int:
    """How many calls of functions of ours `what` makes, generators' steps among them."""
    count: Counter[str] = Counter()

    def seen(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and "/bench/" in frame.f_code.co_filename:
            count["calls"] += 1

    sys.setprofile(seen)
    try:
        what()
    finally:
        sys.setprofile(None)
    return count["calls"]


def judged(directory: Path, shapes: int) -> int:
    view = View(load_run(write_run(directory, [*ceiling_records(), *grid(shapes)])))
    for record in view.run.records:
        assert record.interval
        assert len(record.resampled) > 1

    def everything() -> None:
        text.verdict(view)
        tables.summary(view)
        tables.cases(view, "ffn_gemv")
        peers.by_case(view)
        goals.judged(view)

    return calls(everything)


def test_twice_the_cases_are_twice_the_calls(tmp_path: Path) -> None:
    judged(tmp_path / "warm", 2)  # what is kept from one report to the next is made here
    few, many = judged(tmp_path / "few", 10), judged(tmp_path / "many", 40)
    assert many < 5 * few


def test_each_time_is_drawn_once_for_all_interventions(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[tuple[str, str, str]] = Counter()
    draw = Record.__dict__["resampled"].func

    def counted(record: Record) -> Any:
        drawn[record.key] += 1
        return draw(record)

    monkeypatch.setattr(Record.__dict__["resampled"], "func", counted)
    records = grid(12)
    found = interventions(records)
    assert set(drawn.values()) == {1}
    assert len(drawn) == len(records)
    # each record is fitted in one family, however many groups it is in
    together = [i for i in found if i.changed == "FLOPs and bytes"]
    assert [len(i.case_ids) for i in together] == [len(BATCHES) * 12] * 2


def test_no_record_is_in_two_families() -> None:
    groups = one_field_groups([r for r in grid(8) if r.ours])
    for collections in (connected(groups), families(groups)):
        members = [{r.case_id for g in each for r in g.records} for each in collections]
        assert sum(map(len, members)) == len(set().union(*members))
