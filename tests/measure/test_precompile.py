"""A launch finds what was compiled ahead. Shown in other processes, because this one interprets kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.devices import DEVICES
from bench.measure.precompile import FEWEST_JOBS, claim, launches, precompile
from bench.measure.worker import Job
from kernels.op import Target, discover
from tests.support import ROOT

H100 = DEVICES["h100-sxm"].target()


COMPILE = """
import sys
from tests.measure.test_precompile import H100, jobs_of
from bench.measure.precompile import precompile
if __name__ == "__main__":
    precompile(jobs_of("stream", "quick"), "kernels.op", H100, 2, print, budget_s=float(sys.argv[1]))
"""

LAUNCH = """
import os, sys
import torch, triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from tests.measure.test_precompile import H100, jobs_of
from bench.measure.precompile import launches

class Driver:  # a GPU as a launch sees it until it has found its binary
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
hits = []
knobs.compilation.listener = lambda **seen: hits.append(seen["cache_hit"])

def launch(job):
    for launch in launches(job, "kernels.op", H100):
        cpu = {n: torch.empty(64, dtype=a.dtype) if torch.is_tensor(a) else a for n, a in launch.args.items()}
        launch.kernel.run(grid=launch.grid, warmup=True, **cpu, **launch.constexprs, **launch.options)

first, *others = jobs_of("stream", "quick")
warm, os.environ["TRITON_CACHE_DIR"] = os.environ["TRITON_CACHE_DIR"], sys.argv[1]
launch(first)
print(*hits)
os.environ["TRITON_CACHE_DIR"] = warm
for job in others:
    launch(job)
print(*hits[1:])
"""

CASE = """
import sys
from pathlib import Path
from triton.runtime import driver
from tests.measure.test_precompile import H100, jobs_of
from bench.measure.precompile import compile_case

class Driver:  # a GPU, as far as a launcher for its kernels is made
    def launcher_cls(self, source, metadata): print(source.name, metadata.target.arch)

driver.set_active(Driver())
compile_case("kernels.op", H100, Path(sys.argv[1]), jobs_of("stream", "quick")[0])
"""


def jobs_of(op: str, suite: str) -> list[Job]:
    return [Job(op=op, case=case, impls=("triton",)) for case in discover()[op].cases(suite)]


def python(code: str, cache: Path, *arguments: str) -> str:
    """What a script prints in a process that compiles, with a cache of its own."""
    script = cache / "script.py"
    script.write_text(code)
    path = str(ROOT)
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environ |= {"TRITON_CACHE_DIR": str(cache / "triton"), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_launch_finds_what_was_compiled_ahead(tmp_path: Path) -> None:
    told = python(COMPILE, tmp_path, "480").splitlines()
    assert told[0] == f"compiling the kernels of {len(jobs_of('stream', 'quick'))} cases in 2 processes"
    assert "did not finish" not in told[1]
    first, others = (line.split() for line in python(LAUNCH, tmp_path, str(tmp_path / "cold")).splitlines())
    assert first == ["False"], "an empty cache"
    assert others == ["True"] * len(others)
    assert told[1].startswith(f"{1 + len(others)} kernels took ")


def test_what_passes_the_arguments_is_made_too(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    assert python(CASE, tmp_path, str(tmp_path / "claims")).split() == ["launch_kernel", "90"]


def test_a_run_does_not_wait_for_a_compiler_that_hangs(tmp_path: Path) -> None:
    count = len(jobs_of("stream", "quick"))
    assert f"{count} of {count} cases did not finish" in python(COMPILE, tmp_path, "0.04")


def test_a_cpu_or_a_handful_of_cases_compiles_nothing() -> None:
    def never(text: str) -> None:
        raise AssertionError(text)

    jobs = jobs_of("stream", "quick")
    precompile(jobs, "kernels.op", Target(kind="cpu", name="cpu"), 2, never)
    assert len(jobs) >= FEWEST_JOBS
    precompile(jobs[: FEWEST_JOBS - 1], "kernels.op", H100, 2, never)


def test_each_configuration_is_claimed_once(tmp_path: Path) -> None:
    assert [claim(tmp_path, name) for name in ("a", "b", "a")] == [True, True, False]


@pytest.mark.parametrize("impl", ["torch", "no such"])
def test_only_what_has_kernels_is_built(impl: str) -> None:
    for job in jobs_of("stream", "quick"):
        assert not list(launches(replace(job, impls=(impl,)), "kernels.op", H100))
