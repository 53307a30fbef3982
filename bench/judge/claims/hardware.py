"""Claims H: what chips are said to hold and to do."""

from __future__ import annotations

import math

from bench.devices import DEVICES, DeviceSpec, find
from bench.judge.claims.base import (
    APPROXIMATE,
    Claim,
    Comparison,
    Measured,
    NoPrediction,
    Published,
    number,
    our_range,
    seconds,
)
from bench.judge.claims.common import (
    H100,
    LLAMA_8B,
    at_most,
    bandwidth,
    bisect,
    capacity,
    decode,
    guess,
    known,
    need_comparisons,
    peak,
    power,
    seen,
)
from bench.predict.step_work import PRECISIONS

INF = math.inf
DATASHEET = "the vendor's number"

# ---------------------------------------------------------------------------------------------- H1, H2: wafer-scale

WSE = "wse-3"
"""Its power is that of a whole system, the only one published; a wafer alone draws less."""

H1_SRAM = number("SRAM of WSE-3", 44e9, "B")
H1_RATE = number("its bandwidth", 21e15, "B/s")
H1_H100 = number("bandwidth of the H100", 3.35e12, "B/s")
H1_PER_WATT = number("tokens per second and watt of WSE-3 over the H100", 5, "x", APPROXIMATE)


def per_watt(batch: float, context: int) -> float:
    """Tokens/s/W of an H100 at a batch: Llama-3.1-8B in bf16, which one wafer holds; rated power."""
    result = decode(LLAMA_8B, H100, batch=round(batch), context=context)
    return round(batch) / result.seconds / power(find(H100))


def wafer_per_watt(context: int) -> float:
    """Tokens/s/W of a CS-3 at batch 1, if its bandwidth were all that mattered: an upper bound."""
    step = decode(LLAMA_8B, H100, batch=1, context=context)
    read = sum(op.work.bytes for op in step.ops)
    return bandwidth(find(WSE)) / read / power(find(WSE))


def advantage(batch: float, context: int = 2048) -> float:
    """Of a wafer serving one user over an H100 serving `batch`."""
    return wafer_per_watt(context) / per_watt(batch, context)


def predict_h1() -> list[Comparison]:
    found = [
        guess(H1_SRAM, capacity(find(WSE)), DATASHEET, the="SRAM"),
        guess(H1_RATE, bandwidth(find(WSE)), DATASHEET, the="bandwidth"),
        guess(H1_H100, bandwidth(find(H100)), DATASHEET, the="H100's bandwidth"),
    ]
    right = round(bisect(lambda batch: H1_PER_WATT.low - advantage(batch), 1, 4096, within=0.02))
    most = decode(LLAMA_8B, H100, batch=1, context=2048).max_batch or 1
    how = (
        "an upper bound of the wafer, bandwidth / bytes of a step / its system's rated power at batch 1, "
        "over the H100's model and rated power at batches that fit"
    )
    found += [
        at_most(H1_PER_WATT, advantage(batch), how, the="tokens/s/W", **{"H100 batch": batch})
        for batch in sorted({1, 8, right, 64, most})
    ]
    return found


H1 = Claim(
    id="H1",
    text="WSE-3: 44 GB SRAM at 21 PB/s against the H100's 3.35 TB/s; about 5 times the tokens per second per watt",
    plain="A wafer-sized chip holds 44 GB and reads them at 21 PB/s where an H100 reads at 3.35 TB/s, and writes "
    "five times as many tokens per unit of energy",
    source="B",
    how="P",
    published=(H1_SRAM, H1_RATE, H1_H100, H1_PER_WATT),
    setting="Llama-3.1-8B in bf16, 2,048 tokens; one user on the wafer, whose bandwidth alone is counted, so "
    "that its speed is an upper bound; the GPU's batch is not named: varied, and solved for",
    predict=predict_h1,
)


H2_SMALL = our_range("tokens per watt of the wafer over a GPU at batch 1", 1, INF, "x")
H2_LARGE = our_range("tokens per watt of the wafer over a full GPU", 0, 1, "x")


def latest_crossover(context: int, most: int) -> int:
    """The batch up to `most` at which the bound of the wafer's advantage falls to 1: the GPU is ahead from there."""
    return round(bisect(lambda batch: 1 - advantage(batch, context), 1, most))


def predict_h2() -> list[Comparison]:
    """At batch 1 and at the H100's largest; where it is ahead at that, also from which batch at the latest.

    The bandwidth bounds the wafer from above: it can show where the GPU is ahead, and never that the wafer is.
    """
    found = []
    how = (
        "an upper bound of the wafer at batch 1, by bandwidth alone and its system's rated power, "
        "over the H100's model and rated power"
    )
    for context in (128, 512, 2048, 8192, 32768):
        most = decode(LLAMA_8B, H100, batch=1, context=context).max_batch or 1
        least, crossing = advantage(most, context), ""
        if least <= 1:
            latest = latest_crossover(context, most)
            crossing = f"; at {context} tokens the GPU is ahead from a batch of {latest:,} at the latest"
        found += [
            at_most(H2_SMALL, advantage(1, context), how, context=context, **{"H100 batch": "1"}),
            at_most(H2_LARGE, least, how + crossing, context=context, **{"H100 batch": "largest that fits"}),
        ]
    return found


H2 = Claim(
    id="H2",
    text="the GPU wins back large batches; wafer-scale wins where latency is strict and the batch small",
    plain="The wafer-sized chip writes more per unit of energy for one user, the GPU for as many as fit its memory",
    source="B",
    how="P",
    published=(H2_SMALL, H2_LARGE),
    setting="per watt, as H1, the wafer's speed an upper bound; the GPU at batch 1 and at the largest that its "
    "memory holds; context varied",
    predict=predict_h2,
)


# ----------------------------------------------------------------------------------------------- H3 to H5: datasheets

FIELDS = {"memory": ("memory_capacity", "B"), "bandwidth": ("memory_bandwidth", "B/s")}


def of_part(part: DeviceSpec, field: str) -> float:
    """A capacity, a bandwidth, or the peak of a pipe."""
    if field in FIELDS:
        return known(getattr(part, FIELDS[field][0]), field, part)
    return peak(part, field)


def claimed(key: str, field: str, value: float, what: str) -> tuple[str, str, Published]:
    unit = FIELDS[field][1] if field in FIELDS else "FLOP/s"
    return key, field, number(f"{what} of {DEVICES[key].name}", value, unit)


def datasheets(rows: tuple[tuple[str, str, Published], ...]) -> list[Comparison | NoPrediction]:
    """A comparison for each number that the vendor publishes, and what is missing of the others."""
    found: list[Comparison | NoPrediction] = []
    for key, field, published in rows:
        try:
            found.append(guess(published, of_part(DEVICES[key], field), DATASHEET, the=published.what))
        except NoPrediction as missing:
            found.append(missing)
    return found


H3_ROWS = (
    claimed("r200", "memory", 288e9, "memory"),
    claimed("r200", "bandwidth", 20.5e12, "bandwidth"),
    claimed("r200", "mma_fp4", 33.3e15, "FP4 peak"),
    claimed("rubin-cpx", "memory", 128e9, "memory"),
    claimed("rubin-cpx", "bandwidth", 2e12, "bandwidth"),
    claimed("rubin-cpx", "mma_fp4", 20e15, "FP4 peak"),
)
H3_PREFILL = our_range("share of its peak that CPX reaches in prefill", 0.9, 1, "")
CPX_RIDGE = 20e15 / 2e12
"""FLOP/B, from the claim's own two numbers: NVIDIA publishes no bandwidth of the part."""


def predict_h3() -> list[Comparison | NoPrediction]:
    found = datasheets(H3_ROWS)
    for prompt in (512, 2048, 8192, 32768, 131072):
        intensity = 2 * prompt / PRECISIONS["fp4"].bytes
        how = "FLOP per byte of FP4 weights for the prompt / (20 PFLOP/s over 2 TB/s, as claimed), at most 1"
        found.append(guess(H3_PREFILL, min(1.0, intensity / CPX_RIDGE), how, the="prefill", prompt=prompt))
    return found


H3 = Claim(
    id="H3",
    text="Rubin R200 288 GB at 20.5 TB/s and 33.3 PFLOP/s FP4; Rubin CPX 128 GB GDDR7 at 2 TB/s and 20 PFLOP/s "
    "FP4: prefill parts don't need HBM",
    plain="Two announced chips have the memory and speed said of them, and the one that only reads questions comes "
    "near its full speed with cheaper, slower memory",
    source="A",
    how="P",
    published=(*(published for *_, published in H3_ROWS), H3_PREFILL),
    setting="against the vendor's announcements; CPX's bandwidth and dense peak are not published, so prefill is "
    "judged by the claim's own numbers, FP4 weights, prompt varied",
    predict=predict_h3,
)


H4_ROWS = (
    claimed("maia-200", "memory", 216e9, "memory"),
    claimed("maia-200", "bandwidth", 7e12, "bandwidth"),
    claimed("tpu-ironwood", "mma_fp8", 4614e12, "FP8 peak"),
    claimed("mi350x", "memory", 288e9, "memory"),
    claimed("mi400", "memory", 432e9, "memory"),
)


def predict_h4() -> list[Comparison | NoPrediction]:
    return datasheets(H4_ROWS)


H4 = Claim(
    id="H4",
    text="Maia 200 216 GB at 7 TB/s; TPU Ironwood 4,614 TFLOP/s FP8; MI300X, MI350X 288 GB, MI400 432 GB",
    plain="These chips have the memory and speed that they are said to have",
    source="A",
    how="P",
    published=tuple(published for *_, published in H4_ROWS),
    setting="against the vendors' documents",
    predict=predict_h4,
)


H5_RATIO = number("FP4 over FP8 of the B300", 3, "x")
H5_IDEAL = number("ratio that a multiplier of quadratic cost would allow", 4, "x")
MULTIPLIER_BITS = {"whole format": (8, 4), "significand with its hidden bit (E4M3, E2M1)": (4, 2)}


def predict_h5() -> list[Comparison]:
    b300 = find("b300")
    value = peak(b300, "mma_fp4") / peak(b300, "mma_fp8")
    found = [guess(H5_RATIO, value, "dense FP4 / dense FP8", the="FP4/FP8", part=b300.name)]
    found += [
        guess(H5_IDEAL, (wide / narrow) ** 2, "(bits / bits)^2", the="multiplier", width=width)
        for width, (wide, narrow) in MULTIPLIER_BITS.items()
    ]
    return found


H5 = Claim(
    id="H5",
    text="B300: FP4 is 3 times FP8, where halving the width should give 4 (multipliers cost the square of it)",
    plain="Halving the bits makes this chip three times as fast, though its multipliers alone would allow four",
    source="E",
    how="P",
    published=(H5_RATIO, H5_IDEAL),
    setting="dense peaks; the multiplier's width counted as the format's bits or the significand's",
    predict=predict_h5,
)


# ------------------------------------------------------------------------------------------------ H6, H7: memory

H6_SRAM = number("on-chip cache of a GPU", 50e6, "B", APPROXIMATE)
H6_HBM = Published(what="HBM of a GPU", low=80e9, high=288e9, unit="B")
H6_FASTER = our_range("L2 bandwidth over HBM bandwidth", 1.5, INF, "x")
H6_HOST = our_range("HBM bandwidth over the host link's", 1.5, INF, "x")
H6_REACH = our_range("time to fetch a little from host memory", 1e-6, 1e-3, "s")
LITTLE = 64 << 10
"""Bytes of a copy at PCIe Gen5's 64 GB/s in 1 us: whatever it takes beyond that is the way to the host and back."""
DATACENTER = ("a100-80", H100, "h200", "b200", "b300")


def predict_h6() -> list[Comparison | NoPrediction]:
    found: list[Comparison | NoPrediction] = []
    for key in DATACENTER:
        part = find(key)
        found.append(guess(H6_HBM, capacity(part), DATASHEET, tier="HBM", part=part.name))
        try:
            on_chip = known(part.on_chip, "on-chip memory", part)
            found.append(guess(H6_SRAM, on_chip, DATASHEET, tier="on chip", part=part.name))
        except NoPrediction as missing:
            found.append(missing)
        try:
            ratio = bandwidth(part) / known(part.host_bandwidth, "link to the host", part)
            found.append(guess(H6_HOST, ratio, "memory / one direction of the link", tier="host", part=part.name))
        except NoPrediction as missing:
            found.append(missing)
    return found


def measure_h6(run: Measured) -> list[Comparison]:
    """Sizes as the driver reports them are in the run's header; here the rates that make them tiers."""
    reads = run.fastest("stream", kind="read")
    copies = run.fastest("host_link", kind=("h2d", "d2h"))
    found = []
    if run.ceilings.l2_bandwidth:
        how = "best measured L2 read / best measured DRAM read"
        value = run.ceilings.l2_bandwidth / run.ceilings.read_roof
        found.append(seen(H6_FASTER, value, how, [*run.fastest("stream", kind="l2_read"), *reads],
                          tier="on chip", part=run.name))  # fmt: skip
    if run.ceilings.host_bandwidth:
        how = "best measured DRAM read / best measured copy to or from pinned host memory"
        value = run.ceilings.read_roof / run.ceilings.host_bandwidth
        found.append(seen(H6_HOST, value, how, [*reads, *copies], tier="host", part=run.name))
    fetched = [r for r in copies if r.case["kind"] == "h2d" and r.bytes <= LITTLE]
    if fetched:
        least = min(fetched, key=seconds)
        found.append(seen(H6_REACH, seconds(least), "the smallest copy from pinned host memory", [least],
                          tier="host", part=run.name))  # fmt: skip
    return need_comparisons(found, "`l2_read` of `stream` or copy of `host_link`")


H6 = Claim(
    id="H6",
    text="tiers: on-chip SRAM about 50 MB, HBM 80-288 GB, host DRAM in microseconds, NVMe in microseconds",
    plain="A GPU has about 50 MB on the chip and 80 to 288 GB beside it, each tier slower than the one before, and "
    "fetches from the host's within a millisecond",
    source="A",
    how="M",
    published=(H6_SRAM, H6_HBM, H6_FASTER, H6_HOST, H6_REACH),
    setting="data-centre GPUs by their datasheets; measured: rates of L2, DRAM and the host's link; not NVMe",
    predict=predict_h6,
    measure=measure_h6,
)


H7 = Claim(
    id="H7",
    text="in a chip's area and energy, moving data outweighs arithmetic about 7 to 1",
    plain="Most of a chip and of its power serves to move data, not to calculate",
    source="E",
    how="M",
    published=(number("moving over computing, in area and energy", 7, "x", APPROXIMATE),),
    setting="a property of a layout",
    never="area and energy by function are known to the chip's designer alone: a driver reports the power of a "
    "whole board, and no counter splits it into moving and computing",
)
