"""Shapes of models that no suite measures, compiled for sm_90 and exhaustively for all parts: spills, narrow loads, too
few bytes in flight. One that takes long to interpret is executed as compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench.inspection.codegen import problems
from bench.inspection.codegen.build import launches, report_of
from bench.inspection.codegen.judge import misdeclared
from bench.inspection.targets import compile_targets
from kernels.attention_decode.op import AttentionCase
from kernels.models import attention_heads
from kernels.moe_ffn.op import QWEN3_NEXT, MoeCase
from tests.inspection.test_compiled_kernels import found, gate
from tests.support.uninterpreted import elsewhere


def heads(model: str, kv: str = "", page: int = 16) -> AttentionCase:
    H_q, H_kv, D = attention_heads(model)
    return AttentionCase(B=32, H_q=H_q, H_kv=H_kv, D=D, T=4096, page=page, kv=kv)


def rows(count: int, D: int, **more: Any) -> AttentionCase:
    """A shape that spilled: so many query heads share a KV head."""
    return AttentionCase(B=16, H_q=count, H_kv=1, D=D, T=8192, **more)


SHAPES: dict[str, tuple[str, Any]] = {
    "heads of 80 dims": ("attention_decode", heads("phi-2")),
    "heads of 80 dims, contiguous": ("attention_decode", heads("phi-2", page=0)),
    "heads of 80 dims, fp8": ("attention_decode", heads("phi-2", kv="fp8")),
    "heads of 112 dims, int8, in pages of 64": ("attention_decode", rows(8, 112, page=64, kv="int8")),
    "heads of 192 dims": ("attention_decode", heads("nemotron-4-340b")),
    "heads of 208 dims, int8": ("attention_decode", rows(4, 208, page=16, kv="int8")),
    "heads of 512 dims, fp8": ("attention_decode", heads("gemma-4-31b", kv="fp8")),
    "heads of 512 dims in pages of 64": ("attention_decode", heads("gemma-4-31b", page=64)),
    "heads of 128 dims, nvfp4": ("attention_decode", heads("llama-3.1-70b", kv="nvfp4")),
    "heads of 256 dims, nvfp4, 32 rows": ("attention_decode", rows(32, 256, page=16, kv="nvfp4")),
    "heads of 64 dims, int8, 32 rows": ("attention_decode", rows(32, 64, page=16, kv="int8")),
    "heads of 64 dims, int8, 32 rows in pages of 64": ("attention_decode", rows(32, 64, page=64, kv="int8")),
    "heads of 256 dims in pages of 64": ("attention_decode", rows(8, 256, page=64)),
    "a window of two blocks of one sequence, fp8": (
        "attention_decode",
        AttentionCase(B=1, H_q=64, H_kv=8, D=64, T=4096, page=16, window=128, kv="fp8", sink_logits=True),
    ),
    "experts of int4 with zero points": ("moe_ffn", MoeCase(B=16, weights="int4_zp", **QWEN3_NEXT)),
    "experts of int4, tiles of 32": ("moe_ffn", MoeCase(B=60, E=8, k=2, H=4096, F=14336, weights="int4")),
}


def wrong(name: str, sms: Sequence[int]) -> list[str]:
    """What is wrong with the compiled kernels of a shape."""
    op_name, case = SHAPES[name]
    op, impl = found(op_name, "triton")
    said = []
    for sm in sms:
        target = compile_targets()[sm]
        assert impl.supports(case, target) is None
        for launch in launches(op, impl, case, target):
            report = report_of(launch, target, op=op_name, impl="triton", case_id=case.id)
            said += [
                f"sm_{sm} {report.kernel}: {problem}" for problem in (*problems(report), misdeclared(report)) if problem
            ]
    return said


@pytest.mark.slow
@pytest.mark.parametrize("sms", [[90], pytest.param([*compile_targets()], marks=pytest.mark.exhaustive)], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_models_compile_without_a_problem(name: str, sms: Sequence[int]) -> None:
    assert elsewhere("tests.inspection.test_model_shapes", f"t.wrong({name!r}, {sms})") == []


def many_experts() -> str:
    """What the gate says about more experts than 511, which take the largest histogram of the routing."""
    return gate(*found("moe_ffn", "triton"), MoeCase(B=2, E=520, k=3, H=32, F=16), 90, None).reason or ""


@pytest.mark.slow
def test_more_experts_than_511_are_found() -> None:
    assert elsewhere("tests.inspection.test_model_shapes", "t.many_experts()") == ""
