"""Elasticities of published rows beside a calculation by hand, and of rows made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench.errors import BadRequest
from bench.judge import published
from bench.judge.published import elasticity as experiment
from tests.judge.published.test_validate import products
from tests.test_cli import decodebench


@pytest.fixture(scope="module")
def found() -> dict:  # type: ignore[type-arg]
    return experiment.elasticity()


BY_HAND = {
    "bf16 products": ({"op": "ffn_gemv", "stored": "bf16", "software": "sglang"}, "up to 16 rows of x", "yes"),
    "MLA with 16 heads": ({"op": "mla_decode", "stored": "bf16", "software": "trtllm", "H": 16}, "16 heads", "yes"),
    "MLA with 128 heads": ({"op": "mla_decode", "stored": "bf16", "software": "trtllm", "H": 128}, "128 heads", "no"),
    "attention with fp8 KV": ({"op": "attention_decode", "stored": "fp8", "software": "sglang"}, "", "no"),
}
"""Two operations that follow the memory and two that do not; all from 1 GB."""


@pytest.mark.parametrize("name", BY_HAND)
def test_four_operations_are_as_calculated_by_hand(found: dict, name: str) -> None:  # type: ignore[type-arg]
    """The hand matches rows in a dict, one by one, and takes the ratio of the datasheets' bandwidths."""
    wanted, detail, follows = BY_HAND[name]
    rows = published.load().where(part=["h100-sxm", "h200"], **wanted)
    size, part = published.work(rows).bytes, rows.text("part")
    fields = [name for name in rows.columns if name not in ("part", "source", "seconds", "cache")]
    times: dict[tuple[int, ...], dict[str, float]] = {}
    for idx in np.flatnonzero(size >= 1e9):
        if detail == "up to 16 rows of x" and rows["B"][idx] > 16:
            continue
        case = times.setdefault(tuple(int(rows[field][idx]) for field in fields), {})
        case[part[idx]] = min(float(rows["seconds"][idx]), case.get(part[idx], math.inf))
    pairs = [case for case in times.values() if len(case) == 2]
    by_hand = np.median([math.log(case["h100-sxm"] / case["h200"]) / math.log(4.8 / 3.35) for case in pairs])
    mine = [
        group
        for group in found["groups"]
        if all(group[key] == wanted[key] for key in ("op", "stored", "software"))
        and (group["detail"], group["size"]) == (detail, "1 GB and more")
    ]
    assert len(mine) == 1
    assert mine[0]["cases"] == len(pairs)
    assert mine[0]["elasticity"] == pytest.approx(by_hand, abs=0.01)
    assert mine[0]["low"] <= mine[0]["elasticity"] <= mine[0]["high"]
    assert mine[0]["follows"] == follows


def test_what_does_not_follow_the_memory_is_bound_by_something_else(found: dict) -> None:  # type: ignore[type-arg]
    def binds(**wanted: str) -> str:
        group = next(g for g in found["groups"] if all(g[key] == value for key, value in wanted.items()))
        return str(group["binds"])

    large = {"size": "1 GB and more"}
    assert "tensor cores" in binds(op="mla_decode", stored="bf16", detail="128 heads", **large)
    assert "by exclusion" in binds(op="moe_ffn", stored="mxfp4", software="vllm", **large)
    assert "memory" in binds(op="ffn_gemv", stored="bf16", **large)
    assert "launch" in binds(op="attention_decode", stored="bf16", size="below 16 MB")
    assert any("clocks" in said for said in found["caveats"])


def test_other_parts_stand_beside_with_both_roofs(found: dict) -> None:  # type: ignore[type-arg]
    beside = {each["part"]: each for each in found["beside"]}
    assert set(beside) == {"a100-80", "l40s", "b200"}
    assert beside["b200"]["bandwidth_ratio"] == pytest.approx(8 / 3.35, abs=0.001)
    assert beside["l40s"]["speedup"]["ffn_gemv bf16"]["median"] == pytest.approx(0.24, abs=0.05)


def test_rows_made_by_hand() -> None:
    """Case n takes n + 1 us; an H200 takes 3.35/4.8 of it (follows), as long (does not), or runs other kernels."""
    count = 20
    base = [(n + 1) * 1e-4 for n in range(count)]
    sizes = [4096 + 64 * n for n in range(count)] * 2

    def pair(factor: float, kernel: str = "k") -> dict:  # type: ignore[type-arg]
        rows = products(
            seconds=base + [each * factor for each in base],
            part=["h100-sxm"] * count + ["h200"] * count,
            N=sizes,
            kernel=["k"] * count + [kernel] * count,
        )
        return experiment.elasticity(rows)

    for factor, by_hand, follows in ((3.35 / 4.8, 1.0, "yes"), (1.0, 0.0, "no")):
        (group,) = pair(factor)["groups"]
        assert (group["cases"], group["follows"]) == (count, follows)
        assert group["elasticity"] == pytest.approx(by_hand, abs=0.002)
    with pytest.raises(BadRequest, match="no case was published for both"):
        pair(1.0, kernel="other")


def test_the_interval_is_that_of_resampled_medians() -> None:
    values = np.random.default_rng(1).normal(size=101)
    low, high = experiment.median_interval(values)
    medians = np.median(np.random.default_rng(2).choice(values, (4000, 101)), axis=1)
    assert (low, high) == pytest.approx(tuple(np.percentile(medians, (2.5, 97.5))), abs=0.06)


def test_the_command_prints_and_draws(tmp_path: Path) -> None:
    done = decodebench("elasticity", "--op", "mla_decode", "--plot", str(tmp_path / "e.svg"))
    assert "tensor cores" in done.stdout
    assert "different machines" in done.stdout
    assert "128 heads" in (tmp_path / "e.svg").read_text()
    asked = ("elasticity", "--op", "kda", "--json")
    assert {g["op"] for g in json.loads(decodebench(*asked).stdout)["groups"]} == {"kda"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--parts", "h100-sxm"), "needs two parts"),
        (("--parts", "h100-sxm,h100-sxm"), "needs two parts"),
        (("--parts", "h100-sxm,rtx-4090"), "unknown part 'rtx-4090'"),
        (("--parts", "b200,gb200"), "the same bandwidth"),
        (("--op", "kda", "--parts", "h100-sxm,a100-80"), "no case was published for both"),
        (("--op", "kda", "--plot", "/tmp/figure"), "end the name in"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    done = decodebench("elasticity", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
