"""Without a GPU Triton kernels are interpreted. This must be decided before any of them is imported."""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Tests start a hundred processes. Each would compile the source of torch, which takes 2 s.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / "build/pycache")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has its pytest; threads would wait for each other

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.support import quick_interpreter

    quick_interpreter.install()

from bench.machine import gpu_target, keep_products_exact
from kernels.op import Target

keep_products_exact()  # as a worker does before it checks and times peers

INTERPRETER = Target(kind="interpreter", name="interpreter", sm=90, sm_count=4, l2_bytes=1 << 20, smem_per_sm=228 << 10)
"""A pretended part of 4 SMs, so that tiny shapes already have splits and persistent grids."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Garbage is looked for less often, and not among modules and tests: interpreted kernels took 5 to 10% for it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or triton's libraries would print at the end which of their objects are left


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-timeout its settings in pyproject.toml are read and have no effect."""
    if not pluginmanager.hasplugin("timeout"):
        for name in ("timeout", "timeout_func_only"):
            parser.addini(name, "a setting of pytest-timeout, which is not installed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2` alone lets an idle process take over tests that wait for a busy one: a few take a minute."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def target() -> Target:
    """The GPU if there is one, else the interpreter."""
    return gpu_target() if torch.cuda.is_available() else INTERPRETER


@pytest.fixture(scope="session")
def half() -> str:
    """The 16-bit type for tests of dot kernels. The interpreter would multiply bf16 operands as integers."""
    return "bf16" if torch.cuda.is_available() else "fp16"


@pytest.fixture(autouse=True)
def _alone_on_the_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that time a GPU or count its work run one at a time, also when pytest runs in several processes."""
    if not only_on_a_gpu(request.node):
        yield
        return
    with (Path(tempfile.gettempdir()) / "decodebench-tests-gpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def only_on_a_gpu(item: pytest.Item) -> bool:
    """`cuda(interpreted=True)` marks a test that a GPU must run too, and that is interpreted where there is none."""
    mark = item.get_closest_marker("cuda")
    return mark is not None and not mark.kwargs.get("interpreted", False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "exhaustive" not in config.getoption("markexpr"):
        items[:] = [item for item in items if item.get_closest_marker("exhaustive") is None]
    if "PYTEST_XDIST_WORKER" in os.environ:  # long tests first, so that the processes end together
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if only_on_a_gpu(item):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
