"""What a case may be: it is refused when it is made, or everything that is asked of it has an answer."""

from __future__ import annotations

import dataclasses
import random
import re
from typing import Any, get_args

import pytest

from bench.devices import DEVICES
from kernels.attention_decode.op import AttentionCase
from kernels.common import fields
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv.op import GemvCase
from kernels.gemm_peak.op import PeakCase
from kernels.host_link.op import LinkCase
from kernels.kv_append.op import AppendCase
from kernels.mla_decode.op import MlaCase
from kernels.moe_ffn.op import MoeCase
from kernels.op import TYPE_FIELDS, Case, Op, discover, implementations
from kernels.paged_read.op import PagedReadCase
from kernels.prefill.op import PrefillCase
from kernels.stream.op import StreamCase

FEW_SMS = dataclasses.replace(DEVICES["h100-sxm"].target(), sm_count=8)
"""So few that lists of work are short; what a case may be does not depend on them."""
OPS = discover()
CASES, DRAWS = 40, 5000
"""Distinct cases that are wanted of each op, and draws after which it has no more. Exhaustive tests want four times as
many. With an op's own refusals taken away, as many ops fail with 40 cases as with 320: 11 of 18."""
WANTED = {"decode_step": 5}
"""Fewer of what asks each of its operations for its answers, layer by layer."""
BYTES = (4, 6, 8, 404, 16384, 5 * 16384)
SIZES = (1, 2, 3, 5, 8, 16, 33, 64, 80, 96, 128, 192, 256, 260)
WRONG = (-1, 0.5, True, None, "", "x", "fp8_e5m2", float("nan"), float("inf"))


def allowed(name: str, kind: Any) -> list[Any]:
    """Values that a field of this type may hold."""
    if name in ("size", "page_bytes"):
        return list(BYTES)
    if names := fields.names_of(kind):
        return list(names)
    if kind is bool:
        return [False, True]
    if kind is float:
        return [0.0, 0.25, 50]
    if kind is int or int in get_args(kind):
        return [0, 1, 4, 16] if fields.least_of(kind) == 0 else list(SIZES)
    return ["", "llama-3.1-8b"]


def drawn(op: Op, rng: random.Random) -> dict[str, Any]:
    """Fields of a case by name. Half of the fields with a default keep it; in every third case one field is odd."""
    defaults = {f.name: f.default for f in dataclasses.fields(op.case_type)}
    found = {}
    for name, kind in fields.types(op.case_type).items():
        keep = defaults[name] is not dataclasses.MISSING and rng.random() < 0.5
        found[name] = defaults[name] if keep else rng.choice(allowed(name, kind))
    if rng.random() < 1 / 3:
        found[rng.choice(list(found))] = rng.choice([*WRONG, *SIZES])
    return found


def answers(op: Op, case: Case) -> None:
    """Ask for all that can be known without a GPU."""
    assert op.work(case).bytes > 0
    assert op.tolerance(case).max_rel >= 0
    assert op.case_from_dict(case.as_dict()) == case
    inputs = op.inputs(case, "meta", 0)
    for impl in implementations(op.name)[0]:
        refusal = impl.supports(case, FEW_SMS)
        assert refusal is None or refusal
        if refusal is None:
            assert impl.stages(case, FEW_SMS)
            if impl.build:
                assert impl.build(case, inputs, FEW_SMS).launches


def formats(op: Op) -> set[tuple[str, str]]:
    """The packed forms that a field of this op may name. Each of them is drawn, however few cases have it."""
    kinds = fields.types(op.case_type)
    names = {(field, name) for field in TYPE_FIELDS if field in kinds for name in fields.names_of(kinds[field]) or ()}
    return {(field, name) for field, name in names if name and name not in fields.TYPES}


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_a_case_is_refused_when_it_is_made_or_everything_has_an_answer(op: Op, times: int) -> None:
    rng = random.Random(0)
    made: set[str] = set()
    refused, wanted = 0, times * WANTED.get(op.name, CASES)
    lacking = set() if op.name in WANTED else formats(op)
    for _ in range(times * DRAWS):
        if len(made) >= wanted and not lacking:
            break
        given = drawn(op, rng)
        try:
            case, said = op.case_type(**given), ""
        except ValueError as error:
            case, said = None, str(error)
        if case is None:
            assert any(re.search(rf"\b{name}\b", said) for name in given), (given, said)
            refused += 1
        elif case.id not in made and (len(made) < wanted or lacking & set(case.as_dict().items())):
            made.add(case.id)
            lacking -= set(case.as_dict().items())
            answers(op, case)
    assert not lacking
    assert len(made) >= wanted // 8
    assert refused >= 5


REFUSED: list[tuple[type[Case], dict[str, Any], str]] = [
    (
        AttentionCase,
        {"B": 1, "H_q": 4, "H_kv": 1, "D": 64, "T": 9, "kv": "fp8_e5m2"},
        "kv is 'fp8_e5m2'.*'fp8', 'int8'",
    ),
    (AttentionCase, {"B": 0, "H_q": 4, "H_kv": 1, "D": 64, "T": 9}, "B is 0: expected a whole number from 1 on"),
    (AttentionCase, {"B": 1, "H_q": 4, "H_kv": 1, "D": 64, "T": 9, "page": -1}, "page is -1.*from 0 on"),
    (AttentionCase, {"B": 1, "H_q": 4, "H_kv": 1, "D": 64, "T": 9, "lengths": "odd"}, "lengths is 'odd'.*'ragged'"),
    (AttentionCase, {"B": 1, "H_q": 4, "H_kv": 1, "D": 64, "T": 9, "softcap": float("nan")}, "softcap is nan"),
    (GemvCase, {"B": 1, "N": 64, "K": 1031, "weights": "int4"}, "K = 1031.*even"),
    (GemvCase, {"B": 1, "N": 64, "K": 64, "weights": "fp16"}, "weights fp16: expected bf16"),
    (GemvCase, {"B": 1, "N": 64, "K": 64, "dtype": "fp8"}, "dtype is 'fp8'"),
    (GemvCase, {"B": 1, "N": 64.0, "K": 64}, "N is 64.0"),
    (GemvCase, {"B": 1, "N": 64, "K": 64, "activations": "fp8"}, "activations fp8"),
    (FfnCase, {"B": True, "hidden": 64, "ffn": 64}, "B is True"),
    (MlaCase, {"B": 1, "H": 16, "T": 9, "kv": "int8"}, "kv is 'int8'"),
    (MoeCase, {"B": 1, "E": 4, "k": 5, "H": 64, "F": 64}, "k = 5.*E = 4"),
    (MoeCase, {"B": 1, "E": 4, "k": 2, "H": 64, "F": 64, "routing": "even"}, "routing is 'even'"),
    (MoeCase, {"B": 1, "E": 4, "k": 2, "H": 64, "F": 33, "weights": "mxfp4"}, "F = 33.*even"),
    (PeakCase, {"M": 1, "K": 1, "dtype": "int8"}, "dtype is 'int8'"),
    (LinkCase, {"kind": "h2h", "page_bytes": 4}, "kind is 'h2h'"),
    (AppendCase, {"B": 1, "H_kv": 1, "D": 64, "T": 9, "idle": 1}, "idle 1"),
    (PagedReadCase, {"B": 1, "H_kv": 1, "D": 64, "T": 9, "order": "sorted"}, "order is 'sorted'"),
    (PrefillCase, {"kind": "gemm", "T": 0, "N": 1, "K": 1}, "T is 0"),
    (StreamCase, {"kind": "read", "size": 6}, "size 6"),
]


@pytest.mark.parametrize(("case_type", "given_fields", "reason"), REFUSED)
def test_refusals_name_the_field_and_what_is_allowed(
    case_type: type[Case], given_fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        case_type(**given_fields)


def test_fields_of_a_record_that_no_case_has_or_that_are_absent_are_named() -> None:
    op = OPS["ffn_gemv"]
    with pytest.raises(ValueError, match="no field colour, it has model, B, N, K"):
        op.case_from_dict({"B": 1, "N": 1, "K": 1, "colour": "red"})
    with pytest.raises(ValueError, match="lacks the field K"):
        op.case_from_dict({"B": 1, "N": 1})
