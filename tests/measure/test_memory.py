"""Garbage is collected between cases only while memory is short, and never walks through torch's own objects."""

from __future__ import annotations

import gc
import threading
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import machine
from bench.measure import memory, worker
from bench.measure.case import Settings, measure
from kernels.op import Target
from tests.support import fake_cuda, planted
from tests.support.heard import Heard

CPU = Target(kind="cpu", name="cpu", sm_count=2, l2_bytes=1 << 20)


def collections_of_a_case(target: Target, monkeypatch: pytest.MonkeyPatch) -> int:
    calls: list[Any] = []
    monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: calls.append(1)))
    heard = Heard()
    measure(planted.OP, planted.ToyCase(), [planted.HONEST], target, Settings(cap_s=0.02), heard)
    assert heard.records["honest"].status == "ok"
    return len(calls)


@pytest.mark.parametrize(("available", "calls"), [(15, 0), (1, 1)])
def test_on_a_host_by_what_is_available(available: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 16 << 30)
    monkeypatch.setattr(machine, "available_bytes", lambda: available << 30)
    assert collections_of_a_case(CPU, monkeypatch) == calls


@pytest.mark.parametrize(("held", "calls"), [(0, 0), (20 << 30, 1)])
def test_on_a_gpu_by_what_stays_allocated(held: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.pretend(monkeypatch)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 << 30, 139 << 30))
    assert collections_of_a_case(fake_cuda.GPU, monkeypatch) == calls


def test_a_worker_leaves_what_it_imported_out_of_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` runs here in this process, with no job."""
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    monkeypatch.setattr(worker.signal, "signal", lambda *arguments: None)
    near, far = Pipe()
    thread = threading.Thread(target=worker.serve, args=(far, None, "cpu", "tests.support.planted", None))
    gc.unfreeze()  # what `conftest.py` froze
    before = gc.get_freeze_count()
    try:
        thread.start()
        kind, _ = near.recv()
        frozen = gc.get_freeze_count()
    finally:
        gc.unfreeze()
        near.close()
        thread.join(10)
    assert kind == "ready"
    assert frozen > before + 10_000, "torch alone has hundreds of thousands of objects"
