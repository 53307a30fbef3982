"""Adapters of libraries that are not installed: what they refuse and why. A stand-in with the library's documented
meaning, given our arguments, computes what the reference does, also after the block table has changed in place."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure.gate import Contents, check, check_prepared, volatile_part
from kernels.attention_decode import peers_flashinfer, peers_torch, peers_xformers
from kernels.attention_decode.op import OP as ATTENTION
from kernels.attention_decode.op import AttentionCase
from kernels.common import flashinfer_needs, page_lists
from kernels.ffn_gemv import peers as gemv_peers
from kernels.ffn_gemv import peers_gemlite
from kernels.ffn_gemv import peers_torch as gemv_torch
from kernels.ffn_gemv.op import OP as GEMV
from kernels.ffn_gemv.op import GemvCase
from kernels.mla_decode import peers as mla_torch
from kernels.mla_decode import peers_flashinfer as mla_flashinfer
from kernels.mla_decode.op import OP as MLA
from kernels.mla_decode.op import MlaCase
from kernels.moe_ffn import peers as moe_peers
from kernels.moe_ffn.op import MoeCase
from kernels.op import Case, Impl, Op, Target, discover, implementations
from tests.support.fake_libraries import (
    Copies,
    FakeA16W8,
    FakeA16Wn,
    FakeDecode,
    FakeLayer,
    FakeMla,
    FakePadded,
    FakePaged,
    fake_scaled_mm,
    fake_xformers,
    install,
    without_extension,
)

HOST = Target(kind="cpu", name="host", sm_count=2, l2_bytes=1 << 20)
H100 = Target(kind="cuda", name="NVIDIA H100 80GB HBM3", sm=90, sm_count=132, l2_bytes=50 << 20)


def attention(**fields: Any) -> AttentionCase:
    return AttentionCase(**{"B": 3, "H_q": 8, "H_kv": 2, "D": 64, "T": 70, "dtype": "fp16", **fields})


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    mla = types.SimpleNamespace(BatchMLAPagedAttentionWrapper=FakeMla)
    install(monkeypatch, "flashinfer", BatchDecodeWithPagedKVCacheWrapper=FakeDecode, mla=mla)
    install(monkeypatch, "flashinfer_jit_cache")
    monkeypatch.setattr(flashinfer_needs, "WORKSPACE_BYTES", 16)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = types.SimpleNamespace(
        PagedBlockDiagonalCausalWithOffsetPaddedKeysMask=FakePaged,
        BlockDiagonalCausalWithOffsetPaddedKeysMask=FakePadded,
    )
    fmha = types.SimpleNamespace(
        attn_bias=masks,
        Inputs=types.SimpleNamespace,
        memory_efficient_attention_forward=without_extension,
        triton_splitk=types.SimpleNamespace(FwOp=types.SimpleNamespace(apply=fake_xformers)),
    )
    install(monkeypatch, "xformers")
    install(monkeypatch, "xformers.ops", fmha=fmha)


def passes(op: Op, impl: Impl, case: Case) -> None:
    """The case is supported on an H100, and the stand-in gives the right result on this host."""
    assert impl.supports(case, H100) is None
    errors = check(op, impl, case, HOST)
    assert errors.passed, errors.reason


def named(impls: tuple[Impl, ...], name: str) -> Impl:
    return next(impl for impl in impls if impl.name == name)


ATTENTION_CASES = (
    attention(),
    attention(lengths="ragged"),
    attention(page=16, lengths="ragged"),
    attention(page=1, lengths="ragged"),
    attention(page=16, layout="HND", lengths="ragged", softcap=4.0),
    attention(page=64, H_q=2, T=130),
    attention(page=16, prefix=32),
    attention(page=16, scale=0.3),
)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("impl", peers_flashinfer.IMPLS, ids=lambda impl: impl.name)
def test_flashinfer_attention(flashinfer: None, impl: Impl, case: AttentionCase) -> None:
    passes(ATTENTION, impl, case)


def test_flashinfer_workspace() -> None:
    """It exceeds the recommended size if a plan asks for it: 8 pieces of 32 sequences, 64 heads, a tile of 64 rows
    each."""
    case = attention(B=32, H_q=64, H_kv=1, D=128, T=16384, page=16, dtype="bf16")
    partials = 4 * (32 * 8) * 64 * 64
    assert partials * 128 > flashinfer_needs.WORKSPACE_BYTES
    assert partials * (128 + 1) <= peers_flashinfer.workspace_bytes(case, H100) < 1.1 * partials * (128 + 1)
    usual = attention(B=64, H_q=32, H_kv=8, D=128, T=4096, page=16)
    assert peers_flashinfer.workspace_bytes(usual, H100) == flashinfer_needs.WORKSPACE_BYTES


def test_a_page_list_that_is_not_refreshed_is_caught(flashinfer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_lists.PageList, "refresh", lambda self: None)
    reason = check(ATTENTION, peers_flashinfer.IMPLS[0], attention(page=16, lengths="ragged"), HOST).reason or ""
    assert "after its inputs changed in place" in reason


@pytest.mark.parametrize(
    "case",
    [
        MlaCase(B=2, H=4, T=20, dtype="fp16"),
        MlaCase(B=3, H=4, T=50, page=16, lengths="ragged", dtype="fp16"),
        MlaCase(B=2, H=4, T=33, lengths="ragged", dtype="fp16"),
        MlaCase(B=2, H=4, T=40, page=16, q_len=2, dtype="fp16"),
        MlaCase(B=2, H=4, T=40, page=16, scale=0.3, dtype="fp16"),
    ],
    ids=lambda case: case.id,
)
def test_flashinfer_mla(flashinfer: None, case: MlaCase) -> None:
    passes(MLA, mla_flashinfer.IMPLS[0], case)


@pytest.mark.parametrize(
    "case",
    [
        attention(lengths="ragged"),
        attention(page=64, T=130, lengths="ragged"),
        attention(page=64, T=130, q_len=3),
        attention(H_q=2, q_len=2),
        attention(page=64, T=130, scale=0.3),
    ],
    ids=lambda case: case.id,
)
def test_xformers(xformers: None, case: AttentionCase) -> None:
    passes(ATTENTION, peers_xformers.IMPLS[0], case)


def test_mla_scores_of_16_bits_stay_in_fp32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """If scores were rounded to bf16, the largest of 4096 would miss the tolerance."""
    real = torch.baddbmm

    def baddbmm(s: Any, a: Any, b: Any, *, out_dtype: Any = None, **more: Any) -> Any:
        return real(s, a.to(out_dtype or a.dtype), b.to(out_dtype or b.dtype), **more)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    case = MlaCase(B=1, H=16, T=4096, dtype="bf16")
    impl = named(mla_torch.IMPLS, "torch")
    inputs, fresh = MLA.inputs(case, "cpu", 1), volatile_part(MLA, MLA.inputs(case, "cpu", 2))
    launch = impl.prepare(case, inputs, H100)
    errors = check_prepared(Contents(MLA, case, inputs, fresh), launch, HOST)
    assert errors.passed, errors.reason
    assert not check(MLA, impl, case, HOST).passed
    assert impl.stages(case, H100)[0].l2_bytes == (4 * 4 + 2 * 2) * 16 * 4096


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    "case",
    [attention(), attention(dtype="fp32", H_q=2), attention(layout="HND"), attention(scale=0.3)],
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("name", ["torch-flash", "torch-math", "torch-flex"])
def test_torch_attention(name: str, case: AttentionCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends that a CPU has; FlexAttention is not compiled here."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(peers_torch, "compiled_flex", lambda: flex_attention)
    impl = named(peers_torch.IMPLS, name)
    errors = check(ATTENTION, impl, case, HOST)
    assert errors.passed, errors.reason


@pytest.mark.parametrize(
    "case",
    [attention(B=1), attention(), attention(layout="HND"), attention(dtype="fp32"), attention(B=1, dtype="fp32")],
    ids=lambda case: case.id,
)
def test_copies_by_torchs_math(case: AttentionCase) -> None:
    impl = named(peers_torch.IMPLS, "torch-math")
    launch = impl.prepare(case, ATTENTION.inputs(case, "cpu", 0), HOST)
    with Copies(case.B * case.T * case.H_kv * case.D) as copies:
        launch()
    more = impl.stages(case, HOST)[0].work.bytes_written - ATTENTION.work(case).bytes_written
    assert more == 4 * copies.elements * copies.count


def test_grouped_heads_by_every_backend_and_a_window_as_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends that a CPU lacks run without `sdpa_kernel`; otherwise the same functions are called."""
    asked: list[Any] = []

    def note(backend: Any) -> Any:
        asked.append(backend)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", note)
    for name in ("efficient", "cudnn", "math", "flash"):
        for case in (attention(), attention(window=16)):
            passes(ATTENTION, named(peers_torch.IMPLS, f"torch-{name}"), case)
            assert name.upper() in asked[-1].name


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_caps_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(peers_torch, "compiled_flex", lambda: flex_attention)
    case = attention(softcap=2.0)
    assert check(ATTENTION, named(peers_torch.IMPLS, "torch-flex"), case, HOST).passed
    assert named(peers_torch.IMPLS, "torch-flash").supports(case, HOST)


@pytest.mark.parametrize("weights", ["int8", "fp8", "int4", "int4_zp"])
def test_gemlite(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """int4 has 128 splits. gemlite's default is to add them in bf16, which would miss the tolerance."""

    def set_native_atomic_bfp16(enabled: bool = True) -> None:
        monkeypatch.setattr(FakeLayer, "native", enabled)

    helper = types.SimpleNamespace(A16W8=FakeA16W8, A16Wn=FakeA16Wn)
    install(monkeypatch, "gemlite", helper=helper, set_native_atomic_bfp16=set_native_atomic_bfp16)
    case = GemvCase(B=3, N=40, K=2048, weights=weights)
    impl = peers_gemlite.IMPLS[0]
    passes(GEMV, impl, case)
    assert impl.supports(GemvCase(B=1, N=40, K=250, weights=weights), H100)
    assert impl.supports(GemvCase(B=1, N=40, K=256), H100)


def test_fp8_sums_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", fake_scaled_mm)
    case = GemvCase(B=2, N=32, K=14336, weights="fp8", activations="fp8")
    passes(GEMV, named(gemv_peers.IMPLS, "torch"), case)


@pytest.mark.parametrize(("sm", "runs"), [(80, False), (90, True), (100, True), (103, True), (120, False)])
def test_grouped_mm_where_its_offsets_stay_on_the_device(sm: int, runs: bool) -> None:
    reason = named(moe_peers.IMPLS, "torch-grouped").supports(
        MoeCase(B=1, E=8, k=2, H=64, F=64), Target(kind="cuda", name="some part", sm=sm)
    )
    assert reason is None if runs else "offsets on the host" in (reason or "")


@pytest.mark.parametrize("weights", ["", "int8", "fp8"])
def test_torch_compiled_gemv(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemv_torch, "compiled_linear", lambda: gemv_torch.scaled_linear)
    case = GemvCase(B=1, N=40, K=256, weights=weights)
    impl = named(gemv_torch.IMPLS, "torch-compiled")
    assert impl.supports(case, H100) is None
    assert "one row" in (impl.supports(GemvCase(B=2, N=40, K=256, weights=weights), H100) or "")
    errors = check(GEMV, impl, case, HOST)
    assert errors.passed, errors.reason


def test_cublaslt_is_preferred_for_its_own_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the call fails."""
    seen: list[str] = ["cublas"]

    def prefer(library: str | None = None) -> str:
        seen.extend([library] if library else [])
        return seen[-1]

    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", prefer)
    case = GemvCase(B=3, N=40, K=64)
    impl = named(gemv_torch.IMPLS, "torch-lt")
    assert check(GEMV, impl, case, HOST).passed
    assert set(seen[1::2]) == {"cublaslt"}
    assert set(seen[0::2]) == {"cublas"}
    inputs = GEMV.inputs(case, "cpu", 0)
    launch = impl.prepare(case, inputs, HOST)
    monkeypatch.setattr(torch, "mm", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch()
    assert seen[-1] == "cublas"


WITHOUT = {
    "flashinfer": (*peers_flashinfer.IMPLS, *mla_flashinfer.IMPLS),
    "xformers": peers_xformers.IMPLS,
    "gemlite": peers_gemlite.IMPLS,
}
SUPPORTED = {
    "flashinfer": lambda impl: MlaCase(B=1, H=16, T=64) if impl in mla_flashinfer.IMPLS else attention(page=16),
    "xformers": lambda impl: attention(page=64),
    "gemlite": lambda impl: GemvCase(B=1, N=128, K=256, weights="int4"),
}


@pytest.mark.parametrize(("package", "impl"), [(p, i) for p, impls in WITHOUT.items() for i in impls])
def test_without_its_package_a_peer_is_refused_by_name(
    package: str, impl: Impl, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = SUPPORTED[package](impl)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs the package {package}, which is not installed" in (impl.supports(case, H100) or "")
    assert "NVIDIA GPU" in (impl.supports(case, HOST) or "")


@pytest.mark.parametrize(("package", "impl"), [(p, i) for p, impls in WITHOUT.items() for i in impls])
def test_a_version_without_an_import(package: str, impl: Impl, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that cannot be imported, such as gemlite without a GPU, still has a version in the record."""
    monkeypatch.setitem(sys.modules, package, None)
    distribution = {"flashinfer": "flashinfer-python"}.get(package, package)
    monkeypatch.setattr(importlib.metadata, "version", {distribution: "1.2.3"}.__getitem__)
    assert impl.version
    assert impl.version() == f"{package} 1.2.3"


@pytest.mark.parametrize(
    ("home", "path", "missing"),
    [
        ("", [], ["nvcc", "ninja"]),
        ("", ["ninja"], ["nvcc"]),
        ("", ["nvcc"], ["ninja"]),
        ("", ["nvcc", "ninja"], []),
        ("toolkit", ["ninja"], []),
        ("empty", ["nvcc", "ninja"], ["nvcc"]),
    ],
)
def test_flashinfer_without_its_compilers_is_refused(
    flashinfer: None, home: str, path: list[str], missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If CUDA_HOME is set, it looks for nvcc there and nowhere else."""
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    (tmp_path / "toolkit" / "bin" / "nvcc").touch()
    monkeypatch.setattr(flashinfer_needs, "find_spec", lambda name: None)
    monkeypatch.setattr(flashinfer_needs.shutil, "which", lambda name: f"/bin/{name}" if name in path else None)
    monkeypatch.setattr(flashinfer_needs, "CUDA", tmp_path / "nowhere")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / home) if home else "")
    reason = peers_flashinfer.IMPLS[0].supports(attention(page=16), H100)
    assert all(tool in (reason or "") for tool in missing)
    assert (reason is None) == (not missing)


@pytest.mark.parametrize(
    ("fields", "names", "word"),
    [
        ({"kv": "fp8"}, "flashinfer flashinfer-tc xformers torch-flash torch-flex", ""),
        ({"q_len": 2}, "flashinfer flashinfer-tc torch-flash torch-math torch-flex", "token"),
        ({"window": 16, "page": 16}, "flashinfer flashinfer-tc xformers torch-flash", ""),
        ({"lengths": "holes", "page": 64}, "flashinfer flashinfer-tc xformers", "a token in every sequence"),
        ({"D": 80}, "flashinfer flashinfer-tc xformers", "heads of"),
        ({"H_q": 10}, "flashinfer", "groups of"),
        ({"page": 16}, "xformers torch-flash torch-efficient torch-cudnn torch-math torch-flex", ""),
        ({"dtype": "fp32"}, "flashinfer flashinfer-tc xformers torch-flash torch-cudnn", "takes fp16 and bf16"),
        ({"D": 256}, "torch-cudnn", "up to 128"),
        ({"softcap": 2.0}, "xformers torch-flash", "soft cap"),
        ({"sink_logits": True}, "flashinfer flashinfer-tc xformers torch-flash torch-math torch-flex", "sinks"),
        ({"D": 512}, "flashinfer torch-flash torch-cudnn", "heads of"),
        ({"layout": "HND"}, "flashinfer xformers", ""),
    ],
)
def test_attention_peers_refuse_what_they_cannot_do(
    flashinfer: None, xformers: None, fields: dict[str, Any], names: str, word: str
) -> None:
    impls = (*peers_flashinfer.IMPLS, *peers_xformers.IMPLS, *peers_torch.IMPLS)
    for name in names.split():
        reason = named(impls, name).supports(attention(**fields), H100) or "supported"
        assert reason != "supported", name
        assert word in reason, name


def test_the_registry_finds_them_and_none_is_ours() -> None:
    found = {op: {impl.name for impl in implementations(op)[0] if not impl.ours} for op in discover()}
    backends = {f"torch-{name}" for name in ("flash", "efficient", "cudnn", "math", "flex")}
    assert found["attention_decode"] >= {"flashinfer", "flashinfer-tc", "xformers"} | backends
    assert found["mla_decode"] >= {"flashinfer"}
    assert found["ffn_gemv"] >= {"gemlite", "torch-lt", "torch-compiled"}
