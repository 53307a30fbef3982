"""Units of weights that CTAs share evenly ("stream-K": Osama et al., 2023), for kernels that stream a matrix.

The weights are cut into units of BLOCK_N rows by BLOCK_K columns, numbered along K first. The CTAs share all units
evenly (to one unit) as contiguous ranges, so no wave has a tail, whatever N, K and the part are. A tile is BLOCK_N rows
of weights. If its units belong to several CTAs, the last of them to arrive at the tile's counter finishes the tile: it
adds all shares in their order, so that results repeat bit for bit, and resets the counter for the next launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv
from kernels.common.triton_gated import output_of
from kernels.common.workspace import passing
from kernels.launch import KernelLaunch, cta_smem, registers
from kernels.op import Stage, Target, Work

IN_FLIGHT = 96 << 10
"""Weight bytes to keep in flight per SM. Little's law asks for 3.35 TB/s x 0.7 us / 132 SMs = 18 KB. Five times as much
covers CTAs that begin or reduce while the others stream."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Blocks, pipeline depth and grid of one case.

    `ctas` CTAs share the weights. Each of the `tiles_b` batch tiles has so many CTAs of its own. The CTAs of all batch
    tiles walk over the weights side by side, so that all but the first find the weights in the L2.
    """

    B: int
    N: int
    K: int
    BLOCK_B: int
    BLOCK_N: int
    BLOCK_K: int
    use_mma: bool
    unit_bytes: int
    """Bytes of weights in one stage."""
    unit_smem: int
    """Bytes of shared memory for one stage: weights and activations."""
    ctas_per_sm: int
    num_warps: int
    sums: int = 1
    """Sums for each output. The workspace and the FLOPs grow by this factor."""
    in_flight: int = IN_FLIGHT
    """Weight bytes per SM from which `share` derives the number of stages."""
    num_stages: int = 0
    ctas: int = 0

    @property
    def even_k(self) -> bool:
        return self.K % self.BLOCK_K == 0

    @property
    def tiles_n(self) -> int:
        return cdiv(self.N, self.BLOCK_N)

    @property
    def tiles_b(self) -> int:
        return cdiv(self.B, self.BLOCK_B)

    @property
    def iters(self) -> int:
        """Units of a tile, one behind the other along K."""
        return cdiv(self.K, self.BLOCK_K)

    @property
    def units(self) -> int:
        """All units of BLOCK_N x BLOCK_K weights."""
        return self.tiles_n * self.iters

    @property
    def bytes_in_flight(self) -> int:
        """Weight bytes that an SM has asked for and not yet received: those of all stages but the one in use."""
        return self.unit_bytes * (self.num_stages - 1) * self.ctas_per_sm

    def units_of(self, cta: int) -> range:
        """The units of a CTA; the first `units % ctas` CTAs have one more than the others."""
        each, more = divmod(self.units, self.ctas)
        first = cta * each + min(cta, more)
        return range(first, first + each + (cta < more))

    @property
    def sharers(self) -> list[int]:
        """How many CTAs have units of each tile."""
        sharers = [0] * self.tiles_n
        for units in map(self.units_of, range(self.ctas)):
            for tile in range(units.start // self.iters, (units.stop - 1) // self.iters + 1):
                sharers[tile] += 1
        return sharers

    @property
    def partials(self) -> int:
        """Shares that pass through the workspace: one for each CTA of a tile that has several CTAs."""
        return sum(n for n in self.sharers if n > 1)

    @property
    def share_bytes(self) -> int:
        """Bytes of all shares in fp32. Up to 64 columns they leave out the batch's padding."""
        columns = self.B if self.BLOCK_B <= 64 else self.tiles_b * self.BLOCK_B
        return 4 * self.partials * self.BLOCK_N * columns * self.sums

    @property
    def loads_after(self) -> dict[str, int]:
        """`Stage.loads_after`: a share must have reached the L2, then its CTA is counted, then the last CTA reads the
        shares one after the other, since it adds each before it asks for the next."""
        return {"l2": 2 + max(self.sharers)} if self.partials else {}

    @property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """`Stage.pieces`: the units of each CTA. CTAs of all batch tiles that have the same units start together."""
        each, more = divmod(self.units, self.ctas)
        larger, smaller = more * self.tiles_b, (self.ctas - more) * self.tiles_b
        return ((larger, each + 1), (smaller, each)) if more else ((smaller, each),)

    @property
    def flops(self) -> int:
        """FLOPs executed, the padding of all three dimensions included."""
        return 2 * self.units * self.BLOCK_N * self.BLOCK_K * self.tiles_b * self.BLOCK_B * self.sums

    @property
    def max_registers(self) -> int | None:
        """The limit that keeps `ctas_per_sm` CTAs resident; kernels on the fp32 pipe need none."""
        most = registers(self.num_warps * self.ctas_per_sm)
        return most if self.use_mma and most < 255 else None

    def excuses(self, *weights: torch.Tensor) -> dict[str, Any]:
        """Why loads of these weights are narrow, if Triton cannot know that all rows are 16-byte aligned. Narrow loads
        are not pipelined either."""
        if self.even_k and all(w.stride(0) % 16 == 0 for w in weights):
            return {}
        why = "K does not divide into blocks, or rows do not begin 16 n elements apart"
        return {"why_narrow": why, "why_few_in_flight": f"{why}, so that loads are narrow and not pipelined"}

    def workspace(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Arguments of every kernel: room for the shares, and the counters, which are zero between launches."""
        slots = 2 * self.ctas * self.tiles_b if self.partials else 1
        return {
            "partial": torch.empty(slots * self.BLOCK_N * self.BLOCK_B * self.sums, dtype=torch.float32, device=device),
            "arrived": torch.zeros(self.tiles_n * self.tiles_b, dtype=torch.int32, device=device),
        }


def share(p: Plan, target: Target) -> Plan:
    """The plan with `num_stages` and `ctas` filled in.

    There are as many stages as `in_flight` asks for and shared memory holds. There is one CTA per tile, or one per slot
    that the part has for CTAs, whichever ends sooner.
    """
    fit = cta_smem(target, p.ctas_per_sm) // p.unit_smem
    num_stages = max(2, min(1 + p.in_flight // (p.ctas_per_sm * p.unit_bytes), fit))
    slots = max(1, target.sm_count * p.ctas_per_sm // p.tiles_b)
    one_per_tile = replace(p, num_stages=num_stages, ctas=p.tiles_n)
    one_per_slot = replace(p, num_stages=num_stages, ctas=min(slots, p.units))

    def slowest(p: Plan) -> float:
        """Weight bytes of the longest chain of CTAs on one slot, plus the workspace's bytes spread over all slots."""
        return cdiv(p.ctas, slots) * cdiv(p.units, p.ctas) * p.unit_bytes + 2 * p.share_bytes / slots

    return min(one_per_tile, one_per_slot, key=slowest)


def variants(ctas_per_sm: Iterable[int], **more: int) -> Iterator[dict[str, int]]:
    """Candidates for each number of CTAs per SM, with the reasoned bytes in flight and with 5/3 of them."""
    for ctas in ctas_per_sm:
        for in_flight in (IN_FLIGHT, IN_FLIGHT * 5 // 3):
            yield {**more, "ctas_per_sm": ctas, "in_flight": in_flight}


def more_or_fewer() -> Iterator[dict[str, int]]:
    """Candidates where the format sets the tile: only threads, CTAs and bytes in flight vary."""
    for num_warps in (4, 8):
        yield from variants((1, 2, 3), num_warps=num_warps)


def launch(
    kernel: Any,
    p: Plan,
    tensors: Mapping[str, Any],
    streams: tuple[str, ...] = ("w",),
    *,
    constexprs: Mapping[str, Any] | None = None,
    **more: Any,
) -> KernelLaunch:
    """The launch of a stream-K kernel. It owns the workspace and the counters, which are zero between launches.

    `tensors` are the kernel's first arguments: x, the weights that `streams` names, what unpacks or scales them, y.
    `constexprs` are those that only this kernel has; `more` goes to `KernelLaunch`.
    """
    x, y = tensors["x"], tensors["y"]
    for name in ("x", *streams):
        if tensors[name].stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along K, its strides are {tensors[name].stride()}")
    sizes = {"B": p.B, "N": p.N, "K": p.K}
    w_strides = {f"stride_{name}_n": tensors[name].stride(0) for name in streams}
    strides = {"stride_x_b": x.stride(0), **w_strides, "stride_y_b": y.stride(0)}
    blocks = {"BLOCK_B": p.BLOCK_B, "BLOCK_N": p.BLOCK_N, "BLOCK_K": p.BLOCK_K}
    return KernelLaunch(
        kernel=kernel,
        grid=(p.tiles_b, p.ctas),
        args={**tensors, **p.workspace(x.device), **sizes, **strides},
        constexprs={**(constexprs or {}), **blocks, "EVEN_K": p.even_k, "STAGES": p.num_stages},
        num_warps=p.num_warps,
        num_stages=p.num_stages,
        max_registers=p.max_registers,
        streams=streams,
        wants_mma=p.use_mma and y.dtype != torch.float32,
        **more,
    )


def stage(
    name: str, p: Plan, target: Target, *, pipe: str, weights: int, activations: int, outputs: int, slots: float = 0.0
) -> Stage:
    """The traffic of a stream-K kernel. Weights (with their scales), activations and outputs, all in bytes, cross DRAM
    once. The L2 serves activations again for each further tile of rows, and weights for each further batch tile. Shares
    pass through the workspace. `slots`: `KernelLaunch.slots_per_byte`."""
    own = Stage(
        name=name,
        work=Work(flops={pipe: p.flops}, bytes_read=weights + activations, bytes_written=outputs),
        l2_bytes=(p.tiles_b - 1) * weights + (p.tiles_n - 1) * activations,
        ctas=p.ctas * p.tiles_b,
        ctas_per_sm=p.ctas_per_sm,
        pieces=p.pieces,
        loads_after=p.loads_after,
        instructions=round(slots * p.units * p.unit_bytes * p.tiles_b),
    )
    return passing(own, target, p.share_bytes, written=p.share_bytes, read=p.share_bytes)


@triton.jit
def first_unit(cta, units, ctas):
    """The same as `Plan.units_of(cta).start`."""
    return cta * (units // ctas) + tl.minimum(cta, units % ctas)


@triton.jit
def cta_of(unit, units, ctas):
    """The inverse of `first_unit`: the CTA that a unit belongs to."""
    each = units // ctas
    larger = (units % ctas) * (each + 1)
    return tl.where(unit < larger, unit // (each + 1), units % ctas + (unit - larger) // each)


@triton.jit
def own_units(N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(units of a tile, all units, this CTA's first unit, the end of its units)."""
    iters = tl.cdiv(K, BLOCK_K)
    units = tl.cdiv(N, BLOCK_N) * iters
    cta = tl.program_id(1)
    ctas = tl.num_programs(1)
    return iters, units, first_unit(cta, units, ctas), first_unit(cta + 1, units, ctas)


@triton.jit
def own_batch(B, stride_x_b, offs_k, BLOCK_B: tl.constexpr):
    """(sequences of this CTA's batch tile, mask of those that exist, offsets of their x^T)."""
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    return offs_b, offs_b < B, (offs_b * stride_x_b)[None, :] + offs_k[:, None]


@triton.jit
def own_part(unit, end, iters):
    """(the tile of a unit, this CTA's first step along K in that tile, the end of its steps)."""
    tile = unit // iters
    return tile, unit - tile * iters, tl.minimum(end, tile * iters + iters) - tile * iters


@triton.jit
def clipped_rows(first, N, BLOCK_N: tl.constexpr):
    """Rows of a tile, counted from its first. Rows past N read the last row of W; their sums are not stored."""
    return tl.minimum(tl.arange(0, BLOCK_N), N - 1 - first)


@triton.jit
def weights_at(w, first, rows, stride_w_n, offs_k):
    """(address of a tile's first row, offsets from there, which fit in 32 bits)."""
    return w + first.to(tl.int64) * stride_w_n, (rows * stride_w_n)[:, None] + offs_k[None, :]


@triton.jit
def load_weights(at, mask_k, EVEN_K: tl.constexpr):
    """A tile of weights, zero past K."""
    return tl.load(at) if EVEN_K else tl.load(at, mask=mask_k, other=0.0)


@triton.jit
def load_x(at, mask_b, mask_k, EVEN_K: tl.constexpr):
    """A tile of activations, zero past the batch and past K."""
    return tl.load(at, mask=mask_b if EVEN_K else mask_b & mask_k, other=0.0)


@triton.jit
def finish_tile(
    sums,
    sums_up,
    y,
    offs_b,
    B,
    N,
    stride_y_b,
    partial,
    arrived,
    tile,
    iters,
    units,
    N_ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Store a tile of outputs. If CTAs share the tile, each leaves its share, and the last to arrive adds up all
    shares.

    `sums` is [BLOCK_N, BLOCK_B] (N_ROWS) or [BLOCK_B, BLOCK_N]; `sums_up` is as large, for an ACTIVATION, or None.
    A share leaves out the batch's padding, except for wide batches. Shares are added in their order. A CTA shares at
    most two tiles, the first and the last of its range, so the workspace has two slots for each CTA.
    """
    ROWS: tl.constexpr = sums.shape[0]
    COLUMNS: tl.constexpr = sums.shape[1]
    TILE: tl.constexpr = ROWS * COLUMNS
    SLOT: tl.constexpr = TILE if sums_up is None else 2 * TILE
    if N_ROWS:
        offs_n = tile * ROWS + tl.arange(0, ROWS)
        y_at = y + offs_n[:, None] + (offs_b * stride_y_b)[None, :]
        mask_b = (offs_b < B)[None, :]
        mask = (offs_n < N)[:, None] & mask_b
    else:
        offs_n = tile * COLUMNS + tl.arange(0, COLUMNS)
        y_at = y + (offs_b * stride_y_b)[:, None] + offs_n[None, :]
        mask_b = (offs_b < B)[:, None]
        mask = mask_b & (offs_n < N)[None, :]
    cta = tl.program_id(1)
    ctas = tl.num_programs(1)
    first = cta_of(tile * iters, units, ctas)
    last = cta_of(tile * iters + iters - 1, units, ctas)
    if first == last:
        tl.store(y_at, output_of(sums, sums_up, ACTIVATION).to(y.dtype.element_ty), mask=mask)
    else:
        shares = partial + tl.program_id(0).to(tl.int64) * ctas * (2 * SLOT)
        offs = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        mask_share = mask_b
        if N_ROWS and COLUMNS > 64:
            # the registers could not hold addresses and masks of a whole column of outputs
            mask_share = tl.full((1, 1), 1, tl.int1)
        elif N_ROWS:
            offs = tl.arange(0, ROWS)[:, None] + tl.arange(0, COLUMNS)[None, :] * ROWS
        counter = arrived + tile * tl.num_programs(0) + tl.program_id(0)
        slot = 2 * cta + (first_unit(cta, units, ctas) < tile * iters).to(tl.int32)
        share_at = shares + slot.to(tl.int64) * SLOT + offs
        tl.store(share_at, sums, mask=mask_share)
        if sums_up is not None:
            tl.store(share_at + TILE, sums_up, mask=mask_share)
        # all threads must have stored before one of them releases
        tl.debug_barrier()
        if tl.atomic_add(counter, 1, sem="acq_rel") == last - first:
            whole = tl.zeros_like(sums)
            whole_up = None if sums_up is None else tl.zeros_like(sums)
            for sharer in range(first, last + 1):
                slot = 2 * sharer + (first_unit(sharer, units, ctas) < tile * iters).to(tl.int32)
                share_at = shares + slot.to(tl.int64) * SLOT + offs
                whole += tl.load(share_at, mask=mask_share, other=0.0, cache_modifier=".cg")
                if sums_up is not None:
                    whole_up += tl.load(share_at + TILE, mask=mask_share, other=0.0, cache_modifier=".cg")
            tl.store(y_at, output_of(whole, whole_up, ACTIVATION).to(y.dtype.element_ty), mask=mask)
            tl.store(counter, 0)
