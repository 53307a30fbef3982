"""What lies in a campaign's directory, held against what its state says: the state alone is not believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.errors import BadRequest
from bench.records import FILE
from bench.run import Run, load_run


def run_that_lies(directory: Path | None) -> Run | None:
    """The run whose records lie in a directory. A file without a single whole line is set aside, and there is none."""
    if directory is None:
        return None
    try:
        return load_run(directory)
    except BadRequest:
        records = directory / FILE
        records.rename(records.with_name(f"{FILE}.damaged"))
        return None


def missing(run: Run | None, counts: Mapping[str, int]) -> str:
    """How many of the records that the state counts lie there, for people; empty if none is missing."""
    lie_there, counted = len(run.records) + len(run.repeats) if run else 0, sum(counts.values())
    return f"{lie_there} of {counted} records lie there: what is missing is measured" if lie_there < counted else ""


def refuse_other_code(run: Run, code: str) -> None:
    """BadRequest if the records were measured with other code than `code`, a digest."""
    others = {found for header in run.headers if (found := header.get("code_digest")) and found != code}
    if others:
        raise BadRequest(
            f"the records in {run.path} were measured with other code ({', '.join(sorted(others))}, not {code}); "
            "choose another directory"
        )


def other_board(run: Run | None, board: str | None) -> str:
    """Says for people that the records are of another board than the one here; empty where that is not known."""
    environments = [header.get("environment") or {} for header in run.headers] if run else []
    before = {found for each in environments if (found := (each.get("gpu") or {}).get("board"))}
    if board is None or not before - {board}:
        return ""
    theirs = ", ".join(sorted(before))
    return f"the records are of another board ({theirs}) than this one ({board}): choose another directory"
