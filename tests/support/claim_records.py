"""Records of a made-up H100 at given rates, and runs of them, for the tests of claims."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.devices import identify
from bench.judge.claims import Verdict
from bench.records import Record
from bench.run import Run, load_run
from tests.support import synthetic_run
from tests.support.synthetic_run import write_run

H100 = "NVIDIA H100 80GB HBM3"
READ = 3.0e12
"""Measured read bandwidth of the synthetic H100."""


def record(op: str, case: dict[str, Any], seconds: float, *, size: int, flops: float, **more: Any) -> Record:
    impl, pipe = more.pop("impl", "ours"), more.pop("pipe", "mma_bf16")
    name = "-".join(f"{field}{value}" for field, value in case.items())
    fields = {"ours": True, "run_id": "r1", "samples_s": [0.99 * seconds, seconds, 1.01 * seconds]} | more
    return synthetic_run.record(op, impl, name, case=case, read=int(size), flops={pipe: int(flops)}, **fields)


def read(bandwidth: float = READ) -> Record:
    return record("stream", {"kind": "read", "size": 1 << 30}, (1 << 30) / bandwidth, size=1 << 30, flops=1 << 28)


def gemm(rate: float = 700e12) -> Record:
    case = {"kind": "gemm", "M": 8192, "N": 8192, "K": 8192, "dtype": "bf16"}
    return record("gemm_peak", case, 2 * 8192**3 / rate, size=3 * 2 * 8192**2, flops=2 * 8192**3)


GATE = (28672, 8192)
BYTES = {"bf16": 2, "fp8": 1, "int8": 1, "int4": 0.5}


def layer(B: int, weights: str = "bf16", *, bandwidth: float = READ, peak: float = 700e12, **more: Any) -> Record:
    """The gate of Llama-3.1-70B under a perfect roofline."""
    N, K = GATE
    size, flops = N * K * BYTES[weights] + 2 * B * (N + K), 2 * B * N * K
    case = {"model": "llama-3.1-70b", "B": B, "N": N, "K": K, "dtype": "bf16", "weights": weights}
    return record("ffn_gemv", case, max(size / bandwidth, flops / peak), size=int(size), flops=flops, **more)


def attend(H_q: int, H_kv: int, *, B: int = 16, T: int = 8192, kv: str = "", time: float = 1.0, **more: Any) -> Record:
    """Attention at the read bandwidth, `time` times as slow."""
    window = more.get("window", 0)
    size = 2 * B * min(T, window or T) * H_kv * 128 * (1 if kv == "fp8" else 2)
    case = {"model": "", "B": B, "H_q": H_q, "H_kv": H_kv, "D": 128, "T": T}
    case |= {"lengths": "uniform", "page": 16, "layout": "NHD", "order": "shuffled", "dtype": "bf16", "kv": kv}
    case |= {"q_len": 1, "window": 0, "sinks": 0, "softcap": 0.0, "prefix": 0}
    case |= {name: more.pop(name) for name in list(more) if name in case}
    return record("attention_decode", case, time * size / READ, size=size, flops=4 * B * T * H_q * 128, **more)


def experts(B: int, weights: str = "bf16", *, time: float = 1e-3, E: int = 256, k: int = 8) -> Record:
    """An MoE layer of DeepSeek-V3."""
    case = {"model": "deepseek-v3", "B": B, "E": E, "k": k, "H": 7168, "F": 2048}
    case |= {"routing": "uniform", "dtype": "bf16", "weights": weights}
    return record("moe_ffn", case, time, size=1 << 24, flops=6 * B * k * 7168 * 2048)


def prompt(T: int, *, peak: float = 700e12, attention: float = 350e12) -> list[Record]:
    """The gate of Llama-3.1-70B and an attention of 32 heads of 128 reading T tokens at these FLOP/s."""
    N, K = GATE
    gate = {"kind": "gemm", "model": "llama-3.1-70b", "B": 1, "T": T, "N": N, "K": K, "D": 0, "dtype": "bf16"}
    heads = {"kind": "attention", "model": "llama-3.1-8b", "B": 1, "T": T, "N": 0, "K": 0, "D": 128, "dtype": "bf16"}
    weights, scores = 2 * T * N * K, 4 * 128 * 32 * T * (T + 1) // 2
    return [
        record("prefill", gate, weights / peak, size=2 * (T * K + N * K + T * N), flops=weights),
        record("prefill", heads, scores / attention, size=2 * T * 128 * 80, flops=scores),
    ]


def run(*records: Record, device: str = H100, kind: str = "cuda") -> Run:
    """A run of these records, as read back from its file."""
    part = identify(device)
    facts = {"name": device, "key": part.key if part else None}
    with tempfile.TemporaryDirectory() as directory:
        return load_run(write_run(Path(directory), list(records), device=facts, target={"kind": kind}))


def values(verdict: Verdict, what: str, **setting: str) -> list[float]:
    """Predicted values of one published number at settings with these factors."""
    return [c.value for c in verdict.predicted if c.published.what == what and setting.items() <= c.setting.items()]


def l2_read(bandwidth: float = 6e12) -> Record:
    stages = [{"l2_bytes": int(bandwidth * 1e-3)}]
    return record("stream", {"kind": "l2_read", "size": 1 << 24}, 1e-3, size=1 << 24, flops=1, stages=stages)


def host_copy(kind: str = "h2d", *, size: int = 1 << 26, bandwidth: float = 50e9, start: float = 2e-6) -> Record:
    case = {"kind": kind, "page_bytes": size, "pages": 1}
    return record("host_link", case, start + size / bandwidth, size=size, flops=0)


def full_run() -> Run:
    layers = [layer(B, weights) for B in (1, 4, 8, 16, 64, 256, 512) for weights in BYTES]
    caches = [attend(32, 32), attend(64, 8), attend(64, 8, kv="fp8"), attend(64, 8, B=64), attend(64, 8, q_len=4)]
    caches += [attend(64, 8, model="llama-3.1-70b"), *(attend(64, 8, T=T, window=4096) for T in (8192, 32768))]
    return run(read(), gemm(), *layers, *prompt(512), *prompt(2048), *caches)
