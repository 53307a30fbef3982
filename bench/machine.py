"""The machine: its description (environment), and the targets that kernels can run on.

This module, `bench/devices/driver.py` and `bench/measure/cores.py` alone read NVML, `os.environ`, git, `/proc` and
`/sys`. torch is imported inside functions only. An environment gets published, so it has no host name, user, serial
number or absolute path.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.devices import DeviceSpec
from bench.devices import lookup as devices
from bench.devices.driver import FACTS, cuda_problem, device_properties, open_gpu_or_none
from bench.errors import BadRequest
from bench.records import now
from kernels.op import Target

ROOT = Path(__file__).resolve().parent.parent
RECORDED = re.compile(
    r"(TRITON|CUDA|CUBLAS|TORCH|PYTORCH|TORCHINDUCTOR|OMP|GOMP|MKL|KMP|NUMBA|THP)_\w+|NVIDIA_TF32_OVERRIDE"
)
"""Environment variables that can change what is measured."""
PACKAGES = ("torch", "triton", "numpy", "numba", "pandas", "nvidia-ml-py")


# ---- the host


def cpu_model(cpuinfo: str | None = None) -> str:
    """E.g. `Intel(R) Xeon(R) Platinum 8480+`. On most Arm hosts Linux names no model; then the instruction set."""
    path = Path("/proc/cpuinfo")
    text = cpuinfo if cpuinfo is not None else path.read_text() if path.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    return len(affinity())


def affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def last_level_cache_bytes(cpus: set[int] | None = None, root: Path = Path("/sys/devices/system/cpu")) -> int:
    """The total size of all last-level caches that the usable cores reach; 0 if the system does not tell."""
    instances: dict[tuple[int, str], int] = {}
    for cpu in affinity() if cpus is None else cpus:
        for index in sorted((root / f"cpu{cpu}" / "cache").glob("index*")):
            size = re.fullmatch(r"(\d+)([KMG]?)", _line(index / "size") or "")
            if not size or _line(index / "type") == "Instruction":
                continue
            level, sharers = int(_line(index / "level") or 0), _line(index / "shared_cpu_list") or str(cpu)
            instances[level, sharers] = int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
    last = max((level for level, _ in instances), default=0)
    return sum(size for (level, _), size in instances.items() if level == last)


def _line(path: Path) -> str | None:
    return path.read_text().strip() if path.is_file() else None


def memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that programs can still take without swapping; all of it where Linux does not tell."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text() if meminfo.is_file() else "", re.MULTILINE)
    return int(found[1]) << 10 if found else memory_bytes()


def let_waiting_threads_sleep() -> None:
    """Before torch is imported: its idle threads spin for at most a fraction of a millisecond (libgomp's default is
    several). Until then they would take a core from whatever is timed next."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def want_large_pages() -> None:
    """Before torch is imported: its tensors of 2 MiB and more ask Linux for pages of 2 MiB.

    On a virtual machine, cold reads of pages of 4 KiB were seen at 28 to 36 GB/s, depending on the allocation, and of
    pages of 2 MiB at 55 to 60 GB/s.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def operating_system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def recorded_variables(environ: Mapping[str, str] | None = None, host: str | None = None) -> dict[str, str]:
    """Variables that can change a measurement, without paths, UUIDs and the host's name."""
    host = platform.node() if host is None else host
    shown = {}
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if RECORDED.fullmatch(name):
            if host and host in value:
                value = "(hidden)"
            elif "/" in value or "\\" in value:
                value = "(a path)"
            shown[name] = re.sub(r"(GPU|MIG)-[0-9a-fA-F-]+", r"(a \1 uuid)", value)
    return shown


def find_program(name: str, patterns: tuple[str, ...] = ()) -> str | None:
    """Absolute path of a program: the one on PATH, else the newest that matches a glob pattern."""
    elsewhere = (path for pattern in patterns for path in sorted(glob.glob(pattern), reverse=True))
    return shutil.which(name) or next((p for p in elsewhere if os.access(p, os.X_OK)), None)


def c_compiler() -> str | None:
    """The C compiler that Triton takes: $CC, else gcc, else clang; None if there is none.

    Triton compiles its launcher with it, before the first kernel runs on a GPU.
    """
    given = os.environ.get("CC")
    if given:
        return given if shutil.which(given) else None
    return next((name for name in ("gcc", "clang") if shutil.which(name)), None)


def python_headers() -> bool:
    """Is Python.h there? Triton's launcher includes it. uv's Pythons bring it; Debian has it in `python3-dev`."""
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def execute(command: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Run a program from the root of the checkout. Return its exit status and its output on both streams.

    It writes numbers as in C, with a decimal point, whatever the user's locale is.

    After `timeout_s` kill it and all processes that it started; then the status is 124.
    """
    process = subprocess.Popen(
        list(command),
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return 124, f"{output}\nended after {timeout_s:.0f} s"


def may_administrate(status: Path = Path("/proc/self/status")) -> bool:
    """Does this process have CAP_SYS_ADMIN (bit 21 in linux/capability.h)? Root in a container often lacks it."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text() if status.is_file() else "", re.MULTILINE)
    return bool(int(found[1], 16) >> 21 & 1) if found else False


def driver_parameters(path: Path = Path("/proc/driver/nvidia/params")) -> dict[str, str]:
    """The kernel module's parameters, e.g. `{"RmProfilingAdminOnly": "1"}`; empty if they cannot be read."""
    text = path.read_text() if path.is_file() else ""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


# ---- the checkout


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """`sha` (12 digits) and `dirty` (the code that measures differs from it); both None outside a checkout."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {"sha": None, "dirty": None}

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "--short=12", "HEAD")
    changes = git("status", "--porcelain", "--", "kernels", "bench", "pyproject.toml")
    return {"sha": sha, "dirty": None if changes is None else bool(changes)}


def source_digest(root: Path = ROOT, *, tuned: bool = True) -> str:
    """Identify the code without git: 12 hex digits over all `*.py` and `tuned.json` of `kernels` and `bench`.

    Without `tuned` only the code counts, so that a campaign's own tuning does not change the digest.
    """
    digest = hashlib.sha256()
    code = [p for part in ("kernels", "bench") for p in (root / part).rglob("*.py")]
    for path in sorted([*code, *((root / "kernels").glob("*/tuned.json") if tuned else ())]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


# ---- targets


def gpu_target(properties: Any = None) -> Target:
    found = properties or device_properties()
    return Target(
        kind="cuda",
        name=found.name,
        sm=10 * found.major + found.minor,
        sm_count=found.multi_processor_count,
        l2_bytes=found.L2_cache_size,
        smem_per_sm=found.shared_memory_per_multiprocessor,
    )


ASSUMED_CACHE_BYTES = 256 << 20
"""The cache size to sweep between launches on a host that does not tell its own, e.g. a VM on an Arm laptop."""


def cpu_target() -> Target:
    cache = last_level_cache_bytes() or ASSUMED_CACHE_BYTES
    return Target(kind="cpu", name=cpu_model(), sm_count=usable_cores(), l2_bytes=cache)


def detect(device: str = "auto", problem: Callable[[], str | None] = cuda_problem) -> Target:
    """The target to run on. `auto` takes the GPU if there is one, else the CPU."""
    if device not in ("auto", "cuda", "cpu"):
        raise BadRequest(f"device {device!r} is unknown: choose auto, cuda or cpu")
    if device == "cpu":
        return cpu_target()
    reason = problem()
    if reason is None:
        return gpu_target()
    if device == "cuda":
        raise BadRequest(f"no CUDA device: {reason}")
    return cpu_target()


def is_slice(target: Target, facts: Mapping[str, Any]) -> bool:
    """CUDA names a slice `NVIDIA H100 80GB HBM3 MIG 3g.40gb`. While MIG is on, a program can use slices alone."""
    return bool(facts.get("mig")) or " MIG " in target.name


def device_spec(target: Target, facts: Mapping[str, Any]) -> DeviceSpec | None:
    """The part's numbers from the table, else derived from the driver's answers (`driver.FACTS`), else None.

    NVML describes the whole board. A MIG slice has a part of its bandwidth and memory, and nobody publishes how much,
    so only what follows from the slice's own SMs is derived.
    """
    if target.kind == "cuda" and is_slice(target, facts):
        if not facts.get("sm_clock_max_hz"):
            return None
        return devices.derive(
            name=target.name,
            sm=target.sm,
            sm_count=target.sm_count,
            sm_clock_hz=facts["sm_clock_max_hz"],
            smem_per_sm=target.smem_per_sm,
            note="a MIG slice: its bandwidth and its memory are not known, its peaks follow from its SMs",
        )
    known = devices.identify(target.name)
    needed = ("sm_clock_max_hz", "memory_clock_max_hz", "memory_bus_bits")
    if known or target.kind != "cuda" or any(not facts.get(name) for name in needed):
        return known
    return devices.derive(
        name=target.name,
        sm=target.sm,
        sm_count=target.sm_count,
        sm_clock_hz=facts["sm_clock_max_hz"],
        memory_bus_bits=facts["memory_bus_bits"],
        memory_clock_hz=facts["memory_clock_max_hz"],
        memory_bytes=facts.get("memory_bytes") or 0,
        l2_bytes=target.l2_bytes,
        smem_per_sm=target.smem_per_sm,
    )


def device_slug(target: Target) -> str:
    """A folder's name under `reports/`: `h100-80gb-hbm3`, `cpu-intel-xeon-processor`."""
    name = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b|^nvidia\b", " ", target.name.lower())
    words = re.findall(r"[a-z0-9]+", name)
    return "-".join([*(["cpu"] if target.kind == "cpu" else []), *words]) or target.kind


# ---- torch's settings

PRODUCTS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
"""Settings of `torch.backends.cuda.matmul`: may cuBLAS add the partial sums of a split K in 16 bits?"""


def keep_products_exact() -> None:
    """Let the libraries behind torch add partial sums in fp32, as our kernels do. torch's default is 16 bits.

    With 16 bits a peer's error grows with the number of its splits, which the gate may refuse. The bytes are the same.
    """
    import torch

    for name in PRODUCTS:
        setattr(torch.backends.cuda.matmul, name, False)


def precision() -> dict[str, Any]:
    """The settings that decide how exactly torch multiplies matrices. Plain JSON values."""
    import torch

    matmul = torch.backends.cuda.matmul
    return {name: getattr(matmul, name) for name in (*PRODUCTS, "allow_tf32")}


# ---- all of it


def installed(package: str) -> str | None:
    """A package's version. Some distributions name triton's package differently; then the module's own version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        found = importlib.util.find_spec(package)
        return getattr(importlib.import_module(package), "__version__", "unknown") if found else None


def torch_wants_triton() -> str | None:
    """The version of triton that the installed torch names in its requirements."""
    try:
        wanted = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return None
    found = (re.match(r"triton\s*==\s*([\w.]+)", line) for line in wanted)
    return next((match[1] for match in found if match), None)


def environment() -> dict[str, Any]:
    """What must agree before records are compared: hardware, versions, settings, code. Plain JSON values."""
    import torch

    gpu = open_gpu_or_none()
    unavailable: dict[str, str] = {}
    return {
        "time": now(),
        "os": operating_system(),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "python": platform.python_version(),
        "packages": {package: installed(package) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "gpu": {**gpu.read(FACTS, unavailable), "unavailable": unavailable} if gpu else None,
        "torch_threads": torch.get_num_threads(),
        "precision": precision(),
        "variables": recorded_variables(),
        "git": git_state(),
        "source_digest": source_digest(),
    }
