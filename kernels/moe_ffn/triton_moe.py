"""Routed experts in four launches: sort the pairs by expert, gate and up, down, combine. Nothing leaves the device.

The (token, expert) pairs are cut into tiles of at most BLOCK_B pairs of one expert; experts that are not hit have no
tile and are not read. How many tiles there are is known on the device alone, so the grid is fixed and the CTAs share
all units of work (BLOCK_N weight rows by BLOCK_K columns, for one tile) evenly as contiguous ranges ("stream-K", Osama
et al., 2023): at batch 1 eight small experts still fill all SMs. An output block whose units lie in several CTAs is
finished by the last of them to arrive, which adds the partials in order, so that results repeat bit for bit.

Weights are the M side of the tensor cores (`W [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B]`): 16 pairs a tile suffice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.draw import BYTES
from kernels.ffn_gemv.triton_share import CTA_SMEM, cta_of, first_unit, power_of_2
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.moe_ffn.op import MoeCase, experts_hit, tokens_per_expert
from kernels.op import Inputs, Stage, Target, Work

BLOCK_N = 64
"""Weight rows a CTA multiplies: the M of one `wgmma`."""

MIN_BLOCK_B = 16
"""Pairs of the smallest tile: the least N of a `tl.dot`."""

MAX_BLOCK_B = 128
"""Pairs of a tile: gate and up sums of 64 x 128 are 64 registers in each of 256 threads."""

IN_FLIGHT = 96 << 10
"""Weight bytes to keep in flight per SM: 1.5 times what the hungriest part asks for (bench/codegen/judge.py)."""

COMBINE_COLUMNS = 1024

SORT_PAIRS = (128, 1024, 8192)
"""Sizes of the block that holds all pairs, few of them, so that few kernels are compiled; the last is the limit."""

SORT_BINS = (64, 512)
"""Bins of the histogram of experts; the last bin is never an expert's."""


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """One of the two products: `rows` of W per expert (`matrices` times, gate and up), `K` columns."""

    rows: int
    K: int
    matrices: int
    BLOCK_K: int
    num_stages: int
    weight_bytes: int

    @property
    def blocks(self) -> int:
        return -(-self.rows // BLOCK_N)

    @property
    def iters(self) -> int:
        return -(-self.K // self.BLOCK_K)

    @property
    def even(self) -> bool:
        return self.K % self.BLOCK_K == 0

    @property
    def expert_bytes(self) -> int:
        return self.matrices * self.rows * self.K * self.weight_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Blocks and grids of one case; `max_tiles` bounds the tiles of any routing of B tokens."""

    BLOCK_B: int
    max_tiles: int
    ctas: int
    ctas_per_sm: int
    gate_up: Gemm
    down: Gemm


def gemm(case: MoeCase, target: Target, *, rows: int, K: int, matrices: int, BLOCK_B: int, ctas_per_sm: int) -> Gemm:
    """BLOCK_K of 128 bytes a row (256 for a single matrix), and as many stages as `IN_FLIGHT` asks for and fit."""
    size = BYTES[case.dtype]
    BLOCK_K = 128 // size
    if matrices == 1 and K % (2 * BLOCK_K) == 0:
        BLOCK_K *= 2
    unit = matrices * BLOCK_N * BLOCK_K * size
    smem = min(CTA_SMEM, (target.smem_per_sm or 228 << 10) // ctas_per_sm - (1 << 10))
    fits = smem // (unit + BLOCK_B * BLOCK_K * size)
    num_stages = max(2, min(1 + -(-IN_FLIGHT // (ctas_per_sm * unit)), fits))
    return Gemm(rows=rows, K=K, matrices=matrices, BLOCK_K=BLOCK_K, num_stages=num_stages, weight_bytes=size)


def plan(case: MoeCase, target: Target) -> Plan:
    """Tiles wide enough for the mean number of tokens of an expert and three standard deviations more."""
    mean = case.pairs / case.E
    BLOCK_B = max(MIN_BLOCK_B, min(MAX_BLOCK_B, power_of_2(round(mean + 3 * mean**0.5)), power_of_2(case.B)))
    ctas_per_sm = 2 if BLOCK_B <= 32 else 1
    hit = min(case.E, case.pairs)
    return Plan(
        BLOCK_B=BLOCK_B,
        max_tiles=hit + (case.pairs - hit) // BLOCK_B,
        ctas=target.sm_count * ctas_per_sm,
        ctas_per_sm=ctas_per_sm,
        gate_up=gemm(case, target, rows=case.F, K=case.H, matrices=2, BLOCK_B=BLOCK_B, ctas_per_sm=ctas_per_sm),
        down=gemm(case, target, rows=case.H, K=case.F, matrices=1, BLOCK_B=BLOCK_B, ctas_per_sm=ctas_per_sm),
    )


@triton.jit
def sort_kernel(
    topk_ids, pairs, tile_expert, tile_first, tile_end, tile_count, N_PAIRS, E, tile_pairs,
    BLOCK_PAIRS: tl.constexpr, BINS: tl.constexpr, BLOCK_TILES: tl.constexpr,
):  # fmt: skip
    """Program e lists the pairs of expert e behind those of all earlier experts, and its tiles of `tile_pairs`."""
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
def gather_partials(sums, shares, item, first, last, iters, units, ctas, SLOT: tl.constexpr, PART: tl.constexpr):
    """`sums` added up over the CTAs `first` to `last` that share an item, in their order."""
    ROWS: tl.constexpr = sums.shape[0]
    COLUMNS: tl.constexpr = sums.shape[1]
    offs = PART * ROWS * COLUMNS + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    whole = tl.zeros_like(sums)
    for sharer in range(first, last + 1):
        slot = 2 * sharer + (first_unit(sharer, units, ctas) < item * iters).to(tl.int32)
        whole += tl.load(shares + slot.to(tl.int64) * SLOT + offs, cache_modifier=".cg")
    return whole


@triton.jit
def expert_kernel(
    x, w, out, pairs, tile_expert, tile_first, tile_end, tile_count, partial, arrived, N, K,
    top_k, stride_x_row, stride_w_e, stride_w_n, stride_out_row,
    GATED: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """GATED: out[sorted pair] = silu(Wg x[token]) * (Wu x[token]). Else out[pair] = Wd x[sorted pair].

    W is `[E, 2N, K]` where GATED, else `[E, N, K]`. A CTA shares at most two items, the first and the last of its
    range: the workspace has two slots for each CTA.
    """
    iters = tl.cdiv(K, BLOCK_K)
    blocks = tl.cdiv(N, BLOCK_N)
    units = tl.load(tile_count) * blocks * iters
    ctas = tl.minimum(tl.num_programs(0), units)
    cta = tl.program_id(0)
    unit = first_unit(cta, units, ctas)
    end = tl.minimum(first_unit(cta + 1, units, ctas), units)
    offs_k = tl.arange(0, BLOCK_K)
    while unit < end:
        item = unit // iters
        item_end = tl.minimum(end, item * iters + iters)
        tile = item // blocks
        row0 = (item % blocks) * BLOCK_N
        expert = tl.load(tile_expert + tile).to(tl.int64)
        offs_p = tl.load(tile_first + tile) + tl.arange(0, BLOCK_B)
        mask_p = offs_p < tl.load(tile_end + tile)
        pair = tl.load(pairs + offs_p, mask=mask_p, other=0)
        x_row = pair // top_k if GATED else offs_p
        x_at = x + (x_row.to(tl.int64) * stride_x_row)[None, :] + offs_k[:, None]
        offs_n = row0 + tl.arange(0, BLOCK_N)
        # rows past the last read the last one: their sums are not stored
        offs_w = (tl.minimum(offs_n, N - 1) * stride_w_n)[:, None] + offs_k[None, :]
        w_first = w + expert * stride_w_e
        w_second = w_first + N.to(tl.int64) * stride_w_n
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        sums_up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for k in tl.range(
            (unit - item * iters) * BLOCK_K, (item_end - item * iters) * BLOCK_K, BLOCK_K, num_stages=STAGES
        ):
            if EVEN_K:
                x_tile = tl.load(x_at + k, mask=mask_p[None, :], other=0.0)
                w_tile = tl.load(w_first + k + offs_w)
            else:
                x_tile = tl.load(x_at + k, mask=mask_p[None, :] & (offs_k < K - k)[:, None], other=0.0)
                w_tile = tl.load(w_first + k + offs_w, mask=(offs_k < K - k)[None, :], other=0.0)
            sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
            if GATED:
                if EVEN_K:
                    up_tile = tl.load(w_second + k + offs_w)
                else:
                    up_tile = tl.load(w_second + k + offs_w, mask=(offs_k < K - k)[None, :], other=0.0)
                sums_up = tl.dot(up_tile, x_tile, sums_up, input_precision="ieee")
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
            # all threads have stored before one of them releases
            tl.debug_barrier()
            is_last = tl.atomic_add(arrived + item, 1, sem="acq_rel") == last - first
            if is_last:
                tl.store(arrived + item, 0)
                sums = gather_partials(sums, partial, item, first, last, iters, units, ctas, SLOT, 0)
                if GATED:
                    sums_up = gather_partials(sums_up, partial, item, first, last, iters, units, ctas, SLOT, 1)
        if is_last:
            if GATED:
                sums = sums * tl.sigmoid(sums) * sums_up
            out_row = offs_p if GATED else pair
            out_at = out + (out_row.to(tl.int64) * stride_out_row)[None, :] + offs_n[:, None]
            tl.store(out_at, sums.to(out.dtype.element_ty), mask=mask_p[None, :] & (offs_n < N)[:, None])
        unit = item_end


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


def build(case: MoeCase, inputs: Inputs, target: Target) -> Built:
    """Four launches; the sorted pairs, the tiles, the workspace and the counters (zero between launches) are theirs."""
    x, ids, w_gate_up, w_down = inputs["x"], inputs["topk_ids"], inputs["w_gate_up"], inputs["w_down"]
    for name in ("x", "topk_ids", "topk_weights", "w_gate_up", "w_down"):
        if not inputs[name].is_contiguous():
            raise ValueError(f"{name} must be contiguous, its strides are {inputs[name].stride()}")
    p = plan(case, target)

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    pairs, tile_count = empty(case.pairs), empty(1)
    tile_expert, tile_first, tile_end = (empty(p.max_tiles) for _ in range(3))
    hidden = empty(case.pairs, case.F, dtype=x.dtype)
    parts = empty(case.pairs, case.H, dtype=torch.float32)
    y = torch.empty_like(x)
    block_pairs = next(size for size in SORT_PAIRS if size >= case.pairs)
    sort = KernelLaunch(
        kernel=sort_kernel,
        grid=(case.E,),
        args={
            "topk_ids": ids, "pairs": pairs, "tile_expert": tile_expert, "tile_first": tile_first,
            "tile_end": tile_end, "tile_count": tile_count, "N_PAIRS": case.pairs, "E": case.E,
            "tile_pairs": p.BLOCK_B,
        },
        constexprs={
            "BLOCK_PAIRS": block_pairs, "BINS": next(n for n in SORT_BINS if n > case.E),
            "BLOCK_TILES": block_pairs // MIN_BLOCK_B,
        },
        num_warps=8 if block_pairs == SORT_PAIRS[-1] else 4,
    )  # fmt: skip

    def product(g: Gemm, source: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> KernelLaunch:
        slot = g.matrices * BLOCK_N * p.BLOCK_B
        return KernelLaunch(
            kernel=expert_kernel,
            grid=(p.ctas,),
            args={
                "x": source, "w": w, "out": out, "pairs": pairs, "tile_expert": tile_expert,
                "tile_first": tile_first, "tile_end": tile_end, "tile_count": tile_count,
                "partial": empty(2 * p.ctas * slot, dtype=torch.float32),
                "arrived": torch.zeros(p.max_tiles * g.blocks, dtype=torch.int32, device=x.device),
                "N": g.rows, "K": g.K, "top_k": case.k, "stride_x_row": source.stride(0), "stride_w_e": w.stride(0),
                "stride_w_n": w.stride(1), "stride_out_row": out.stride(0),
            },
            constexprs={
                "GATED": g.matrices == 2, "EVEN_K": g.even, "BLOCK_B": p.BLOCK_B,
                "BLOCK_N": BLOCK_N, "BLOCK_K": g.BLOCK_K, "STAGES": g.num_stages,
            },
            num_warps=8 if p.BLOCK_B == MAX_BLOCK_B else 4,
            num_stages=g.num_stages,
            streams=("w",),
            why_narrow="" if g.K * g.weight_bytes % 16 == 0 else "rows of K elements are not 16-byte aligned",
            wants_mma=case.dtype != "fp32",
        )  # fmt: skip

    combine = KernelLaunch(
        kernel=combine_kernel,
        grid=(case.B, -(-case.H // COMBINE_COLUMNS)),
        args={
            "parts": parts, "topk_weights": inputs["topk_weights"], "y": y, "H": case.H, "stride_y_b": y.stride(0),
        },
        constexprs={"TOP_K": case.k, "BLOCK_H": COMBINE_COLUMNS},
        streams=("parts",),
        why_few_in_flight="k partial rows per token, from the L2 where they fit",
    )  # fmt: skip
    gate_up = product(p.gate_up, x, w_gate_up, hidden)
    down = product(p.down, hidden, w_down, parts)
    return Built(launches=(sort, gate_up, down, combine), output=y)


def stages(case: MoeCase, target: Target) -> tuple[Stage, ...]:
    """An expert with several tiles is read once for each: they run far apart, and the experts outgrow the L2."""
    p = plan(case, target)
    size = BYTES[case.dtype]
    tiles = sum(-(-count // p.BLOCK_B) for count in tokens_per_expert(case))
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_bf16"

    def product(name: str, g: Gemm, read: int, l2_read: int, l2_written: int) -> Stage:
        fit = experts_hit(case) * g.expert_bytes <= target.l2_bytes // 2
        flops = 2 * tiles * g.matrices * g.blocks * BLOCK_N * g.iters * g.BLOCK_K * p.BLOCK_B
        units = max(1, tiles * g.blocks * g.iters)
        shared = min(p.ctas, units) if p.ctas > 1 and g.iters > 1 else 0
        partials = 2 * 2 * 4 * shared * g.matrices * BLOCK_N * p.BLOCK_B
        return Stage(
            name=name,
            work=Work(flops={pipe: flops}, bytes_read=read + (experts_hit(case) if fit else tiles) * g.expert_bytes),
            l2_bytes=l2_read * g.blocks + l2_written + partials,
            ctas=p.ctas,
            ctas_per_sm=p.ctas_per_sm,
        )

    hidden, parts = size * case.pairs * case.F, 4 * case.pairs * case.H
    fits = parts <= target.l2_bytes // 2
    return (
        Stage(name="sort", work=Work(bytes_read=4 * case.pairs), l2_bytes=4 * case.pairs * case.E, ctas=case.E),
        product("gate and up", p.gate_up, size * case.B * case.H, size * case.pairs * case.H, hidden),
        product("down", p.down, 0, hidden, parts),
        Stage(
            name="combine",
            work=Work(
                bytes_read=4 * case.pairs + (0 if fits else parts),
                bytes_written=size * case.B * case.H + (0 if fits else parts),
            ),
            l2_bytes=parts if fits else 0,
            ctas=case.B * -(-case.H // COMBINE_COLUMNS),
            ctas_per_sm=16,
        ),
    )


def supports(case: MoeCase, target: Target) -> str | None:
    if target.kind == "interpreter" and case.dtype == "bf16":
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    if case.pairs > SORT_PAIRS[-1] or SORT_BINS[-1] <= case.E:
        return (
            f"sorts at most {SORT_PAIRS[-1]} (token, expert) pairs of {SORT_BINS[-1] - 1} experts, "
            f"these are {case.pairs} of {case.E}"
        )
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
