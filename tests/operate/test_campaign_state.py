"""The state of a campaign is held against what lies in its directory: records, code, board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import machine
from bench.errors import BadRequest
from bench.operate.campaign import gate, steps
from bench.operate.campaign.outcome import Progress
from bench.records import FILE
from bench.run import load_run
from tests.support import ROOT
from tests.support.heard import Silent
from tests.support.synthetic_run import ceiling_records, write_run

CODE = machine.source_digest(tuned=False)


def asked(**fields: Any) -> steps.Request:
    limits = {"cap_s": 0.01, "hang_s": 6.0, "budget_s": steps.FINISH_S, "skip": steps.NAMES}
    fixed = {"device": "cpu", "suite": "smoke", "catalogue": "tests.support.planted", "root": ROOT / "tests"}
    return steps.Request(**{**fixed, **limits, **fields})


def finished(directory: Path, **header: Any) -> Path:
    """A campaign that says that all is done, and the records that it counted. Returns their file."""
    run = write_run(directory / "part" / "run", ceiling_records(), **{"code_digest": CODE, **header})
    (directory / gate.FILE).write_text(
        json.dumps({"op": "toy", "impl": "honest", "case_id": "x", "status": "ok", "reason": None}) + "\n"
    )
    begun = steps.Campaign(asked(), directory, Silent())
    begun.steps = {name: Progress(state="done") for name in steps.NAMES}
    begun.steps["measure"].result = {"ok": len(load_run(run).records)}
    begun.save()
    begun._lock.release()
    return run / FILE


def states(directory: Path) -> dict[str, str]:
    """The states with which a further call begins."""
    begun = steps.Campaign(asked(), directory, Silent())
    begun._lock.release()
    return {name: step.state for name, step in begun.steps.items() if step.state != "done"}


def test_a_finished_campaign_stays_finished(tmp_path: Path) -> None:
    finished(tmp_path)
    assert states(tmp_path) == {}


def test_deleted_records_are_measured_again(tmp_path: Path) -> None:
    finished(tmp_path).unlink()
    assert states(tmp_path) == {"measure": "open", "counters": "open"}


def test_a_half_written_record_is_measured_again(tmp_path: Path) -> None:
    records = finished(tmp_path)
    lines = [line for line in records.read_text().splitlines() if '"kind":"record"' in line]
    records.write_text("\n".join([records.read_text().splitlines()[0], *lines])[:-40])
    assert states(tmp_path) == {"measure": "open", "counters": "open"}
    begun = steps.Campaign(asked(), tmp_path, Silent())
    count = len(lines)
    assert begun.steps["measure"].found == [f"{count - 1} of {count} records lie there: what is missing is measured"]
    begun._lock.release()


def test_a_file_without_a_whole_line_is_set_aside(tmp_path: Path) -> None:
    records = finished(tmp_path)
    records.write_text(records.read_text()[:50])
    assert states(tmp_path) == {"measure": "open", "counters": "open"}
    assert not records.exists()
    assert records.with_name(f"{FILE}.damaged").stat().st_size == 50


def test_records_of_other_code_are_refused(tmp_path: Path) -> None:
    finished(tmp_path, code_digest="0123456789ab")
    with pytest.raises(BadRequest, match="were measured with other code"):
        steps.Campaign(asked(), tmp_path, Silent())
    steps.Lock(tmp_path).release()  # and the directory is not held any more


def test_lost_verdicts_of_the_gate_are_found_again(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / gate.FILE).unlink()
    assert states(tmp_path) == {"gate": "open"}


@pytest.mark.parametrize(("here", "unfit"), [("aaaaaaaaaaaa", False), ("bbbbbbbbbbbb", True), (None, False)])
def test_another_board_ends_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str | None, unfit: bool
) -> None:
    """The doctor says which board this is, in every call."""
    finished(tmp_path, environment={"gpu": {"name": "Synthetic GPU", "board": "aaaaaaaaaaaa"}})
    answer = {"exit_code": 0, "verdict": "fit", "found": {"board": here}}
    monkeypatch.setattr(steps.Campaign, "ask", lambda self, step, limit_s, **more: answer)
    monkeypatch.setattr(steps.Campaign, "finish", lambda self: self._lock.release() or self)
    outcome: Any = steps.run(asked(skip=("selfcheck",), budget_s=300.0), tmp_path, Silent())
    assert outcome.unfit is unfit
    if outcome.unfit:
        assert outcome.steps["doctor"].found == [
            "the records are of another board (aaaaaaaaaaaa) than this one (bbbbbbbbbbbb): choose another directory"
        ]
