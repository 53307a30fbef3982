"""A slow share is named, with its reason, and no other share is."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.judge.fleet.deviations import Member, deviations, peculiarities
from bench.judge.fleet.summary import summarize
from bench.judge.fleet.verdict import Verdict
from tests.support.synthetic_run import TARGET, gate, stream, view

KINDS = ("stream read", "ffn_gemv", "attention_decode")


def summary(rng: random.Random, slow: float = 1.0, noise: float = 0.004, **facts: Any) -> dict[str, Any]:
    def time() -> list[float]:
        middle = 1e-3 * slow * rng.gauss(1, noise)
        return [middle * (1 - noise / 2), middle, middle * (1 + noise / 2)]

    times = {kind: {f"case{i}": time() for i in range(6)} for kind in KINDS}
    return {"part": "A GPU", "on_gpu": True, "complete": True, "times": times, "facts": facts, "read_roof": 3e12}


def fleet(count: int, seed: int, slow: dict[int, float] | None = None, **facts: Any) -> list[Member]:
    rng = random.Random(seed)
    slow = slow or {}
    return [
        Member(
            node=f"node{i // 8}",
            host=f"host-{i // 8}",
            share=f"gpu{i % 8}",
            slot=f"0000:{i % 8:02x}:00.0",
            serial=f"165{i}",
            summary=summary(rng, slow.get(i, 1.0), **(facts if i in slow else {})),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [2, 3, 8, 40])
def test_an_ordinary_fleet_has_no_outlier_in_twenty_tries(count: int) -> None:
    for seed in range(20):
        verdict = Verdict(members=tuple(fleet(count, seed)))
        assert verdict.outliers == []
        assert verdict.exit_code == 0


@pytest.mark.parametrize("count", [2, 3, 8, 40])
def test_a_slow_share_is_the_only_outlier(count: int) -> None:
    for seed in range(20):
        verdict = Verdict(members=tuple(fleet(count, seed, slow={1: 1.11})))
        assert {each.member.share for each in verdict.outliers} == {"gpu1"}
        assert {each.kind for each in verdict.outliers} == set(KINDS)
        assert verdict.exit_code == 1


def test_a_deviation_is_relative_to_the_others() -> None:
    (slow,) = [d for d in deviations(fleet(8, 0, slow={5: 1.25}))["stream read"] if d.member.share == "gpu5"]
    assert slow.ratio.median == pytest.approx(1.25, rel=0.01)
    assert slow.slower == pytest.approx(0.2, abs=0.01)
    assert slow.cases == 6


def test_what_the_runs_cannot_resolve_is_no_outlier() -> None:
    members = fleet(2, 0, slow={1: 1.11})
    for member in members:
        member.summary["resolution"] = dict.fromkeys(KINDS, 0.2)  # type: ignore[index]
    assert Verdict(members=tuple(members)).outliers == []


def test_a_faster_share_is_no_outlier() -> None:
    verdict = Verdict(members=tuple(fleet(8, 0, slow={5: 0.8})))
    assert verdict.outliers == []


def test_the_sentence_names_host_slot_and_reason() -> None:
    members = fleet(16, 0, slow={13: 1.11}, memory_clock_hz=2.4e9, power_w=500.0)
    for member in members:
        if member.share != "gpu5" or member.node != "node1":
            member.summary["facts"].update(memory_clock_hz=2.619e9, power_w=690.0)
    said = "\n".join(Verdict(members=tuple(members)).lines())
    assert "gpu5 of host-1 (0000:05:00.0) is slower than the others" in said
    assert "by 10%" in said
    assert "Memory clock 2.4 GHz where the fleet has 2.62 GHz" in said
    assert "power 500 W where the fleet has 690 W" in said


def test_a_ticket_has_the_serial_number() -> None:
    (row,) = Verdict(members=tuple(fleet(8, 0, slow={5: 1.11}))).ticket().rows
    assert row[:4] == ("host-0", "gpu5", "0000:05:00.0", "1655")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"pcie_width": 8, "pcie_width_max": 16}, "PCIe lanes 8 of 16"),
        ({"throttled_share": 0.5, "clock_reasons": ["hw_slowdown"]}, "throttled in 50% of the cases (hw_slowdown)"),
        ({"power_capped_share": 1.0}, "held by its power cap in 100% of the cases"),
        ({"ecc_uncorrected": 1}, "1 uncorrected ECC error"),
        ({"pcie_replays": 2}, "2 PCIe replays"),
        ({"nvlink_errors": 3}, "3 NVLink errors"),
        ({"ecc": False}, "ECC is off"),
    ],
)
def test_faults_of_a_board_are_said_whatever_the_others_have(facts: dict[str, Any], said: str) -> None:
    members = fleet(1, 0)
    members[0].summary["facts"].update(facts)
    assert said in peculiarities(members)["node0", "gpu0"]


def test_a_wrong_result_fails_the_fleet() -> None:
    members = fleet(8, 0)
    members[3].summary.update(wrong=1, wrong_example="ffn_gemv B1 triton: wrong")  # type: ignore[attr-defined]
    verdict = Verdict(members=tuple(members))
    assert verdict.exit_code == 1
    assert "gpu3 of host-0 gave wrong or no results: ffn_gemv B1 triton: wrong" in verdict.lines()


def test_a_missing_share_has_an_exit_code_of_its_own() -> None:
    assert Verdict(members=tuple(fleet(7, 0)), missing=("node0/gpu7: signal 9",)).exit_code == 3


def test_all_at_once_is_held_against_alone() -> None:
    verdict = Verdict(members=tuple(fleet(8, 0, slow=dict.fromkeys(range(8), 1.1))), alone=tuple(fleet(8, 1)))
    (line,) = [line for line in verdict.lines() if "stream read" in line]
    assert "all at once against one alone, stream read: +10" in line or "+9." in line


def test_a_full_box_that_throttles_is_told_from_one_board_alone() -> None:
    together, alone = fleet(8, 0), fleet(8, 1)
    for members, clock, power, capped in ((together, 1.5e9, 700.0, 0.75), (alone, 1.98e9, 640.0, 0.0)):
        for member in members:
            facts = {"sm_clock_hz": clock, "power_w": power, "power_capped_share": capped}
            member.summary["facts_by_kind"] = {"gemm_peak": facts}  # type: ignore[index]
        for member in together:
            member.summary["facts_by_kind"]["topk"] = {"sm_clock_hz": 1.98e9, "power_w": 300.0}
    said = Verdict(members=tuple(together), alone=tuple(alone[:4])).lines()
    assert "all at once against one alone, SM clock: 1.5 GHz where it is 1.98 GHz alone" in said
    assert "all at once against one alone, highest power: 700 W where it is 640 W alone" in said
    assert "all at once against one alone, cases held by the power cap: 75% where it is 0% alone" in said
    assert not any("SM clock" in line for line in Verdict(members=tuple(together)).lines())


def test_a_summary_holds_the_fastest_implementation_and_no_sample(tmp_path: Path) -> None:
    records = [stream("read-1GiB", kind="read", read=2**30, seconds=4e-4), gate(0.9), gate(0.8, "torch")]
    run = view(tmp_path, records).run
    found = summarize(run)
    (times,) = found["times"]["ffn_gemv"].values()
    fastest = next(r for r in run.records if r.impl == "triton")
    assert times[1] == fastest.seconds
    assert set(found["times"]) == {"stream read", "ffn_gemv"}
    assert found["part"] == TARGET.name
    assert "samples_s" not in str(found)
    assert (found["wrong"], found["wrong_example"]) == (0, None)


@pytest.mark.parametrize("status", ["wrong", "failed", "timeout"])
def test_a_summary_names_a_case_without_a_right_result(tmp_path: Path, status: str) -> None:
    found = summarize(view(tmp_path, [gate(0.9), replace(gate(0.8, "torch"), status=status, samples_s=[])]).run)
    assert found["wrong"] == 1
    assert found["wrong_example"].endswith(f"torch: {status}")


def test_a_summary_tells_what_the_board_did_for_each_kind_of_work(tmp_path: Path) -> None:
    def told(power: float, clock: float, throttled: bool) -> dict[str, Any]:
        clocks = {"sm_clock_hz": {"min": clock, "median": clock, "max": clock}}
        return {**clocks, "power_w": power, "throttled": throttled, "nvlink_errors": 1, "clock_reasons": []}

    read = replace(
        stream("read-1GiB", kind="read", read=2**30, seconds=4e-4), telemetry=told(500.0, 1.98e9, throttled=False)
    )
    products = [replace(gate(0.9, B=B), telemetry=told(690.0, 1.5e9, throttled=B == 1)) for B in (1, 2)]
    found = summarize(view(tmp_path, [read, *products]).run)
    gemv = {"sm_clock_hz": 1.5e9, "power_w": 690.0, "throttled_share": 0.5, "nvlink_errors": 2}
    assert found["facts_by_kind"]["ffn_gemv"] == gemv
    assert found["facts_by_kind"]["stream read"]["power_w"] == 500.0
    assert (found["facts"]["power_w"], found["facts"]["nvlink_errors"]) == (690.0, 3)
