"""Ours beside the best published time, worked by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench import report
from bench.judge.beside import beside, table
from kernels.all_reduce.op import of_model, work
from tests.support.synthetic_run import KEY, ON_A_CPU, SHEET, ceiling_records, gate, measured_view, write_run


def test_a_near_case_is_compared_by_its_share_of_the_floor(tmp_path: Path) -> None:
    (found,) = beside(measured_view(tmp_path, [gate(0.8)]))
    assert found.published.differs
    assert found.floor_s == pytest.approx(found.ours.record.bytes / SHEET)
    assert found.ratio == pytest.approx(found.floor_s / found.ours.seconds / found.published.share)


def test_the_same_case_is_compared_by_its_time(tmp_path: Path) -> None:
    (found,) = beside(measured_view(tmp_path, [gate(0.8)]))
    same = dataclasses.replace(found, published=dataclasses.replace(found.published, differs="", seconds=3.0))
    assert same.ratio == pytest.approx(3.0 / found.ours.seconds)


def test_peers_and_doubtful_times_are_not_ours(tmp_path: Path) -> None:
    records = [gate(0.8), gate(0.9, "torch"), gate(3.0, B=2, flags=["impossible"])]
    view = measured_view(tmp_path, records)
    (row,) = table(view).rows
    assert row[:2] == ("ffn_gemv", "B1-N28672-K8192-bf16")
    assert view.run.part
    assert view.run.part.key == KEY


def test_an_all_reduce_is_held_against_its_link(tmp_path: Path) -> None:
    case = of_model("llama-3.1-70b", 16, 4)
    reduce = dataclasses.replace(
        gate(0.8), op="all_reduce", case_id=case.id, case=case.as_dict(), work=dataclasses.asdict(work(case))
    )
    (found,) = beside(measured_view(tmp_path, [reduce]))
    assert found.published.exact
    assert found.floor_s == pytest.approx(case.size / 450e9)
    assert found.ratio == pytest.approx(found.published.seconds / found.ours.seconds)


def test_a_host_has_nothing_beside_it(tmp_path: Path) -> None:
    assert beside(measured_view(tmp_path, [gate(0.8)], **ON_A_CPU)) == []


def test_both_reports_show_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, [*ceiling_records(), gate(0.8)])
    report.write(run)
    assert "Best published times" in (run / "report.md").read_text()
    assert "Best published times" in (run / "report.html").read_text()
