"""Ours beside peers, worked by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench.judge import peers
from tests.support.synthetic_run import gate, measured_view, pair, samples


def test_the_fastest_peer_of_each_case_counts_and_the_mean_is_geometric(tmp_path: Path) -> None:
    """Ours is at 80%. Peers are at 40% and 20% in one case (ratios 2 and 4), and at 160% in the other (0.5): mean 1."""
    one = [gate(0.8), gate(0.4, "torch"), gate(0.2, "slow")]
    records = [*one, gate(0.8, B=2), gate(1.6, "torch", B=2)]
    found = measured_view(tmp_path, records)
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
        noisy = dataclasses.replace(gate(0.4, "torch"), samples_s=samples(1e-3, spread=spread))
        mean = peers.geometric_mean(peers.fastest(measured_view(tmp_path / where, [gate(0.8), noisy])))
        return mean.high - mean.low

    assert width(0.2, "loud") > 5 * width(0.002, "quiet")


def test_a_peer_that_was_timed_too_short_is_not_the_fastest(tmp_path: Path) -> None:
    records = [gate(0.8), gate(0.4, "torch"), gate(3.0, "broken", flags=["impossible"])]
    (only,) = peers.fastest(measured_view(tmp_path, records))
    assert only.peer.record.impl == "torch"


def test_one_sample_has_no_interval(tmp_path: Path) -> None:
    once = dataclasses.replace(gate(0.4, "torch"), samples_s=[1e-3])
    mean = peers.geometric_mean(peers.fastest(measured_view(tmp_path, [gate(0.8), once])))
    assert mean.high == float("inf")


def test_what_the_run_cannot_resolve_makes_nobody_faster(tmp_path: Path) -> None:
    """Ours is ahead by 10%, 4% and 0.5%, and behind by 4%. The same thing measured twice differed by 5%."""
    leads = {1: 1.10, 2: 1.04, 3: 1.005, 4: 1 / 1.04}
    records = [r for B, lead in leads.items() for r in (gate(0.8, B=B), gate(0.8 / lead, "torch", B=B))]

    def decided(where: str, notes: list[dict[str, Any]]) -> tuple[list[str], tuple[str, ...]]:
        found = measured_view(tmp_path / where, records, notes=notes)
        (row,) = peers.by_peer(found).rows
        return [row[5] for row in peers.by_case(found).rows], tuple(row[2:5])

    assert decided("alone", []) == (["ours", "ours", "undecided", "peer"], ("4", "2", "1"))
    pairs = [pair(samples(1e-4), samples(2e-4), "moe_ffn"), pair(samples(1e-4), samples(1.05e-4))]
    assert decided("paired", pairs) == (["ours", "undecided", "undecided", "undecided"], ("4", "1", "0"))
