"""The parts that predictions know: every number with the document it was read in, nothing guessed.

Capacities, bandwidths and powers are as published (decimal units unless the document says GiB); peaks are dense, in
TFLOP/s here and FLOP/s in the table. A figure of a whole server is divided by its parts; where only a sparse figure is
printed, the dense one is half of it, and the source says so. `link` and `host` are one direction: half of a
bidirectional figure. `others` names the document of a field that the main one leaves out. A document that was read in
someone's copy or quotation names the copy. Caches printed in MB are MiB where the driver says so.

SM counts are those of the same documents but for the B200's, which NVIDIA does not publish; shared memory per SM is
from NVIDIA's tuning guides (Ampere, Hopper, Ada, Blackwell). Left empty: links of Trainium, of which AWS does not say
whether they count both directions; the B300's host link, which goes through a network card's PCIe switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.devices.spec import DeviceSpec, Quantity

MB, GB, TB, PB = 1e6, 1e9, 1e12, 1e15
MIB, GIB = 2.0**20, 2.0**30

UNITS = {
    "bandwidth": ("memory_bandwidth", "B/s"),
    "capacity": ("memory_capacity", "B"),
    "on_chip": ("on_chip", "B"),
    "on_chip_bandwidth": ("on_chip_bandwidth", "B/s"),
    "link": ("link_bandwidth", "B/s"),
    "host": ("host_bandwidth", "B/s"),
    "power": ("power", "W"),
}


def _part(
    key: str,
    name: str,
    vendor: str,
    year: int,
    source: str,
    *,
    peaks: Mapping[str, float] | None = None,
    others: Mapping[str, str] | None = None,
    **fields: Any,
) -> DeviceSpec:
    """`peaks` in TFLOP/s by pipe; fields of `UNITS` become a `Quantity` from `source`, or from `others[field]`."""
    documents = others or {}
    quantities: dict[str, Any] = {
        target: Quantity(value=fields.pop(given), unit=unit, kind="datasheet", source=documents.get(given, source))
        for given, (target, unit) in UNITS.items()
        if given in fields
    }
    rates = {
        pipe: Quantity(value=rate * 1e12, unit="FLOP/s", kind="datasheet", source=documents.get(pipe, source))
        for pipe, rate in (peaks or {}).items()
    }
    return DeviceSpec(key=key, name=name, vendor=vendor, year=year, peaks=rates, **quantities, **fields)


PCIE_GEN4, PCIE_GEN5 = 32 * GB, 64 * GB
"""One direction of 16 lanes: half of the 64 and 128 GB/s in the data sheets."""

BOOK = "{}; text in github.com/bojieli/ai-infra-book, references/text/{}.txt".format
STAS = "quoted in github.com/stas00/ml-engineering, compute/accelerator"
DERIVED = "dense is half of the sparse figure"

A100_DOC = BOOK("NVIDIA A100 Tensor Core GPU datasheet, 2022", "nvidia-a100-80-spec")
H100_DOC = BOOK("NVIDIA H100 product page, nvidia.com/en-us/data-center/h100", "nvidia-h100-spec")
H100_WHITEPAPER = BOOK("NVIDIA H100 Tensor Core GPU Architecture whitepaper V1.04, tables 1 and 3", "nvidia-h100")
A100: dict[str, Any] = {
    "peaks": {"mma_bf16": 312, "mma_int8": 624, "mma_tf32": 156, "fma_fp32": 19.5},
    "power": 400,
    "link": 300 * GB,
    "host": PCIE_GEN4,
    "on_chip": 40 * MIB,
    "sm": 80,
    "sm_count": 108,
    "smem_per_sm": 164 << 10,
}
H100_SXM_PEAKS = {"mma_bf16": 989.4, "mma_fp8": 1978.9, "mma_int8": 1978.9, "mma_tf32": 494.7, "fma_fp32": 66.9}
HOPPER: dict[str, Any] = {"host": PCIE_GEN5, "on_chip": 50 * MIB, "sm": 90, "smem_per_sm": 228 << 10}

BRIDGED = "its link is the NVLink bridge of two cards; between more of them data goes over PCIe"

HGX_DOC = f"NVIDIA HGX page, nvidia.com/en-us/data-center/hgx, over 8 GPUs; {DERIVED}; quoted at fibermall.com/blog"
DGX_B200_DOC = "NVIDIA DGX B200 page, nvidia.com/en-us/data-center/dgx-b200, over 8 GPUs; as others quote it"
BLACKWELL_BRIEF = BOOK("NVIDIA Blackwell Architecture Technical Brief V2.1, tables 2 and 3", "nvidia-blackwell-brief")
BLACKWELL_GUIDE = "NVIDIA Blackwell Tuning Guide, docs.nvidia.com/cuda/blackwell-tuning-guide"
BLACKWELL: dict[str, Any] = {
    "on_chip": 126 * MIB,
    "sm": 100,
    "smem_per_sm": 228 << 10,
    "link": 900 * GB,
}
RUBIN_DOC = BOOK("NVIDIA Vera Rubin NVL72 page, column of one GPU, preliminary", "nvidia-rubin-system")

MI300_DOC = BOOK("AMD Instinct MI300X product page, with its notes MI300-17 and -18", "amd-mi300x")
CDNA3_DOC = BOOK("AMD CDNA 3 white paper", "amd-cdna3")
MI350_DOC = BOOK("AMD Instinct MI350X GPU datasheet LE-92701-00", "amd-mi350x")
MI455_DOC = f"AMD Instinct MI455X page, amd.com/en/products/accelerators/instinct/mi400/mi455x.html, {STAS}"
TPU = "Google Cloud documentation, docs.cloud.google.com/tpu/docs/{}".format
NEURON = "AWS Neuron documentation, github.com/aws-neuron/aws-neuron-sdk, neuron-hardware/{}.rst".format
GAUDI_DOC = BOOK("Intel Gaudi 3 AI Accelerator technical paper, July 2025", "intel-gaudi3")

DEVICES: dict[str, DeviceSpec] = {
    part.key: part
    for part in (
        _part(
            "a100-40", "NVIDIA A100 SXM 40 GB", "NVIDIA", 2020, H100_WHITEPAPER, memory="HBM2",
            bandwidth=1555 * GB, capacity=40 * GB, driver_names=("NVIDIA A100-SXM4-40GB",), **A100,
        ),
        _part(
            "a100-80", "NVIDIA A100 SXM 80 GB", "NVIDIA", 2020, A100_DOC, memory="HBM2e",
            bandwidth=2039 * GB, capacity=80 * GB, others={"on_chip": H100_WHITEPAPER},
            driver_names=("NVIDIA A100-SXM4-80GB",), **A100,
        ),
        _part(
            "h100-sxm", "NVIDIA H100 SXM", "NVIDIA", 2022, H100_DOC, memory="HBM3",
            bandwidth=3.35 * TB, capacity=80 * GB, power=700, link=450 * GB, sm_count=132,
            peaks=H100_SXM_PEAKS, others=dict.fromkeys(("on_chip", *H100_SXM_PEAKS), H100_WHITEPAPER),
            driver_names=("NVIDIA H100 80GB HBM3",), **HOPPER,
        ),
        _part(
            "h100-pcie", "NVIDIA H100 PCIe", "NVIDIA", 2022, H100_WHITEPAPER, memory="HBM2e",
            bandwidth=2 * TB, capacity=80 * GB, power=350, link=300 * GB, sm_count=114,
            peaks={"mma_bf16": 756, "mma_fp8": 1513, "mma_int8": 1513, "mma_tf32": 378, "fma_fp32": 51.2},
            others=dict.fromkeys(
                ("bandwidth", "link"), "NVIDIA H100 PCIe GPU product brief PB-11133-001 (over 2 TB/s), at manuals.plus"
            ),
            driver_names=("NVIDIA H100 PCIe",), **HOPPER, note=BRIDGED,
        ),
        _part(
            "h100-nvl", "NVIDIA H100 NVL", "NVIDIA", 2023, f"{H100_DOC}; {DERIVED}", memory="HBM3",
            bandwidth=3.9 * TB, capacity=94 * GB, power=400, link=300 * GB, sm_count=132,
            peaks={"mma_bf16": 835.5, "mma_fp8": 1670.5, "mma_int8": 1670.5, "mma_tf32": 417.5, "fma_fp32": 60},
            others={"on_chip": H100_WHITEPAPER}, driver_names=("NVIDIA H100 NVL",), **HOPPER,
            note=BRIDGED,
        ),
        _part(
            "h200", "NVIDIA H200 SXM", "NVIDIA", 2024,
            "NVIDIA's H200-SXM-141GBx8 in github.com/mlcommons/inference_results_v4.1, closed/NVIDIA/systems",
            memory="HBM3e", bandwidth=4.8 * TB, capacity=141 * GB, power=700, link=450 * GB, sm_count=132,
            peaks=H100_SXM_PEAKS,
            others=dict.fromkeys(("on_chip", *H100_SXM_PEAKS), f"{H100_WHITEPAPER}: the H200 computes as the H100 does")
            | {"bandwidth": f"NVIDIA H200 product page, {STAS}"},
            driver_names=("NVIDIA H200",), **HOPPER,
        ),
        _part(
            "b200", "NVIDIA B200", "NVIDIA", 2025, BLACKWELL_BRIEF, memory="HBM3e",
            bandwidth=8 * TB, capacity=180 * GB, power=1000, host=PCIE_GEN5,
            peaks={
                "mma_bf16": 2250, "mma_fp8": 4500, "mma_int8": 4500, "mma_fp4": 9000, "mma_tf32": 1125, "fma_fp32": 75,
            },
            others={
                "on_chip": BLACKWELL_GUIDE, "link": HGX_DOC, "mma_bf16": HGX_DOC, "mma_tf32": HGX_DOC,
                "bandwidth": DGX_B200_DOC, "capacity": DGX_B200_DOC,
            },
            driver_names=("NVIDIA B200",), sm_count=148, **BLACKWELL,
            note="NVIDIA's technical brief says 7.7 TB/s in HGX servers; the number of SMs is from Chips and Cheese",
        ),
        _part(
            "gb200", "NVIDIA GB200 (one of the superchip's two GPUs)", "NVIDIA", 2025,
            f"{BLACKWELL_BRIEF}: GB200 NVL72 over 72 GPUs", memory="HBM3e",
            bandwidth=8 * TB, capacity=186 * GB, power=1200, host=450 * GB,
            peaks={
                "mma_bf16": 2500, "mma_fp8": 5000, "mma_int8": 5000, "mma_fp4": 10000, "mma_tf32": 1250, "fma_fp32": 80,
            },
            others={
                "on_chip": BLACKWELL_GUIDE,
                "capacity": "GB200 systems in github.com/mlcommons/inference_results_v6.1: 186 GB",
                "power": f"NVIDIA Mission Control documentation, {STAS}",
                "host": "NVIDIA GB200 NVL72 page, NVLink-C2C at 900 GB/s both ways, which a superchip's two GPUs share",
            },
            driver_names=("NVIDIA GB200",), **BLACKWELL,
        ),
        _part(
            "b300", "NVIDIA B300", "NVIDIA", 2025, f"{BLACKWELL_BRIEF}: HGX B300", memory="HBM3e",
            bandwidth=7.7 * TB, capacity=270 * GB, power=1100, link=900 * GB, sm=103, smem_per_sm=228 << 10,
            peaks={
                "mma_bf16": 2250, "mma_fp8": 4500, "mma_int8": 150, "mma_fp4": 13500, "mma_tf32": 1125, "fma_fp32": 75,
            },
            others={
                "mma_fp4": f"{BLACKWELL_BRIEF}: 108 PFLOP/s dense of HGX B300 over 8 GPUs, rounded to 14 for one",
                "mma_bf16": HGX_DOC, "mma_tf32": HGX_DOC, "link": HGX_DOC,
            },
            note="in an HGX server; in a GB300 NVL72 the same GPU has 15 PFLOP/s FP4, 8 TB/s and 1400 W",
        ),
        _part(
            "r200", "NVIDIA Rubin R200", "NVIDIA", 2026, RUBIN_DOC, memory="HBM4",
            bandwidth=22 * TB, capacity=288 * GB, link=1.8 * TB, host=900 * GB,
            peaks={
                "mma_bf16": 4000, "mma_fp8": 17500, "mma_int8": 250, "mma_fp4": 35000, "mma_tf32": 2000,
                "fma_fp32": 130,
            },
            others={"host": f"{RUBIN_DOC}: NVLink-C2C at 1.8 TB/s both ways, which a superchip's two GPUs share"},
            note="preliminary; FP4 is the training figure: the 50 PFLOP/s for inference count adaptive compression",
        ),
        _part(
            "rubin-cpx", "NVIDIA Rubin CPX", "NVIDIA", 2026,
            "NVIDIA newsroom, NVIDIA Unveils Rubin CPX, September 2025, as the press quotes it",
            memory="GDDR7", capacity=128 * GB,
            note="announced; 30 PFLOP/s NVFP4, not said whether dense; no bandwidth published",
        ),
        _part(
            "mi300x", "AMD Instinct MI300X", "AMD", 2023, MI300_DOC, memory="HBM3",
            bandwidth=5.3 * TB, capacity=192 * GB, power=750, link=448 * GB, host=PCIE_GEN5,
            on_chip=256 * MIB, on_chip_bandwidth=17.2 * TB,
            peaks={"mma_bf16": 1307.4, "mma_fp8": 2614.9, "mma_int8": 2614.9, "mma_tf32": 653.7, "fma_fp32": 163.4},
            others={"on_chip_bandwidth": CDNA3_DOC, "link": f"{CDNA3_DOC}: 7 links at 128 GB/s both ways"},
        ),
        _part(
            "mi350x", "AMD Instinct MI350X", "AMD", 2025, MI350_DOC, memory="HBM3E",
            bandwidth=8 * TB, capacity=288 * GB, power=1000, link=537.6 * GB, host=PCIE_GEN5, on_chip=256 * MIB,
            peaks={"mma_bf16": 2309.6, "mma_fp8": 4614, "mma_int8": 4614, "mma_fp4": 9227.5, "fma_fp32": 144.2},
        ),
        _part(
            "mi400", "AMD Instinct MI400 (MI455X)", "AMD", 2026, MI455_DOC, memory="HBM4",
            bandwidth=23.3 * TB, capacity=432 * GB, link=1.8 * TB, on_chip=192 * MB,
            peaks={"mma_bf16": 5000, "mma_int8": 5000, "fma_fp32": 315},
            others={"on_chip": "Chips and Cheese, AMD's Instinct MI455X: Aiming for the Top, July 2026"},
            note="not said whether the 20.1 PFLOP/s FP8 (4 times dense BF16) and 40.3 PFLOP/s MXFP4 are dense",
        ),
        _part(
            "tpu-v5e", "Google TPU v5e", "Google", 2023, TPU("v5e"), memory="HBM2",
            bandwidth=819 * GB, capacity=16 * GB, link=200 * GB, peaks={"mma_bf16": 197, "mma_int8": 393},
        ),
        _part(
            "tpu-v5p", "Google TPU v5p", "Google", 2023, TPU("v5p"), memory="HBM2e",
            bandwidth=2765 * GB, capacity=95 * GIB, link=600 * GB,
            peaks={"mma_bf16": 459, "mma_fp8": 459, "mma_int8": 918},
            others={"mma_int8": "Google Cloud blog, Introducing Cloud TPU v5p, December 2023, as the press quotes it"},
        ),
        _part(
            "tpu-ironwood", "Google TPU7x (Ironwood)", "Google", 2025, TPU("tpu7x"), memory="HBM3e",
            bandwidth=7380 * GB, capacity=192 * GIB, link=600 * GB, peaks={"mma_bf16": 2307, "mma_fp8": 4614},
        ),
        _part(
            "trainium2", "AWS Trainium2", "AWS", 2024, NEURON("trainium2"), memory="HBM3",
            bandwidth=2.9 * TB, capacity=96 * GIB, on_chip=224 * MIB,
            peaks={"mma_bf16": 667, "mma_fp8": 1299, "mma_tf32": 667, "fma_fp32": 181},
        ),
        _part(
            "trainium3", "AWS Trainium3", "AWS", 2025, NEURON("trainium3"), memory="HBM3e",
            bandwidth=4.9 * TB, capacity=144 * GIB, on_chip=256 * MIB,
            peaks={"mma_bf16": 671, "mma_fp8": 2517, "mma_fp4": 2517, "mma_tf32": 671, "fma_fp32": 183},
        ),
        _part(
            "inferentia2", "AWS Inferentia2", "AWS", 2023, NEURON("inferentia2"), memory="HBM",
            bandwidth=820 * GIB, capacity=32 * GIB,
            peaks={"mma_bf16": 190, "mma_fp8": 190, "mma_int8": 380, "mma_tf32": 190, "fma_fp32": 47.5},
        ),
        _part(
            "maia-200", "Microsoft Maia 200", "Microsoft", 2026,
            "Microsoft blog, Maia 200: the AI accelerator built for inference, quoted at inelectronics.co.uk",
            memory="HBM3e", bandwidth=7 * TB, capacity=216 * GB, power=750, link=1.4 * TB, on_chip=272 * MB,
            peaks={"mma_fp8": 5000, "mma_fp4": 10000}, note="peaks are published as 'over'",
        ),
        _part(
            "gaudi-3", "Intel Gaudi 3", "Intel", 2024, GAUDI_DOC, memory="HBM2e",
            bandwidth=3.67 * TB, capacity=128 * GB, power=900, link=600 * GB, host=PCIE_GEN5,
            on_chip=96 * MB, on_chip_bandwidth=12.8 * TB, peaks={"mma_bf16": 1678, "mma_fp8": 1678},
            others={"bandwidth": "Intel, Hot Chips 2024, slides at sgpjbg.com/baogao/465025; 3.7 in the paper"},
            note="Intel's earlier 1835 TFLOP/s are no longer in its technical paper; on-chip bandwidth is of reading",
        ),
        _part(
            "groq-lpu", "Groq LPU", "Groq", 2020, BOOK("GroqChip Processor product brief v1.5, 2022", "groq-chip"),
            memory="SRAM", bandwidth=80 * TB, capacity=230 * MB, power=215, peaks={"mma_bf16": 188, "mma_int8": 750},
            note="its only memory is on the chip; the 16-bit type is fp16; TDP of 215 W: 185 W on average, 300 at most",
        ),
        _part(
            "wse-3", "Cerebras WSE-3", "Cerebras", 2024, BOOK("Cerebras WSE-3 datasheet", "cerebras-wse3-spec"),
            memory="SRAM", bandwidth=21 * PB, capacity=44 * GB, power=23000,
            others={"power": "Cerebras blog, CS-3 vs NVIDIA B200, April 2024: about 23 kW, as others quote it"},
            note="its only memory is on the wafer; 125 PFLOP/s are sparse, no dense peak published; power of a system",
        ),
        _part(
            "l40s", "NVIDIA L40S", "NVIDIA", 2023, "NVIDIA L40S datasheet, quoted at mullet.se, and L40S product page",
            memory="GDDR6", bandwidth=864 * GB, capacity=48 * GB, power=350, link=32 * GB, host=PCIE_GEN4,
            peaks={"mma_bf16": 362.05, "mma_fp8": 733, "mma_int8": 733, "mma_tf32": 183, "fma_fp32": 91.6},
            sm=89, sm_count=142, smem_per_sm=100 << 10, driver_names=("NVIDIA L40S",),
        ),
        _part(
            "rtx-4090", "NVIDIA GeForce RTX 4090", "NVIDIA", 2022,
            "NVIDIA Ada GPU Architecture whitepaper v2, appendix A, as others quote it", memory="GDDR6X",
            bandwidth=1008 * GB, capacity=24 * GB, power=450, on_chip=72 * MIB, host=PCIE_GEN4,
            peaks={"mma_bf16": 165.2, "mma_fp8": 330.3, "mma_int8": 660.6, "mma_tf32": 82.6, "fma_fp32": 82.6},
            sm=89, sm_count=128, smem_per_sm=100 << 10, driver_names=("NVIDIA GeForce RTX 4090",),
            note="tensor peaks with fp32 accumulation",
        ),
    )
}  # fmt: skip
