"""What a report concludes: interventions beside counters, ours against peers, the suite's own targets, all by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.judge import boundness, goals, peers
from bench.judge.view import View
from bench.records import Record, Writer
from bench.report import text
from bench.run import load_run
from tests.support.synthetic_run import LAUNCH, ROOF, SHEET, case_record, ceiling_records, record, samples, write_run

MB = 10**6
ROOF_MEASURED = 2**32 / (LAUNCH + 2**32 / ROOF)
"""B/s that the fixture's largest read reaches: what every share is taken of."""

CACHE = {"B": 64, "T": 4096, "H_kv": 8, "D": 128}

Clock = Callable[[Record], float]


def view(tmp_path: Path, records: list[Record], **changes: Any) -> View:
    return View(load_run(write_run(tmp_path / "run", [*ceiling_records(), *records], **changes)))


def timed(op: str, fields: dict[str, Any], clock: Clock, impl: str = "triton", **changes: Any) -> Record:
    found = case_record(op, impl, fields, seconds=1.0, **changes)
    return dataclasses.replace(found, samples_s=samples(clock(found), seed=len(found.case_id)))


def at_share(share: float) -> Clock:
    """Takes as long as that share of the read roof asks for."""
    return lambda r: r.bytes / ROOF_MEASURED / share


def by_arithmetic(r: Record) -> float:
    return r.flops / 7e14


# ---- interventions


def attention(clock: Clock, impl: str = "triton") -> list[Record]:
    """Query heads over one cache, and the same heads over two other caches."""
    cases = [*({**CACHE, "H_q": heads} for heads in (8, 32, 64)), {**CACHE, "H_q": 32, "kv": "fp8"},
             {**CACHE, "H_q": 32, "H_kv": 32}]  # fmt: skip
    return [timed("attention_decode", fields, clock, impl) for fields in cases]


def counted(r: Record, *, dram: float, flops: float, written: float = 0.0) -> Record:
    """Counters that saw this many bytes, of which some were written, and FLOPs."""
    counters = {
        "declared_read": r.work["bytes_read"], "declared_written": r.work["bytes_written"],
        "dram_read": dram - written, "dram_written": written, "l2_hit_rate": 0.1, "occupancy": 0.5,
        "intensity": flops / dram,
    }  # fmt: skip
    return dataclasses.replace(r, counters=counters)


def with_counters(found: View, r: Record) -> View:
    """The run as it reads once counters have been added to one of its records."""
    found.run.records[:] = [r if old.key == r.key else old for old in found.run.records]
    return View(found.run)


def test_time_that_follows_bytes_alone_is_memory_in_table_and_headline(tmp_path: Path) -> None:
    found = view(tmp_path, attention(at_share(0.9)))
    (row,) = boundness.table(found, leading_only=True).rows
    assert row[0:2] == ("attention_decode", "triton")
    assert row[3] == "H_q 8, 32, 64; H_kv 8, 32; kv none, fp8"
    assert row[4].startswith("1.00 [")
    assert row[5].startswith("0.00 [")
    assert row[7] == "memory"
    assert (
        "By intervention, yes in 1 of 1 groups of cases: time follows bytes (exponent 1.00), not FLOPs (0.00)"
        in (text.verdict(found)[1])
    )
    assert len(boundness.table(found, leading_only=False).rows) == 3


def test_time_that_follows_flops_is_not(tmp_path: Path) -> None:
    found = view(tmp_path, attention(by_arithmetic))
    (row,) = boundness.table(found, leading_only=True).rows
    assert row[7] == "arithmetic"
    evidence = boundness.evidence(found)
    assert evidence is not None
    assert (evidence.yes, evidence.no, evidence.undecided) == (0, 1, 0)
    assert "By intervention, 1 of 1 groups of cases say no, none a clear yes" in text.verdict(found)[1]


def test_time_that_follows_neither_is_undecided_and_said_so(tmp_path: Path) -> None:
    found = view(tmp_path, attention(lambda r: 1e-3))
    evidence = boundness.evidence(found)
    assert evidence is not None
    assert (evidence.yes, evidence.no, evidence.undecided) == (0, 0, 1)
    line = text.verdict(found)[1]
    assert "By intervention, undecided: time clearly follows neither bytes nor FLOPs in the one group of cases" in line


def test_flops_alone_say_that_they_are_free_which_is_no_yes(tmp_path: Path) -> None:
    batches = [timed("ffn_gemv", {"N": 28672, "K": 8192, "B": B}, at_share(0.9)) for B in (1, 4, 16)]
    found = view(tmp_path, batches)
    (row,) = boundness.table(found, leading_only=True).rows
    assert (row[4], row[7]) == ("held", "FLOPs are free")
    line = text.verdict(found)[1]
    assert (
        "By intervention, not by arithmetic: FLOPs are free (exponent 0.00) in 1 group, bytes never varied alone"
        in line
    )
    assert "yes" not in line


def test_groups_that_are_predicted_to_be_bound_by_arithmetic_are_not_asked(tmp_path: Path) -> None:
    terms = {"launch": 1e-6, "memory": 1e-5, "mma_bf16": 1e-3}
    prediction = {"measured": {"seconds": 1e-3, "terms": terms, "bound": "mma_bf16"}}
    found = view(tmp_path, [dataclasses.replace(r, prediction=prediction) for r in attention(by_arithmetic)])
    assert [i.verdict for i in boundness.leading(found)] == ["compute"]
    assert boundness.evidence(found) is None
    assert "intervention" not in text.verdict(found)[1].lower()


def test_peers_are_folded_away_where_there_are_ours(tmp_path: Path) -> None:
    found = view(tmp_path, [*attention(at_share(0.9)), *attention(by_arithmetic, "torch")])
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
    """Counted amounts are chosen as shares of what the roofs allow in the measured time; written bytes count, too."""
    records = attention(FOLLOWING[followed])
    seconds = records[0].seconds
    assert seconds
    moved = dram * seconds * ROOF_MEASURED
    seen = counted(records[0], dram=moved, flops=flops * seconds * 700e12, written=written * moved)
    found = with_counters(view(tmp_path, records), seen)
    (row,) = boundness.table(found, leading_only=True).rows
    assert row[8:] == (said, agree)
    assert boundness.COUNTED in boundness.remarks(found)


def test_without_counters_there_is_no_column_for_them(tmp_path: Path) -> None:
    found = view(tmp_path, attention(at_share(0.9)))
    assert "counters" not in boundness.table(found, leading_only=True).headers
    assert boundness.remarks(found) == (boundness.REMARK,)


def test_the_remark_says_who_is_asked() -> None:
    assert "its largest term is at least 2 times the next" in boundness.REMARK
    assert "headline counts the cases that are predicted to be memory-bound" in boundness.REMARK


# ---- peers


def gemv(share: float, impl: str = "triton", *, B: int = 1, N: int = 28672, K: int = 8192, **more: Any) -> Record:
    changes = {name: more.pop(name) for name in ("flags", "prediction") if name in more}
    return timed("ffn_gemv", {"B": B, "N": N, "K": K, **more}, at_share(share), impl, **changes)


def test_the_fastest_peer_of_each_case_counts_and_the_mean_is_geometric(tmp_path: Path) -> None:
    """Ours at 80%: peers at 40% and 20% (ratios 2 and 4) in one case, at 160% (ratio 0.5) in the other: mean 1."""
    records = [
        gemv(0.8), gemv(0.4, "torch"), gemv(0.2, "slow"),
        gemv(0.8, B=2), gemv(1.6, "torch", B=2),
    ]  # fmt: skip
    found = view(tmp_path, records)
    mean = peers.geometric_mean(peers.fastest(found))
    assert mean.median == pytest.approx(1.0, rel=1e-3)
    assert 0.99 < mean.low < 1.0 < mean.high < 1.01
    standing, worst = peers.standing(found, "ffn_gemv")
    assert standing.startswith("1.00 [")
    assert standing.endswith("] over 2 cases")
    assert worst == "0.50 (torch, B2-N28672-K8192-bf16)"
    assert peers.standing(found, "attention_decode") == ("", "")
    assert {(row[1], row[2], row[3]) for row in peers.by_peer(found).rows} == {("torch", "2", "1"), ("slow", "1", "1")}


def test_the_interval_of_the_mean_grows_with_the_noise(tmp_path: Path) -> None:
    def width(spread: float, where: str) -> float:
        noisy = dataclasses.replace(gemv(0.4, "torch"), samples_s=samples(1e-3, spread=spread))
        mean = peers.geometric_mean(peers.fastest(view(tmp_path / where, [gemv(0.8), noisy])))
        return mean.high - mean.low

    assert width(0.2, "loud") > 5 * width(0.002, "quiet")


def test_a_peer_that_was_timed_too_short_is_not_the_fastest(tmp_path: Path) -> None:
    records = [gemv(0.8), gemv(0.4, "torch"), gemv(3.0, "broken", flags=["impossible"])]
    (only,) = peers.fastest(view(tmp_path, records))
    assert only.peer.record.impl == "torch"


def test_one_sample_has_no_interval(tmp_path: Path) -> None:
    once = dataclasses.replace(gemv(0.4, "torch"), samples_s=[1e-3])
    mean = peers.geometric_mean(peers.fastest(view(tmp_path, [gemv(0.8), once])))
    assert mean.high == float("inf")


def test_what_the_run_cannot_resolve_makes_nobody_faster(tmp_path: Path) -> None:
    """Ours ahead by 10%, 4% and half a percent, and behind by 4%; the same measured twice differed by 5%."""
    leads = {1: 1.10, 2: 1.04, 3: 1.005, 4: 1 / 1.04}
    records = [r for B, lead in leads.items() for r in (gemv(0.8, B=B), gemv(0.8 / lead, "torch", B=B))]
    run = write_run(tmp_path / "run", [*ceiling_records(), *records])

    def decided() -> tuple[list[str], tuple[str, ...]]:
        found = View(load_run(run))
        (row,) = peers.by_peer(found).rows
        return [row[5] for row in peers.by_case(found).rows], tuple(row[2:5])

    assert decided() == (["ours", "ours", "undecided", "peer"], ("4", "2", "1"))
    writer = Writer(run)
    for op, seconds in (("moe_ffn", 2e-4), ("ffn_gemv", 1.05e-4)):
        twice = {"op": op, "impl": "triton", "case_id": "x", "samples_s": [samples(1e-4), samples(seconds)]}
        writer.append("note", {"note": "aa", **twice})
    writer.close()
    assert decided() == (["ours", "undecided", "undecided", "undecided"], ("4", "1", "0"))


# ---- targets


def judged(found: View, what: str) -> goals.Judged:
    """The verdict on the one target whose words begin so."""
    (one,) = [j for j in goals.judged(found) if j.goal.what.startswith(what)]
    return one


def heads(share: float, *, impl: str = "triton", **fields: Any) -> Record:
    shape = {"B": 64, "T": 4096, "H_q": 32, "H_kv": 8, "D": 128, **fields}
    return timed("attention_decode", shape, at_share(share), impl)


def off(error: float, B: int = 1) -> Record:
    """Took longer than the prediction said, by this share of it."""
    found = gemv(0.9, B=B)
    assert found.seconds
    terms = {"memory": found.seconds / (1 + error)}
    prediction = {"measured": {"seconds": terms["memory"], "terms": terms, "bound": "memory"}}
    return dataclasses.replace(found, prediction=prediction)


def mla(share: float) -> Record:
    """256 heads: arithmetic takes longer than bytes, and is at this share of its peak."""
    return timed("mla_decode", {"B": 128, "H": 256, "T": 4096}, lambda r: r.flops / 700e12 / share)


MEETING: dict[str, tuple[float, Callable[[float], list[Record]]]] = {
    "GEMV bf16, batch 1 to 64, 256 MB": (0.92, lambda x: [gemv(x), gemv(x, B=64)]),
    "GEMV bf16, batch 1 to 64, 20 to": (0.80, lambda x: [gemv(x, N=8192, K=8192), gemv(x, N=8192, K=1536, B=64)]),
    "GEMV int8": (0.85, lambda x: [gemv(x, weights="int8", B=64), gemv(x, weights="int4")]),
    "attention bf16, contiguous or pages of 16 and more, 256": (0.92, lambda x: [heads(x), heads(x, page=16)]),
    "attention bf16, contiguous or pages of 16 and more, 20": (0.80, lambda x: [heads(x, B=2), heads(x, B=2, page=64)]),
    "attention with an fp8": (0.90, lambda x: [heads(x, kv="fp8"), heads(x, kv="fp8", page=16)]),
    "MLA": (0.88, lambda x: [mla(x)]),
    "attention of one request": (0.97, lambda x: [heads(x * 0.9, B=1, T=T) for T in (32768, 131072)]),
    "attention in pages": (0.97, lambda x: [heads(x * 0.9, page=16)]),
    "fastest peer's time over ours, all": (1.05, lambda x: [gemv(0.5), gemv(0.5 / x, "torch")]),
    "fastest peer's time over ours, case": (0.97, lambda x: [gemv(0.5), gemv(0.5 / x, "torch")]),
    "error of the predictions at 1 MB and more, median": (0.05, lambda x: [off(x)]),
    "error of the predictions at 1 MB and more, for": (0.12, lambda x: [off(x)]),
}
"""By how a target begins: what is wanted, and cases that belong to it, each at the number given."""

AT_LARGE_BATCH = ("attention of one", "attention in pages")
"""Held against a contiguous cache at batch 16, whose share is 0.9."""


@pytest.mark.parametrize("what", MEETING)
def test_what_is_wanted_parts_reached_from_missed(tmp_path: Path, what: str) -> None:
    wanted, records = MEETING[what]
    yardstick = [heads(0.9, B=16)] if what.startswith(AT_LARGE_BATCH) else []
    for name, factor in {"over": 1.02, "under": 0.98}.items():
        one = judged(view(tmp_path / name, [*records(wanted * factor), *yardstick]), what)
        reached = (factor > 1) != what.startswith("error")
        cases = sum(r.ours for r in records(1.0))
        assert (one.verdict, one.cases) == ("reached" if reached else "missed", cases)
        assert one.reaching == (cases if reached else 0)
        assert one.found == pytest.approx(wanted * factor, rel=1e-2)


def test_what_lies_beside_a_target_is_not_counted(tmp_path: Path) -> None:
    """A batch of 65, fp16, pages of 8, an fp8 cache in bf16's place, contexts of 32K less one and 128K and one."""
    records = [
        gemv(0.1, B=65), gemv(0.1, B=65, weights="int8"), gemv(0.1, dtype="fp16"), gemv(0.1, weights="fp8"),
        heads(0.1, dtype="fp16"), heads(0.1, page=8), heads(0.1, kv="fp8", page=8), heads(0.1, kv="int8"),
        heads(0.1, B=1, T=32767, dtype="fp16"), heads(0.1, B=1, T=131073, dtype="fp16"), heads(0.9, B=16, dtype="fp16"),
    ]  # fmt: skip
    counted = {j.goal.what for j in goals.judged(view(tmp_path, records)) if j.cases}
    assert counted == {"stream read, of the datasheet's bandwidth"}


def test_every_target_of_an_empty_run_is_not_measured_but_the_read(tmp_path: Path) -> None:
    verdicts = {j.goal.what: j.verdict for j in goals.judged(view(tmp_path, []))}
    read = verdicts.pop("stream read, of the datasheet's bandwidth")
    assert read == "missed"
    assert set(verdicts.values()) == {"not measured"}


def test_the_read_is_held_against_a_datasheet_and_nothing_else(tmp_path: Path) -> None:
    one = judged(view(tmp_path, []), "stream read")
    assert one.found == pytest.approx(ROOF_MEASURED / SHEET)
    derived = {"value": SHEET, "unit": "B/s", "kind": "derived", "source": "driver"}
    device = {"key": "some-part", "name": "Some part", "memory_bandwidth": derived, "peaks": {}}
    other = view(tmp_path / "other", [], device=device)
    assert judged(other, "stream read").verdict == "not measured"


def test_the_worst_case_decides_and_is_named(tmp_path: Path) -> None:
    records = [gemv(0.95), gemv(0.93, B=16), gemv(0.90, B=64), gemv(0.5, B=128), gemv(0.99, "torch")]
    one = judged(view(tmp_path, records), "GEMV bf16, batch 1 to 64, 256 MB")
    assert (one.verdict, one.reaching, one.cases) == ("missed", 2, 3)
    assert one.found == pytest.approx(0.90, rel=1e-3)
    assert one.worst == "B64-N28672-K8192-bf16"
    fine = judged(view(tmp_path / "fine", records[:2]), "GEMV bf16, batch 1 to 64, 256 MB")
    assert (fine.verdict, fine.reaching) == ("reached", 2)


def test_sizes_and_types_go_to_their_own_target(tmp_path: Path) -> None:
    """134 MB of bf16, 17 MB of bf16 (no target), 235 MB of int8, 537 MB of an fp8 cache, pages of 8 (no target)."""
    records = [
        gemv(0.81, N=8192, K=8192), gemv(0.1, N=1024, K=8192), gemv(0.86, weights="int8"),
        heads(0.91, kv="fp8"), heads(0.1, page=8),
    ]  # fmt: skip
    found = view(tmp_path, records)
    shown = {j.goal.what: (j.verdict, j.cases) for j in goals.judged(found) if j.cases and "read roof" in j.goal.what}
    assert shown == {
        "GEMV bf16, batch 1 to 64, 20 to 256 MB, of the read roof": ("reached", 1),
        "GEMV int8 and int4, batch 1 to 64, 100 MB and more, of the read roof": ("reached", 1),
        "attention with an fp8 cache, 256 MB and more, of the read roof": ("reached", 1),
    }


def test_mla_is_held_against_the_roof_that_binds(tmp_path: Path) -> None:
    arithmetic = mla(0.9)
    assert arithmetic.flops / 700e12 > arithmetic.bytes / ROOF_MEASURED
    one = judged(view(tmp_path, [arithmetic]), "MLA")
    assert one.found == pytest.approx(0.9, rel=1e-3)
    assert one.verdict == "reached"


def test_one_long_request_and_pages_are_held_against_a_contiguous_batch(tmp_path: Path) -> None:
    records = [
        heads(0.96), heads(0.90, B=32),
        heads(0.94, page=16), heads(0.80, page=1),
        heads(0.92, B=1, T=131072), heads(0.5, B=1, T=4096),
        heads(0.1, page=16, window=1024), heads(0.5, page=16, H_kv=4),
    ]  # fmt: skip
    found = view(tmp_path, records)
    pages = judged(found, "attention in pages of 16")
    assert (pages.verdict, pages.cases) == ("reached", 1)
    assert pages.found == pytest.approx(0.94 / 0.96, rel=1e-3)
    one = judged(found, "attention of one request")
    assert (one.verdict, one.cases) == ("missed", 1)
    assert one.found == pytest.approx(0.92 / 0.96, rel=1e-3)


def test_peers_by_mean_and_by_worst_case(tmp_path: Path) -> None:
    """Ratios 2 and 0.95: a mean of 1.38 reaches 1.05, the worst case misses 0.97."""
    records = [gemv(0.8), gemv(0.4, "torch"), gemv(0.76, B=2), gemv(0.8, "torch", B=2)]
    found = view(tmp_path, records)
    together = judged(found, "fastest peer's time over ours, all")
    assert together.found == pytest.approx((2 * 0.95) ** 0.5, rel=1e-2)
    assert together.verdict == "reached"
    each = judged(found, "fastest peer's time over ours, case")
    assert (each.verdict, each.reaching, each.cases) == ("missed", 1, 2)
    assert each.worst == "ffn_gemv B2-N28672-K8192-bf16, torch"


def test_predictions_by_median_and_by_the_90th_percentile(tmp_path: Path) -> None:
    """Errors of 1% nine times and 50% once: the median is reached, and at the 90th percentile 5.9% too."""
    found = view(tmp_path, [*(off(0.01, B) for B in range(1, 10)), off(0.5, 10)])
    middle = judged(found, "error of the predictions at 1 MB and more, median")
    assert (middle.verdict, middle.reaching, middle.cases) == ("reached", 9, 10)
    assert middle.found == pytest.approx(0.01, rel=1e-3)
    assert middle.worst == "ffn_gemv triton B10-N28672-K8192-bf16"
    most = judged(found, "error of the predictions at 1 MB and more, for 90%")
    assert most.found == pytest.approx(0.01 + 0.1 * 0.49, rel=1e-2)
    assert most.verdict == "reached"
    worse = view(tmp_path / "worse", [off(0.01, 1), off(0.5, 2)])
    assert judged(worse, "error of the predictions at 1 MB and more, for 90%").verdict == "missed"


def test_the_table_says_what_was_wanted_and_found(tmp_path: Path) -> None:
    found = goals.judged(view(tmp_path, [gemv(0.95), gemv(0.9, B=2)]))
    rows = {row[0]: row[1:] for row in goals.table(found).rows}
    assert rows["GEMV bf16, batch 1 to 64, 256 MB and more, of the read roof"] == (
        "at least 92.0%", "90.0%", "1 of 2", "missed", "B2-N28672-K8192-bf16"
    )  # fmt: skip
    assert rows["error of the predictions at 1 MB and more, median"] == ("at most 5.0%", "", "", "not measured", "")
    assert goals.tally(found).startswith("Of 14 goals: 2 missed, 12 not measured.")


def test_a_host_has_no_targets(tmp_path: Path) -> None:
    torch = record("ffn_gemv", "torch", "x", read=MB, seconds=1e-3)
    assert goals.judged(view(tmp_path, [torch], target={"kind": "cpu", "name": "a CPU"})) == []
