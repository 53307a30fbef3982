"""Plans of the routed experts: tiles of pairs, blocks of weights, and what they move. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kernels.common.integers import cdiv, next_power_of_2
from kernels.common.random_inputs import BYTES
from kernels.common.workspace import passing
from kernels.launch import cta_smem
from kernels.moe_ffn.op import MoeCase, experts_hit, tokens_per_expert
from kernels.op import Stage, Target, Work

BLOCK_N = 64
"""Weight rows that a CTA multiplies: the M of one `wgmma`."""

MIN_BLOCK_B = 16
"""Pairs of the smallest tile: the smallest N of a `tl.dot`."""

MAX_BLOCK_B = 128
"""Pairs of the largest tile: gate and up sums of 64 x 128 take 64 registers in each of 256 threads."""

IN_FLIGHT = 96 << 10
"""Weight bytes to keep in flight per SM: 1.5 times the 64 KiB that sm_100 asks for, the most of all parts."""

COMBINE_COLUMNS = 1024


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """One of the two products. An expert has `matrices` matrices (two for gate and up, one for up alone) of `rows` rows
    and `K` columns."""

    rows: int
    K: int
    matrices: int
    BLOCK_K: int
    num_stages: int
    ctas: int
    """All CTAs that are launched, `ctas_per_sm` for each SM."""
    ctas_per_sm: int
    expert_bytes: int
    """Bytes of one expert as the kernel reads it: codes, scales and padding."""
    unit_bytes: int
    """Bytes of weights in one stage of the pipeline."""

    @property
    def blocks(self) -> int:
        return cdiv(self.rows, BLOCK_N)

    @property
    def iters(self) -> int:
        return cdiv(self.K, self.BLOCK_K)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Blocks and grids of one case; `max_tiles` bounds the tiles of any routing of B tokens."""

    BLOCK_B: int
    max_tiles: int
    num_warps: int
    gate_up: Gemm
    down: Gemm


def tile_pairs(case: MoeCase) -> int:
    """Pairs of a tile: enough for an expert's mean number of tokens plus three standard deviations."""
    mean = case.pairs / case.experts
    return max(MIN_BLOCK_B, min(MAX_BLOCK_B, next_power_of_2(round(mean + 3 * mean**0.5)), next_power_of_2(case.rows)))


def max_tiles(case: MoeCase, BLOCK_B: int) -> int:
    """Tiles in the worst routing, where every expert that can be hit ends in a tile of its own."""
    hit = min(case.experts, case.pairs)
    return hit + (case.pairs - hit) // BLOCK_B


def shape_class(case: MoeCase) -> str:
    """Cases of one class have the experts of one model, and tiles of one width."""
    weights = f" w{case.weights}" if case.quantized else ""
    alone = "" if case.matrices == 2 else f" {case.activation}"
    return f"E{case.experts}k{case.width} H{case.H} F{case.F} {case.dtype}{weights}{alone} tile{tile_pairs(case)}"


def gemm_of(target: Target, *, ctas_per_sm: int, unit_bytes: int, unit_smem: int, **shape: int) -> Gemm:
    """A product with as many stages as `IN_FLIGHT` asks for and shared memory holds. A stage is `unit_bytes` of
    weights, and takes `unit_smem` of shared memory."""
    fit = cta_smem(target, ctas_per_sm) // unit_smem
    num_stages = max(2, min(1 + cdiv(IN_FLIGHT, ctas_per_sm * unit_bytes), fit))
    ctas = target.sm_count * ctas_per_sm
    return Gemm(num_stages=num_stages, ctas=ctas, ctas_per_sm=ctas_per_sm, unit_bytes=unit_bytes, **shape)


def widths(tile: int, widest: int) -> list[int]:
    """Tile widths for the tuner: half, the same, and twice."""
    return sorted({max(MIN_BLOCK_B, tile // 2), tile, min(widest, 2 * tile)})


def plan_of(
    case: MoeCase, target: Target, gemm: Callable[..., Gemm], *, tile: int, ctas_per_sm: int, num_warps: int
) -> Plan:
    """The plan for these reasoned values, or for those that the target asks for."""
    fields = {"BLOCK_B": tile, "ctas_per_sm": ctas_per_sm, "num_warps": num_warps}
    fields |= target.overrides

    def of(*, BLOCK_B: int, ctas_per_sm: int, num_warps: int) -> Plan:
        common = {"BLOCK_B": BLOCK_B, "ctas_per_sm": ctas_per_sm}
        return Plan(
            BLOCK_B=BLOCK_B,
            max_tiles=max_tiles(case, BLOCK_B),
            num_warps=num_warps,
            gate_up=gemm(case, target, rows=case.F, K=case.H, matrices=case.matrices, **common),
            down=gemm(case, target, rows=case.H, K=case.F, matrices=1, **common),
        )

    return of(**fields)


def sharers(g: Gemm, units: int) -> int:
    """The most CTAs that share an output block, if `units` of weights are shared evenly among all CTAs."""
    each = units // min(g.ctas, units)
    return min(g.iters, 1 + cdiv(g.iters - 1, each))


def stages_of(case: MoeCase, target: Target, p: Plan, slots: Callable[[Gemm], float]) -> tuple[Stage, ...]:
    """An expert with several tiles is read once for each tile, unless the L2 holds all experts hit: its tiles run far
    apart. Shares of output blocks, hidden values and the parts of each pair pass through workspaces.

    `slots`: `KernelLaunch.slots_per_byte` of a product.
    """
    size = BYTES[case.dtype]
    tiles = sum(cdiv(count, p.BLOCK_B) for count in tokens_per_expert(case))
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_bf16"

    def product(name: str, g: Gemm, read: int, l2_read: int) -> Stage:
        fit = experts_hit(case) * g.expert_bytes <= target.l2_bytes // 2
        flops = 2 * tiles * g.matrices * g.blocks * BLOCK_N * g.iters * g.BLOCK_K * p.BLOCK_B
        units = max(1, tiles * g.blocks * g.iters)
        shared = min(g.ctas, units) if g.ctas > 1 and g.iters > 1 else 0
        shares = 2 * 4 * shared * g.matrices * BLOCK_N * p.BLOCK_B
        own = Stage(
            name=name,
            work=Work(flops={pipe: flops}, bytes_read=read + (experts_hit(case) if fit else tiles) * g.expert_bytes),
            l2_bytes=l2_read,
            ctas=g.ctas,
            ctas_per_sm=g.ctas_per_sm,
            # the number of tiles, a tile's expert and its range of pairs, its pairs
            loads_before={"l2": 3},
            loads_after={"l2": 2 + sharers(g, units)} if shared else {},
            instructions=round(slots(g) * units * g.unit_bytes),
        )
        return passing(own, target, shares, written=shares, read=shares)

    hidden, parts = size * case.pairs * case.F, 4 * case.pairs * case.H
    combine = Stage(
        name="combine",
        work=Work(bytes_read=4 * case.pairs, bytes_written=size * case.rows * case.H),
        ctas=case.rows * cdiv(case.H, COMBINE_COLUMNS),
        ctas_per_sm=16,
    )
    gathered = size * case.pairs * case.H * p.gate_up.blocks
    gate_up = product("gate and up", p.gate_up, size * case.rows * case.H, gathered)
    down = product("down", p.down, 0, hidden * (p.down.blocks - 1))
    return (
        Stage(
            name="sort", work=Work(bytes_read=4 * case.pairs), l2_bytes=4 * case.pairs * case.experts, ctas=case.experts
        ),
        passing(gate_up, target, hidden, written=hidden),
        passing(passing(down, target, hidden, read=hidden), target, parts, written=parts),
        passing(combine, target, parts, read=parts),
    )
