"""The parts that predictions know: every number from the vendor's document named beside it, nothing guessed.

Capacities, bandwidths and powers are as published (decimal units unless the document says GiB); peaks are dense, in
TFLOP/s here and FLOP/s in the table. Where a document gives a figure with 2:4 sparsity or for a whole server, the
dense figure of one part is that over 2 or over the number of parts, and the source says so. `link` and `host` are one
direction; a bidirectional figure is halved. `others` names the document of a field that the main one leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.device_spec import DeviceSpec, Quantity

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

A100_DOC = "NVIDIA A100 Tensor Core GPU datasheet"
A100_WHITEPAPER = "NVIDIA A100 Tensor Core GPU Architecture whitepaper"
A100: dict[str, Any] = {
    "peaks": {"mma_bf16": 312, "mma_int8": 624, "mma_tf32": 156, "fma_fp32": 19.5},
    "power": 400,
    "link": 300 * GB,
    "host": PCIE_GEN4,
    "on_chip": 40 * MIB,
    "others": {"on_chip": A100_WHITEPAPER},
    "sm": 80,
    "sm_count": 108,
    "smem_per_sm": 164 << 10,
}
H100_DOC = "NVIDIA H100 Tensor Core GPU datasheet"
H100_WHITEPAPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper"
H100_SXM_PEAKS = {"mma_bf16": 989.4, "mma_fp8": 1978.9, "mma_int8": 1978.9, "mma_tf32": 494.7, "fma_fp32": 66.9}
HOPPER: dict[str, Any] = {"host": PCIE_GEN5, "on_chip": 50 * MIB, "sm": 90, "smem_per_sm": 228 << 10}
B200_DOC = "NVIDIA HGX B200 specifications, over 8 GPUs, dense half of the sparse figures"
BLACKWELL_GUIDE = "NVIDIA Blackwell Tuning Guide"
BLACKWELL_BRIEF = "NVIDIA Blackwell Architecture technical brief"
BLACKWELL_ULTRA = "NVIDIA technical blog, Inside NVIDIA Blackwell Ultra"
BLACKWELL: dict[str, Any] = {
    "on_chip": 126 * MIB,
    "sm": 100,
    "smem_per_sm": 228 << 10,
    "link": 900 * GB,
}
MI300_DOC = "AMD Instinct MI300X data sheet"
MI350_DOC = "AMD Instinct MI350X data sheet"
NEURON = "AWS Neuron documentation, {} architecture"

DEVICES: dict[str, DeviceSpec] = {
    part.key: part
    for part in (
        _part(
            "a100-40", "NVIDIA A100 SXM 40 GB", "NVIDIA", 2020, A100_DOC, memory="HBM2",
            bandwidth=1555 * GB, capacity=40 * GB, driver_names=("NVIDIA A100-SXM4-40GB",), **A100,
        ),
        _part(
            "a100-80", "NVIDIA A100 SXM 80 GB", "NVIDIA", 2020, A100_DOC, memory="HBM2e",
            bandwidth=2039 * GB, capacity=80 * GB, driver_names=("NVIDIA A100-SXM4-80GB",), **A100,
        ),
        _part(
            "h100-sxm", "NVIDIA H100 SXM", "NVIDIA", 2022, H100_DOC, memory="HBM3",
            bandwidth=3.35 * TB, capacity=80 * GB, power=700, link=450 * GB, sm_count=132,
            peaks=H100_SXM_PEAKS, others=dict.fromkeys(("on_chip", *H100_SXM_PEAKS), H100_WHITEPAPER),
            driver_names=("NVIDIA H100 80GB HBM3",), **HOPPER,
        ),
        _part(
            "h100-pcie", "NVIDIA H100 PCIe", "NVIDIA", 2022, "NVIDIA H100 PCIe GPU datasheet, dense half of sparse",
            memory="HBM2e", bandwidth=2 * TB, capacity=80 * GB, power=350, link=300 * GB, sm_count=114,
            peaks={"mma_bf16": 756.5, "mma_fp8": 1513, "mma_int8": 1513, "mma_tf32": 378, "fma_fp32": 51},
            others={"on_chip": H100_WHITEPAPER}, driver_names=("NVIDIA H100 PCIe",), **HOPPER,
        ),
        _part(
            "h100-nvl", "NVIDIA H100 NVL", "NVIDIA", 2023, f"{H100_DOC}, dense half of sparse", memory="HBM3",
            bandwidth=3.9 * TB, capacity=94 * GB, power=400, link=300 * GB, sm_count=132,
            peaks={"mma_bf16": 835.5, "mma_fp8": 1670.5, "mma_int8": 1670.5, "mma_tf32": 417.5, "fma_fp32": 60},
            others={"on_chip": H100_WHITEPAPER}, driver_names=("NVIDIA H100 NVL",), **HOPPER,
        ),
        _part(
            "h200", "NVIDIA H200 SXM", "NVIDIA", 2024, "NVIDIA H200 Tensor Core GPU datasheet", memory="HBM3e",
            bandwidth=4.8 * TB, capacity=141 * GB, power=700, link=450 * GB, sm_count=132,
            peaks=H100_SXM_PEAKS, others=dict.fromkeys(("on_chip", *H100_SXM_PEAKS), H100_WHITEPAPER),
            driver_names=("NVIDIA H200",), **HOPPER,
        ),
        _part(
            "b200", "NVIDIA B200", "NVIDIA", 2025, B200_DOC, memory="HBM3e",
            bandwidth=8 * TB, capacity=180 * GB, power=1000, host=PCIE_GEN5,
            peaks={
                "mma_bf16": 2250, "mma_fp8": 4500, "mma_int8": 4500, "mma_fp4": 9000, "mma_tf32": 1125, "fma_fp32": 75,
            },
            others={
                "on_chip": BLACKWELL_GUIDE, "power": BLACKWELL_BRIEF,
                "host": "NVIDIA DGX B200 User Guide, hosts with PCIe Gen5",
            },
            driver_names=("NVIDIA B200",), sm_count=148, **BLACKWELL,
        ),
        _part(
            "gb200", "NVIDIA GB200 (one of the superchip's two GPUs)", "NVIDIA", 2025,
            "NVIDIA GB200 NVL72 specifications, over 72 GPUs, dense half of the sparse figures", memory="HBM3e",
            bandwidth=8 * TB, capacity=186 * GB, power=1200, host=450 * GB,
            peaks={
                "mma_bf16": 2500, "mma_fp8": 5000, "mma_int8": 5000, "mma_fp4": 10000, "mma_tf32": 1250,
            },
            others={
                "on_chip": BLACKWELL_GUIDE, "power": BLACKWELL_BRIEF,
                "host": "NVIDIA GB200 NVL72 specifications, NVLink-C2C, which a superchip's two GPUs share",
            },
            driver_names=("NVIDIA GB200",), **BLACKWELL,
        ),
        _part(
            "b300", "NVIDIA B300", "NVIDIA", 2025,
            "NVIDIA HGX B300 specifications, over 8 GPUs, dense FP4 as published, others half of sparse",
            memory="HBM3e", bandwidth=8 * TB, capacity=288 * GB, power=1400, link=900 * GB,
            sm=103, smem_per_sm=228 << 10,
            peaks={"mma_bf16": 2250, "mma_fp8": 4500, "mma_fp4": 13125, "mma_tf32": 1125, "fma_fp32": 75},
            others=dict.fromkeys(("bandwidth", "capacity", "power"), BLACKWELL_ULTRA),
        ),
        _part(
            "r200", "NVIDIA Rubin R200", "NVIDIA", 2026, "NVIDIA technical blog, Inside the NVIDIA Rubin Platform",
            memory="HBM4", bandwidth=22 * TB, capacity=288 * GB, link=1.8 * TB, peaks={"mma_fp4": 35000},
            note="preliminary; FP4 is the training figure: the 50 PFLOP/s for inference count adaptive compression",
        ),
        _part(
            "rubin-cpx", "NVIDIA Rubin CPX", "NVIDIA", 2026, "NVIDIA newsroom, NVIDIA Unveils Rubin CPX",
            memory="GDDR7", capacity=128 * GB,
            note="announced; 30 PFLOP/s NVFP4, not said whether dense; no bandwidth published",
        ),
        _part(
            "mi300x", "AMD Instinct MI300X", "AMD", 2023, MI300_DOC, memory="HBM3",
            bandwidth=5.3 * TB, capacity=192 * GB, power=750, link=448 * GB,
            on_chip=256 * MB, on_chip_bandwidth=17.2 * TB,
            peaks={"mma_bf16": 1307.4, "mma_fp8": 2614.9, "mma_int8": 2614.9, "mma_tf32": 653.7, "fma_fp32": 163.4},
            others={"on_chip_bandwidth": "AMD CDNA 3 white paper"},
        ),
        _part(
            "mi350x", "AMD Instinct MI350X", "AMD", 2025, MI350_DOC, memory="HBM3E",
            bandwidth=8 * TB, capacity=288 * GB, power=1000, on_chip=256 * MB,
            peaks={"mma_bf16": 2300, "mma_fp8": 4600, "mma_int8": 4600, "mma_fp4": 9200, "fma_fp32": 144.2},
        ),
        _part(
            "mi400", "AMD Instinct MI400 (MI455X)", "AMD", 2026, "AMD Advancing AI 2025, MI400 preview", memory="HBM4",
            bandwidth=19.6 * TB, capacity=432 * GB, peaks={"mma_fp8": 20000, "mma_fp4": 40000},
            note="announced; not said whether the peaks are dense",
        ),
        _part(
            "tpu-v5e", "Google TPU v5e", "Google", 2023, "Google Cloud documentation, TPU v5e", memory="HBM2",
            bandwidth=819 * GB, capacity=16 * GB, link=200 * GB, peaks={"mma_bf16": 197, "mma_int8": 393},
        ),
        _part(
            "tpu-v5p", "Google TPU v5p", "Google", 2023, "Google Cloud documentation, TPU v5p", memory="HBM2e",
            bandwidth=2765 * GB, capacity=95 * GIB, link=600 * GB,
            peaks={"mma_bf16": 459, "mma_fp8": 459, "mma_int8": 918},
            others={"mma_int8": "Google Cloud blog, Introducing Cloud TPU v5p"},
        ),
        _part(
            "tpu-ironwood", "Google TPU7x (Ironwood)", "Google", 2025, "Google Cloud documentation, TPU7x (Ironwood)",
            memory="HBM3e", bandwidth=7380 * GB, capacity=192 * GIB, link=600 * GB,
            peaks={"mma_bf16": 2307, "mma_fp8": 4614},
        ),
        _part(
            "trainium2", "AWS Trainium2", "AWS", 2024, NEURON.format("Trainium2"), memory="HBM3",
            bandwidth=2.9 * TB, capacity=96 * GIB,
            peaks={"mma_bf16": 667, "mma_fp8": 1299, "mma_tf32": 667, "fma_fp32": 181},
        ),
        _part(
            "trainium3", "AWS Trainium3", "AWS", 2025, NEURON.format("Trainium3"), memory="HBM3e",
            bandwidth=4.9 * TB, capacity=144 * GIB,
            peaks={"mma_bf16": 671, "mma_fp8": 2517, "mma_fp4": 2517, "mma_tf32": 671, "fma_fp32": 183},
        ),
        _part(
            "inferentia2", "AWS Inferentia2", "AWS", 2023, NEURON.format("Inferentia2"), memory="HBM",
            bandwidth=820 * GIB, capacity=32 * GIB,
            peaks={"mma_bf16": 190, "mma_fp8": 190, "mma_int8": 380, "mma_tf32": 190, "fma_fp32": 47.5},
        ),
        _part(
            "maia-200", "Microsoft Maia 200", "Microsoft", 2026,
            "Microsoft blog, Maia 200: the AI accelerator built for inference", memory="HBM3e",
            bandwidth=7 * TB, capacity=216 * GB, power=750, link=1.4 * TB, on_chip=272 * MB,
            peaks={"mma_fp8": 5000, "mma_fp4": 10000}, note="peaks are published as 'over'",
        ),
        _part(
            "gaudi-3", "Intel Gaudi 3", "Intel", 2024, "Intel Gaudi 3 AI Accelerator, Hot Chips 2024", memory="HBM2e",
            bandwidth=3.67 * TB, capacity=128 * GB, power=900, link=600 * GB,
            on_chip=96 * MB, on_chip_bandwidth=12.8 * TB,
            peaks={"mma_bf16": 1835, "mma_fp8": 1835},
        ),
        _part(
            "groq-lpu", "Groq LPU", "Groq", 2020, "Groq, GroqChip processor product brief", memory="SRAM",
            bandwidth=80 * TB, capacity=230 * MB, peaks={"mma_bf16": 188, "mma_int8": 750},
            note="its only memory is on the chip; the 16-bit type is fp16",
        ),
        _part(
            "wse-3", "Cerebras WSE-3", "Cerebras", 2024, "Cerebras, WSE-3 press release", memory="SRAM",
            bandwidth=21 * PB, capacity=44 * GB, power=23000,
            others={"power": "Cerebras: the CS-3 system draws what the CS-2 does; CS-2 datasheet"},
            note="its only memory is on the wafer; 125 PFLOP/s are sparse, no dense peak published; power of a system",
        ),
        _part(
            "l40s", "NVIDIA L40S", "NVIDIA", 2023, "NVIDIA L40S datasheet", memory="GDDR6",
            bandwidth=864 * GB, capacity=48 * GB, power=350, link=32 * GB, host=PCIE_GEN4,
            peaks={"mma_bf16": 362.05, "mma_fp8": 733, "mma_int8": 733, "mma_tf32": 183, "fma_fp32": 91.6},
            sm=89, sm_count=142, smem_per_sm=100 << 10, driver_names=("NVIDIA L40S",),
        ),
        _part(
            "rtx-4090", "NVIDIA GeForce RTX 4090", "NVIDIA", 2022, "NVIDIA Ada GPU Architecture whitepaper",
            memory="GDDR6X", bandwidth=1008 * GB, capacity=24 * GB, power=450, on_chip=72 * MIB, host=PCIE_GEN4,
            peaks={"mma_bf16": 165.2, "mma_fp8": 330.3, "mma_int8": 660.6, "mma_tf32": 82.6, "fma_fp32": 82.6},
            sm=89, sm_count=128, smem_per_sm=100 << 10, driver_names=("NVIDIA GeForce RTX 4090",),
            note="tensor peaks with fp32 accumulation",
        ),
    )
}  # fmt: skip
