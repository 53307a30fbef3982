"""What interventions say in table and headline, beside counters, worked by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.judge import boundness
from bench.judge.answer import answer
from bench.judge.view import View
from bench.records import Record
from bench.report import text
from tests.support.synthetic_run import MEASURED_ROOF, PEAK, Clock, at_share, by_arithmetic, measured_view, timed

CACHE = {"B": 64, "T": 4096, "H_kv": 8, "D": 128}


def attention(clock: Clock, impl: str = "triton") -> list[Record]:
    """Query heads over one cache, and the same heads over two other caches."""
    varied = [*({"H_q": heads} for heads in (8, 32, 64)), {"H_q": 32, "kv": "fp8"}, {"H_q": 32, "H_kv": 32}]
    return [timed("attention_decode", {**CACHE, **fields}, clock, impl) for fields in varied]


def counted(r: Record, *, dram: float, flops: float, written: float = 0.0) -> Record:
    """The record with counters that saw these bytes and FLOPs; `written` of the bytes were written."""
    declared = {"declared_read": r.work["bytes_read"], "declared_written": r.work["bytes_written"]}
    seen = {"dram_read": dram - written, "dram_written": written, "intensity": flops / dram}
    return dataclasses.replace(r, counters={**declared, **seen, "l2_hit_rate": 0.1, "occupancy": 0.5})


def with_counters(found: View, r: Record) -> View:
    """A view of the run after counters have been added to one of its records."""
    records = [r if old.key == r.key else old for old in found.run.records]
    return View(dataclasses.replace(found.run, records=records))


def test_time_that_follows_bytes_alone_is_memory_in_table_and_headline(tmp_path: Path) -> None:
    found = measured_view(tmp_path, attention(at_share(0.9)))
    (row,) = boundness.table(found, leading_only=True).rows
    assert row[0:2] == ("attention_decode", "triton")
    assert row[3] == "H_q 8, 32, 64; H_kv 8, 32; kv none, fp8"
    assert row[4].startswith("1.00 [")
    assert row[5].startswith("0.00 [")
    assert row[7] == "memory"
    said = text.verdict(found)[1]
    assert "By intervention, yes: 1% more bytes take 1.00% more time, 1% more FLOPs 0.00%" in said
    tile = answer(found).memory
    assert (tile.answer, tile.tone) == ("YES (1 of 1 test)", "good")
    assert tile.because == "time follows the bytes, not the FLOPs"
    assert len(boundness.table(found, leading_only=False).rows) == 3


def test_time_that_follows_flops_is_not(tmp_path: Path) -> None:
    found = measured_view(tmp_path, attention(by_arithmetic))
    (row,) = boundness.table(found, leading_only=True).rows
    assert row[7] == "arithmetic"
    evidence = boundness.evidence(found)
    assert evidence is not None
    assert (evidence.yes, evidence.no, evidence.undecided) == (0, 1, 0)
    assert "By intervention, no: time follows the FLOPs, or it does not follow the bytes" in text.verdict(found)[1]
    assert answer(found).memory.answer == "NO (1 of 1 test)"


def test_time_that_follows_neither_is_undecided_and_said_so(tmp_path: Path) -> None:
    found = measured_view(tmp_path, attention(lambda r: 1e-3))
    evidence = boundness.evidence(found)
    assert evidence is not None
    assert (evidence.yes, evidence.no, evidence.undecided) == (0, 0, 1)
    line = text.verdict(found)[1]
    assert "By intervention, undecided: time clearly follows neither the bytes nor the FLOPs" in line
    assert answer(found).memory.answer == "UNDECIDED (1 of 1 test)"


def test_flops_alone_say_that_they_are_free_which_is_no_yes(tmp_path: Path) -> None:
    batches = [timed("ffn_gemv", {"N": 28672, "K": 8192, "B": B}, at_share(0.9)) for B in (1, 4, 16)]
    found = measured_view(tmp_path, batches)
    (row,) = boundness.table(found, leading_only=True).rows
    assert (row[4], row[7]) == ("held", "FLOPs are free")
    line = text.verdict(found)[1]
    assert "By intervention, probably: 1% more FLOPs take 0.00% more time, but bytes never varied alone" in line
    assert answer(found).memory.answer == "PROBABLY (1 of 1 test)"
    assert "yes" not in line


def test_groups_that_are_predicted_to_be_bound_by_arithmetic_are_not_asked(tmp_path: Path) -> None:
    terms = {"launch": 1e-6, "memory": 1e-5, "mma_bf16": 1e-3}
    prediction = {"measured": {"seconds": 1e-3, "terms": terms, "bound": "mma_bf16"}}
    found = measured_view(tmp_path, [dataclasses.replace(r, prediction=prediction) for r in attention(by_arithmetic)])
    assert [i.verdict for i in boundness.leading(found)] == ["compute"]
    assert boundness.evidence(found) is None
    assert "intervention" not in text.verdict(found)[1].lower()


def test_peers_are_folded_away_where_there_are_ours(tmp_path: Path) -> None:
    found = measured_view(tmp_path, [*attention(at_share(0.9)), *attention(by_arithmetic, "torch")])
    assert {row[1] for row in boundness.table(found, leading_only=True).rows} == {"triton"}
    assert "torch" in {row[1] for row in boundness.table(found, leading_only=False).rows}


FOLLOWING: dict[str, Clock] = {"memory": at_share(0.9), "arithmetic": by_arithmetic, "neither": lambda r: 5e-4}
"""What the times of `attention` follow."""


@pytest.mark.parametrize(
    ("followed", "dram", "flops", "said", "agree"),
    [
        ("memory", 0.9, 0.1, "DRAM 90% busy, arithmetic 10%: memory", "yes"),
        ("memory", 0.2, 0.8, "DRAM 20% busy, arithmetic 80%: arithmetic", "no"),
        ("memory", 0.45, 0.2, "DRAM 45% busy, arithmetic 20%: neither", "undecided"),
        ("memory", 0.55, 0.2, "DRAM 55% busy, arithmetic 20%: memory", "yes"),
        ("arithmetic", 0.2, 0.8, "DRAM 20% busy, arithmetic 80%: arithmetic", "yes"),
        ("arithmetic", 0.9, 0.1, "DRAM 90% busy, arithmetic 10%: memory", "no"),
        ("neither", 0.3, 0.2, "DRAM 30% busy, arithmetic 20%: neither", "yes"),
        ("neither", 0.9, 0.1, "DRAM 90% busy, arithmetic 10%: memory", "undecided"),
    ],
)
@pytest.mark.parametrize("written", [0.0, 0.25])
def test_counters_agree_or_not(
    tmp_path: Path, followed: str, dram: float, flops: float, said: str, agree: str, written: float
) -> None:
    """Counted amounts are shares of what the roofs allow in the measured time. Written bytes count too."""
    records = attention(FOLLOWING[followed])
    seconds = records[0].seconds
    assert seconds
    moved = dram * seconds * MEASURED_ROOF
    seen = counted(records[0], dram=moved, flops=flops * seconds * PEAK, written=written * moved)
    found = with_counters(measured_view(tmp_path, records), seen)
    (row,) = boundness.table(found, leading_only=True).rows
    assert row[8:] == (said, agree)
    assert boundness.COUNTED in boundness.remarks(found)


def test_without_counters_there_is_no_column_for_them(tmp_path: Path) -> None:
    found = measured_view(tmp_path, attention(at_share(0.9)))
    assert "counters" not in boundness.table(found, leading_only=True).headers
    assert boundness.remarks(found) == (boundness.REMARK,)


def test_times_in_no_group_are_counted_with_their_reasons(tmp_path: Path) -> None:
    """Five times in one group, one without a partner, and two whose prediction names memory and tensor cores."""
    terms = {"launch": 1e-6, "memory": 1e-3, "mma_bf16": 9e-4}
    prediction = {"measured": {"seconds": 1e-3, "terms": terms, "bound": "memory"}}
    close = [timed("ffn_gemv", {"N": 28672, "K": 8192, "B": B}, at_share(0.9)) for B in (200, 256)]
    records = [*attention(at_share(0.9)), *(dataclasses.replace(r, prediction=prediction) for r in close)]
    records.append(timed("ffn_gemv", {"N": 999, "K": 777, "B": 1}, at_share(0.9)))
    *_, said = boundness.remarks(measured_view(tmp_path, records))
    assert said == (
        "Of 8 times, 3 are in no group: 2 because memory and mma_bf16 take about as long by the prediction; "
        "1 because no other case differs in one field that changes bytes or FLOPs alone."
    )


def test_the_remark_says_who_is_asked() -> None:
    assert "its largest term is at least 2 times the next" in boundness.REMARK
    assert "headline counts the cases that are predicted to be memory-bound" in boundness.REMARK
