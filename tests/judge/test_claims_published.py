"""Claims judged by what others published: whose evidence goes first, which rows count, and that rows decide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bench.judge import published
from bench.judge.claims import CLAIMS, COMMITTED, as_dict, explain, judge, scorecard, sentence
from bench.judge.claims.base import SOURCES
from bench.judge.claims.drafts import static_waste
from bench.judge.claims.experts import idle_share
from bench.judge.claims.kv_traffic import kept_hits
from bench.judge.claims.others import Others
from bench.judge.claims.parts import predict_e1
from bench.judge.claims.traces import OUTPUTS, PROMPTS, shared_prefixes
from bench.judge.claims.words import evidence_text
from bench.judge.published.table import Table
from tests.support.claim_records import attend, layer, read, run

BY_OTHERS = (
    *("I1", "I2", "I4", "I5", "I7", "I9", "I10", "I12", "I15", "I19", "S1", "S2", "X1", "X2"),
    *("T1", "T2", "T3", "T4", "T6", "T7", "T8", "T11", "M1", "M5", "M7"),
)


@pytest.fixture(scope="module")
def verdicts():
    return {v.claim.id: v for v in scorecard(others=COMMITTED)}


def test_all_claims_of_both_lists_are_judged(verdicts):
    letters = {"I": 20, "T": 15, "K": 13, "M": 12, "H": 12, "E": 2, "S": 3, "X": 2}
    assert list(CLAIMS) == [f"{letter}{n}" for letter, count in letters.items() for n in range(1, count + 1)]
    assert len(verdicts) == 79
    unjudged = [v for v in verdicts.values() if v.status == "NOT MEASURED"]
    assert len(unjudged) <= 25
    assert all(v.reason and not v.by for v in unjudged)


@pytest.mark.parametrize("claim", BY_OTHERS)
def test_a_published_verdict_names_its_rows(verdicts, claim: str):
    verdict = verdicts[claim]
    assert verdict.status in ("HOLDS", "FAILS", "DEPENDS")
    assert verdict.by == "PUBLISHED"
    assert verdict.rows
    known = set(published.load().names["source"]) | {"silicon_sample.csv"}
    assert all(rows.count > 0 and rows.version and rows.source in known for rows in verdict.rows)
    assert evidence_text(verdict).startswith("PUBLISHED: ")
    assert "Evidence: PUBLISHED" in explain(verdict)
    assert as_dict(verdict)["rows"][0].keys() == {"part", "software", "version", "source", "count"}


def test_every_verdict_says_by_whose_evidence(verdicts):
    assert {v.by for v in verdicts.values()} == {"PUBLISHED", "PREDICTED", ""}
    assert all(bool(v.by) == (v.status != "NOT MEASURED") for v in verdicts.values())
    assert all(sentence(v) for v in verdicts.values())


def test_sources_can_be_found():
    for source in SOURCES.values():
        assert source.title in str(source)
        assert source.file.endswith(".txt")
        assert source.kind
        assert source.date


def test_without_published_rows_nothing_is_judged_by_them():
    assert not any(v.published for v in scorecard())
    assert judge("T6").status == "NOT MEASURED"


def test_our_own_run_goes_before_what_others_published():
    measured = run(layer(1), layer(1, weights="fp8"))
    theirs, ours = judge("T4", others=COMMITTED), judge("T4", [measured], COMMITTED)
    assert (theirs.by, ours.by) == ("PUBLISHED", "MEASURED")
    assert not ours.published
    assert not ours.rows


def changed(op: str, factor: float, **fields: object) -> Others:
    """The committed rows, those of one operation and these fields slower by a factor."""
    table = published.load()
    which = table["op"] == table.code("op", op)
    for name, value in fields.items():
        which &= table[name] == (table.code(name, str(value)) if name in table.names else value)
    seconds = np.where(which, table["seconds"] * factor, table["seconds"])
    return Others(dataclasses.replace(table, columns={**table.columns, "seconds": seconds}))


def test_changed_rows_change_verdicts():
    """An fp8 cache that took twice as long would halve nothing, and one of half the time would."""
    assert judge("T6", others=COMMITTED).status == "DEPENDS"
    slower = judge("T6", others=changed("attention_decode", 2.0, stored="fp8"))
    assert slower.status == "FAILS"
    flat = changed("attention_decode", 3.0, B=64)
    assert judge("I15", others=COMMITTED).condition == "without a shared prefix"
    assert judge("I15", others=flat).status == "FAILS" or "MLA" in judge("I15", others=flat).condition
    cost = [judge("M1", others=o).published[0].value for o in (COMMITTED, changed("ffn_gemv", 2.0, stored="bf16"))]
    assert cost[1] == pytest.approx(2 * cost[0])


def test_rows_faster_than_the_part_allows_do_not_count():
    """At a tenth of their time, bf16 products on an H100 are impossible, and nothing is left to judge T1 by."""
    verdict = judge("T1", others=changed("ffn_gemv", 0.1, stored="bf16", part="h100-sxm"))
    assert verdict.status == "NOT MEASURED"
    assert "no cold row of a bf16 product at batch 1" in verdict.reason


def test_without_rows_of_the_operation_the_reason_is_told():
    table = published.load()
    none = Others(table.take(np.flatnonzero(table["op"] != table.code("op", "attention_decode"))))
    verdict = judge("T6", others=none)
    assert verdict.status == "NOT MEASURED"
    assert "published attention with its cache both in bf16 and in fp8" in verdict.reason


def rows(**columns: list[object]) -> Table:
    """A table of products on an H100 from these columns; the others are as in the committed one."""
    base = published.load()
    count = len(next(iter(columns.values())))
    made = {name: np.zeros(count, dtype=values.dtype) for name, values in base.columns.items()}
    fixed = {"op": "ffn_gemv", "part": "h100-sxm", "software": "vllm", "stored": "bf16", "activations": "bf16"}
    for name, value in {**fixed, "cache": "cold", **columns}.items():
        values = value if isinstance(value, list) else [value] * count
        codes = [base.code(name, v) for v in values] if name in base.names else values
        made[name] = np.array(codes, dtype=made[name].dtype)
    return dataclasses.replace(base, columns=made)


def test_the_time_of_a_token_by_hand():
    """16384 x 16384 weights in 0.2 ms are 0.745 ps a weight: 69.5e9 weights take 51.8 ms."""
    verdict = judge("T1", others=Others(rows(B=[1, 1], N=[16384, 16384], K=[16384, 16384], seconds=[2e-4, 3e-4])))
    assert verdict.published[0].value == pytest.approx(51.8e-3, rel=0.01)
    assert [r.count for r in verdict.rows] == [1], "of several rows of one case, the fastest counts"


def test_idle_experts_by_hand():
    assert idle_share(256, 32, 0.0, "in turn") == pytest.approx(0)
    harmonic = [1 / r for r in range(1, 9)]
    assert idle_share(8, 8, 1.0, "in turn") == pytest.approx(1 - sum(harmonic) / 8)
    assert idle_share(8, 2, 1.0, "in blocks") == pytest.approx(1 - sum(harmonic) / 2 / sum(harmonic[:4]))


def test_simulations_by_hand():
    assert static_waste(16, [7]) == 0
    assert static_waste(1, [1, 100]) == 0
    assert static_waste(2, [1, 3]) == pytest.approx(1 / 2 * (1 - 2 / 3), rel=0.2)
    assert kept_hits([15, 15]) == 0
    assert kept_hits([40, 40]) == pytest.approx(32 / 40)


def test_published_traces_by_hand():
    """The mean that its publisher gives: 343 outputs of Mooncake's conversations, 12,035 tokens of a prompt; and those
    of Azure's files: 2,048 tokens of code, 1,155 of conversations."""
    means = {name: sum(outputs) / len(outputs) for name, outputs in OUTPUTS.items()}
    assert means["conversations (Mooncake)"] == pytest.approx(343, rel=0.01)
    assert [round(sum(prompts) / 100, -1) for prompts in PROMPTS.values()] == [2050, 1150]
    tables = [*OUTPUTS.values(), *PROMPTS.values()]
    assert all(len(lengths) == 100 and list(lengths) == sorted(lengths) for lengths in tables)
    prefixes = shared_prefixes(10_000)
    assert prefixes == shared_prefixes(10_000)
    assert sum(prefixes) / len(prefixes) == pytest.approx(0.374 * 12_035 + 255.5, rel=0.1)


def test_the_share_of_energy_of_bytes_by_hand():
    """At batch 1, 1 FLOP a byte: 31.4 pJ against at most 700 W / 989 TFLOP/s = 0.71 pJ."""
    assert predict_e1()[0].value == pytest.approx(31.36 / (31.36 + 0.708), rel=0.01)
    assert [each.value >= 0.5 for each in predict_e1()] == [True, True, False, False]


def test_attention_that_writes_its_scores_is_compared_by_counted_bytes() -> None:
    fused = attend(32, 8, counters={"dram_read": 1e9, "dram_written": 0.0})
    whole = dataclasses.replace(fused, impl="torch-math", counters={"dram_read": 2e9, "dram_written": 1e9})
    verdict = judge("I20", [run(read(), fused, whole)])
    assert verdict.measured
    assert [each.value for each in verdict.measured] == [3.0]
    assert judge("I20", [run(read(), fused)]).status == "NOT MEASURED"
