"""The run file is appended line by line, and can be read whatever happened to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.errors import BadRequest
from bench.records import FILE, SCHEMA, Record, Writer, as_line, from_line
from bench.run import load, load_run
from kernels.ffn_gemv.op import GemvCase


def record(**fields: object) -> Record:
    base: dict[str, object] = {
        "op": "ffn_gemv",
        "impl": "triton",
        "ours": True,
        "case_id": "B1-N2-K3-bf16",
        "case": GemvCase(B=1, N=2, K=3).as_dict(),
        "status": "ok",
        "work": {"flops": {"mma_bf16": 12}, "bytes_read": 20, "bytes_written": 4},
        "samples_s": [3e-6, 1e-6, 2e-6],
    }
    return Record(**{**base, **fields})  # type: ignore[arg-type]


def written(directory: Path, *records: Record) -> Path:
    writer = Writer(directory)
    writer.append("run", {"run_id": "r", "device": {"name": "part"}, "target": {"kind": "cuda"}})
    for one in records:
        writer.append("record", as_line(one))
    writer.close()
    return directory


def test_round_trip(tmp_path: Path) -> None:
    one = record(flags=["noisy"], prediction={"measured": {"seconds": 2.5e-6, "bound": "memory"}})
    run = load_run(written(tmp_path, one))
    assert run.records == [one]
    assert run.on_gpu
    assert not run.complete
    assert run.records[0].seconds == 2e-6
    assert run.records[0].bytes == 24


def test_samples_of_ranks_stay_and_earlier_records_have_none(tmp_path: Path) -> None:
    of_ranks = record(ranks_s=[[3e-6, 1e-6], [1e-6, 1e-6], [1e-6, 2e-6]])
    assert load_run(written(tmp_path / "new", of_ranks)).records == [of_ranks]
    old = {name: value for name, value in as_line(record()).items() if name != "ranks_s"}
    assert from_line(old) == record()


def test_the_last_record_of_a_key_counts_and_repeats_are_apart(tmp_path: Path) -> None:
    run = load_run(written(tmp_path, record(status="skipped", samples_s=[]), record(), record(repeat=1)))
    assert [r.status for r in run.records] == ["ok"]
    assert [r.repeat for r in run.repeats] == [1]


def test_counters_join_the_record_that_they_name(tmp_path: Path) -> None:
    """Repetitions get none, other kinds of notes add none, and a note about an absent record is ignored."""
    writer = Writer(written(tmp_path, record(), record(repeat=1), record(impl="torch")))
    key = {"op": "ffn_gemv", "case_id": "B1-N2-K3-bf16"}
    for note in (
        {"note": "counters", "impl": "triton", "dram_read": 24.0},
        {"note": "aa", "impl": "torch", "samples_s": [[1e-6], [2e-6]]},
    ):
        writer.append("note", note | key)
    writer.append("note", {"note": "counters", "impl": "absent", "dram_read": 1.0} | key)
    writer.close()
    run = load_run(tmp_path)
    assert {r.impl: r.counters.get("dram_read") for r in run.records} == {"triton": 24.0, "torch": None}
    assert [r.counters for r in (*run.records[1:], *run.repeats)] == [{}, {}]
    assert len(run.notes) == 3


def test_a_damaged_line_is_named_and_the_rest_used(tmp_path: Path) -> None:
    written(tmp_path, record())
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind":"record","op":\n{"kind":"surprise"}\n\n[1]\n')
        file.write(json.dumps({"kind": "record", **as_line(record(case_id="later"))}) + "\n")
    run = load_run(tmp_path)
    assert [r.case_id for r in run.records] == ["B1-N2-K3-bf16", "later"]
    assert [w.split(": ")[0] for w in run.warnings] == [f"{FILE}:3", f"{FILE}:4", f"{FILE}:6"]
    assert "not JSON" in run.warnings[0]
    assert run.warnings[2] == f"{FILE}:6: lacks its kind; the line is left out"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"op": None, "impl": None, "work": None}, "lacks the fields op, impl, work"),
        ({"case_id": None}, "lacks the field case_id"),
        ({"samples_s": "fast"}, "field samples_s is not a list of numbers"),
        ({"samples_s": [1e-6, "2e-6"]}, "field samples_s is not a list of numbers"),
        ({"samples_s": [1e-6, True]}, "field samples_s is not a list of numbers"),
        ({"ranks_s": [1e-6]}, "field ranks_s is not a list of lists"),
        ({"ranks_s": [[1e-6, 2e-6]]}, "field ranks_s has not the same ranks for each sample"),
        (
            {"ranks_s": [[1e-6, 2e-6], [1e-6, 2e-6], [1e-6, 2e-6, 3e-6]]},
            "field ranks_s has not the same ranks for each sample",
        ),
        ({"op": ["ffn_gemv"]}, "field op is not a text"),
        ({"ours": 1}, "field ours is not a truth value"),
        ({"work": [1]}, "field work is not an object"),
        ({"stages": [3]}, "field stages is not a list of objects"),
        ({"flags": [3]}, "field flags is not a list of texts"),
        ({"repeat": "0"}, "field repeat is not a whole number"),
        ({"schema": "2"}, "field schema is not a whole number"),
        ({"status": "fine"}, "field status is not a status (ok, refused, wrong, failed, timeout, skipped)"),
        ({"case": {"B": 1, "N": 2}}, "case: lacks the field K"),
        ({"case": {"B": 1, "N": 2, "K": "3"}}, "case: K is '3': expected a whole number from 1 on"),
        (
            {"case": {"B": 1, "N": 2, "K": 3, "dtype": "fp8"}},
            "case: dtype is 'fp8': expected one of 'bf16', 'fp16', 'fp32'",
        ),
        ({"kind": None}, "lacks its kind"),
        ({"kind": "surprise"}, "is of the unknown kind 'surprise'"),
        ({"kind": ["record"]}, "is of the unknown kind ['record']"),
    ],
)
def test_a_damaged_record_says_what_is_wrong_with_it(changes: dict, reason: str, tmp_path: Path) -> None:
    """None removes the field."""
    written(tmp_path, record())
    line = {"kind": "record", **as_line(record(case_id="damaged")), **changes}
    line = {name: value for name, value in line.items() if name not in changes or value is not None}
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
    run = load_run(tmp_path)
    assert run.warnings == [f"{FILE}:3: {reason}; the line is left out"]
    assert len(run.records) == 1


def test_a_record_gets_the_defaults_of_fields_that_are_newer_and_keeps_those_that_are_gone(tmp_path: Path) -> None:
    old = record(case={"B": 1, "N": 2, "K": 3, "colour": "red"})
    (found,) = load_run(written(tmp_path / "old", old)).records
    assert found.case == {**GemvCase(B=1, N=2, K=3).as_dict(), "weights": "", "activations": "", "colour": "red"}
    (found,) = load_run(written(tmp_path / "gone", record(op="gone", case={"x": None}))).records
    assert found.case == {"x": None}


def test_a_half_written_line_of_a_killed_run_does_not_spoil_the_next(tmp_path: Path) -> None:
    written(tmp_path, record())
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind":"record","op":"ffn')
    writer = Writer(tmp_path)
    writer.append("record", as_line(record(case_id="next")))
    writer.close()
    run = load_run(tmp_path)
    assert [r.case_id for r in run.records] == ["B1-N2-K3-bf16", "next"]
    assert len(run.warnings) == 1


def test_each_line_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append("run", {"run_id": "r"})
    assert (tmp_path / FILE).read_text().count("\n") == 1
    writer.close()


def test_a_record_of_the_future_is_left_out_with_its_reason(tmp_path: Path) -> None:
    run = load_run(written(tmp_path, record(schema=SCHEMA + 1)))
    assert run.records == []
    assert "newer" in run.warnings[0]


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"no records\.jsonl"):
        load_run(tmp_path)
    with pytest.raises(BadRequest, match="no such run"):
        load_run(tmp_path / "absent")
    (tmp_path / FILE).write_text("not json\n")
    with pytest.raises(BadRequest, match="holds no run"):
        load_run(tmp_path)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    os.symlink(full, tmp_path / FILE)
    writer = Writer(tmp_path)
    with pytest.raises(BadRequest, match="No space left"):
        writer.append("run", {"run_id": "r"})


def test_an_unwritable_directory_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="cannot write"):
        Writer(tmp_path / "file" / "run")


def test_tidy_frame(tmp_path: Path) -> None:
    refused = record(impl="torch", status="refused", reason="no", samples_s=[])
    predicted = {"datasheet": {"seconds": 1e-6, "bound": "memory"}, "measured": {"seconds": 1.5e-6, "bound": "launch"}}
    done = record(prediction=predicted, flags=["noisy", "warm"])
    nothing = record(impl="none", work={"flops": {}, "bytes_read": 0, "bytes_written": 0}, samples_s=[])
    frame = load([written(tmp_path, done, refused, nothing)]).set_index("impl")
    row = frame.loc["triton"]
    assert (row["device"], row["case.N"], row["flags"], row["samples"]) == ("part", 2, "noisy warm", 3)
    assert row["low_s"] <= row["median_s"] == 2e-6 <= row["high_s"]
    assert (row["bytes"], row["flops"], row["intensity_flop_per_byte"]) == (24, 12, 0.5)
    assert (row["bytes_per_s"], row["flops_per_s"]) == pytest.approx((24 / 2e-6, 12 / 2e-6))
    assert (row["predicted_datasheet_s"], row["predicted_measured_s"], row["bound"]) == (1e-6, 1.5e-6, "launch")
    assert frame.loc["torch", ["reason", "status", "intensity_flop_per_byte"]].tolist() == ["no", "refused", 0.5]
    assert frame.loc["torch", ["median_s", "bytes_per_s", "flops_per_s", "bound"]].isna().all()
    assert frame.loc["none", ["intensity_flop_per_byte"]].isna().all()


def test_a_flag_that_was_renamed_still_loads() -> None:
    line = as_line(record(flags=["idle", "noisy"]))
    assert from_line(line).flags == ["waited", "noisy"]
