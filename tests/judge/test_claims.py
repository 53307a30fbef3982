"""All claims: each one is judged, names what was published, and needs no run and no torch."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from string import ascii_uppercase

import pytest

from bench.errors import BadRequest
from bench.inspection.counters import Counted
from bench.judge import claims
from bench.judge.claims import CLAIMS, FIRST, Verdict, find_claim, main_table, scorecard
from bench.judge.claims.base import SOURCES
from kernels.op import discover
from tests.support.claim_records import attend, experts, layer, prompt


@pytest.fixture(scope="module")
def bare() -> dict[str, Verdict]:
    """Verdicts without a single run."""
    return {v.claim.id: v for v in scorecard()}


def test_every_claim_that_is_written_is_judged() -> None:
    written = re.findall(
        r'^    id="(\w+)"', "".join(p.read_text() for p in Path(claims.__path__[0]).glob("*.py")), re.M
    )
    assert sorted(written) == sorted(CLAIMS)
    assert [v.claim.id for v in scorecard()] == list(CLAIMS)


def test_claims_are_numbered_in_order_and_without_a_gap() -> None:
    """A claim that gets lost leaves a gap, or its own tests miss it."""
    letters: dict[str, list[int]] = {}
    for claim_id in CLAIMS:
        letters.setdefault(claim_id.rstrip("0123456789"), []).append(int(claim_id.lstrip(ascii_uppercase)))
    assert list(letters)[: len(FIRST)] == list(FIRST)
    for letter, numbers in letters.items():
        assert numbers == list(range(1, len(numbers) + 1)), letter


IN_WORDS = {"halves": 0.5, "doubles": 2.0}


def test_what_is_judged_is_what_was_published() -> None:
    """Each published number stands in the quoted sentence, in some unit."""
    judged = 0
    for claim in CLAIMS.values():
        text = claim.text
        figures = [float(figure.replace(",", "")) for figure in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]
        figures += [value for word, value in IN_WORDS.items() if word in text]
        for published in claim.published:
            if published.ours:
                continue
            for end in {published.low, published.high} - {0, math.inf}:
                scaled = [end * scale for scale in (1, 100, 1e3, 1e-6, 1e-9, 1e-12, 1e-15)]
                assert any(math.isclose(value, figure) for value in scaled for figure in figures), (text, published)
                judged += 1
    assert judged > 60


def test_every_claim_names_its_source_setting_and_published_numbers() -> None:
    for claim in CLAIMS.values():
        assert set(claim.source.split()) <= SOURCES.keys()
        assert set(claim.how.split()) <= set("MPXSV")
        assert claim.published
        assert claim.text
        assert claim.plain
        assert claim.setting
        assert claim.predict or claim.measure or claim.never, f"{claim.id} has nothing to judge by"
        judged = claim.measure or claim.across or claim.by_others
        assert judged or not claim.needs_measurement or claim.never


def test_without_records_a_claim_to_be_measured_is_not_measured(bare: dict[str, Verdict]) -> None:
    for verdict in bare.values():
        if not verdict.claim.needs_measurement:
            assert verdict.status in ("HOLDS", "FAILS", "DEPENDS")
            assert verdict.status == verdict.predicted_status
            assert not verdict.reason
        else:
            assert verdict.status == "NOT MEASURED"
            assert verdict.reason
        assert verdict.measured is None


def test_a_prediction_is_shown_beside_what_is_not_measured(bare: dict[str, Verdict]) -> None:
    without = [v for v in bare.values() if v.predicted_status is None]
    assert {v.claim.id for v in without} >= {"I8", "M6", "H7"}
    assert all(not v.predicted or any(c.bound for c in v.predicted) for v in without)
    rows = {row[0]: row for row in main_table(list(bare.values()))[1]}
    assert "predicted: HOLDS" in rows["T6"][5]


def test_a_condition_belongs_to_depends(bare: dict[str, Verdict]) -> None:
    for verdict in bare.values():
        if verdict.predicted_status == "DEPENDS":
            assert verdict.predicted_condition
        if verdict.predicted_status == "HOLDS":
            assert not verdict.predicted_condition


def test_nothing_here_loads_torch_or_triton() -> None:
    code = "import sys; from bench.judge import claims; claims.scorecard(); "
    code += "print({'torch', 'triton', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


CASE_FIELDS = {
    "stream": "kind",
    "gemm_peak": "kind M dtype",
    "host_link": "kind",
    "prefill": "kind model B T N K D dtype",
    "ffn_gemv": "model B N K dtype weights",
    "moe_ffn": "model B E k H F routing dtype weights",
    "attention_decode": "model B H_q H_kv D T lengths page layout order dtype kv q_len window sinks softcap prefix",
}
"""The fields of cases that claims read."""


def test_operations_have_the_fields_that_claims_ask_for() -> None:
    """If a field were renamed, each query would find nothing, and claims would be NOT MEASURED for a false reason."""
    case_fields = {op: set(fields.split()) for op, fields in CASE_FIELDS.items()}
    for op, fields in case_fields.items():
        assert fields <= {f.name for f in dataclasses.fields(discover()[op].case_type)}, op
    assert set(layer(1).case) <= case_fields["ffn_gemv"]
    assert set(experts(1).case) <= case_fields["moe_ffn"]
    assert set(attend(64, 8).case) <= case_fields["attention_decode"]
    assert all(set(r.case) <= case_fields["prefill"] for r in prompt(2048))
    names = {f.name for f in dataclasses.fields(Counted)}
    assert {"l2_hit_rate", "dram_read", "dram_written"} <= names


def test_an_unknown_claim_is_refused_with_the_nearest() -> None:
    assert find_claim("i4").id == "I4"
    with pytest.raises(BadRequest, match="I4"):
        find_claim("I44")
