"""The waterfall of a step in a run, worked by hand, and that both forms of the report show it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench import report
from bench.ceilings import Ceilings
from bench.judge import steps
from bench.judge.view import View
from bench.records import Record
from bench.run import load_run
from tests.support.synthetic_run import (
    LAUNCH,
    MEASURED_ROOF,
    SHEET,
    case_record,
    ceiling_records,
    predicted,
    samples,
    write_run,
)

FIELDS = {"model": "llama-3.1-8b", "layers": 4, "B": 1, "T": 4096, "page": 16}
STEP = 1.6e-3
ALONE = {"ffn": (4, 0.6e-3), "lm_head": (1, 0.5e-3), "qkv": (4, 0.2e-3)}


def step_records() -> list[Record]:
    """A step of 1.6 ms whose parts take 1.3 ms alone, torch's in 2 ms, and one that failed."""
    roofs = Ceilings.from_records(ceiling_records())
    assert roofs
    ours = predicted(case_record("decode_step", "triton", FIELDS, seconds=STEP), roofs)
    parts = [{"name": name, "calls": calls, "alone_s": samples(s)} for name, (calls, s) in ALONE.items()]
    return [
        dataclasses.replace(ours, parts=parts),
        case_record("decode_step", "torch", FIELDS, seconds=2e-3),
        case_record("decode_step", "triton_bad", FIELDS, status="failed", reason="no"),
    ]


def test_a_waterfall_by_hand(tmp_path: Path) -> None:
    view = View(load_run(write_run(tmp_path, [*ceiling_records(), *step_records()])))
    ((point, found),) = steps.waterfalls(view)
    size = point.record.bytes
    levels = {level.name: level.seconds for level in found.levels}
    assert levels == pytest.approx(
        {
            "floor by the datasheet": size / SHEET,
            "floor at the measured roof": size / MEASURED_ROOF,
            "expected of its kernels": point.predicted("measured"),
            "each operation alone, without launches": 1.3e-3 - LAUNCH,
            "launches": 1.3e-3,
            "step (triton)": STEP,
        }
    )
    assert [op.share for op in found.ops] == pytest.approx([0.6 / 1.3, 0.5 / 1.3, 0.2 / 1.3])
    assert found.notes == ("the same step by torch: 2.00 ms",)
    assert (found.model, found.layers, found.batch, found.context) == ("llama-3.1-8b", 4, 1, 4096)
    said = steps.sentence((point, found))
    assert "85% of the time of its operations is in ffn and lm_head" in said
    assert "against its expected time" in said


def test_both_reports_show_it_and_others_do_not(tmp_path: Path) -> None:
    run = write_run(tmp_path, [*ceiling_records(), *step_records()])
    written = report.write(run)
    assert run / "figures" / "waterfall.png" in written.paths
    for page in ("report.md", "report.html"):
        text = (run / page).read_text(encoding="utf-8")
        for word in (steps.HEADING, "floor at the measured roof", "each operation alone, without launches"):
            assert word in text
    without = write_run(tmp_path / "without", [*ceiling_records(), *step_records()[1:]])
    report.write(without, html=False)
    assert not (without / "figures" / "waterfall.png").exists()
    assert steps.HEADING not in (without / "report.md").read_text(encoding="utf-8")
