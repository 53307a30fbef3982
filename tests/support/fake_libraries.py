"""Stand-ins for FlashInfer, xformers, gemlite and cuBLASLt. They do what the documentation of each call says."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.common.integers import cdiv


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> types.ModuleType:
    """Install a module that stands for a library and has what our adapter uses of it."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in content.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def attend(q: Any, k: Any, v: Any, scale: float, cap: float = 0.0, seen: Any = None) -> Any:
    """Attention in fp32: q [i, H, D], k and v [t, H_kv, D]."""
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
        self,
        indptr: Any,
        indices: Any,
        last_page_len: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        logits_soft_cap: float | None = None,
        sm_scale: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
    ) -> None:
        assert {x.dtype for x in (indptr, indices, last_page_len)} == {torch.int32}
        assert indices.shape == (int(indptr[-1]),)
        assert 1 <= int(last_page_len.min()) <= int(last_page_len.max()) <= page_size
        self.indptr, self.last, self.page = indptr.clone(), last_page_len.clone(), page_size
        self.indices = indices.to(indices.device)  # like the library: no copy if it is on its device already
        self.cap, self.shape, self.dtypes = logits_soft_cap or 0.0, (num_qo_heads, num_kv_heads, head_dim), q_data_type
        self.scale = sm_scale or head_dim**-0.5

    def run(self, q: Any, paged_kv_cache: Any, *, out: Any) -> Any:
        assert q.shape[1:] == (self.shape[0], self.shape[2])
        assert q.dtype == self.dtypes
        for b, (first, end) in enumerate(zip(self.indptr.tolist(), self.indptr.tolist()[1:], strict=False)):
            length = (end - first - 1) * self.page + int(self.last[b])
            k, v = (self.tokens(cache, first, end)[:length] for cache in paged_kv_cache)
            out[b] = attend(q[b : b + 1], k, v, self.scale, self.cap)[0].to(out.dtype)
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
        self,
        qo_indptr: Any,
        kv_indptr: Any,
        kv_indices: Any,
        kv_len_arr: Any,
        num_heads: int,
        head_dim_ckv: int,
        head_dim_kpe: int,
        page_size: int,
        causal: bool,
        sm_scale: float,
        q_data_type: Any,
        kv_data_type: Any,
    ) -> None:
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
    """The documented meaning of xformers' causal biases. Keys are paged, or padded if `block_tables` is None."""

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
    scale = arguments.scale or q.shape[-1] ** -0.5
    assert k.shape[3] == q.shape[3]
    assert k.shape[3] == 1 or k.stride(3) == 0, "a group is told by a stride of 0"
    o = torch.empty_like(q)
    row = 0
    for b, (rows, length) in enumerate(zip(bias.q, bias.kv, strict=True)):
        pages = [b] if bias.block_tables is None else bias.block_tables[b, : cdiv(length, bias.page)].tolist()
        at = [slice(page * bias.page, (page + 1) * bias.page) for page in pages]
        keys, values = (torch.cat([x[0, s] for s in at])[:length].flatten(1, 2) for x in (k, v))
        seen = torch.arange(length) <= torch.arange(length - rows, length)[:, None]
        mine = q[0, row : row + rows].flatten(1, 2)
        o[0, row : row + rows] = attend(mine, keys, values, scale, seen=seen).view_as(q[0, :rows])
        row += rows
    return o, None


def without_extension(*arguments: Any, **more: Any) -> None:
    """What xformers' main function does with a torch or CUDA that its extension was not built for."""
    raise ValueError("xFormers wasn't build with CUDA support")


class FakeLayer:
    """y = x W^T, one split of K after the other. With `native`, splits are added in the type of x, else in fp32."""

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


def fake_scaled_mm(
    x: Any, w: Any, *, scale_a: Any, scale_b: Any, out_dtype: Any, out: Any, use_fast_accum: bool = False
) -> Any:
    """cuBLASLt on Hopper: a running sum keeps 13 bits; without fast accumulation it goes to fp32 after each 128 terms.

    13 bits: SageAttention2 (arXiv:2411.10958), 128 terms: DeepSeek-V3 Technical Report (arXiv:2412.19437), 3.3.2.
    """
    total, part = (torch.zeros(x.shape[0], w.shape[1]) for _ in range(2))
    for i, (a, b) in enumerate(zip(x.float().split(32, dim=1), w.float().split(32), strict=True), start=1):
        mantissa, exponent = torch.frexp(part + a @ b)
        part = torch.ldexp((mantissa * 2**14).trunc() / 2**14, exponent)
        if not use_fast_accum and i % 4 == 0:
            total, part = total + part, torch.zeros_like(part)
    return out.copy_(((total + part) * scale_a * scale_b).to(out_dtype))


class Copies(TorchDispatchMode):
    """Counts fp32 results of `elements` elements that share no memory with what they are made from."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.elements and result.dtype == torch.float32:
            sources = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
            self.count += result.untyped_storage().data_ptr() not in sources
        return result
