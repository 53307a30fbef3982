"""Claims about newer parts, about latencies and links, and about power and energy."""

from __future__ import annotations

from itertools import product
from typing import Any

from bench.devices import find
from bench.judge.claims.base import APPROXIMATE, Claim, Comparison, NoPrediction, Unmeasured, number, our_range
from bench.judge.claims.common import (
    DEEPSEEK_V3,
    H100,
    LLAMA_70B,
    at_least,
    capacity,
    datasheet_value,
    measured,
    peak,
    power,
    predicted,
    total_work,
)
from bench.judge.claims.reading import MeasuredPart, require_part, require_some, seconds
from bench.predict.step_model import step
from bench.predict.step_work import PRECISIONS, decode_ops

# --------------------------------------------------------------------------------------------- H8: latencies

H8_SRAM = our_range("latency of a load from the L1", 0, 1e-9, "s")
H8_HBM = our_range("latency of a load from the memory", 1e-9, 1e-6, "s")
H8_HOST = our_range("latency of a load over the host's link", 1e-6, 1e-5, "s")


HOPPER_CLOCK = 1.755e9
"""Hz, the highest SM clock of a PCIe board: chipsandcheese.com, "Nvidia's H100: Funny L2", 2 July 2023."""
LOWEST_CLOCK = 1.395e9
"""Hz, the lowest that the same article saw under load. It suspects the power limit; the board was cool."""
HOPPER_CYCLES = {"l1": 41, "dram": 479}
"""Cycles of one dependent load on an H800 PCIe: arXiv 2402.13499, table IV."""


def predict_h8() -> list[Comparison]:
    """From cycles and a clock that others published. Nobody published a load over the host's link."""
    how = "cycles of a dependent load (arXiv 2402.13499, table IV) / 1.755 GHz"
    pairs = ((H8_SRAM, "l1"), (H8_HBM, "dram"))
    return [predicted(what, HOPPER_CYCLES[level] / HOPPER_CLOCK, how, level=level) for what, level in pairs]


def measure_h8(run: MeasuredPart) -> list[Comparison]:
    """Chains of loads that wait for each other (chases of `stream` and `host_link`)."""
    chases, over_link = run.find("stream", kind="chase"), run.find("host_link", kind="chase")
    require_some([*chases, *over_link], "chase of `stream` or `host_link`")
    found = [
        measured(H8_HOST, seconds(record) / record.case["loads"], "a chase / its loads", [record], level="host")
        for record in over_link
    ]
    for level, published in (("l1", H8_SRAM), ("dram", H8_HBM)):
        value = run.ceilings.load_seconds(level, 0)
        if value is not None:
            found.append(measured(published, value, "price of one dependent load", chases, level=level))
    if not found:
        raise Unmeasured("its chases give no price of a load")
    return found


H8 = Claim(
    id="H8",
    text="latencies: SRAM below a nanosecond, HBM nanoseconds, host DRAM microseconds",
    plain="Memory on the chip answers within a nanosecond, and memory beside it within many",
    source="A",
    how="P M V",
    published=(H8_SRAM, H8_HBM, H8_HOST),
    setting="Dependent loads of a kernel. Nanoseconds: below a microsecond; microseconds: below ten",
    predict=predict_h8,
    measure=measure_h8,
)

# ----------------------------------------------------------------------------------------- H9: Rubin against B200

H9_SPEED = number("inference of Rubin over B200", 5, "x", APPROXIMATE)
H9_COST = our_range("cost on Rubin over B200", 0.1, 0.1, "x", APPROXIMATE)


def predict_h9() -> list[Comparison]:
    """Without `decode`, which asks for the power too: the R200's is not published."""
    found = []
    ask: dict[str, Any] = {"weights": "fp4", "kv": "fp8", "context": 4096}
    for shape, batch in product((LLAMA_70B, DEEPSEEK_V3), (1, 64)):
        old, new = (step(shape, device=find(key), batch=batch, crossings=False, **ask) for key in ("b200", "r200"))
        ratios = {"decode": old.seconds / new.seconds, "prefill": old.prefill_seconds / new.prefill_seconds}
        for phase, value in ratios.items():
            setting = {"phase": phase, "model": shape.name, "batch": batch}
            found.append(predicted(H9_SPEED, value, "time on a B200 / on an R200, fp4 weights", **setting))
            found.append(predicted(H9_COST, 1 / value, "the same at one price an hour", **setting))
    return found


H9 = Claim(
    id="H9",
    text="Vera Rubin: 5 times the inference, a tenth of the cost",
    plain="The next machine does 5 times the work, each piece at 10% of the cost",
    source="A",
    how="P",
    published=(H9_SPEED, H9_COST),
    setting="R200 against B200 by their datasheets, weights in fp4, at one price an hour. Phase, model and batch are "
    "varied",
    predict=predict_h9,
)

# ------------------------------------------------------------------------------------------------ H10: AMD's parts

H10_MORE = number("how much more memory an MI350X has than a B200", 0.6, "")
H10_FP4 = number("FP4 of an MI400", 40e15, "FLOP/s")


def predict_h10() -> list[Comparison | NoPrediction]:
    found: list[Comparison | NoPrediction] = [
        predicted(H10_MORE, capacity(find("mi350x")) / capacity(find("b200")) - 1, "datasheets", the="memory")
    ]
    try:
        found.append(predicted(H10_FP4, peak(find("mi400"), "mma_fp4"), "the vendor's number", the="arithmetic"))
    except NoPrediction as missing:
        found.append(missing)
    return found


H10 = Claim(
    id="H10",
    text="MI350X has 60% more memory than a B200; MI400 40 PFLOP/s FP4",
    plain="AMD's part holds 60% more than NVIDIA's",
    source="A",
    how="P",
    published=(H10_MORE, H10_FP4),
    setting="Datasheets",
    predict=predict_h10,
)

# ------------------------------------------------------------------------------------------------------ H11: links

H11_LINK = number("NVLink 5 of a GPU, both ways", 1.8e12, "B/s")
H11_C2C = number("NVLink C2C, both ways", 1.8e12, "B/s")


def predict_h11() -> list[Comparison]:
    b200, r200, gb200 = find("b200"), find("r200"), find("gb200")
    return [
        predicted(H11_LINK, 2 * datasheet_value(b200.link_bandwidth, "link", b200), "2 x one way", link="NVLink 5"),
        predicted(
            H11_C2C,
            2 * datasheet_value(gb200.host_bandwidth, "host link", gb200),
            "2 x one way, shared by two GPUs",
            link="C2C of a GB200",
        ),
        predicted(
            H11_C2C,
            2 * datasheet_value(r200.host_bandwidth, "host link", r200),
            "2 x one way, shared by two GPUs",
            link="C2C of a Vera Rubin",
        ),
    ]


H11 = Claim(
    id="H11",
    text="NVLink 5 1.8 TB/s a GPU; NVLink C2C 1.8 TB/s",
    plain="The cables between the newest machines carry 1.8 TB a second each",
    source="A",
    how="P V",
    published=(H11_LINK, H11_C2C),
    setting="Datasheets, both directions together",
    predict=predict_h11,
)

# ------------------------------------------------------------------------------------------------------ H12: power

H12_POWER = number("power of an H100", 700, "W", APPROXIMATE)
H12_RACK = number("power of an NVL72 rack", 120, "kW", APPROXIMATE)


def predict_h12() -> list[Comparison]:
    return [
        predicted(H12_POWER, power(find(H100)), "rated power", the="board"),
        predicted(H12_RACK, 72e-3 * power(find("gb200")), "72 x rated power of its GPUs, without CPUs", the="rack"),
    ]


def measure_h12(run: MeasuredPart) -> list[Comparison]:
    """The highest board power of a decode operation, which is less than a board may draw."""
    require_part(run, H100)
    records = [r for op in ("ffn_gemv", "attention_decode") for r in run.find(op) if r.telemetry.get("power_w")]
    require_some(records, "decode operation with the board's power read while it ran")
    top = max(records, key=lambda r: r.telemetry["power_w"])
    how = "highest board power while a decode operation ran"
    return [measured(H12_POWER, top.telemetry["power_w"], how, [top], the="board")]


H12 = Claim(
    id="H12",
    text="an H100 draws 700 W, an NVL72 rack 120 kW",
    plain="One machine draws as much as a hair dryer, and a rack as much as a hundred of them",
    source="A",
    how="P M",
    published=(H12_POWER, H12_RACK),
    setting="Rated power, and what boards draw while decoding",
    predict=predict_h12,
    measure=measure_h12,
)

# ------------------------------------------------------------------------------------------ E1: energy of the memory

E1_SHARE = our_range("share of the energy that goes with bytes", 0.5, float("inf"), "")

BF16 = PRECISIONS["bf16"]
SHORT: dict[str, int] = {"context": 2048, "devices": 1, "q_len": 1}
HBM_ENERGY = 8 * 3.92e-12
"""J a byte read from HBM2: 3.92 pJ a bit, O'Connor et al., Fine-Grained DRAM, MICRO-50, 2017, section 2."""


def predict_e1() -> list[Comparison]:
    """The least share of the bytes in what goes beyond P0, since both other energies are counted too large or left out.

    A FLOP costs at most the board's rated power over its peak. Moving a byte on the chip is not counted.
    """
    part = find(H100)
    flop = power(part) / peak(part, "mma_bf16")
    found = []
    for batch in (1, 16, 64, 256):
        work = total_work(op for op in decode_ops(LLAMA_70B, weights=BF16, kv=BF16, batch=batch, **SHORT))
        read = HBM_ENERGY * (work.bytes_read + work.bytes_written)
        how = "e_B bytes / (e_B bytes + e_F FLOP), 3.92 pJ a bit, FLOP at rated power / peak"
        found.append(at_least(E1_SHARE, read / (read + flop * work.total_flops), how, phase="decode", batch=batch))
    return found


E1 = Claim(
    id="E1",
    text="memory access dominates the energy of inference",
    plain="Most of the electricity goes into fetching numbers, not into calculating with them",
    source="C",
    how="P M",
    published=(E1_SHARE,),
    setting="E = P0 t + e_B bytes + e_F FLOP. Dominates: at least half of what goes beyond P0. Llama-3.1-70B in bf16, "
    "a context of 2,048 tokens, H100 rates. Batch is varied",
    predict=predict_e1,
    never="power is read over whole cases, idle gaps and cleared caches included; energy per byte and per FLOP need "
    "windows of one implementation alone, and no run has such",
)

# ---------------------------------------------------------------------------------------------- E2: throttling

E2_SLOWER = our_range("time of a GEMM on a hot GPU over a cool one", 1.02, float("inf"), "x")


def predict_e2() -> list[Comparison]:
    """A product of full tiles waits for its arithmetic, whose rate follows the clock."""
    how = "highest clock / lowest clock seen under load, of an H100 PCIe (chipsandcheese.com, 2 July 2023)"
    value = HOPPER_CLOCK / LOWEST_CLOCK
    return [predicted(E2_SLOWER, value, how, board="H100 PCIe", limit="power, most likely")]


E2 = Claim(
    id="E2",
    text="a hot GPU throttles",
    plain="A GPU that gets too hot works more slowly",
    source="D",
    how="P M",
    published=(E2_SLOWER,),
    setting="Throttles: at least 2% slower. The time of a product follows 1 / clock. The one published fall of the "
    "clock is taken to be the power limit's, so heat alone is not predicted",
    predict=predict_e2,
    never="a rented GPU cannot be heated on purpose; runs record throttling and leave such samples out",
)
