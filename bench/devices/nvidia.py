"""NVIDIA's parts, with published numbers; `datasheet.py` says what each number means."""

from __future__ import annotations

from typing import Any

from bench.devices.datasheet import BOOK, GB, MIB, PCIE_GEN4, PCIE_GEN5, STAS, TB, part, tflops

DERIVED = "dense is half of the sparse figure"

A100_DOC = BOOK("NVIDIA A100 Tensor Core GPU datasheet, 2022", "nvidia-a100-80-spec")
H100_DOC = BOOK("NVIDIA H100 product page, nvidia.com/en-us/data-center/h100", "nvidia-h100-spec")
H100_WHITEPAPER = BOOK("NVIDIA H100 Tensor Core GPU Architecture whitepaper V1.04, tables 1 and 3", "nvidia-h100")
A100: dict[str, Any] = {
    "peaks": tflops(bf16=312, int8=624, tf32=156, fp32=19.5),
    "power": 400,
    "link": 300 * GB,
    "host": PCIE_GEN4,
    "on_chip": 40 * MIB,
    "sm": 80,
    "sm_count": 108,
}
H100_SXM_PEAKS = tflops(bf16=989.4, fp8=1978.9, int8=1978.9, tf32=494.7, fp32=66.9)
HOPPER: dict[str, Any] = {"host": PCIE_GEN5, "on_chip": 50 * MIB, "sm": 90}

BRIDGED = "its link is the NVLink bridge of two cards; between more of them data goes over PCIe"

H200_DOC = (
    "NVIDIA H200 product page, nvidia.com/en-us/data-center/h200, column of the H200 NVL, as others quote it; "
    f"{DERIVED} for the tensor cores"
)
GH200_DOC = (
    "NVIDIA GH200 Grace Hopper Superchip datasheet 3773000, nvdam.widen.net/s/rrgqqnpbz8, copied in "
    "github.com/atineoSE/coding-model-seeks-gpu, pipeline/pipeline/sources/gh200_specs.md"
)
GH200: dict[str, Any] = {
    "host": 450 * GB,
    "on_chip": 50 * MIB,
    "sm": 90,
    "sm_count": 132,
    "peaks": tflops(bf16=990, fp8=1979, int8=1979, tf32=494, fp32=67),
    "others": {"on_chip": H100_WHITEPAPER, "host": f"{GH200_DOC}: NVLink-C2C at 900 GB/s both ways"},
}
GH200_NOTE = (
    "no power: the datasheet's 450 to 1000 W are of CPU, memory and GPU together; the number of SMs is the driver's "
    "(github.com/mredenti/PowerCapping)"
)

HGX_DOC = f"NVIDIA HGX page, nvidia.com/en-us/data-center/hgx, over 8 GPUs; {DERIVED}; quoted at fibermall.com/blog"
DGX_B200_DOC = "NVIDIA DGX B200 page, nvidia.com/en-us/data-center/dgx-b200, over 8 GPUs; as others quote it"
BLACKWELL_BRIEF = BOOK("NVIDIA Blackwell Architecture Technical Brief V2.1, tables 2 and 3", "nvidia-blackwell-brief")
BLACKWELL_GUIDE = "NVIDIA Blackwell Tuning Guide, docs.nvidia.com/cuda/blackwell-tuning-guide"
BLACKWELL: dict[str, Any] = {"on_chip": 126 * MIB, "sm": 100, "link": 900 * GB}
RUBIN_DOC = BOOK("NVIDIA Vera Rubin NVL72 page, column of one GPU, preliminary", "nvidia-rubin-system")

NVIDIA_SMI = "nvidia-smi on a rented machine, tests/data/{}".format
SYSTEMS = "reported by nvidia-smi, says systems/{}.yaml of NVIDIA's aiconfigurator-core 0.12.0".format

NVIDIA = (
    part(
        "a100-40",
        "NVIDIA A100 SXM 40 GB",
        2020,
        H100_WHITEPAPER,
        memory=("HBM2", 1555 * GB, 40 * GB),
        driver="NVIDIA A100-SXM4-40GB",
        **A100,
    ),
    part(
        "a100-80",
        "NVIDIA A100 SXM 80 GB",
        2020,
        A100_DOC,
        memory=("HBM2e", 2039 * GB, 80 * GB),
        others={"on_chip": H100_WHITEPAPER},
        driver="NVIDIA A100-SXM4-80GB",
        **A100,
    ),
    part(
        "h100-sxm",
        "NVIDIA H100 SXM",
        2022,
        H100_DOC,
        reduces_in_switch=True,
        memory=("HBM3", 3.35 * TB, 80 * GB),
        driver_mib=(81559, NVIDIA_SMI("nvidia_smi_h100.txt")),
        power=700,
        link=450 * GB,
        sm_count=132,
        peaks=H100_SXM_PEAKS,
        others=dict.fromkeys(("on_chip", *H100_SXM_PEAKS), H100_WHITEPAPER),
        driver="NVIDIA H100 80GB HBM3",
        **HOPPER,
    ),
    part(
        "h100-pcie",
        "NVIDIA H100 PCIe",
        2022,
        H100_WHITEPAPER,
        memory=("HBM2e", 2 * TB, 80 * GB),
        power=350,
        link=300 * GB,
        sm_count=114,
        peaks=tflops(bf16=756, fp8=1513, int8=1513, tf32=378, fp32=51.2),
        others=dict.fromkeys(
            ("bandwidth", "link"), "NVIDIA H100 PCIe GPU product brief PB-11133-001 (over 2 TB/s), at manuals.plus"
        ),
        driver="NVIDIA H100 PCIe",
        **HOPPER,
        note=BRIDGED,
    ),
    part(
        "h100-nvl",
        "NVIDIA H100 NVL",
        2023,
        f"{H100_DOC}; {DERIVED}",
        memory=("HBM3", 3.9 * TB, 94 * GB),
        power=400,
        link=300 * GB,
        sm_count=132,
        peaks=tflops(bf16=835.5, fp8=1670.5, int8=1670.5, tf32=417.5, fp32=60),
        others={"on_chip": H100_WHITEPAPER},
        driver="NVIDIA H100 NVL",
        **HOPPER,
        note=BRIDGED,
    ),
    part(
        "h200",
        "NVIDIA H200 SXM",
        2024,
        "NVIDIA's H200-SXM-141GBx8 in github.com/mlcommons/inference_results_v4.1, closed/NVIDIA/systems",
        reduces_in_switch=True,
        memory=("HBM3e", 4.8 * TB, 141 * GB),
        driver_mib=(143771, NVIDIA_SMI("nvidia_smi_samples_h200.csv")),
        power=700,
        link=450 * GB,
        sm_count=132,
        peaks=H100_SXM_PEAKS,
        others=dict.fromkeys(("on_chip", *H100_SXM_PEAKS), f"{H100_WHITEPAPER}: the H200 computes as the H100 does")
        | {"bandwidth": f"NVIDIA H200 product page, {STAS}"},
        driver="NVIDIA H200",
        **HOPPER,
    ),
    part(
        "h200-nvl",
        "NVIDIA H200 NVL",
        2024,
        H200_DOC,
        memory=("HBM3e", 4.8 * TB, 141 * GB),
        power=600,
        link=450 * GB,
        sm_count=132,
        peaks=tflops(bf16=835.5, fp8=1670.5, int8=1670.5, tf32=417.5, fp32=60),
        others={"on_chip": f"{H100_WHITEPAPER}: the H200 computes as the H100 does"},
        driver="NVIDIA H200 NVL",
        **HOPPER,
        note="its link is the NVLink bridge of two or four cards; between more of them data goes over PCIe",
    ),
    part(
        "gh200-96",
        "NVIDIA GH200 96 GB (the superchip's GPU)",
        2023,
        GH200_DOC,
        memory=("HBM3", 4 * TB, 96 * GB),
        driver="NVIDIA GH200 480GB",
        **GH200,
        note=f"its driver's name counts the CPU's memory; {GH200_NOTE}",
    ),
    part(
        "gh200-144",
        "NVIDIA GH200 144 GB (the superchip's GPU)",
        2024,
        GH200_DOC,
        memory=("HBM3e", 4.9 * TB, 144 * GB),
        driver="NVIDIA GH200 144G HBM3e",
        **GH200,
        note=GH200_NOTE,
    ),
    part(
        "b200",
        "NVIDIA B200",
        2025,
        BLACKWELL_BRIEF,
        reduces_in_switch=True,
        memory=("HBM3e", 8 * TB, 180 * GB),
        power=1000,
        host=PCIE_GEN5,
        peaks=tflops(bf16=2250, fp8=4500, int8=4500, fp4=9000, tf32=1125, fp32=75),
        others={
            "on_chip": BLACKWELL_GUIDE,
            "link": HGX_DOC,
            "mma_bf16": HGX_DOC,
            "mma_tf32": HGX_DOC,
            "bandwidth": DGX_B200_DOC,
            "capacity": DGX_B200_DOC,
        },
        driver="NVIDIA B200",
        sm_count=148,
        **BLACKWELL,
        note="NVIDIA's technical brief says 7.7 TB/s in HGX servers; the number of SMs is from Chips and Cheese",
    ),
    part(
        "gb200",
        "NVIDIA GB200 (one of the superchip's two GPUs)",
        2025,
        f"{BLACKWELL_BRIEF}: GB200 NVL72 over 72 GPUs",
        reduces_in_switch=True,
        memory=("HBM3e", 8 * TB, 186 * GB),
        driver_mib=(189471, SYSTEMS("gb200")),
        power=1200,
        host=450 * GB,
        peaks=tflops(bf16=2500, fp8=5000, int8=5000, fp4=10000, tf32=1250, fp32=80),
        others={
            "on_chip": BLACKWELL_GUIDE,
            "capacity": "GB200 systems in github.com/mlcommons/inference_results_v6.1: 186 GB",
            "power": f"NVIDIA Mission Control documentation, {STAS}",
            "host": "NVIDIA GB200 NVL72 page, NVLink-C2C at 900 GB/s both ways, which a superchip's two GPUs share",
        },
        driver="NVIDIA GB200",
        **BLACKWELL,
    ),
    part(
        "b300",
        "NVIDIA B300",
        2025,
        f"{BLACKWELL_BRIEF}: HGX B300",
        reduces_in_switch=True,
        memory=("HBM3e", 7.7 * TB, 270 * GB),
        driver_mib=(275040, SYSTEMS("b300_sxm")),
        power=1100,
        link=900 * GB,
        sm=103,
        peaks=tflops(bf16=2250, fp8=4500, int8=150, fp4=13500, tf32=1125, fp32=75),
        others={
            "mma_fp4": f"{BLACKWELL_BRIEF}: 108 PFLOP/s dense of HGX B300 over 8 GPUs, rounded to 14 for one",
            "mma_bf16": HGX_DOC,
            "mma_tf32": HGX_DOC,
            "link": HGX_DOC,
        },
        note="in an HGX server; in a GB300 NVL72 the same GPU has 15 PFLOP/s FP4, 8 TB/s and 1400 W",
    ),
    part(
        "r200",
        "NVIDIA Rubin R200",
        2026,
        RUBIN_DOC,
        memory=("HBM4", 22 * TB, 288 * GB),
        link=1.8 * TB,
        host=900 * GB,
        peaks=tflops(bf16=4000, fp8=17500, int8=250, fp4=35000, tf32=2000, fp32=130),
        others={"host": f"{RUBIN_DOC}: NVLink-C2C at 1.8 TB/s both ways, which a superchip's two GPUs share"},
        note="preliminary; FP4 is the training figure: the 50 PFLOP/s for inference count adaptive compression",
    ),
    part(
        "rubin-cpx",
        "NVIDIA Rubin CPX",
        2026,
        "NVIDIA newsroom, NVIDIA Unveils Rubin CPX, September 2025, as the press quotes it",
        memory=("GDDR7", None, 128 * GB),
        note="announced; 30 PFLOP/s NVFP4, not said whether dense; no bandwidth published",
    ),
    part(
        "l40s",
        "NVIDIA L40S",
        2023,
        "NVIDIA L40S datasheet, quoted at mullet.se, and L40S product page",
        memory=("GDDR6", 864 * GB, 48 * GB),
        driver_mib=(46068, SYSTEMS("l40s")),
        power=350,
        link=32 * GB,
        host=PCIE_GEN4,
        peaks=tflops(bf16=362.05, fp8=733, int8=733, tf32=183, fp32=91.6),
        on_chip=96 * MIB,
        others={
            "on_chip": "NVIDIA Ada GPU Architecture whitepaper v2: the AD102 with all of its L2, which the L40S has"
        },
        sm=89,
        sm_count=142,
        driver="NVIDIA L40S",
    ),
    part(
        "rtx-4090",
        "NVIDIA GeForce RTX 4090",
        2022,
        "NVIDIA Ada GPU Architecture whitepaper v2, appendix A, as others quote it",
        memory=("GDDR6X", 1008 * GB, 24 * GB),
        driver_mib=(24564, NVIDIA_SMI("nvidia_smi_rtx4090.txt")),
        power=450,
        on_chip=72 * MIB,
        host=PCIE_GEN4,
        peaks=tflops(bf16=165.2, fp8=330.3, int8=660.6, tf32=82.6, fp32=82.6),
        sm=89,
        sm_count=128,
        driver="NVIDIA GeForce RTX 4090",
        note="tensor peaks with fp32 accumulation",
    ),
    part(
        "rtx-5090",
        "NVIDIA GeForce RTX 5090",
        2025,
        "NVIDIA RTX Blackwell GPU Architecture whitepaper, table of the RTX 5090, as others quote it",
        memory=("GDDR7", 1792 * GB, 32 * GB),
        power=575,
        on_chip=96 * MIB,
        host=PCIE_GEN5,
        peaks=tflops(bf16=209.5, fp8=419, int8=838, fp4=1676, tf32=104.8, fp32=104.8),
        sm=120,
        sm_count=170,
        driver="NVIDIA GeForce RTX 5090",
        note="tensor peaks with fp32 accumulation, at the rated boost clock, which cards exceed",
    ),
)
