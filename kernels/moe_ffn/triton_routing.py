"""What surrounds the products of the routed experts: pairs are sorted and tiled before them, and summed after them.

`built` makes the four launches: sort, gate and up, down, combine. The caller gives the kernel of the two products and
its weights, which are multiplied as they are (`triton_moe.py`) or unpacked (`triton_moe_quant.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv
from kernels.common.stream_k import cta_of, first_unit
from kernels.common.triton_gated import hidden
from kernels.launch import Built, KernelLaunch, registers
from kernels.moe_ffn.expert_plan import BLOCK_N, COMBINE_COLUMNS, MIN_BLOCK_B, Gemm, Plan
from kernels.moe_ffn.op import MoeCase
from kernels.op import Inputs

SORT_PAIRS = (128, 1024, 8192)
"""Sizes of the block that holds all pairs. There are few, so that few kernels are compiled. The last is the limit."""

SORT_BINS = (64, 512, 1024)
"""Bins of the histogram of experts. The last bin belongs to no expert."""


Weights = Callable[[Gemm, str], dict[str, Any]]
"""(product, name of its weights among the inputs) -> arguments of the kernel: W as `w`, and how to read it."""


@triton.jit
def sort_kernel(
    topk_ids,
    pairs,
    tile_expert,
    tile_first,
    tile_end,
    tile_count,
    N_PAIRS,
    E,
    tile_pairs,
    BLOCK_PAIRS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """Program e lists the pairs of expert e after those of all earlier experts, and likewise its tiles of
    `tile_pairs`."""
    e = tl.program_id(0)
    offs = tl.arange(0, BLOCK_PAIRS)
    expert = tl.load(topk_ids + offs, mask=offs < N_PAIRS, other=E)
    counts = tl.histogram(expert, BINS)
    bins = tl.arange(0, BINS)
    tiles = tl.where(bins < E, tl.cdiv(counts, tile_pairs), 0)
    first = tl.sum(tl.where(bins < e, counts, 0))
    first_tile = tl.sum(tl.where(bins < e, tiles, 0))
    mine = (expert == e).to(tl.int32)
    end = first + tl.sum(mine)
    tl.store(pairs + first + tl.cumsum(mine, axis=0) - 1, offs, mask=mine > 0)
    offs_t = tl.arange(0, BLOCK_TILES)
    start = first + offs_t * tile_pairs
    mask_t = start < end
    tl.store(tile_expert + first_tile + offs_t, tl.zeros_like(offs_t) + e, mask=mask_t)
    tl.store(tile_first + first_tile + offs_t, start, mask=mask_t)
    tl.store(tile_end + first_tile + offs_t, tl.zeros_like(offs_t) + end, mask=mask_t)
    if e == 0:
        tl.store(tile_count, tl.sum(tiles))


@triton.jit
def own_items(tile_count, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(units of an item, items of a tile, all units, CTAs that have units, this CTA's first unit, their end).

    An item is BLOCK_N rows of weights for one tile of pairs.
    """
    iters = tl.cdiv(K, BLOCK_K)
    blocks = tl.cdiv(N, BLOCK_N)
    units = tl.load(tile_count) * blocks * iters
    ctas = tl.minimum(tl.num_programs(0), units)
    cta = tl.program_id(0)
    end = tl.minimum(first_unit(cta + 1, units, ctas), units)
    return iters, blocks, units, ctas, first_unit(cta, units, ctas), end


@triton.jit
def pairs_of(
    tile, pairs, tile_first, tile_end, top_k, stride_x_row, offs_k, FIRST: tl.constexpr, BLOCK_B: tl.constexpr
):
    """(places of a tile's pairs in the sorted list, mask of those that exist, the pairs, offsets of their x^T).

    Offsets fit in 32 bits for as many pairs as are sorted."""
    offs_p = tl.load(tile_first + tile) + tl.arange(0, BLOCK_B)
    mask_p = offs_p < tl.load(tile_end + tile)
    pair = tl.load(pairs + offs_p, mask=mask_p, other=0)
    x_row = pair // top_k if FIRST else offs_p
    return offs_p, mask_p, pair, (x_row * stride_x_row)[None, :] + offs_k[:, None]


@triton.jit
def gather_partials(sums, shares, item, first, last, iters, units, ctas, SLOT: tl.constexpr, PART: tl.constexpr):
    """The sums of an item, added up over the CTAs `first` to `last` that share it, in their order."""
    ROWS: tl.constexpr = sums.shape[0]
    COLUMNS: tl.constexpr = sums.shape[1]
    offs = PART * ROWS * COLUMNS + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    whole = tl.zeros_like(sums)
    for sharer in range(first, last + 1):
        slot = 2 * sharer + (first_unit(sharer, units, ctas) < item * iters).to(tl.int32)
        whole += tl.load(shares + slot.to(tl.int64) * SLOT + offs, cache_modifier=".cg")
    return whole


@triton.jit
def finish_item(
    sums,
    sums_up,
    bias,
    expert,
    out,
    pair,
    offs_p,
    mask_p,
    row0,
    N,
    stride_out_row,
    partial,
    arrived,
    item,
    iters,
    units,
    ctas,
    ACTIVATION: tl.constexpr,
    FIRST: tl.constexpr,
    GATED: tl.constexpr,
):
    """Store an item's sums, with the bias of the expert's rows, if there is one. If CTAs share the item, each leaves
    its partial sums, and the last to arrive adds them up."""
    BLOCK_N: tl.constexpr = sums.shape[0]
    BLOCK_B: tl.constexpr = sums.shape[1]
    cta = tl.program_id(0)
    first = cta_of(item * iters, units, ctas)
    last = cta_of(item * iters + iters - 1, units, ctas)
    is_last = True
    if first != last:
        SLOT: tl.constexpr = BLOCK_N * BLOCK_B * (2 if GATED else 1)
        slot = 2 * cta + (first_unit(cta, units, ctas) < item * iters).to(tl.int32)
        mine = partial + slot.to(tl.int64) * SLOT
        offs = tl.arange(0, BLOCK_N)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
        tl.store(mine + offs, sums)
        if GATED:
            tl.store(mine + BLOCK_N * BLOCK_B + offs, sums_up)
        # all threads must have stored before one of them releases
        tl.debug_barrier()
        is_last = tl.atomic_add(arrived + item, 1, sem="acq_rel") == last - first
        if is_last:
            tl.store(arrived + item, 0)
            sums = gather_partials(sums, partial, item, first, last, iters, units, ctas, SLOT, 0)
            if GATED:
                sums_up = gather_partials(sums_up, partial, item, first, last, iters, units, ctas, SLOT, 1)
    if is_last:
        offs_n = row0 + tl.arange(0, BLOCK_N)
        if bias is not None:
            of_rows = bias + expert * N * (2 if GATED else 1) + tl.minimum(offs_n, N - 1)
            sums += tl.load(of_rows).to(tl.float32)[:, None]
            if GATED:
                sums_up += tl.load(of_rows + N).to(tl.float32)[:, None]
        if FIRST:
            sums = hidden(sums, sums_up, ACTIVATION)
        out_row = offs_p if FIRST else pair
        out_at = out + (out_row.to(tl.int64) * stride_out_row)[None, :] + offs_n[:, None]
        tl.store(out_at, sums.to(out.dtype.element_ty), mask=mask_p[None, :] & (offs_n < N)[:, None])


@triton.jit
def combine_kernel(parts, topk_weights, y, H, stride_y_b, TOP_K: tl.constexpr, BLOCK_H: tl.constexpr):
    """y[b] = sum over j of weight[b, j] part[b, j]."""
    b = tl.program_id(0)
    offs = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = offs < H
    total = tl.zeros((BLOCK_H,), tl.float32)
    for j in tl.static_range(TOP_K):
        pair = b * TOP_K + j
        part = tl.load(parts + pair.to(tl.int64) * H + offs, mask=mask, other=0.0)
        total += tl.load(topk_weights + pair) * part
    tl.store(y + b.to(tl.int64) * stride_y_b + offs, total.to(y.dtype.element_ty), mask=mask)


def built(
    case: MoeCase,
    inputs: Inputs,
    p: Plan,
    kernel: Any,
    weights: Weights,
    constexprs: Mapping[str, Any],
    slots: Callable[[Gemm], float] = lambda g: 0.0,
) -> Built:
    """Four launches. They own the sorted pairs, the tiles, the workspace, and the counters, which are zero between
    them.

    `kernel` computes both products with what `weights` gives; `constexprs` are those that only this kernel has; `slots`
    is the `KernelLaunch.slots_per_byte` of a product.
    """
    x, ids = inputs["x"], inputs["topk_ids"]
    for name, tensor in inputs.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}")

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    lists = {"pairs": empty(case.pairs)}
    lists |= {name: empty(p.max_tiles) for name in ("tile_expert", "tile_first", "tile_end")}
    lists["tile_count"] = empty(1)
    # packed weights come in whole blocks; hidden values are padded with zeros to match, so they need no mask
    columns = p.down.iters * p.down.BLOCK_K if case.quantized else case.F
    between = torch.zeros(case.pairs, columns, dtype=x.dtype, device=x.device)
    parts = empty(case.pairs, case.H, dtype=torch.float32)
    y = torch.empty_like(x)
    block_pairs = next(size for size in SORT_PAIRS if size >= case.pairs)
    sort = KernelLaunch(
        kernel=sort_kernel,
        grid=(case.experts,),
        args={"topk_ids": ids, **lists, "N_PAIRS": case.pairs, "E": case.experts, "tile_pairs": p.BLOCK_B},
        constexprs={
            "BLOCK_PAIRS": block_pairs,
            "BINS": next(n for n in SORT_BINS if n > case.experts),
            "BLOCK_TILES": block_pairs // MIN_BLOCK_B,
        },
        num_warps=8 if block_pairs == SORT_PAIRS[-1] else 4,
    )

    def product(g: Gemm, name: str, source: torch.Tensor, out: torch.Tensor) -> KernelLaunch:
        given = weights(g, name)
        bias = inputs[name.replace("w_", "b_")] if case.bias else None
        slot = g.matrices * BLOCK_N * p.BLOCK_B
        aligned = given["w"].shape[-1] * given["w"].element_size() % 16 == 0
        return KernelLaunch(
            kernel=kernel,
            grid=(g.ctas,),
            args={
                "x": source,
                "out": out,
                **lists,
                "partial": empty(2 * g.ctas * slot, dtype=torch.float32),
                "arrived": torch.zeros(p.max_tiles * g.blocks, dtype=torch.int32, device=x.device),
                "N": g.rows,
                "K": g.K,
                "top_k": case.width,
                "stride_x_row": source.stride(0),
                "stride_out_row": out.stride(0),
                "bias": bias,
                **given,
            },
            constexprs={
                **constexprs,
                "ACTIVATION": case.activation if g is p.gate_up else "",
                "FIRST": g is p.gate_up,
                "GATED": g.matrices == 2,
                "EVEN_K": source.shape[1] % g.BLOCK_K == 0,
                "BLOCK_B": p.BLOCK_B,
                "BLOCK_N": BLOCK_N,
                "BLOCK_K": g.BLOCK_K,
                "STAGES": g.num_stages,
            },
            num_warps=p.num_warps,
            num_stages=g.num_stages,
            # the limit that keeps `ctas_per_sm` CTAs resident
            max_registers=registers(p.num_warps * g.ctas_per_sm) if case.quantized else None,
            streams=("w",),
            why_narrow="" if aligned else "rows of K elements are not 16-byte aligned",
            wants_mma=case.dtype != "fp32",
            slots_per_byte=slots(g),
        )

    combine = KernelLaunch(
        kernel=combine_kernel,
        grid=(case.rows, cdiv(case.H, COMBINE_COLUMNS)),
        args={
            "parts": parts,
            "topk_weights": inputs["topk_weights"],
            "y": y,
            "H": case.H,
            "stride_y_b": y.stride(0),
        },
        constexprs={"TOP_K": case.width, "BLOCK_H": COMBINE_COLUMNS},
        streams=("parts",),
        why_few_in_flight="k partial rows per token, from the L2 where they fit",
    )
    gate_up = product(p.gate_up, "w_gate_up", x, between)
    down = product(p.down, "w_down", between, parts)
    return Built(launches=(sort, gate_up, down, combine), output=y)
