"""Claims about hardware: what chips are said to hold and to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from bench.devices import DEVICES, DeviceSpec, find
from bench.judge.claims.base import APPROXIMATE, Claim, Comparison, NoPrediction, Published, number, our_range
from bench.judge.claims.common import (
    H100,
    LLAMA_8B,
    at_most,
    bandwidth,
    bisect,
    capacity,
    datasheet_value,
    decode,
    measured,
    peak,
    power,
    predicted,
)
from bench.judge.claims.reading import MeasuredPart, require_some, seconds
from bench.predict.step_work import PRECISIONS

VENDOR = "the vendor's number"


Read = Callable[[DeviceSpec], float]
"""Reads one number from a part's datasheet. Raises `NoPrediction` if the datasheet does not give it."""


def from_datasheet(
    published: Published, read: Read, spec: DeviceSpec, how: str = VENDOR, **setting: object
) -> Comparison | NoPrediction:
    """The vendor's number beside the published one, or what the datasheet does not give."""
    try:
        return predicted(published, read(spec), how, **setting)
    except NoPrediction as missing:
        return missing


# ------------------------------------------------------------------------------ H1: a wafer-scale chip beside an H100

WSE = "wse-3"
"""Only the power of a whole system is published. A wafer alone draws less."""

H1_SRAM = number("SRAM of WSE-3", 44e9, "B")
H1_RATE = number("its bandwidth", 21e15, "B/s")
H1_H100 = number("bandwidth of the H100", 3.35e12, "B/s")
H1_PER_WATT = number("tokens per second and watt of WSE-3 over the H100", 5, "x", APPROXIMATE)


def per_watt(batch: float, context: int) -> float:
    """Tokens/s/W of an H100 at this batch and its rated power, for Llama-3.1-8B in bf16, which one wafer can hold."""
    result = decode(LLAMA_8B, H100, batch=round(batch), context=context)
    return round(batch) / result.seconds / power(find(H100))


def wafer_per_watt(context: int) -> float:
    """Tokens/s/W of a CS-3 at batch 1 if its time depended on its bandwidth alone. This is an upper bound."""
    step = decode(LLAMA_8B, H100, batch=1, context=context)
    read = sum(op.work.bytes for op in step.ops)
    return bandwidth(find(WSE)) / read / power(find(WSE))


def advantage(batch: float, context: int = 2048) -> float:
    """Tokens/s/W of a wafer that serves one user over those of an H100 that serves `batch`."""
    return wafer_per_watt(context) / per_watt(batch, context)


def predict_h1() -> list[Comparison]:
    found = [
        predicted(H1_SRAM, capacity(find(WSE)), VENDOR, the="SRAM"),
        predicted(H1_RATE, bandwidth(find(WSE)), VENDOR, the="bandwidth"),
        predicted(H1_H100, bandwidth(find(H100)), VENDOR, the="H100's bandwidth"),
    ]
    right = round(bisect(lambda batch: H1_PER_WATT.low - advantage(batch), 1, 4096, within=0.02))
    most = decode(LLAMA_8B, H100, batch=1, context=2048).max_batch or 1
    how = (
        "an upper bound for the wafer (bandwidth / bytes of a step / its system's rated power, at batch 1) "
        "over the H100's model and rated power, at batches that fit"
    )
    found += [
        at_most(H1_PER_WATT, advantage(batch), how, the="tokens/s/W", **{"H100 batch": batch})
        for batch in sorted({1, 8, right, 64, most})
    ]
    return found


H1 = Claim(
    id="H1",
    text="WSE-3: 44 GB SRAM at 21 PB/s against the H100's 3.35 TB/s; about 5 times the tokens per second per watt",
    plain="A wafer-sized chip holds 44 GB and reads them at 21 PB/s where an H100 reads at 3.35 TB/s, and it writes "
    "five times as many tokens per unit of energy",
    source="B",
    how="P",
    published=(H1_SRAM, H1_RATE, H1_H100, H1_PER_WATT),
    setting="Llama-3.1-8B in bf16 with 2,048 tokens, and one user on the wafer. Only the wafer's bandwidth is counted, "
    "so its speed is an upper bound. The text does not name the GPU's batch: it is varied, and the batch "
    "that gives the published number is tried too",
    predict=predict_h1,
)

# ---------------------------------------------------------------------------------- H2: the batch where the GPU wins

H2_SMALL = our_range("tokens per watt of the wafer over a GPU at batch 1", 1, math.inf, "x")
H2_LARGE = our_range("tokens per watt of the wafer over a full GPU", 0, 1, "x")


def latest_crossover(context: int, most: int) -> int:
    """The batch, up to `most`, at which the bound of the wafer's advantage falls to 1. The GPU is ahead from there."""
    return round(bisect(lambda batch: 1 - advantage(batch, context), 1, most))


def predict_h2() -> list[Comparison]:
    """Compare at batch 1 and at the H100's largest. If the H100 is ahead there, say from which batch at the latest.

    The bandwidth bounds the wafer from above. The bound can show where the GPU is ahead, but not where the wafer is.
    """
    found = []
    how = (
        "an upper bound for the wafer at batch 1, from its bandwidth alone and its system's rated power, "
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
    plain="The wafer-sized chip writes more per unit of energy for one user, and the GPU writes more for as many users "
    "as its memory holds",
    source="B",
    how="P",
    published=(H2_SMALL, H2_LARGE),
    setting="Per watt, as in H1, where the wafer's speed is an upper bound. The GPU serves one user, or as many as its "
    "memory holds. The context is varied",
    predict=predict_h2,
)

# ------------------------------------------------------------------------------------- H3: Rubin, and prefill on CPX

Row = tuple[DeviceSpec, Read, Published]


def row(key: str, read: Read, value: float, what: str, unit: str) -> Row:
    part = DEVICES[key]
    return part, read, number(f"{what} of {part.name}", value, unit)


def predict_rows(rows: tuple[Row, ...]) -> list[Comparison | NoPrediction]:
    """A comparison for each number that the vendor publishes, and what is missing for the others."""
    return [from_datasheet(published, read, part, the=published.what) for part, read, published in rows]


fp4_peak, fp8_peak = partial(peak, pipe="mma_fp4"), partial(peak, pipe="mma_fp8")

H3_ROWS = (
    row("r200", capacity, 288e9, "memory", "B"),
    row("r200", bandwidth, 20.5e12, "bandwidth", "B/s"),
    row("r200", fp4_peak, 33.3e15, "FP4 peak", "FLOP/s"),
    row("rubin-cpx", capacity, 128e9, "memory", "B"),
    row("rubin-cpx", bandwidth, 2e12, "bandwidth", "B/s"),
    row("rubin-cpx", fp4_peak, 20e15, "FP4 peak", "FLOP/s"),
)
H3_PREFILL = our_range("share of its peak that CPX reaches in prefill", 0.9, 1, "")
CPX_RIDGE = 20e15 / 2e12
"""FLOP/B, from the claim's own two numbers, because NVIDIA publishes no bandwidth of the part."""


def predict_h3() -> list[Comparison | NoPrediction]:
    found = predict_rows(H3_ROWS)
    for prompt in (512, 2048, 8192, 32768, 131072):
        intensity = 2 * prompt / PRECISIONS["fp4"].bytes
        how = "FLOP per byte of FP4 weights for the prompt / (20 PFLOP/s over 2 TB/s, as claimed), at most 1"
        found.append(predicted(H3_PREFILL, min(1.0, intensity / CPX_RIDGE), how, the="prefill", prompt=prompt))
    return found


H3 = Claim(
    id="H3",
    text="Rubin R200 288 GB at 20.5 TB/s and 33.3 PFLOP/s FP4; Rubin CPX 128 GB GDDR7 at 2 TB/s and 20 PFLOP/s "
    "FP4: prefill parts don't need HBM",
    plain="Two announced chips have the memory and speed that they are said to have, and the one that only reads "
    "questions comes near its full speed with cheaper, slower memory",
    source="A",
    how="P",
    published=(*(published for *_, published in H3_ROWS), H3_PREFILL),
    setting="Against the vendor's announcements. CPX's bandwidth and dense peak are not published, so prefill is "
    "judged by the claim's own numbers, with FP4 weights. The prompt is varied",
    predict=predict_h3,
)

# ------------------------------------------------------------------------------------------ H4: other vendors' chips

H4_ROWS = (
    row("maia-200", capacity, 216e9, "memory", "B"),
    row("maia-200", bandwidth, 7e12, "bandwidth", "B/s"),
    row("tpu-ironwood", fp8_peak, 4614e12, "FP8 peak", "FLOP/s"),
    row("mi350x", capacity, 288e9, "memory", "B"),
    row("mi400", capacity, 432e9, "memory", "B"),
)

H4 = Claim(
    id="H4",
    text="Maia 200 216 GB at 7 TB/s; TPU Ironwood 4,614 TFLOP/s FP8; MI300X, MI350X 288 GB, MI400 432 GB",
    plain="These chips have the memory and speed that they are said to have",
    source="A",
    how="P",
    published=tuple(published for *_, published in H4_ROWS),
    setting="Against the vendors' documents",
    predict=lambda: predict_rows(H4_ROWS),
)

# --------------------------------------------------------------------------------------------- H5: FP4 over FP8

H5_RATIO = number("FP4 over FP8 of the B300", 3, "x")
H5_IDEAL = number("ratio that a multiplier of quadratic cost would allow", 4, "x")
MULTIPLIER_BITS = {"whole format": (8, 4), "significand with its hidden bit (E4M3, E2M1)": (4, 2)}


def predict_h5() -> list[Comparison]:
    b300 = find("b300")
    value = peak(b300, "mma_fp4") / peak(b300, "mma_fp8")
    return [
        predicted(H5_RATIO, value, "dense FP4 / dense FP8", the="FP4/FP8", part=b300.name),
        *(
            predicted(H5_IDEAL, (wide / narrow) ** 2, "(bits / bits)^2", the="multiplier", width=width)
            for width, (wide, narrow) in MULTIPLIER_BITS.items()
        ),
    ]


H5 = Claim(
    id="H5",
    text="B300: FP4 is 3 times FP8, where halving the width should give 4 (multipliers cost the square of it)",
    plain="Halving the bits makes this chip three times as fast, though its multipliers alone would allow four",
    source="E",
    how="P",
    published=(H5_RATIO, H5_IDEAL),
    setting="Dense peaks. The multiplier's width is counted as the bits of the whole format or of its significand",
    predict=predict_h5,
)

# ------------------------------------------------------------------------------------------- H6: the tiers of memory

H6_SRAM = number("on-chip cache of a GPU", 50e6, "B", APPROXIMATE)
H6_HBM = Published(what="HBM of a GPU", low=80e9, high=288e9, unit="B")
H6_FASTER = our_range("L2 bandwidth over HBM bandwidth", 1.5, math.inf, "x")
H6_HOST = our_range("HBM bandwidth over the host link's", 1.5, math.inf, "x")
H6_REACH = our_range("time to fetch a little from host memory", 1e-6, 1e-3, "s")
LITTLE = 64 << 10
"""Bytes that PCIe Gen5 copies in 1 us at 64 GB/s. All time beyond that is the way to the host and back."""
DATACENTER = ("a100-80", H100, "h200", "b200", "b300")


def on_chip(part: DeviceSpec) -> float:
    return datasheet_value(part.on_chip, "on-chip memory", part)


def over_host_link(part: DeviceSpec) -> float:
    return bandwidth(part) / datasheet_value(part.host_bandwidth, "link to the host", part)


H6_DATASHEET = (
    (H6_HBM, "HBM", capacity, VENDOR),
    (H6_SRAM, "on chip", on_chip, VENDOR),
    (H6_HOST, "host", over_host_link, "memory / one direction of the link"),
)


def predict_h6() -> list[Comparison | NoPrediction]:
    return [
        from_datasheet(published, read, part, how, tier=tier, part=part.name)
        for part in map(find, DATACENTER)
        for published, tier, read, how in H6_DATASHEET
    ]


def measure_h6(run: MeasuredPart) -> list[Comparison]:
    """The rates that make memories tiers. The run's header has their sizes, as the driver reports them."""
    reads = run.fastest("stream", kind="read")
    copies = run.fastest("host_link", kind=("h2d", "d2h"))
    found = []
    if run.ceilings.l2_bandwidth:
        how = "best measured L2 read / best measured DRAM read"
        value = run.ceilings.l2_bandwidth / run.ceilings.read_roof
        used = [*run.fastest("stream", kind="l2_read"), *reads]
        found.append(measured(H6_FASTER, value, how, used, tier="on chip", part=run.name))
    if run.ceilings.host_bandwidth:
        how = "best measured DRAM read / best measured copy to or from pinned host memory"
        value = run.ceilings.read_roof / run.ceilings.host_bandwidth
        found.append(measured(H6_HOST, value, how, [*reads, *copies], tier="host", part=run.name))
    fetched = [r for r in copies if r.case["kind"] == "h2d" and r.bytes <= LITTLE]
    if fetched:
        least = min(fetched, key=seconds)
        how = "the smallest copy from pinned host memory"
        found.append(measured(H6_REACH, seconds(least), how, [least], tier="host", part=run.name))
    return require_some(found, "`l2_read` of `stream` or copy of `host_link`")


H6 = Claim(
    id="H6",
    text="tiers: on-chip SRAM about 50 MB, HBM 80-288 GB, host DRAM in microseconds, NVMe in microseconds",
    plain="A GPU has about 50 MB on the chip and 80 to 288 GB beside it, each tier is slower than the one before, and "
    "the GPU fetches from the host's memory within a millisecond",
    source="A",
    how="M",
    published=(H6_SRAM, H6_HBM, H6_FASTER, H6_HOST, H6_REACH),
    setting="Data-centre GPUs by their datasheets. The rates of L2, DRAM and the host's link are measured, not NVMe",
    predict=predict_h6,
    measure=measure_h6,
)

# ----------------------------------------------------------------------------------- H7: moving data over arithmetic

H7 = Claim(
    id="H7",
    text="in a chip's area and energy, moving data outweighs arithmetic about 7 to 1",
    plain="Most of a chip and of its power serves to move data, not to calculate",
    source="E",
    how="M",
    published=(number("moving over computing, in area and energy", 7, "x", APPROXIMATE),),
    setting="A property of a chip's layout",
    never="only the chip's designer knows area and energy by function: a driver reports the power of a whole board, "
    "and no counter splits it into moving and computing",
)
