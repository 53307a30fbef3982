"""A run goes on only where it began: on the same board, not only on one of the same name and driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.measure.runner import refuse_changes
from bench.run import Run, load_run
from tests.support.synthetic_run import record, write_run


def environment(board: str | None) -> dict[str, Any]:
    return {"gpu": {"name": "NVIDIA H100", "driver": "570.1", "board": board}, "packages": {"torch": "2.9"}}


def begun_on(path: Path, board: str | None) -> Run:
    directory = write_run(path, [record("kv_append", "torch", "x", read=1 << 20, seconds=1e-3)])
    run = load_run(directory)
    run.header["environment"] = environment(board)
    return run


def test_a_run_is_not_resumed_on_another_board_of_the_same_name(tmp_path: Path) -> None:
    run = begun_on(tmp_path, "aaaa")
    refuse_changes(run, environment("aaaa"))
    with pytest.raises(BadRequest, match="gpu board was 'aaaa' and is 'bbbb'"):
        refuse_changes(run, environment("bbbb"))


def test_a_driver_that_names_no_board_does_not_hinder(tmp_path: Path) -> None:
    refuse_changes(begun_on(tmp_path / "a", None), environment("bbbb"))
    refuse_changes(begun_on(tmp_path / "b", "aaaa"), environment(None))
