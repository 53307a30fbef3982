"""Interventions among synthetic records whose answer is known."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import pytest

from bench.judge.interventions import Bounds, Intervention, change, interventions, left_out, longest_clean
from bench.records import MAY_BE_TOO_SHORT, Record
from tests.support.synthetic_run import ROOF, Clock, by_arithmetic, samples, timed

GEMV = {"N": 28672, "K": 8192}
CACHE = {"B": 64, "T": 4096, "H_kv": 8, "D": 128}


def by_memory(record: Record) -> float:
    return record.bytes / ROOF


def bounded(record: Record, memory: float, pipe: float) -> Record:
    terms = {"launch": 1e-6, "memory": memory, "mma_bf16": pipe}
    return dataclasses.replace(record, prediction={"measured": {"terms": terms}, "datasheet": None})


def attention(clock: Clock) -> list[Record]:
    """Several H_q and draft lengths over one cache, then other precisions and H_kv of the cache at equal FLOPs."""
    cases = [
        *({**CACHE, "H_q": heads} for heads in (8, 16, 32, 64)),
        *({**CACHE, "H_q": 32, "q_len": drafted} for drafted in (2, 4)),
        {**CACHE, "H_q": 32, "kv": "fp8"},
        {**CACHE, "H_q": 32, "H_kv": 32},
    ]
    return [timed("attention_decode", fields, clock) for fields in cases]


def only(found: list[Intervention], changed: str) -> Intervention:
    (one,) = [i for i in found if i.changed == changed]
    return one


@pytest.mark.parametrize(
    ("sizes", "flops", "changed"),
    [
        ((1.0, 1.0), (1.0, 1.6), "FLOPs"),
        ((1.0, 1.6), (1.0, 1.0), "bytes"),
        ((1.0, 1.6), (1.0, 1.6), "both"),
        ((1.0, 1.0), (1.0, 1.4), None),  # by too little
        ((1.0, 1.0, 1.0), (1.2, 1.0, 1.6), "FLOPs"),
        ((1.0, 2**0.09), (1.0, 2.0), "FLOPs"),  # the held quantity varies with the changed one
        ((1.0, 2**0.11), (1.0, 2.0), None),
        ((1.0, 2.0), (1.0, 2**0.11), None),
        ((1.0, 2.0), (1.0, 2**0.88), None),
        ((1.0, 2.0), (1.0, 2**0.92), "both"),
        ((1.0, 1.4), (1.0, 1.4), None),
    ],
)
def test_what_counts_as_an_intervention(sizes: tuple[float, ...], flops: tuple[float, ...], changed: str) -> None:
    records = [SimpleNamespace(bytes=size, flops=count) for size, count in zip(sizes, flops, strict=True)]
    assert change(records) == changed  # type: ignore[arg-type]


def test_query_heads_drafts_cache_types_and_sharing_are_found_and_fitted_together() -> None:
    found = interventions(attention(by_memory))
    joint = only(found, "FLOPs and bytes")
    assert joint.verdict == "memory"
    assert joint.e_bytes
    assert joint.e_bytes.median == pytest.approx(1.0, abs=0.02)
    assert joint.e_flops
    assert joint.e_flops.median == pytest.approx(0.0, abs=0.02)
    assert len(joint.case_ids) == 8
    varied = {(i.changed, i.varied) for i in found}
    assert ("FLOPs", "H_q 8, 16, 32, 64") in varied
    assert ("bytes", "kv fp8, none") in varied or ("bytes", "kv none, fp8") in varied
    assert ("bytes", "H_kv 8, 32") in varied
    # a causal draft attends to a few tokens less per query, so FLOPs grow a little less than q_len
    assert any(changed == "FLOPs" and text.startswith("q_len 1, 2, 4") for changed, text in varied)


def test_the_same_cases_under_another_clock_are_bound_by_arithmetic_or_by_neither() -> None:
    compute = interventions(attention(by_arithmetic))
    assert only(compute, "FLOPs and bytes").verdict == "compute"
    assert {i.verdict for i in compute if i.changed == "FLOPs"} == {"compute"}
    assert {i.verdict for i in compute if i.changed == "bytes"} == {"not memory"}
    launch = interventions(attention(lambda record: 5e-6))
    assert only(launch, "FLOPs and bytes").verdict == "neither"
    half = interventions(attention(lambda record: (by_memory(record) * by_arithmetic(record)) ** 0.5))
    assert {i.verdict for i in half} == {"neither"}


def test_free_flops_alone_do_not_prove_memory() -> None:
    batches = [timed("ffn_gemv", {**GEMV, "B": B}, by_memory) for B in (1, 2, 4, 8, 16)]
    one = only(interventions(batches), "FLOPs")
    assert (one.verdict, one.e_bytes, one.varied) == ("not compute", None, "B 1, 2, 4, 8, 16")
    assert one.fixed == batches[0].case_id


def test_weight_types_move_bytes_and_batches_flops() -> None:
    records = [
        timed("ffn_gemv", {**GEMV, "B": B, "weights": weights}, by_memory, impl="triton-quant")
        for B in (1, 16)
        for weights in ("int4", "int8")
    ]
    joint = only(interventions(records), "FLOPs and bytes")
    assert joint.verdict == "memory"
    assert joint.varied == "B 1, 16; weights int4, int8"


def test_weights_with_more_rows_serve_where_no_field_changes_bytes_alone() -> None:
    records = [timed("ffn_gemv", {**GEMV, "B": B}, by_memory) for B in (1, 4, 16)]
    assert not [i for i in interventions(records) if i.changed == "FLOPs and bytes"]
    wider = timed("ffn_gemv", {"N": 8192, "K": 8192, "B": 1}, by_memory)
    assert only(interventions([*records, wider]), "FLOPs and bytes").verdict == "memory"


def test_implementations_are_never_mixed_and_their_own_verdicts_are_kept() -> None:
    ours = [timed("ffn_gemv", {**GEMV, "B": B}, by_memory) for B in (1, 16)]
    slow = [timed("ffn_gemv", {**GEMV, "B": B}, by_arithmetic, impl="torch") for B in (1, 16)]
    found = interventions([*slow, *ours])
    assert [(i.impl, i.ours, i.verdict) for i in found] == [
        ("triton", True, "not compute"),
        ("torch", False, "compute"),
    ]


def test_only_clearly_predicted_cases_are_used_and_each_kind_on_its_own() -> None:
    def predicted(B: int) -> Record:
        def clock(record: Record) -> float:
            return max(by_memory(record), by_arithmetic(record))

        found = timed("ffn_gemv", {"N": 28672, "K": 16384, "B": B}, clock)
        return bounded(found, by_memory(found), by_arithmetic(found))

    found = interventions([predicted(B) for B in (1, 16, 64, 128, 192, 256, 512, 1024)])
    asked = {i.expected: (i.varied, i.verdict) for i in found if i.changed == "FLOPs"}
    assert asked["memory"] == ("B 1, 16, 64", "not compute")
    assert asked["mma_bf16"] == ("B 512, 1024", "compute")


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        # 100 us at 3 TB/s take 55 us at an L2's 5.5 TB/s: no rival of the memory
        ({"launch": 2e-6, "memory": 100e-6, "l2": 57e-6}, "memory"),
        ({"launch": 2e-6, "memory": 100e-6, "l2": 150e-6, "mma_bf16": 70e-6}, "memory"),
        ({"launch": 2e-6, "memory": 100e-6, "l2": 120e-6, "mma_bf16": 70e-6}, None),
        ({"launch": 2e-6, "memory": 100e-6, "issue": 51e-6}, None),
        ({"launch": 2e-6, "memory": 100e-6, "issue": 49e-6, "chain": 3e-6}, "memory"),
        ({"launch": 2e-6, "memory": 4e-6, "chain": 3e-6}, None),
        ({"launch": 2e-6, "memory": 40e-6, "l2": 30e-6, "issue": 90e-6}, "issue"),
        ({"launch": 2e-6, "l2": 9e-6}, "memory"),
        ({"launch": 2e-6}, "launch"),
        ({}, ""),
    ],
)
def test_bytes_of_memory_and_l2_are_one_term(terms: dict[str, float], expected: str | None) -> None:
    found = timed("ffn_gemv", {**GEMV, "B": 1}, by_memory)
    prediction = {"measured": {"terms": terms}} if terms else {}
    assert Bounds().regime(dataclasses.replace(found, prediction=prediction)) == expected


def test_an_l2_of_twice_the_roof_leaves_no_case_out() -> None:
    """As on an H100: the L2 term of a plain read is over half of the memory's."""
    batches = []
    for B in (1, 4, 16):
        found = timed("ffn_gemv", {**GEMV, "B": B}, by_memory)
        terms = {"launch": 2e-6, "memory": by_memory(found), "l2": 3 / 5.5 * by_memory(found)}
        batches.append(dataclasses.replace(found, prediction={"measured": {"terms": terms}}))
    (one,) = interventions(batches)
    assert (one.expected, one.varied) == ("memory", "B 1, 4, 16")
    assert left_out(batches, [one]) == {}


def test_what_is_left_out_is_counted_by_reason() -> None:
    clear = [bounded(timed("ffn_gemv", {**GEMV, "B": B}, by_memory), 1e-3, 1e-4) for B in (1, 4, 16)]
    close = [bounded(timed("ffn_gemv", {**GEMV, "B": B}, by_memory), 1e-3, 9e-4) for B in (200, 256)]
    alone = bounded(timed("ffn_gemv", {"N": 999, "K": 777, "B": 1}, by_memory), 1e-3, 1e-4)
    doubtful = dataclasses.replace(clear[0], case_id="warm", flags=["warm"])
    again = dataclasses.replace(clear[0], repeat=1)
    records = [*clear, *close, alone, doubtful, again]
    assert left_out(records, interventions(records)) == {
        "memory and mma_bf16 take about as long by the prediction": 2,
        "no other case differs in one field that changes bytes or FLOPs alone": 1,
        "it may be too short, has one sample, or belongs to a case without FLOPs": 1,
    }


def test_doubtful_times_are_left_out() -> None:
    good = [timed("ffn_gemv", {**GEMV, "B": B}, by_memory) for B in (1, 16)]
    for flag in MAY_BE_TOO_SHORT:
        assert interventions([good[0], dataclasses.replace(good[1], flags=[flag])]) == []
    assert interventions([good[0], dataclasses.replace(good[1], status="wrong", samples_s=[])]) == []
    assert interventions([good[0], dataclasses.replace(good[1], repeat=1)]) == []


def test_noise_takes_the_verdict_away() -> None:
    records = [
        dataclasses.replace(r, samples_s=samples(by_memory(r), seed=i, count=8, spread=0.9))
        for i, r in enumerate(attention(by_memory))
    ]
    quiet, loud = (only(interventions(r), "FLOPs and bytes") for r in (attention(by_memory), records))
    assert quiet.e_bytes
    assert loud.e_bytes
    assert loud.e_bytes.high - loud.e_bytes.low > 10 * (quiet.e_bytes.high - quiet.e_bytes.low)
    assert loud.verdict == "neither"


def test_the_longest_clean_run_is_the_one_that_a_plain_search_finds() -> None:
    """Groups of one to nine records, whose bytes and FLOPs grow by random factors."""
    rng = random.Random(3)
    groups = []
    for _ in range(200):
        records = [SimpleNamespace(bytes=rng.choice((1.0, 1.01, 2.0)), flops=rng.choice((1.0, 1.6, 4.0)))]
        for _ in range(rng.randrange(9)):
            size, flops = records[-1].bytes * rng.choice((1.0, 1.02, 1.7)), records[-1].flops * rng.choice((1.0, 1.7))
            records.append(SimpleNamespace(bytes=size, flops=flops))
        groups.append(records)

    def plain(group: list[SimpleNamespace]) -> tuple[str, tuple[SimpleNamespace, ...]] | None:
        for count in range(len(group), 1, -1):
            for at in range(len(group) - count + 1):
                if kind := change(group[at : at + count]):  # type: ignore[arg-type]
                    return kind, tuple(group[at : at + count])
        return None

    found = longest_clean(groups)  # type: ignore[arg-type]
    assert found == [plain(group) for group in groups]
    assert {each and each[0] for each in found} == {None, "FLOPs", "bytes", "both"}
