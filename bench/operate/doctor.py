"""Is this machine fit to measure on? Facts are gathered, then judged by pure functions; nothing here raises.

Many faults raise no error: the part is throttled, power-capped, sliced or shared with others; the link or the driver
does not match; the memory does not reach what the datasheet says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from bench import machine
from bench.devices import DEVICES, driver
from bench.inspection.ncu import DENIED
from bench.judge.busyness import BUSY
from bench.operate.examination import Facts, gather

FIT_SHARE = 0.85
"""A read of 1 GiB must reach this share of the datasheet's bandwidth. On a healthy part, refresh, ECC and row changes
take the rest; where more is missing, something else takes it."""

Level = Literal["ok", "note", "warning", "bad"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check. The level `note` changes no verdict; `advice` says what to do.

    `fix` is the command that does it on Debian or Ubuntu, as root; empty where no command can.
    """

    name: str
    level: Level
    found: str
    advice: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The checks and what they come to: exit code 0 fit, 1 usable with warnings, 2 not fit or no GPU."""

    part: str
    checks: tuple[Check, ...]
    fix_hints: bool = False
    """Does a terminal show the commands too?"""
    board: str | None = None
    """`driver.board` of the GPU, which tells it from others of its kind."""

    @property
    def exit_code(self) -> int:
        levels = {check.level for check in self.checks}
        return 2 if "bad" in levels else 1 if "warning" in levels else 0

    @property
    def reasons(self) -> tuple[str, ...]:
        worst = {2: "bad", 1: "warning", 0: ""}[self.exit_code]
        return tuple(f"{check.name}: {check.found}" for check in self.checks if check.level == worst)

    @property
    def verdict(self) -> str:
        words = ("FIT to measure on", "USABLE, with warnings", "NOT FIT to measure on a GPU")[self.exit_code]
        return f"{self.part}: {words}" + "".join(f"; {reason}" for reason in self.reasons)

    def as_dict(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "board": self.board,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reasons": list(self.reasons),
            "checks": [asdict(check) for check in self.checks],
        }

    def lines(self) -> list[str]:
        """For a terminal: one line per check, under it its advice and, if asked for, its command; the verdict last."""
        width = max(len(check.name) for check in self.checks)
        shown = []
        for check in self.checks:
            shown.append(f"{check.level:<8} {check.name:<{width}}  {check.found}")
            if check.advice:
                shown.append(f"{'':<8} {'':<{width}}  -> {check.advice}")
            if self.fix_hints and check.fix:
                shown.append(f"{'':<8} {'':<{width}}  $ {check.fix}")
        return [*shown, self.verdict]


UV_PIP = ".uv/bin/uv pip install"
"""Installs into the project's environment, where the README's commands put uv."""


def installing(*packages: str) -> str:
    return f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def check_clash(facts: Facts) -> Check:
    if facts.clash:
        return Check(name="package", level="bad", found=facts.clash)
    return Check(name="package", level="ok", found="the import name `kernels` is this project's")


def check_load(facts: Facts) -> Check:
    """A run on the host wants all cores; a run on a GPU wants one that answers at once."""
    if not facts.host:
        return Check(name="load", level="note", found=facts.failed.get("load", "the system does not tell"))
    share = facts.host["others"] + facts.host["stolen"]
    if share < BUSY:
        return Check(name="load", level="ok", found=f"others have {share:.0%} of the CPU")
    found = f"the machine is busy: others have {share:.0%} of the CPU"
    return Check(name="load", level="warning", found=found, advice="do not quote what is measured now")


def check_part(facts: Facts) -> Check:
    assert facts.target
    name = facts.target.name
    shape = f"{facts.target.sm_count} SMs, sm_{facts.target.sm}, L2 {facts.target.l2_bytes / 1e6:.0f} MB"
    if facts.spec is None:
        why = facts.failed.get("part", f"{name!r} is not in the table of parts: {shape}")
        return Check(name="part", level="warning", found=why, advice="predict from measured ceilings only")
    if machine.is_slice(facts.target, facts.gpu):
        found = f"{name!r} is a MIG slice with {shape}: its bandwidth is not known"
        return Check(name="part", level="warning", found=found, advice="predict from measured ceilings only")
    if facts.spec.key not in DEVICES:
        found = f"{name!r} is not in the table of parts, its numbers are the driver's: {shape}"
        return Check(name="part", level="warning", found=found, advice="add it to the table, with a source")
    if facts.spec.sm_count and facts.target.sm_count != facts.spec.sm_count:
        found = f"{facts.spec.name}, but with {shape} instead of {facts.spec.sm_count} SMs"
        return Check(name="part", level="warning", found=found, advice="a slice or another bin of the part?")
    return Check(name="part", level="ok", found=f"{facts.spec.name} ({name}): {shape}")


MATCHING_TORCH = f"{UV_PIP} --reinstall --torch-backend=auto torch"


def check_versions(facts: Facts) -> Check:
    """The driver must support at least the major version of the CUDA that torch was built with."""
    driver, supported = facts.gpu.get("driver"), facts.gpu.get("driver_cuda")
    torch_version, wanted = facts.packages.get("torch"), facts.torch_cuda
    found = f"driver {driver} (CUDA {supported}), torch {torch_version} (CUDA {wanted})"
    if not supported or not wanted:
        return Check(name="versions", level="note", found=found)
    if version(supported)[0] < version(wanted)[0]:
        advice = "update the driver, or install the torch wheel built for its CUDA"
        return Check(name="versions", level="bad", found=found, advice=advice, fix=MATCHING_TORCH)
    if version(supported) < version(wanted):
        found += "; same major version, which CUDA's minor-version compatibility covers"
    return Check(name="versions", level="ok", found=found)


def check_architecture(facts: Facts) -> Check:
    """torch needs code for the same major compute capability and no higher minor one, or PTX for the driver."""
    assert facts.target
    sm = facts.target.sm
    native = [int(a[3:].rstrip("af")) for a in facts.torch_archs if a.startswith("sm_")]
    virtual = [int(a[8:].rstrip("af")) for a in facts.torch_archs if a.startswith("compute_")]
    listed = " ".join(facts.torch_archs) or "nothing"
    if any(code // 10 == sm // 10 and code <= sm for code in native) or any(code <= sm for code in virtual):
        return Check(name="architecture", level="ok", found=f"torch has code for sm_{sm} ({listed})")
    found = f"torch has no code for sm_{sm}, only {listed}"
    advice = "install a torch wheel for this part"
    return Check(name="architecture", level="bad", found=found, advice=advice, fix=MATCHING_TORCH)


def check_triton(facts: Facts) -> Check:
    assert facts.target
    found = facts.packages.get("triton")
    if found is None:
        advice = "pip install triton; until then only peers are measured"
        found = "triton is not installed"
        return Check(name="triton", level="bad", found=found, advice=advice, fix=f"{UV_PIP} triton")
    if facts.target.sm < 80:
        return Check(name="triton", level="bad", found=f"our kernels need sm_80, this is sm_{facts.target.sm}")
    if facts.wanted_triton and facts.wanted_triton != found:
        found += f"; torch was released with {facts.wanted_triton}"
        return Check(name="triton", level="note", found=found, advice="torch.compile may not work with it")
    return Check(name="triton", level="ok", found=found)


def check_compiler(facts: Facts) -> Check:
    if facts.compiler:
        return Check(name="compiler", level="ok", found=facts.compiler)
    found = "no C compiler: $CC, gcc and clang are missing, and every Triton kernel needs one for its launcher"
    return Check(name="compiler", level="bad", found=found, advice="install gcc", fix=installing("gcc", "libc6-dev"))


def check_headers(facts: Facts) -> Check:
    if facts.headers:
        return Check(name="headers", level="ok", found="Python.h is there")
    found = "no Python.h, which the launcher of every Triton kernel includes"
    advice = "install the headers of this Python, or let uv bring a Python with them"
    fix = installing(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    return Check(name="headers", level="bad", found=found, advice=advice, fix=fix)


def check_mig(facts: Facts) -> Check:
    mig = facts.gpu.get("mig")
    if mig:
        advice = "a slice has its own bandwidth: compare with nothing but itself"
        found = "on: this is a slice of the part"
        return Check(name="MIG", level="warning", found=found, advice=advice, fix="nvidia-smi -mig 0")
    return Check(name="MIG", level="ok", found="off" if mig is False else "not supported here")


def check_ecc(facts: Facts) -> Check:
    on, corrected, lost = (facts.gpu.get(name) for name in ("ecc", "ecc_corrected", "ecc_uncorrected"))
    if on is None:
        return Check(name="ECC", level="note", found="the driver does not tell")
    if not on:
        found = "off: not how datasheets and servers run"
        return Check(name="ECC", level="warning", found=found, fix="nvidia-smi -e 1 && reboot")
    state = f"on; since the driver was loaded {corrected} errors corrected, {lost} not"
    if lost:
        return Check(name="ECC", level="bad", found=state, advice="results may be wrong: use another part")
    if corrected:
        return Check(name="ECC", level="warning", found=state)
    return Check(name="ECC", level="ok", found=state)


def check_sharing(facts: Facts) -> Check:
    """One process on the list is ours. Inside a container its number is another one, so it is only counted."""
    listed, used = facts.gpu.get("processes"), facts.gpu.get("memory_used_bytes")
    taken = "" if used is None else f", {used / 1e9:.1f} GB of its memory in use"
    if listed is None:
        return Check(name="sharing", level="note", found=f"the driver does not list processes{taken}")
    others = max(0, listed - 1)
    if others:
        found = f"{others} other process{'es' if others > 1 else ''} on this GPU{taken}"
        fix = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv"
        return Check(name="sharing", level="warning", found=found, advice="times will depend on them", fix=fix)
    return Check(name="sharing", level="ok", found=f"no other process on this GPU{taken}")


def check_power(facts: Facts) -> Check:
    cap, default = facts.gpu.get("power_cap_w"), facts.gpu.get("power_default_w")
    if cap is None or default is None:
        return Check(name="power", level="note", found="the driver does not tell its limits")
    if cap < default:
        advice = "clocks will fall under load: results are this machine's, not the part's"
        found = f"capped at {cap:.0f} of {default:.0f} W"
        return Check(name="power", level="warning", found=found, advice=advice, fix=f"nvidia-smi -pl {default:.0f}")
    return Check(name="power", level="ok", found=f"limit {cap:.0f} W, the default")


def check_clocks(facts: Facts) -> Check:
    """The clocks while the quick read ran, or as they are now if there was none."""
    load = facts.bandwidth.telemetry if facts.bandwidth else {}
    sm = (load.get("sm_clock_hz") or {}).get("median") or facts.gpu.get("sm_clock_hz")
    memory = (load.get("memory_clock_hz") or {}).get("max") or facts.gpu.get("memory_clock_hz")
    sm_max, memory_max = facts.gpu.get("sm_clock_max_hz"), facts.gpu.get("memory_clock_max_hz")
    if not (sm and memory and sm_max and memory_max):
        return Check(name="clocks", level="note", found="the driver does not tell")
    reasons = load.get("clock_reasons") or driver.clock_reasons(facts.gpu.get("clock_reasons") or 0)
    degrees = load.get("temperature_c") or facts.gpu.get("temperature_c")
    found = (
        f"{'reading' if load else 'now'} SM {sm / 1e6:.0f} of {sm_max / 1e6:.0f} MHz, "
        f"memory {memory / 1e6:.0f} of {memory_max / 1e6:.0f} MHz"
        + (f", {degrees} C" if degrees is not None else "")
        + (f" ({', '.join(reasons)})" if reasons else "")
    )
    if load and (load.get("throttled") or load.get("power_capped") or memory < memory_max):
        return Check(name="clocks", level="warning", found=found, advice="the part was held below its clocks")
    return Check(name="clocks", level="ok", found=found)


def check_link(facts: Facts) -> Check:
    """An idle link lowers its generation to save power; a narrower width is a fault. Kernels do not use the link."""
    names = ("pcie_generation", "pcie_generation_max", "pcie_width", "pcie_width_max")
    generation, generation_max, width, width_max = (facts.gpu.get(name) for name in names)
    if width is None or width_max is None:
        return Check(name="PCIe", level="note", found="the driver does not tell")
    found = f"generation {generation} of {generation_max}, width {width} of {width_max}"
    if width < width_max:
        return Check(name="PCIe", level="warning", found=found, advice="copies from the host will be slow")
    return Check(name="PCIe", level="ok", found=found)


FREE_COUNTERS = (
    "echo options nvidia NVreg_RestrictProfilingToAdminUsers=0 >/etc/modprobe.d/counters.conf && "
    "update-initramfs -u && reboot"
)
NSIGHT = installing("cuda-nsight-compute-13-0") + "  # from NVIDIA's apt repository for CUDA"


def check_counters(facts: Facts) -> Check:
    if facts.counters:
        fix = FREE_COUNTERS if facts.counters == DENIED else NSIGHT
        return Check(name="counters", level="note", found=facts.counters, advice="`--counters` is refused", fix=fix)
    return Check(name="counters", level="ok", found="ncu found, and permitted as far as the driver tells")


def check_bandwidth(facts: Facts) -> Check:
    reached, expected = facts.bandwidth, facts.spec.memory_bandwidth if facts.spec else None
    if reached is None:
        why = facts.failed.get("bandwidth")
        if why is None:
            return Check(name="bandwidth", level="note", found="not asked for")
        if why.startswith("OutOfMemoryError"):
            return Check(name="bandwidth", level="warning", found=why)
        advice = "the first kernel could not run: no kernel will"
        return Check(name="bandwidth", level="bad", found=why, advice=advice)
    found = f"read {reached.bytes_per_s / 1e12:.3f} TB/s with {reached.impl}"
    if expected is None:
        return Check(name="bandwidth", level="note", found=f"{found}; nothing is known to compare it with")
    share = reached.bytes_per_s / expected.value
    found += f", {share:.0%} of {expected.value / 1e12:.3f} ({expected.kind})"
    if share < FIT_SHARE:
        advice = f"a healthy part reaches {FIT_SHARE:.0%}: look at clocks, sharing and slices above"
        return Check(name="bandwidth", level="warning", found=found, advice=advice)
    return Check(name="bandwidth", level="ok", found=found)


ON_A_GPU: tuple[Callable[[Facts], Check], ...] = (
    check_part,
    check_versions,
    check_architecture,
    check_triton,
    check_compiler,
    check_headers,
    check_mig,
    check_ecc,
    check_sharing,
    check_power,
    check_clocks,
    check_link,
    check_counters,
    check_bandwidth,
)


def without_gpu(facts: Facts) -> list[Check]:
    torch_version = facts.packages.get("torch")
    ours = "our kernels in Numba, " if facts.packages.get("numba") else "no kernels of ours: numba is not installed; "
    on_cpu = f"on the CPU (--device cpu; {ours}torch peers)"
    works = f"run, campaign and selfcheck {on_cpu}; predict, claims, compare, report; "
    works += "codegen, emulate, tune --dry-run (kernels are compiled here)"
    if not torch_version or not facts.packages.get("triton"):
        works = "predict, claims, compare, report" + (f"; run {on_cpu}" if torch_version else "")
    return [
        Check(
            name="GPU",
            level="bad",
            found=facts.problem or facts.failed.get("target", "none can be used"),
            fix="apt-get install -y ubuntu-drivers-common && ubuntu-drivers install --gpgpu"
            if "no NVIDIA driver" in (facts.problem or "")
            else "",
        ),
        Check(name="torch", level="note", found=f"{torch_version} (CUDA {facts.torch_cuda})"),
        Check(name="triton", level="note", found=str(facts.packages.get("triton"))),
        Check(name="works here", level="note", found=works),
    ]


def judge(facts: Facts) -> Diagnosis:
    """All checks of the facts. Pure."""
    checks = [check_clash(facts), check_load(facts)]
    if facts.target is None:
        return Diagnosis(part="this machine", checks=(*checks, *without_gpu(facts)))
    checks += [check(facts) for check in ON_A_GPU]
    if "telemetry" in facts.failed:
        checks.append(Check(name="telemetry", level="warning", found=facts.failed["telemetry"]))
    part = facts.spec.name if facts.spec else facts.target.name
    return Diagnosis(part=part, checks=tuple(checks), board=facts.gpu.get("board"))


def diagnose(*, fix_hints: bool = False) -> Diagnosis:
    return replace(judge(gather()), fix_hints=fix_hints)
