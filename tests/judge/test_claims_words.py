"""How comparisons are settled, and how a verdict is told."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence

import pytest

from bench.judge.claims import CLAIMS, Verdict, as_dict, explain, judge, main_table, scorecard, sentence
from bench.judge.claims.base import SOURCES, Bound, Claim, Comparison, Published, number
from bench.judge.claims.crossings import crossings
from bench.judge.claims.settings import describe, phrase
from bench.judge.claims.settle import judge_claim, settle
from bench.judge.claims.words import amount, between, in_words, value_text
from tests.support.claim_records import attend, full_run, gemm, read, run


@pytest.fixture(scope="module")
def bare() -> dict[str, Verdict]:
    """Verdicts without a single run."""
    return {v.claim.id: v for v in scorecard()}


# --------------------------------------------------------------------------------------------------- how it is settled


def comparisons(published: Iterable[Published], table: dict[tuple[str, str], float]) -> list[Comparison]:
    return [
        Comparison(published=p, value=value, setting={"a": a, "b": b}, how="made up")
        for p in published
        for (a, b), value in table.items()
    ]


TEN = number("ten", 10, "x", 0.1)


def test_a_number_that_fits_everywhere_somewhere_nowhere() -> None:
    assert settle(comparisons([TEN], {("1", "x"): 9.1, ("2", "x"): 11})) == ("HOLDS", "")
    assert settle(comparisons([TEN], {("1", "x"): 8.9, ("2", "x"): 11})) == ("DEPENDS", "a 2")
    assert settle(comparisons([TEN], {("1", "x"): 8.9, ("2", "x"): 11.1})) == ("FAILS", "")


def test_two_numbers_must_fit_in_the_same_setting() -> None:
    twenty = number("twenty", 20, "x", 0.1)
    apart = [
        Comparison(published=TEN, value=10, setting={"a": "1"}, how=""),
        Comparison(published=twenty, value=10, setting={"a": "1"}, how=""),
        Comparison(published=TEN, value=20, setting={"a": "2"}, how=""),
        Comparison(published=twenty, value=20, setting={"a": "2"}, how=""),
    ]
    status, condition = settle(apart)
    assert status == "FAILS"
    assert condition == "taken alone, ten fits: a 1; taken alone, twenty fits: a 2"


def test_a_condition_is_the_block_or_the_pieces() -> None:
    grid = [{"a": a, "b": b} for a in "12" for b in "xyz"]
    assert describe([s for s in grid if s["b"] != "z"], grid) == "b x or y"
    assert describe([s for s in grid if s["a"] == "1" and s["b"] != "z"], grid) == "a 1, b x or y"
    odd = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    assert describe(odd, grid) == "a 1, b x | a 2, b y"


def described(values: str, tried: str, factor: str = "batch") -> str:
    return describe([{factor: v} for v in values.split()], [{factor: v} for v in tried.split()])


def test_numbers_are_ranges_with_what_was_tried_beside_them() -> None:
    grid = "1 64 256 512 1024"
    assert described("1 64 256", grid) == "batch 1 to 256 (tried 1, 64, 256; next tried: 512)"
    assert described("64 256", grid) == "batch 64 to 256 (next tried: 1, 512)"
    assert described("256 512 1024", grid) == "batch 256 to 1,024 (tried 256, 512, 1,024; next tried: 64)"
    assert described("64", grid) == "batch 64 (next tried: 1, 256)"
    assert described("1 256", grid) == "batch 1 or 256", "64 was tried and is none"
    assert described("1", "1 2") == "batch 1", "two numbers make no range"
    assert described("bf16 fp8 int4", "bf16 fp8 int4 fp32", "weights") == "weights bf16, fp8 or int4"


def test_factors_are_said_in_words(bare: dict[str, Verdict]) -> None:
    assert described("2048 4096", "128 2048 4096", "context") == "a context of 2,048 to 4,096 tokens (next tried: 128)"
    assert described("MLA", "MLA GQA", "kind") == "MLA"
    assert "MLA, against DeepSeek 67B, which has GQA, 6 bits (next tried: 8)" in bare["K4"].predicted_condition
    assert "the latency, batch 1" in bare["T4"].predicted_condition


def along(values: dict[str, float], published: Published = TEN, **more: str) -> list[Comparison]:
    return [
        Comparison(published=published, value=value, setting={"tokens": at, **more}, how="")
        for at, value in values.items()
    ]


def test_a_crossing_lies_between_the_numbers_that_were_tried() -> None:
    """Proportional to the tokens: 10 at 2,000. With the square root, 10 at 4,000. A band has two ends."""
    line = along({"1000": 5, "4000": 20, "16000": 80})
    assert crossings(line) == ["ten passes the published number near 2,000 tokens"]
    other = along({"1000": 5, "16000": 20, "64000": 40}, part="slow")
    assert crossings([*line, *other]) == ["ten passes the published number near 2,000 and 4,000 tokens"]
    band = along({"1000": 1, "2000": 3, "8000": 9}, Published(what="band", low=2, high=4, unit="x"))
    assert crossings(band) == ["band passes an end of the published range near 1,500 and 2,900 tokens"]


def test_no_crossing_is_told_where_values_turn_or_nothing_is_crossed() -> None:
    assert crossings(along({"1000": 5, "4000": 20, "16000": 5})) == []
    assert crossings(along({"1000": 10, "4000": 20, "16000": 40})) == [], "it begins there"
    assert crossings(along({"1000": 20, "4000": 30, "16000": 40})) == []
    assert crossings(along({"1000": 5, "4000": 20})) == [], "two numbers are no line"


def test_the_crossing_of_the_cache_is_in_its_sentence(bare: dict[str, Verdict]) -> None:
    """5 times at 2,928 tokens."""
    found = crossings(bare["I13"].predicted)
    assert found == ["speed-up by the KV cache passes the published number near 2,900 tokens"]
    assert sentence(bare["I13"]).endswith(f". The {found[0]}.")
    assert f"Crossing: {found[0]}" in explain(bare["I13"])
    assert as_dict(bare["I13"])["crossings"] == found


def test_a_condition_ends_with_the_numbers_that_fit_nowhere() -> None:
    parts = [
        Comparison(published=p, value=value, setting={"the": p.what}, how="")
        for p, value in ((TEN, 10), (number("twenty", 20, "x", 0.1), 30), (number("thirty", 30, "x", 0.1), 30))
    ]
    assert settle(parts) == ("DEPENDS", "the ten or thirty; no setting fits twenty")


BAND = Published(what="band", low=2, high=4, unit="x", tolerance=0)
AT_LEAST = Published(what="at least", low=2, high=math.inf, unit="x", tolerance=0)
AT_MOST = Published(what="at most", low=0, high=4, unit="x", tolerance=0)


@pytest.mark.parametrize(
    ("published", "bound", "expected"),
    [
        (BAND, "upper", (False, None, None)),
        (BAND, "lower", (None, None, False)),
        (AT_LEAST, "upper", (False, None, None)),
        (AT_LEAST, "lower", (None, True, True)),
        (AT_MOST, "upper", (True, True, None)),
        (AT_MOST, "lower", (None, None, False)),
        (BAND, "", (False, True, False)),
    ],
    ids=lambda value: value.what if isinstance(value, Published) else None,
)
def test_a_bound_decides_only_beyond_an_end_or_where_there_is_none(
    published: Published, bound: Bound, expected: tuple[bool | None, ...]
) -> None:
    found = [Comparison(published=published, value=value, how="", bound=bound) for value in (1, 3, 5)]
    assert tuple(c.holds for c in found) == expected


def bounded(bound: Bound, *table: float) -> list[Comparison]:
    return [Comparison(published=BAND, value=v, setting={"a": f"{v:g}"}, how="", bound=bound) for v in table]


def test_what_bounds_leave_open_is_neither_a_fit_nor_a_failure() -> None:
    assert settle(bounded("upper", 1)) == ("FAILS", "")
    assert settle(bounded("upper", 1, 3, 5)) == (None, "an upper bound leaves open: band (a 3 to 5 (next tried: 1))")
    assert settle(bounded("lower", 1)) == (None, "a lower bound leaves open: band")
    mixed = settle([*bounded("", 3), *bounded("upper", 5)])
    assert mixed == ("DEPENDS", "a 3; an upper bound leaves open: band (a 5)")


def judged_by_model(plain: str, predicted: Sequence[Comparison]) -> Verdict:
    """The verdict of a claim that these predictions alone decide."""
    published = tuple({c.published.what: c.published for c in predicted}.values())
    fields = {"id": "Z1", "text": "", "source": "", "how": "P", "setting": ""}
    claim = Claim(**fields, plain=plain, published=published, predict=lambda: predicted)
    return judge_claim(claim, [])


def test_a_claim_that_bounds_leave_open_says_so() -> None:
    verdict = judged_by_model("A band", bounded("upper", 3, 5))
    assert (verdict.status, verdict.predicted_status, verdict.condition) == ("NOT MEASURED", None, "")
    assert verdict.reason == "an upper bound leaves open: band"
    assert sentence(verdict) == (
        "A band: not measured here (an upper bound leaves open: band); no calculation decides it."
    )
    told = explain(verdict)
    assert "Predicted: left open by bounds" in told
    assert "a 5: band at most 5x (left open)" in told
    assert [(c["bound"], c["fits"]) for c in as_dict(verdict)["predicted"]] == [("upper", None)] * 2


def test_open_ends_and_zero_tolerance() -> None:
    more = Published(what="more", low=1.5, high=math.inf, unit="x", tolerance=0)
    assert more.covers(1e9)
    assert more.covers(1.5)
    assert not more.covers(1.499)


# ------------------------------------------------------------------------------------------------------------- in words


def test_json_has_no_infinity_and_holds_everything() -> None:
    for verdict in scorecard([full_run()]):
        told = json.loads(json.dumps(as_dict(verdict), allow_nan=False))
        assert told["id"] == verdict.claim.id
        assert told["status"] == verdict.status
        assert len(told["predicted"]) == len(verdict.predicted)


@pytest.mark.parametrize(
    ("low", "high", "unit", "said"),
    [
        (1, 59, "requests", "1 to 59 requests"),
        (0.2, 1, "requests", "0.2 to 1 request"),
        (1, 1, "requests", "1 request"),
        (0.468, 29.1, "J", "0.468 to 29.1 J"),
        (1e-3, 2e-3, "s", "1 to 2 ms"),
        (1e-6, 1e-3, "s", "1 µs to 1 ms"),
        (2, 4, "x", "2x to 4x"),
        (0.2, 0.4, "", "20% to 40%"),
        (0.45, 29, "$", "$0.45 to $29.00"),
        (1, math.inf, "requests", "1 request to ∞"),
    ],
)
def test_a_range_says_its_unit_once_and_one_of_it_is_singular(low: float, high: float, unit: str, said: str) -> None:
    assert between(low, high, unit) == said


@pytest.mark.parametrize(
    ("value", "said"), [(1.0009, "1.001x"), (1.00004, "1.00004x"), (1, "1x"), (0.9996, "1x"), (1.5, "1.5x")]
)
def test_a_miss_is_told_with_the_digits_that_show_it(value: float, said: str) -> None:
    least = Published(what="", low=0, high=1, unit="x", tolerance=0)
    assert value_text(Comparison(published=least, value=value, how="")) == said


def test_the_h200_misses_by_a_thousandth(bare: dict[str, Verdict]) -> None:
    """141.1 GB of weights do not fit into 141 GB."""
    assert "16-bit weights of 70B over the memory of one part 1.001x (off)" in explain(bare["T2"])


def test_zero_and_many_are_plural() -> None:
    assert [amount(n, "requests") for n in (0, 1, 3840)] == ["0 requests", "1 request", "3,840 requests"]


def test_sources_are_titles_that_a_reader_can_find() -> None:
    assert not [s.title for s in SOURCES.values() if ".txt" in s.title or "(" in s.title]


def test_a_claim_that_fails_says_by_how_much(bare: dict[str, Verdict]) -> None:
    """Two H200 hold 13 requests where 15 were published, which is 2 of 15 fewer."""
    told = sentence(bare["K5"])
    assert told.endswith(
        "15 requests. The closest calculated value is 13 requests, 13.3% below it; the tolerance is 10%."
    )
    fails = [v for v in bare.values() if v.status == "FAILS"]
    assert len(fails) > 1
    assert all("it; the tolerance is" in sentence(v) for v in fails)


def test_what_is_denied_is_what_was_judged(bare: dict[str, Verdict]) -> None:
    """A "no" to a sentence without a number would deny more than the published numbers say."""
    fails = [v for v in bare.values() if v.status == "FAILS"]
    assert fails
    for verdict in fails:
        assert any(character.isdigit() for character in sentence(verdict).split(": no.")[0]), verdict.claim.id
    assert all(f"{batch}" in bare["K5"].claim.plain for batch in (4, 15, 25))


def test_a_condition_is_said_with_the_words_that_its_factor_wants(bare: dict[str, Verdict]) -> None:
    """`on two parts`, `without a prefix`, `where ...`: not `for parts 2`, `for without ...`, `for keeps a state`."""
    assert in_words("parts 2 | where it rains | on 1 part, batch 8 | and 3 more") == (
        "for parts 2, and where it rains, and on 1 part, batch 8, and for 3 more"
    )
    assert phrase("parts", ["2"]) == "on 2 parts"
    assert phrase("parts", ["1"]) == "on 1 part"
    assert phrase("parts", ["3 x NVIDIA H100 SXM"]) == "on 3 x NVIDIA H100 SXM"
    assert sentence(bare["S1"]).endswith("it holds only for a model that keeps a state.")
    for verdict in bare.values():
        said = sentence(verdict)
        assert not re.search(r"\bfor (of|on|where|without|by|keeps|part|parts|device) ", said), said
        assert not re.search(r"measured by others value|; [^;.]* (passes|crosses) ", said), said


def test_conditions_are_joined_by_words(bare: dict[str, Verdict]) -> None:
    assert not [v.claim.id for v in bare.values() if "|" in sentence(v)]
    assert sentence(bare["H3"]).startswith(
        f"{bare['H3'].claim.plain}: by calculation it holds only for the memory of NVIDIA Rubin R200, and for the "
    )
    assert "a hit rate of 0.99, and for 3 more." in sentence(bare["M3"])


def test_a_sentence_and_the_table_count_gpus_alone() -> None:
    gpu = run(attend(64, 8), attend(64, 8, kv="fp8"))
    cpu = run(attend(64, 8), attend(64, 8, kv="fp8", time=1.9), device="Xeon", kind="cpu")
    verdict = judge("T6", [gpu, cpu])
    assert sentence(verdict).endswith(": yes, measured 0.5x.")
    assert main_table([verdict])[1][0][4] == "0.5x"
    assert "0.95x (off)" in explain(verdict)


def failing(*comparisons: Comparison) -> str:
    verdict = judged_by_model("Ten", comparisons)
    assert verdict.status == "FAILS"
    return sentence(verdict)


def test_numbers_that_never_fit_together_name_the_nearest_setting() -> None:
    """At `a 1` the value for twenty is 10, half as much. At `a 2` the value for ten is 12, a fifth more."""
    twenty = number("twenty", 20, "x", 0.1)
    told = failing(
        Comparison(published=TEN, value=10, setting={"a": "1"}, how=""),
        Comparison(published=twenty, value=10, setting={"a": "1"}, how=""),
        Comparison(published=TEN, value=12, setting={"a": "2"}, how=""),
        Comparison(published=twenty, value=20, setting={"a": "2"}, how=""),
    )
    assert told == (
        "Ten: no. Each of its numbers fits at some setting, but no setting fits all of them. Published for ten: 10x. "
        "At the nearest setting (a 2) the value is 12x, 20% above it; the tolerance is 10%."
    )


def test_a_range_is_missed_by_the_distance_from_its_end() -> None:
    band = Published(what="band", low=2, high=4, unit="x", tolerance=0)
    off = [Comparison(published=band, value=value, setting={"a": str(value)}, how="") for value in (1.0, 5.0)]
    assert failing(*off).endswith("2x to 4x. The closest calculated value is 5x, 25% above it; the tolerance is 0%.")
    share = Published(what="share", low=0, high=0.05, unit="", tolerance=0)
    told = failing(Comparison(published=share, value=-0.1, how=""))
    assert told.endswith("at most 5%. The closest calculated value is -10%, below it; the tolerance is 0%.")


def test_an_explanation_names_source_numbers_records_and_verdict() -> None:
    text = explain(judge("I3", [run(read(3.0e12), gemm(600e12))]))
    for part in (
        "I3  DEPENDS",
        "Source: [A] the AI-infrastructure and datacenter primer",
        "295 FLOP/B",
        "200 FLOP/B",
        "gemm_peak/ours",
        "run r1",
        "tolerance 15%",
    ):
        assert part in text


def test_a_number_that_this_project_chose_is_marked(bare: dict[str, Verdict]) -> None:
    chosen = "at most 5% (tolerance 0%; the text says it in words, and this project chose the number)"
    assert chosen in explain(bare["T3"])
    assert "chose" not in explain(bare["I3"])


def test_a_missing_number_is_named(bare: dict[str, Verdict]) -> None:
    assert "Rubin CPX" in bare["H3"].gap
    assert "bandwidth of NVIDIA Rubin CPX" in explain(bare["H3"])


def test_the_table_has_one_row_a_claim_and_only_text() -> None:
    headers, rows = main_table(scorecard([full_run()]))
    assert [row[0] for row in rows] == list(CLAIMS)
    assert {len(row) for row in rows} == {len(headers)}
    assert all(isinstance(cell, str) for row in rows for cell in row)
