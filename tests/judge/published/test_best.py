"""The best published time beside a case of ours."""

from __future__ import annotations

import pytest

from bench.judge import published
from bench.judge.published import best as records
from bench.judge.published.best import best, of_suite
from bench.judge.published.work import IMPOSSIBLE
from kernels.op import discover

GEMV = {"B": 64, "N": 8192, "K": 8192, "dtype": "bf16", "weights": "", "activations": ""}


def a_published_case() -> tuple[str, dict[str, object], float]:
    """Our operation and case of a committed cold row of bf16 attention on an H100, and its fastest time by hand."""
    rows = published.load().where(op="attention_decode", part="h100-sxm", stored="bf16", cache="cold")
    found = published.case_of(rows, len(rows) // 2)
    assert found
    op, case = found
    fields = case.as_dict()
    same = rows.where(**{name: fields[name] for name in ("B", "H_q", "H_kv", "D", "T", "window")})
    floor = published.work(same).seconds
    return op, fields, float(same["seconds"][floor <= IMPOSSIBLE * same["seconds"]].min())


def test_the_same_case_has_the_fastest_of_its_times() -> None:
    op, fields, seconds = a_published_case()
    found = best("h100-sxm", op, fields)
    assert found
    assert found.exact
    assert found.seconds == pytest.approx(seconds)
    assert found.over(seconds / 2, seconds / 4) == pytest.approx(2.0)
    assert "same case" in found.line


def test_another_size_is_named_and_compared_by_its_share_of_the_floor() -> None:
    op, fields, _ = a_published_case()
    found = best("h100-sxm", op, fields | {"T": int(fields["T"] * 1.1)})  # type: ignore[call-overload]
    assert found
    assert not found.exact
    assert 0 < found.distance < 1
    assert f"T {fields['T']}" in found.differs
    assert found.over(found.seconds, found.seconds * found.share) == pytest.approx(1.0)


def test_ragged_lengths_are_not_the_same_case() -> None:
    op, fields, _ = a_published_case()
    found = best("h100-sxm", op, fields | {"lengths": "ragged"})
    assert found
    assert found.differs == "equal lengths"


@pytest.mark.parametrize(
    ("part", "op", "case"),
    [
        ("h100-sxm", "ffn_gemv", GEMV | {"N": 1 << 24}),
        ("h100-sxm", "ffn_gemv", GEMV | {"dtype": "fp32"}),
        ("rtx-4090", "ffn_gemv", GEMV),
        ("h100-sxm", "stream", {"bytes": 1 << 30}),
    ],
)
def test_what_nobody_published_has_no_best(part: str, op: str, case: dict[str, object]) -> None:
    assert best(part, op, case) is None


def test_most_cases_of_the_suites_have_something_near() -> None:
    rows = of_suite("h200", "full", ["attention_decode", "ffn_gemv"])
    assert {row["op"] for row in rows} == {"attention_decode", "ffn_gemv"}
    assert len(rows) == sum(len(discover()[op].cases("full")) for op in ("attention_decode", "ffn_gemv"))
    assert sum(row["best"] is not None for row in rows) > len(rows) / 2
    assert all(0 < row["best"].share <= IMPOSSIBLE for row in rows if row["best"])
    headers, cells = records.table_of(rows)
    assert all(len(row) == len(headers) for row in cells)


def test_an_all_reduce_has_the_fastest_published_one_of_its_size_and_ranks() -> None:
    """16 tokens of 8,192 elements among four H200, whatever the caches held."""
    case = {"B": 16, "hidden": 8192, "ranks": 4, "dtype": "bf16", "fused": False}
    found = best("h200", "all_reduce", case)
    assert found
    assert found.exact
    rows = published.load().where(op="all_reduce", part="h200", N=16 * 8192, tp=4)
    assert found.seconds == pytest.approx(float(rows["seconds"].min()))
    assert found.share == pytest.approx(16 * 8192 * 2 / 450e9 / found.seconds), "its bytes go once over the link"
    assert best("h200", "all_reduce", case | {"ranks": 3}) is None
    assert best("h200", "all_reduce", case | {"fused": True}) is None
    assert best("h200", "all_reduce", case | {"dtype": "fp32"}) is None


def test_a_dispatch_has_the_fastest_published_one_of_its_routing_and_ranks() -> None:
    """16 tokens of DeepSeek-V3 on each of eight H200."""
    (case,) = discover()["all_to_all"].cases("quick")
    found = best("h200", "all_to_all", case.as_dict())
    assert found
    assert found.exact
    assert (found.software, found.kernel) == ("trtllm", "deepep eager"), "16-bit rows were published by call alone"
    rows = published.load().where(op="dispatch", stored="bf16", part="h200", B=16, H=7168, E=256, k=8, tp=8)
    assert found.seconds == pytest.approx(float(rows["seconds"].min()))
    assert best("h200", "all_to_all", case.as_dict() | {"idle": 1}) is None
    back = best("h200", "all_to_all", case.as_dict() | {"direction": "combine"})
    assert back
    assert (back.software, back.kernel) == ("sglang", "deepep")
    assert back.seconds < found.seconds
