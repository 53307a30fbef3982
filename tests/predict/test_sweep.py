"""Many settings at once: what fits, what it costs, and which is best; and how a terminal shows them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.errors import BadRequest
from bench.predict import sweep
from bench.terminal.screen import lines_of
from tests.support.terminal import on_a_terminal

ASKED: dict[str, Any] = {
    "model": "llama-3.1-70b",
    "config": None,
    "parts": ["h100-sxm", "h200"],
    "batches": [1, 64],
    "contexts": [4096],
}


def test_every_combination_is_a_row() -> None:
    found = sweep.sweep(**ASKED | {"contexts": [1024, 4096], "devices": [2, 4]}, weights=["bf16", "fp8"])
    assert len(found) == 2 * 2 * 2 * 2 * 2
    headers, lines = sweep.table(found)
    assert headers[:4] == ["part", "context", "weights", "batch"]
    assert {line[1] for line in lines} == {"1,024", "4,096"}
    with pytest.raises(BadRequest, match="more than 5,000 settings"):
        sweep.sweep(**ASKED | {"batches": list(range(1, 2000)), "devices": [1, 2]})


def test_busy_shares_and_drafts_by_hand() -> None:
    """At batch 1 the floor's memory is always busy, and arithmetic for intensity / ridge of the time; five tokens a
    request move the same weights and compute five times as much."""
    plain = ASKED | {"parts": ["h200"], "batches": [1]}
    one, five = sweep.sweep(**plain, drafts=[0, 4])
    work = {name: sum(op[name] for op in one["ops"]) for name in ("bytes",)}
    flops = sum(sum(op["flops"].values()) for op in one["ops"])
    assert one["mbu"] == pytest.approx(1)
    assert one["mfu"] == pytest.approx(flops / 989.5e12 / (work["bytes"] / 4.8e12), rel=1e-3)
    assert (one["drafts"], five["drafts"]) == (0, 4)
    assert five["mfu"] == pytest.approx(5 * one["mfu"], rel=0.02)
    assert five["seconds"] < 1.02 * one["seconds"]
    headers, lines = sweep.table([one, five])
    assert [line[headers.index("drafts")] for line in lines] == ["0", "4"]
    (expected,) = sweep.sweep(**plain, expect=True)
    headers, ((*cells,),) = sweep.table([expected])
    assert cells[headers.index("MBU")] == f"{100 * expected['seconds'] / expected['expected_seconds']:.0f}%"


def test_what_does_not_fit_has_no_price_and_names_the_split_that_does() -> None:
    """141 GB of weights: two H100s hold 144 GB less nothing for 64 requests of 1.34 GB; four hold 288 GB."""
    found = sweep.sweep(**ASKED, prices=2.5)
    by = {(row["device"], row["batch"]): row for row in found}
    assert by["h100-sxm", 1]["smallest_devices"] == 2
    assert by["h100-sxm", 64]["smallest_devices"] == 4
    assert by["h100-sxm", 1]["dollars_per_million_tokens"] is None
    headers, lines = sweep.table(found)
    assert [line[headers.index("fits")] for line in lines] == ["NO: --tp 2", "NO: --tp 4", "NO: --tp 2", "NO: --tp 2"]
    fitting = sweep.sweep(**ASKED | {"parts": ["h100-sxm"]}, devices=[4], prices=2.5)
    assert all(row["fits"] and row["dollars_per_million_tokens"] > 0 for row in fitting)


def test_the_split_that_is_named_fits_and_the_one_below_does_not() -> None:
    found = sweep.sweep(**ASKED | {"parts": ["h100-sxm"], "batches": [200]})[0]
    needed = found["smallest_devices"]
    at = {n: sweep.sweep(**ASKED | {"parts": ["h100-sxm"], "batches": [200]}, devices=[n])[0]["fits"] for n in (4, 8)}
    assert needed == 8
    assert at == {4: False, 8: True}


def test_prices_are_those_of_each_part() -> None:
    assert sweep.read_prices("2.5") == 2.5
    prices = sweep.read_prices("h100-sxm=2.5, h200=3.5")
    assert prices == {"h100-sxm": 2.5, "h200": 3.5}
    found = sweep.sweep(**ASKED, devices=[4], prices=prices)
    by = {(row["device"], row["batch"]): row for row in found}
    for part, dollars in (("h100-sxm", 2.5), ("h200", 3.5)):
        row = by[part, 64]
        assert row["dollars_per_million_tokens"] == pytest.approx(4 * dollars / 3600 * 1e6 / row["tokens_per_second"])
    for text, message in (("x", "neither"), ("h100-sxm=2,3", "names no part"), ("h999=2", "unknown device")):
        with pytest.raises(BadRequest, match=message):
            sweep.read_prices(text)


def test_the_best_setting_under_a_limit() -> None:
    found = sweep.sweep(**ASKED, devices=[1, 4], prices={"h100-sxm": 2.5, "h200": 2.6})
    said = sweep.best_under(found, 0.050)
    assert said.startswith("best under 50 ms a token: 4 x h200, batch 64, ")
    assert "a million output tokens" in said
    assert sweep.best_under(found, 1e-3) == "no setting fits and takes at most 1 ms a token"
    unpriced = sweep.sweep(**ASKED, devices=[4])
    assert sweep.best_under(unpriced, 0.050).endswith("token/s and part")


def test_tables_for_other_programs() -> None:
    rows = [["a|b", 'say "x"', "1,342"]]
    assert lines_of("csv", ["p", "q", "r"], rows) == ["p,q,r", '"a|b"'.strip('"') + ',"say ""x""","1,342"']
    assert lines_of("md", ["p", "q", "r"], rows)[2] == r'| a\|b | say "x" | 1,342 |'


@pytest.mark.parametrize(("columns", "least"), [(80, False), (120, True)])
def test_a_terminal_gets_whole_columns_by_importance(columns: int, least: bool) -> None:
    said = on_a_terminal(columns, "predict", "--model", "llama-3.1-70b", "--part", "h200", "--tp", "4", "--floor")
    assert "\x1b" not in said, "NO_COLOR"
    lines = said.splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("llama-3.1-70b, weights"))
    table = lines[:end]
    assert all(len(line) <= columns for line in table)
    header = " ".join(line for line in table if not line.startswith("4 x h200")).split()
    assert {"part", "batch", "ms/token", "fits"} <= set(header)
    assert header.count("ms/token") == 1, "the header is said once"
    assert ("out:in" in header) is least
    rows = [line.split() for line in table if line.startswith("4 x h200")]
    assert [row[3] for row in rows] == ["1", "8", "64", "256"]
    assert len({len(row) for row in rows}) == 1, "no cell is split"
