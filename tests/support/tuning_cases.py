"""What tests of tuning share: a part, configurations, what a compiler might make of them, an entry of a tuned.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bench.inspection.codegen.judge import KernelReport, Stream
from bench.inspection.targets import compile_targets
from bench.operate.tune.prune import DEFAULT, Compiled, ShapeClass
from kernels.common import tuned
from kernels.op import Config
from tests.support.planted import ToyCase

H100 = compile_targets()[90]
LARGE, SMALL = ToyCase(K=16384), ToyCase(K=4096)
A, B, C = (("num_warps", 8),), (("num_warps", 16),), (("num_warps", 2),)


def entry(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An entry of a tuned.json; its evidence says nothing."""
    evidence = dict.fromkeys(tuned.EVIDENCE, "x")
    key = {"part": H100.name, "impl": "triton", "shape_class": "read"}
    return {**key, "config": config, "evidence": evidence, **changes}


def toy_class(*configs: Config, cases: Sequence[ToyCase] = (LARGE,)) -> ShapeClass:
    return ShapeClass(op="toy", impl="t", name="all", cases=tuple(cases), configs=(DEFAULT, *configs))


def compiled(name: str, in_flight: int = 64 << 10, **changes: Any) -> Compiled:
    names = {"op": "toy", "impl": "t", "kernel": "k", "case_id": "c", "part": ""}
    streams = (Stream(name="w", how="cp.async", width=16),)
    sizes = {"threads": 128, "ctas_per_sm": 2, "bytes_in_flight": in_flight, "bytes_needed": 32 << 10}
    report = KernelReport(**names, sm=90, streams=streams, **sizes)
    return Compiled(reports=(dataclasses.replace(report, **changes),), binaries=(name,))
