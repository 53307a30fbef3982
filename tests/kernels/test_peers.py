"""Adapters of libraries that are not here: what they refuse and why, and that a library of the documented meaning,
given our arguments, computes what the reference does, also after the block table has changed in place."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure.gate import check, check_prepared, volatile_part
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
from kernels.op import Impl, Target, discover, implementations

HOST = Target(kind="cpu", name="host", sm_count=2, l2_bytes=1 << 20)
H100 = Target(kind="cuda", name="NVIDIA H100 80GB HBM3", sm=90, sm_count=132, l2_bytes=50 << 20)


def attention(**fields: Any) -> AttentionCase:
    return AttentionCase(**{"B": 3, "H_q": 8, "H_kv": 2, "D": 64, "T": 70, "dtype": "fp16", **fields})


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> types.ModuleType:
    """A module that stands for a library, with what our adapter uses of it."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in content.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def attend(q: Any, k: Any, v: Any, scale: float, cap: float = 0.0, seen: Any = None) -> Any:
    """q [i, H, D], k and v [t, H_kv, D]; fp32."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (k, v))
    s = torch.einsum("ihd,thd->hit", q.float(), k) * scale
    s = cap * torch.tanh(s / cap) if cap else s
    s = s if seen is None else s.masked_fill(~seen, float("-inf"))
    return torch.einsum("hit,thd->ihd", s.softmax(dim=-1), v)


class FakeDecode:
    """The documented meaning of `flashinfer.BatchDecodeWithPagedKVCacheWrapper`."""

    def __init__(self, workspace: Any, kv_layout: str = "NHD", *, use_tensor_cores: bool = False) -> None:
        assert not workspace.any(), "must be initialized to 0 for its first use"
        self.layout = kv_layout

    def plan(
        self, indptr: Any, indices: Any, last_page_len: Any, num_qo_heads: int, num_kv_heads: int, head_dim: int,
        page_size: int, *, logits_soft_cap: float | None = None, q_data_type: Any = "float16",
        kv_data_type: Any = None,
    ) -> None:  # fmt: skip
        assert {x.dtype for x in (indptr, indices, last_page_len)} == {torch.int32}
        assert indices.shape == (int(indptr[-1]),)
        assert 1 <= int(last_page_len.min()) <= int(last_page_len.max()) <= page_size
        self.indptr, self.last, self.page = indptr.clone(), last_page_len.clone(), page_size
        self.indices = indices.to(indices.device)  # as the library does: itself, being on its device
        self.cap, self.shape, self.dtypes = logits_soft_cap or 0.0, (num_qo_heads, num_kv_heads, head_dim), q_data_type

    def run(self, q: Any, paged_kv_cache: Any, *, out: Any) -> Any:
        assert q.shape[1:] == (self.shape[0], self.shape[2])
        assert q.dtype == self.dtypes
        for b, (first, end) in enumerate(zip(self.indptr.tolist(), self.indptr.tolist()[1:], strict=False)):
            length = (end - first - 1) * self.page + int(self.last[b])
            k, v = (self.tokens(cache, first, end)[:length] for cache in paged_kv_cache)
            out[b] = attend(q[b : b + 1], k, v, q.shape[-1] ** -0.5, self.cap)[0].to(out.dtype)
        return out

    def tokens(self, cache: Any, first: int, end: int) -> Any:
        pages = cache[self.indices[first:end].long()]
        pages = pages.transpose(1, 2) if self.layout == "HND" else pages
        assert pages.shape[1:] == (self.page, *self.shape[1:])
        return pages.flatten(0, 1)


class FakeMla:
    """The documented meaning of `flashinfer.mla.BatchMLAPagedAttentionWrapper`."""

    def __init__(self, workspace: Any, *, backend: str = "auto") -> None: ...

    def plan(
        self, qo_indptr: Any, kv_indptr: Any, kv_indices: Any, kv_len_arr: Any, num_heads: int, head_dim_ckv: int,
        head_dim_kpe: int, page_size: int, causal: bool, sm_scale: float, q_data_type: Any, kv_data_type: Any,
    ) -> None:  # fmt: skip
        assert qo_indptr.shape == (len(kv_len_arr) + 1,)
        assert {x.dtype for x in (qo_indptr, kv_indptr, kv_indices, kv_len_arr)} == {torch.int32}
        self.indptr, self.indices, self.lengths = kv_indptr.tolist(), kv_indices, kv_len_arr.tolist()
        self.page, self.scale, self.shape = page_size, sm_scale, (num_heads, head_dim_ckv, head_dim_kpe)
        self.queries, self.causal = qo_indptr.tolist(), causal

    def run(self, q_nope: Any, q_pe: Any, ckv_cache: Any, kpe_cache: Any, *, out: Any) -> Any:
        assert ckv_cache.shape[1:] == (self.page, self.shape[1])
        assert kpe_cache.shape[1:] == (self.page, self.shape[2])
        assert q_nope.shape == (self.queries[-1], *self.shape[:2])
        for b, length in enumerate(self.lengths):
            mine = slice(self.queries[b], self.queries[b + 1])
            pages = self.indices[self.indptr[b] : self.indptr[b + 1]].long()
            latent, rope = (cache[pages].flatten(0, 1)[:length, None].float() for cache in (ckv_cache, kpe_cache))
            q = torch.cat([q_nope[mine], q_pe[mine]], dim=-1)
            last = torch.arange(length - len(q), length)[:, None]
            seen = torch.arange(length) <= last if self.causal else None
            out[mine] = attend(q, torch.cat([latent, rope], dim=-1), latent, self.scale, seen=seen).to(out.dtype)
        return out


class FakeBias:
    """The documented meaning of xformers' causal biases over padded or paged keys; `block_tables` None: padded."""

    def __init__(self, q: list[int], kv: list[int], page: int, block_tables: Any) -> None:
        self.q, self.kv, self.page, self.block_tables = q, kv, page, block_tables


class FakePaged:
    @classmethod
    def from_seqlens(cls, q_seqlen: Any, kv_seqlen: Any, block_tables: Any, page_size: int, *, device: Any) -> FakeBias:
        assert block_tables.shape[1] * page_size >= max(kv_seqlen)
        return FakeBias(q_seqlen, kv_seqlen, page_size, block_tables)


class FakePadded:
    @classmethod
    def from_seqlens(cls, q_seqlen: Any, kv_padding: int, kv_seqlen: Any, *, device: Any) -> FakeBias:
        assert kv_padding >= max(kv_seqlen)
        return FakeBias(q_seqlen, kv_seqlen, kv_padding, None)


def fake_xformers(arguments: Any, *, needs_gradient: bool) -> Any:
    """q [1, rows, G, H, D]; k, v [1, tokens, G, H, D]; queries are the last of their keys, causal among themselves."""
    q, k, v, bias = arguments.query, arguments.key, arguments.value, arguments.attn_bias
    assert not needs_gradient
    assert k.shape[3] == q.shape[3]
    assert k.shape[3] == 1 or k.stride(3) == 0, "a group is told by a stride of 0"
    o = torch.empty_like(q)
    row = 0
    for b, (rows, length) in enumerate(zip(bias.q, bias.kv, strict=True)):
        pages = [b] if bias.block_tables is None else bias.block_tables[b, : -(-length // bias.page)].tolist()
        at = [slice(page * bias.page, (page + 1) * bias.page) for page in pages]
        keys, values = (torch.cat([x[0, s] for s in at])[:length].flatten(1, 2) for x in (k, v))
        seen = torch.arange(length) <= torch.arange(length - rows, length)[:, None]
        mine = q[0, row : row + rows].flatten(1, 2)
        o[0, row : row + rows] = attend(mine, keys, values, q.shape[-1] ** -0.5, seen=seen).view_as(q[0, :rows])
        row += rows
    return o, None


def without_extension(*arguments: Any, **more: Any) -> None:
    """What xformers' front door does beside another torch or CUDA than its extension was built for."""
    raise ValueError("xFormers wasn't build with CUDA support")


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
)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("impl", peers_flashinfer.IMPLS, ids=lambda impl: impl.name)
def test_flashinfer_attention(flashinfer: None, impl: Impl, case: AttentionCase) -> None:
    assert impl.supports(case, H100) is None
    errors = check(ATTENTION, impl, case, HOST)
    assert errors.passed, errors.reason


def test_flashinfer_workspace() -> None:
    """More than is recommended where a plan asks for it: 8 pieces of 32 sequences, 64 heads, a tile of 64 rows each."""
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
    ],
    ids=lambda case: case.id,
)
def test_flashinfer_mla(flashinfer: None, case: MlaCase) -> None:
    impl = mla_flashinfer.IMPLS[0]
    assert impl.supports(case, H100) is None
    errors = check(MLA, impl, case, HOST)
    assert errors.passed, errors.reason


@pytest.mark.parametrize(
    "case",
    [
        attention(lengths="ragged"),
        attention(page=64, T=130, lengths="ragged"),
        attention(page=64, T=130, q_len=3),
        attention(H_q=2, q_len=2),
    ],
    ids=lambda case: case.id,
)
def test_xformers(xformers: None, case: AttentionCase) -> None:
    impl = peers_xformers.IMPLS[0]
    assert impl.supports(case, H100) is None
    errors = check(ATTENTION, impl, case, HOST)
    assert errors.passed, errors.reason


def test_mla_scores_of_16_bits_stay_in_fp32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded to bf16 the largest of 4096 would miss the tolerance."""
    real = torch.baddbmm

    def baddbmm(s: Any, a: Any, b: Any, *, out_dtype: Any = None, **more: Any) -> Any:
        return real(s, a.to(out_dtype or a.dtype), b.to(out_dtype or b.dtype), **more)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    case = MlaCase(B=1, H=16, T=4096, dtype="bf16")
    impl = named(mla_torch.IMPLS, "torch")
    inputs, fresh = MLA.inputs(case, "cpu", 1), volatile_part(MLA, MLA.inputs(case, "cpu", 2))
    launch = impl.prepare(case, inputs, H100)
    errors = check_prepared(MLA, case, inputs, fresh, launch, HOST)
    assert errors.passed, errors.reason
    assert not check(MLA, impl, case, HOST).passed
    assert impl.stages(case, H100)[0].l2_bytes == (4 * 4 + 2 * 2) * 16 * 4096


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    "case", [attention(), attention(dtype="fp32", H_q=2), attention(layout="HND")], ids=lambda case: case.id
)
@pytest.mark.parametrize("name", ["torch-flash", "torch-math", "torch-flex"])
def test_torch_attention(name: str, case: AttentionCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends that a CPU has; FlexAttention not compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(peers_torch, "compiled_flex", lambda: flex_attention)
    impl = named(peers_torch.IMPLS, name)
    errors = check(ATTENTION, impl, case, HOST)
    assert errors.passed, errors.reason


class Copies(TorchDispatchMode):
    """Counts results of `elements` elements in fp32 that share no memory with what they are made from."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.elements and result.dtype == torch.float32:
            sources = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
            self.count += result.untyped_storage().data_ptr() not in sources
        return result


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
    """Those that a CPU lacks, with `sdpa_kernel` left out: what is called is the same."""
    asked: list[Any] = []

    def note(backend: Any) -> Any:
        asked.append(backend)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", note)
    for name in ("efficient", "cudnn", "math", "flash"):
        for case in (attention(), attention(window=16)):
            impl = named(peers_torch.IMPLS, f"torch-{name}")
            assert impl.supports(case, H100) is None
            errors = check(ATTENTION, impl, case, HOST)
            assert errors.passed, errors.reason
            assert name.upper() in asked[-1].name


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_caps_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(peers_torch, "compiled_flex", lambda: flex_attention)
    case = attention(softcap=2.0)
    assert check(ATTENTION, named(peers_torch.IMPLS, "torch-flex"), case, HOST).passed
    assert named(peers_torch.IMPLS, "torch-flash").supports(case, HOST)


class FakeLayer:
    """Sums in fp32, or one split after the other, each added to an output of the type that `native` says."""

    native = True

    def __init__(self, w: Any, split: int = 0) -> None:
        self.w, self.split = w, split or w.shape[1]

    def __call__(self, x: Any) -> Any:
        y = torch.zeros(len(x), len(self.w), dtype=x.dtype if self.native else torch.float32)
        for part, w in zip(x.split(self.split, dim=1), self.w.split(self.split, dim=1), strict=True):
            y += (part.float() @ w.T).to(y.dtype)
        return y.to(x.dtype)


class FakeA16W8:
    """gemlite's helper for codes of 8 bits with a scale for each row."""

    def __init__(self, *, device: Any, dtype: Any) -> None: ...

    def from_weights(self, weight: Any, bias: Any = None, scales: Any = None) -> FakeLayer:
        assert weight.itemsize == 1
        return FakeLayer(weight.float() * scales.view(weight.shape[0], -1))


class FakeA16Wn:
    """gemlite's helper for grouped codes of n bits: W = (code - zero) * scale."""

    def __init__(self, *, device: Any, dtype: Any) -> None: ...

    def from_weights(self, W_q: Any, scales: Any, zeros: Any, W_nbits: int, group_size: int) -> FakeLayer:
        assert W_q.dtype == torch.uint8
        assert int(W_q.max()) < 1 << W_nbits
        codes = W_q.float().view(W_q.shape[0], -1, group_size)
        w = (codes - zeros.float()[..., None]) * scales.float()[..., None]
        return FakeLayer(w.flatten(1), split=16)


@pytest.mark.parametrize("weights", ["int8", "fp8", "int4", "int4_zp"])
def test_gemlite(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 splits of int4: gemlite's default, to add them in bf16, would miss the tolerance."""

    def set_native_atomic_bfp16(enabled: bool = True) -> None:
        monkeypatch.setattr(FakeLayer, "native", enabled)

    helper = types.SimpleNamespace(A16W8=FakeA16W8, A16Wn=FakeA16Wn)
    install(monkeypatch, "gemlite", helper=helper, set_native_atomic_bfp16=set_native_atomic_bfp16)
    case = GemvCase(B=3, N=40, K=2048, weights=weights)
    impl = peers_gemlite.IMPLS[0]
    assert impl.supports(case, H100) is None
    errors = check(GEMV, impl, case, HOST)
    assert errors.passed, errors.reason
    assert impl.supports(GemvCase(B=1, N=40, K=250, weights=weights), H100)
    assert impl.supports(GemvCase(B=1, N=40, K=256), H100)


def fake_scaled_mm(
    x: Any, w: Any, *, scale_a: Any, scale_b: Any, out_dtype: Any, out: Any, use_fast_accum: bool = False
) -> Any:
    """cuBLASLt's on Hopper: a running sum keeps 13 bits, and without fast accumulation leaves for fp32 each 128 terms.

    13 bits: SageAttention2 (arXiv:2411.10958), 128 terms: DeepSeek-V3 Technical Report (arXiv:2412.19437), 3.3.2.
    """
    total, part = (torch.zeros(x.shape[0], w.shape[1]) for _ in range(2))
    for i, (a, b) in enumerate(zip(x.float().split(32, dim=1), w.float().split(32), strict=True), start=1):
        mantissa, exponent = torch.frexp(part + a @ b)
        part = torch.ldexp((mantissa * 2**14).trunc() / 2**14, exponent)
        if not use_fast_accum and i % 4 == 0:
            total, part = total + part, torch.zeros_like(part)
    return out.copy_(((total + part) * scale_a * scale_b).to(out_dtype))


def test_fp8_sums_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", fake_scaled_mm)
    case = GemvCase(B=2, N=32, K=14336, weights="fp8", activations="fp8")
    impl = named(gemv_peers.IMPLS, "torch")
    assert impl.supports(case, H100) is None
    errors = check(GEMV, impl, case, HOST)
    assert errors.passed, errors.reason


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
    """Also where the call fails."""
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
    """A library that fails to be imported, as gemlite without a GPU, is still told by its version."""
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
    """It looks for nvcc in CUDA_HOME and nowhere else if that is set."""
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
    assert found["attention_decode"] >= {
        "flashinfer", "flashinfer-tc", "xformers", "torch-flash", "torch-efficient", "torch-cudnn", "torch-math",
        "torch-flex",
    }  # fmt: skip
    assert found["mla_decode"] >= {"flashinfer"}
    assert found["ffn_gemv"] >= {"gemlite", "torch-lt", "torch-compiled"}
