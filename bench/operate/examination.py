"""What `doctor` looks at on a machine: drivers, packages, settings, and a quick read. Nothing here raises."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench import machine
from bench.devices import DeviceSpec, driver
from bench.errors import describe
from bench.inspection.ncu import counters_problem, find_ncu
from bench.measure.telemetry import HostSampler, Sampler
from kernels.op import Target, discover, implementations

READ_BYTES = 1 << 30
READ_CAP_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """What a quick read reached, and telemetry of the GPU while it ran."""

    bytes_per_s: float
    impl: str
    telemetry: dict[str, Any]


@dataclass(kw_only=True)
class Facts:
    """Everything that the checks look at. A value is None where it could not be read; `failed` then says why."""

    problem: str | None
    """Why torch can use no GPU; None if it can use one."""
    packages: dict[str, str | None] = field(default_factory=dict)
    torch_cuda: str | None = None
    torch_archs: tuple[str, ...] = ()
    wanted_triton: str | None = None
    """The version of Triton that torch was released with."""
    target: Target | None = None
    spec: DeviceSpec | None = None
    gpu: dict[str, Any] = field(default_factory=dict)
    """`driver.FACTS`, `LIVE` and `TOTALS`; None where NVML refuses."""
    compiler: str | None = None
    headers: bool = False
    """Is Python.h there?"""
    counters: str | None = None
    """Why hardware counters cannot be read; None if they can."""
    bandwidth: Bandwidth | None = None
    host: dict[str, Any] = field(default_factory=dict)
    """What others did on the host's cores for `LISTEN_S`: see `telemetry.HostSampler`; empty where it does not tell."""
    clash: str | None = None
    failed: dict[str, str] = field(default_factory=dict)


def gather(*, quick_read: bool = True) -> Facts:
    """Look at this machine. A reading that fails is named in `failed`, and only the check that needs it suffers."""
    facts = Facts(problem=None)

    def attempt(name: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Exception as error:
            facts.failed[name] = describe(error)
            return None

    facts.clash = attempt("packages", package_clash)
    facts.host = attempt("load", host_load) or {}
    facts.packages = {package: machine.installed(package) for package in machine.PACKAGES}
    facts.wanted_triton = attempt("triton", machine.torch_wants_triton)
    facts.compiler = attempt("compiler", machine.c_compiler)
    facts.headers = bool(attempt("headers", machine.python_headers))
    facts.problem = attempt("gpu", driver.cuda_problem)
    facts.problem = facts.problem or facts.failed.get("gpu")
    facts.counters = attempt(
        "counters",
        lambda: counters_problem(find_ncu(), machine.driver_parameters(), machine.may_administrate()),
    )
    facts.torch_cuda = attempt("torch", lambda: driver.torch_module().version.cuda)
    if facts.problem:
        return facts
    facts.torch_archs = tuple(attempt("torch", lambda: driver.torch_module().cuda.get_arch_list()) or ())
    facts.target = attempt("target", machine.gpu_target)
    if facts.target is None:
        return facts
    target = facts.target
    gpu = attempt("telemetry", driver.open_gpu)
    if gpu:
        readings = {**driver.FACTS, **driver.LIVE, **driver.TOTALS}
        facts.gpu = gpu.read(readings, facts.failed)
    facts.spec = attempt("part", lambda: machine.device_spec(target, facts.gpu))
    if quick_read:
        facts.bandwidth = attempt("bandwidth", lambda: read_bandwidth(target, gpu))
    return facts


LISTEN_S = 0.5
"""How long the host's cores are watched."""


def host_load() -> dict[str, Any]:
    """What other programs do on the host's cores while this process sleeps."""
    with HostSampler() as sampler:
        time.sleep(LISTEN_S)
    return sampler.summary().get("host", {})


def package_clash(origin: str | None = None) -> str | None:
    """None if the import name `kernels` is this project's; a Hugging Face package has that name too."""
    import kernels

    found = Path(origin or kernels.__file__ or "").resolve()
    if found.parent.parent == machine.ROOT:
        return None
    return "the import name `kernels` belongs to another package: use this project's own environment"


def read_bandwidth(target: Target, gpu: driver.GpuSession | None) -> Bandwidth:
    """Read 1 GiB with the Triton stream kernel (torch's where there is none), timed as a run would time it."""
    from bench.measure.timing import GraphTimer, HostTimer, sample_interleaved

    op = discover()["stream"]
    case = op.case_type(kind="read", size=READ_BYTES)
    impl = next(impl for impl in implementations(op.name)[0] if impl.supports(case, target) is None)
    launches = [impl.prepare(case, op.inputs(case, target.device, seed), target) for seed in range(2)]
    timer = GraphTimer(launches) if target.kind == "cuda" else HostTimer(launches)
    with Sampler(gpu, interval_s=0.02) as sampler:
        sampling = sample_interleaved({impl.name: timer}, cap_s=READ_CAP_S)[impl.name]
    timer.close()
    median_s = statistics.median(sampling.samples_s)
    return Bandwidth(bytes_per_s=case.size / median_s, impl=f"{impl.name} ({op.name})", telemetry=sampler.summary())
