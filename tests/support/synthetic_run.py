"""Made-up records and runs, written by the tests at run time and never committed.

The part is invented. Every time follows from the constants below, so that a test can compute by hand what a report must
say.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.ceilings import Ceilings
from bench.devices import DEVICES
from bench.judge.view import View
from bench.measure.runner import device_facts
from bench.predict.roofline import predict_from_ceilings
from bench.records import Record, Writer, as_line
from bench.run import load_run
from kernels.common.fields import names_of, types
from kernels.op import Stage, Target, Work, discover

ROOF = 3.0e12
"""B/s of the part's reads without `LAUNCH`. Its datasheet is that of `KEY`."""
KEY = "h100-sxm"
SHEET = DEVICES[KEY].memory_bandwidth.value  # type: ignore[union-attr]
LAUNCH = 2e-6
PEAK = 700e12
CACHE = 50_000_000
GB = 10**9
MEASURED_ROOF = 2**32 / (LAUNCH + 2**32 / ROOF)
"""B/s that the largest read reaches. Shares of the roof are shares of this."""
SWEPT = {"cache_bytes": 480 << 20, "flush_bytes": 480 << 20, "cold": True}
"""The rotation of a case on a host whose last-level cache is larger than any case."""
TARGET = Target(kind="cuda", name="Synthetic GPU", sm=90, sm_count=132, l2_bytes=CACHE)
ON_A_CPU = {"device": {"key": None, "name": "Some CPU"}, "target": {"kind": "cpu", "name": "Some CPU"}}
"""What the header of a run on a host has in place of the part's."""


# ---- records


def samples(seconds: float, seed: int = 0, count: int = 20, spread: float = 0.002) -> list[float]:
    """`count` times whose median is exactly `seconds`."""
    rng = random.Random(seed)
    half = [rng.uniform(0, spread) for _ in range(count // 2)]
    return [seconds * (1 + sign * d) for d in half for sign in (-1, 1)]


def record(
    op: str,
    impl: str,
    case_id: str,
    *,
    case: dict[str, Any] | None = None,
    read: int = 0,
    written: int = 0,
    flops: dict[str, int] | None = None,
    seconds: float | None = None,
    **changes: Any,
) -> Record:
    work = Work(flops=flops or {}, bytes_read=read, bytes_written=written)
    stage = Stage(name="all", work=work, l2_bytes=changes.pop("l2_bytes", 0))
    values: dict[str, Any] = {
        "ours": impl.startswith("triton"),
        "case": case or {"dtype": "bf16"},
        "status": "ok",
        "version": "triton 3.6.0" if impl.startswith("triton") else "torch 2.11.0",
        "stages": [dataclasses.asdict(stage)],
        "samples_s": samples(seconds, seed=len(case_id)) if seconds else [],
        "rotation": {"cache_bytes": CACHE, "cold": True},
        "run_id": "synthetic",
    }
    return Record(op=op, impl=impl, case_id=case_id, work=dataclasses.asdict(work), **{**values, **changes})


def case_record(op_name: str, impl: str, fields: dict[str, Any], **changes: Any) -> Record:
    """A record of a real op's case: its id, fields and compulsory work are the op's own."""
    op = discover()[op_name]
    case = op.case_from_dict(fields)
    work = op.work(case)
    amounts = {"read": work.bytes_read, "written": work.bytes_written, "flops": dict(work.flops)}
    return record(op_name, impl, case.id, case=case.as_dict(), **amounts, **changes)


Clock = Callable[[Record], float]
"""The time of a record, in seconds, by its work."""


def timed(op: str, fields: dict[str, Any], clock: Clock, impl: str = "triton", **changes: Any) -> Record:
    """A record of a real op's case that takes as long as the clock says."""
    found = case_record(op, impl, fields, **changes)
    return dataclasses.replace(found, samples_s=samples(clock(found), seed=len(found.case_id)))


def at_share(share: float) -> Clock:
    """Takes as long as the bytes take at this share of the read roof."""
    return lambda r: r.bytes / MEASURED_ROOF / share


def by_arithmetic(r: Record) -> float:
    """Takes as long as the FLOPs take at the peak."""
    return r.flops / PEAK


def gate(share: float, impl: str = "triton", *, B: int = 1, N: int = 28672, K: int = 8192, **more: Any) -> Record:
    """A projection, that of Llama-3.1-70B's gate if nothing else is said, at this share of the read roof."""
    changes = {name: more.pop(name) for name in ("flags", "prediction") if name in more}
    return timed("ffn_gemv", {"B": B, "N": N, "K": K, **more}, at_share(share), impl, **changes)


def predicted(found: Record, ceilings: Ceilings, sheet_seconds: float | None = None) -> Record:
    """The record with the predictions that a run would have stored before it."""
    stages = [Stage(**{**s, "work": Work(**s["work"])}) for s in found.stages]
    measured = dataclasses.asdict(predict_from_ceilings(stages, ceilings, TARGET))
    seconds = found.bytes / SHEET if sheet_seconds is None else sheet_seconds
    sheet = {"seconds": seconds, "terms": {"memory": seconds}, "bound": "memory", "basis": "datasheet", "missing": []}
    return dataclasses.replace(found, prediction={"measured": measured, "datasheet": sheet, "at": "2000"})


def gemv(
    seconds: float, *, read: int = GB, expected: float | None = None, bound: str = "memory", **changes: Any
) -> Record:
    """A case of 1 GB; at the synthetic roof of 3 TB/s it would take a third of a millisecond."""
    terms = {"memory": expected or 0.0}
    prediction = {"measured": {"seconds": expected, "terms": terms, "bound": bound}} if expected else {}
    impl, name = changes.pop("impl", "triton_gemv"), changes.pop("case_id", f"B1-{seconds}")
    given = {"case": {"B": 1, "N": 1, "K": 1, "dtype": "bf16"}, "prediction": prediction} | changes
    return record("ffn_gemv", impl, name, read=read, seconds=seconds, **given)


# ---- what a run holds


def stream(case_id: str, *, kind: str = "", impl: str = "triton_stream", **changes: Any) -> Record:
    return record("stream", impl, case_id, **{"case": {"kind": kind or case_id}} | changes)


def ceiling_records() -> list[Record]:
    """Reads from 1 MB to 4 GB, a copy, an empty launch, the L2 and the tensor cores."""
    half = 1 << 31
    return [
        *(
            stream(f"read-{size}", kind="read", read=size, seconds=LAUNCH + size / ROOF)
            for size in (1 << n for n in range(20, 33, 2))
        ),
        stream("copy", read=half, written=half, seconds=2 * half / 2.7e12),
        stream("launch", seconds=LAUNCH),
        stream("l2", kind="l2_read", seconds=1e-5, l2_bytes=int(5.5e12 * 1e-5)),
        record("gemm_peak", "cublaslt", "bf16", flops={"mma_bf16": int(PEAK * 1e-3)}, seconds=1e-3),
    ]


def decode_records(seed: int = 0) -> list[Record]:
    """GEMV, attention and page reads, ours and a peer: each time is its prediction times a factor drawn per case."""
    rng = random.Random(seed)
    roofs = Ceilings.from_records(ceiling_records())
    assert roofs
    cases: list[tuple[str, dict[str, Any], float]] = [
        ("ffn_gemv", {"B": batch, "N": n, "K": k, "dtype": dtype}, rng.uniform(1.0, 1.12) + batch / 2000)
        for n, k in ((4096, 4096), (28672, 8192))
        for dtype in ("bf16", "fp32")
        for batch in (1, 4, 16, 64, 128, 512)
    ]
    heads = {"H_kv": 8, "D": 128}
    for batch in (1, 8, 64):
        for length in (1024, 8192, 32768):
            shape = {"B": batch, "T": length, **heads}
            cases.append(("attention_decode", {**shape, "H_q": 64}, rng.uniform(1.0, 1.25)))
            cases.append(("paged_read", {**shape, "page": 16}, rng.uniform(1.0, 1.3)))
    found = []
    for op, fields, loss in cases:
        for impl, factor in (("triton_ours", loss), ("torch", loss * rng.uniform(0.97, 1.9))):
            ready = predicted(case_record(op, impl, fields), roofs)
            time = ready.prediction["measured"]["seconds"] * factor
            found.append(dataclasses.replace(ready, samples_s=samples(time, seed=len(found))))
    return found


def extras() -> list[Record]:
    """One record of each kind that has no time, and one flagged."""
    small = {"B": 1, "N": 64, "K": 64}
    warm = {"B": 1, "T": 10000, "H_kv": 8, "D": 128, "page": 16}
    roof = Ceilings(read_points=((1 << 30, (1 << 30) / ROOF),))
    return [
        case_record("ffn_gemv", "triton_fp8", small, status="refused", reason="needs sm_89 or later"),
        case_record("ffn_gemv", "marlin", small, status="failed", reason="ImportError: <no module> | gemlite"),
        case_record("ffn_gemv", "triton_bad", small, status="wrong", reason="max_rel 3.1 over 0.016"),
        case_record("ffn_gemv", "triton_late", small, status="skipped", reason="no time left"),
        predicted(case_record("paged_read", "triton_gather", warm, seconds=9e-6, flags=["warm", "noisy"]), roof),
    ]


# ---- runs


def header(**changes: Any) -> dict[str, Any]:
    packages = {"torch": "2.11.0", "triton": "3.6.0"}
    return {
        "run_id": "synthetic",
        "suite": "quick",
        "argv": ["run", "--suite", "quick"],
        "started": "2000-01-01T00:00:00Z",
        "device": device_facts(TARGET, DEVICES[KEY]),
        "target": dataclasses.asdict(TARGET),
        "environment": {"packages": packages, "driver": "0.0", "git": {"sha": "0" * 12}},
        "decodebench": "0.1.0",
        **changes,
    }


def complete(record: Record) -> Record:
    """The record with something in each field of the case that its op must have: a made-up case says only what its test
    is about."""
    if record.op not in discover():
        return record
    op = discover()[record.op]
    kinds = types(op.case_type)
    needed = [name for name, default in op.defaults.items() if default is dataclasses.MISSING]
    filled = {name: next(iter(names_of(kinds[name])), 1) for name in needed}
    return dataclasses.replace(record, case=filled | record.case)


def write_run(
    directory: Path,
    records: list[Record],
    *,
    notes: list[dict[str, Any]] | None = None,
    end: bool = True,
    **changes: Any,
) -> Path:
    """`records.jsonl` as a run leaves it; returns the run's directory. `changes` are those of the header."""
    writer = Writer(directory)
    writer.append("run", header(**changes))
    for found in records:
        writer.append("record", as_line(complete(found)))
    for note in notes or []:
        writer.append("note", note)
    if end:
        writer.append("end", {"finished": "2000-01-01T00:10:00Z"})
    writer.close()
    return directory


def pair(first: list[float], second: list[float], op: str = "ffn_gemv", impl: str = "triton_gemv") -> dict[str, Any]:
    """The note of an A/A pair: samples of the same thing, measured twice."""
    return {"note": "aa", "op": op, "impl": impl, "case_id": "x", "samples_s": [first, second]}


def view(tmp_path: Path, records: list[Record], **changes: Any) -> View:
    return View(load_run(write_run(tmp_path / "run", records, **changes)))


def measured_view(tmp_path: Path, records: list[Record], **changes: Any) -> View:
    """A view of a run that measured the ceilings too."""
    return view(tmp_path, [*ceiling_records(), *records], **changes)


def page_data(run: Path) -> str:
    page = (run / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return found[1]
