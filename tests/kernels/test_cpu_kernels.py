"""Kernels for hosts: against the reference in every type and in drawn shapes, refused without Numba, vectorised."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure.gate import check
from kernels.attention_decode.op import AttentionCase
from kernels.common import cpu_jit
from kernels.ffn_gemv import cpu_gemv
from kernels.ffn_gemv.op import GemvCase
from kernels.mla_decode.op import MlaCase
from kernels.moe_ffn.op import MoeCase
from kernels.op import Impl, Target, discover, implementations
from kernels.stream.op import StreamCase
from tests.support import ROOT
from tests.support.properties import given, settings, st

CPU = Target(kind="cpu", name="cpu", sm_count=2, l2_bytes=1 << 20)
OPS = discover()


def numba_impl(op: str) -> Impl:
    return next(impl for impl in implementations(op)[0] if impl.name == "numba")


def passes(op: str, case: Any, target: Target = CPU) -> None:
    impl = numba_impl(op)
    assert impl.supports(case, target) is None
    errors = check(OPS[op], impl, case, target)
    assert errors.passed, f"{case.id}: {errors.reason}"


def attention(**fields: Any) -> AttentionCase:
    return AttentionCase(**({"B": 2, "H_q": 8, "H_kv": 2, "D": 64, "T": 90} | fields))


OTHER_TYPES = [
    ("attention_decode", attention(dtype="fp32", lengths="ragged")),
    ("attention_decode", attention(dtype="bf16", page=16, lengths="holes", B=4)),
    ("attention_decode", attention(dtype="bf16", H_q=2, T=300)),
    ("attention_decode", attention(dtype="fp32", H_q=4, T=200, layout="HND", page=8)),
    ("moe_ffn", MoeCase(B=5, E=5, k=2, H=96, F=80, dtype="fp32", activation="swiglu_clamped")),
    ("mla_decode", MlaCase(B=2, H=6, T=70, L=64, R=16, dtype="fp32", lengths="ragged", q_len=2)),
    ("ffn_gemv", GemvCase(B=4, N=131, K=1100, dtype="bf16")),
    ("ffn_gemv", GemvCase(B=6, N=66, K=2100, dtype="fp32")),
]


@pytest.mark.parametrize(("op", "case"), OTHER_TYPES, ids=lambda value: getattr(value, "id", value))
def test_types_and_groups_that_small_cases_lack(op: str, case: Any) -> None:
    passes(op, case)


@settings(max_examples=12, deadline=None)
@given(
    B=st.integers(1, 4),
    H_kv=st.integers(1, 3),
    group=st.integers(1, 9),
    D=st.sampled_from([16, 48, 64]),
    T=st.integers(1, 70),
    page=st.sampled_from([0, 1, 5, 16]),
    threads=st.integers(1, 2),
)
def test_attention_of_drawn_shapes(B: int, H_kv: int, group: int, D: int, T: int, page: int, threads: int) -> None:
    case = AttentionCase(B=B, H_q=H_kv * group, H_kv=H_kv, D=D, T=T, page=page, lengths="ragged", dtype="fp32")
    passes("attention_decode", case, replace(CPU, sm_count=threads))


@settings(max_examples=12, deadline=None)
@given(B=st.integers(1, 9), N=st.integers(1, 40), K=st.integers(1, 300), threads=st.integers(1, 2))
def test_gemv_of_drawn_shapes(B: int, N: int, K: int, threads: int) -> None:
    passes("ffn_gemv", GemvCase(B=B, N=N, K=K, dtype="fp32"), replace(CPU, sm_count=threads))


def test_poison_goes_on_into_the_output() -> None:
    """Fast arithmetic may reorder sums, but it may not assume that there is no NaN."""
    case = attention(dtype="fp32")
    inputs = OPS["attention_decode"].inputs(case, "cpu", 0)
    for name in ("k", "v"):
        spoilt = {key: value.clone() for key, value in inputs.items()}
        spoilt[name][1, 40, 1, 5] = float("nan")
        out = numba_impl("attention_decode").prepare(case, spoilt, CPU)()
        assert out[1, 0, 4:].isnan().any(), "heads 4 to 7 read this KV head"
        assert out[0].isfinite().all()
        assert out[1, 0, :4].isfinite().all()


def test_without_numba_each_kernel_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    case = StreamCase(kind="read", size=4096)
    assert numba_impl("stream").supports(case, CPU) == "needs the package numba, which is not installed"
    assert "host" in (numba_impl("stream").supports(case, Target(kind="cuda", name="some part", sm=90)) or "")


def test_nothing_imports_numba_before_a_kernel_is_called() -> None:
    lines = "import sys, kernels.op as op\n[op.implementations(name) for name in op.discover()]\nassert 'numba' not in "
    subprocess.run([sys.executable, "-c", f"{lines}sys.modules"], cwd=ROOT, check=True)


def test_where_compiled_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = cpu_jit.cache_directory.__wrapped__
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    kept = Path(directory())
    assert kept.parent == tmp_path / "cache" / "decodebench"
    (tmp_path / "a file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a file"))
    assert directory() == "", "nothing can be written there, so each process compiles"


def test_compiled_code_that_was_not_used_for_a_day_is_deleted_but_for_the_last(tmp_path: Path) -> None:
    kept = [tmp_path / f"numba-1-{i}" for i in range(cpu_jit.KEPT + 2)]
    for i, path in enumerate(kept):
        path.mkdir()
        (path / "index").touch()
        os.utime(path, (1e9 - i, 1e9 - i))
    os.utime(kept[-1])
    (tmp_path / "another").mkdir()
    cpu_jit.remove_old(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "another", *kept[: cpu_jit.KEPT - 1], kept[-1]])


def test_the_index_of_a_parallel_loop_is_handed_on_as_an_int64() -> None:
    """Else the function that gets it is compiled for two types."""
    loops = 0
    for path in sorted((ROOT / "kernels").rglob("cpu_*.py")):
        for loop in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(loop, ast.For) and ast.unparse(loop.iter).startswith("prange(")):
                continue
            loops += 1
            for call in (node for node in ast.walk(loop) if isinstance(node, ast.Call)):
                given = {ast.unparse(argument) for argument in call.args}
                assert ast.unparse(loop.target) not in given or ast.unparse(call.func) == "np.int64", (
                    f"{path}: {call.lineno}"
                )
    assert loops > 10


LOOPS = """
import numpy as np
from kernels.common.cpu_jit import jit
from kernels.common.cpu_dots import add_rows, dots
from kernels.common.cpu_loops import four

@jit
def products(w, at, x, n, out):
    dots(w, four(at, 0, 0), x, four(at, 0, 0), n, out, 0, 4)

@jit
def sums(w, at, x, n, out):
    add_rows(out, four(at, 0, 0), x, four(at, 0, 0), w, four(at, 0, 0), n)

for function in (products, sums):
    made = function.made()
    for stored in ("f4", "u2", "i1"):
        made.compile(tuple(map(numba.typeof, (np.zeros(64, stored), np.zeros(4, "i8"), np.zeros(64, "f4"), 64,
                                              np.zeros(64, "f4")))))
        print("\\n".join(made.inspect_asm(made.signatures[-1]).splitlines()))
"""

BF16_PRODUCTS = """
import numpy as np
from kernels.common.cpu_jit import jit
from kernels.common.cpu_dots import dots_streamed
from kernels.common.cpu_loops import four

@jit
def products(w, at, out):
    dots_streamed(w, four(at, 0, 0), w, four(at, 0, 0), 64, out, 0, 4)

made = products.made()
made.compile(tuple(map(numba.typeof, (np.zeros(64, "u2"), np.zeros(4, "i8"), np.zeros(64, "f4")))))
print(made.inspect_asm(made.signatures[-1]))
"""


def code_of(source: str, cpu: str, features: str) -> list[str]:
    """The assembly lines that `source` prints, compiled for another processor."""
    variables = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": os.devnull}
    return subprocess.run(
        [sys.executable, "-c", f"import numba\n{source}"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "features", "register"),
    [
        ("haswell", "+avx2,+fma,+f16c", "%ymm"),
        ("skylake-avx512", "+avx512f,+avx512bw,+avx512vl,+avx512dq,+fma", "%zmm"),
    ],
)
def test_inner_loops_are_vectors_on_every_x86(cpu: str, features: str, register: str) -> None:
    fused = [line for line in code_of(LOOPS, cpu, features) if "vfmadd" in line and "ps" in line.split()[0]]
    assert sum(register in line for line in fused) >= 6 * 16, "16 sums in each of 6 loops"


@pytest.mark.slow
def test_bf16_is_multiplied_by_its_own_instruction_only_where_there_is_one() -> None:
    avx512 = "+avx512f,+avx512bw,+avx512vl,+avx512dq,+fma"
    with_it = code_of(BF16_PRODUCTS, "cooperlake", f"{avx512},+avx512bf16")
    without = code_of(BF16_PRODUCTS, "skylake-avx512", avx512)
    assert sum("vdpbf16ps" in line and "%zmm" in line for line in with_it) >= 16
    assert not any("vdpbf16ps" in line for line in without)
    assert sum("vfmadd" in line and "%zmm" in line for line in without) >= 2 * 16, "a line is two vectors of fp32"


def test_a_gemv_whose_bf16_is_widened_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors without a product of bf16: x is in fp32, and W is widened by a shift."""
    case = GemvCase(B=5, N=37, K=1100, dtype="bf16")
    monkeypatch.setattr(cpu_gemv, "multiplies_bf16", lambda: False)
    passes("ffn_gemv", case)
    assert set(numba_impl("ffn_gemv").stages(case, CPU)[0].work.flops) == {"fma_fp32"}
    monkeypatch.setattr(cpu_gemv, "multiplies_bf16", lambda: True)
    assert set(numba_impl("ffn_gemv").stages(case, CPU)[0].work.flops) == {"mma_bf16"}


def test_results_are_torch_tensors_of_the_cases_type() -> None:
    case = GemvCase(B=1, N=8, K=32, dtype="bf16")
    y = numba_impl("ffn_gemv").prepare(case, OPS["ffn_gemv"].inputs(case, "cpu", 0), CPU)()
    assert y.dtype == torch.bfloat16
