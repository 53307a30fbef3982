"""A kernel that pins its data in the L2 gains nothing: nothing is set aside for it while it is timed."""

from __future__ import annotations

import ctypes
import statistics
from typing import Any

import pytest

from bench.machine import gpu_target
from bench.measure import l2, timing
from bench.measure.case import Settings, measure
from tests.support import fake_cuda, planted
from tests.support.heard import Heard


class FakeDriver:
    """The part of libcuda that sets a share of the L2 aside."""

    def __init__(self, held: int = 0, refuses: int = 0) -> None:
        self.held, self.refuses = held, refuses
        self.calls: list[str] = []

    def cuCtxGetLimit(self, size: Any, limit: int) -> int:
        assert limit == 6
        size._obj.value = self.held
        return 0

    def cuCtxSetLimit(self, limit: int, size: ctypes.c_size_t) -> int:
        assert limit == 6
        self.calls.append(f"set {size.value}")
        if not self.refuses:
            self.held = size.value
        return self.refuses

    def cuCtxResetPersistingL2Cache(self) -> int:
        self.calls.append("reset")
        return 0

    def cuStreamSetAttribute(self, stream: Any, attribute: int, window: Any) -> int:
        self.calls.append("window")
        return 0


def with_driver(library: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    monkeypatch.setattr(l2, "driver", lambda: library)
    return library


def test_what_is_set_aside_is_given_back_and_its_lines_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    library = with_driver(FakeDriver(held=30 << 20), monkeypatch)
    l2.forbid_pinning()
    assert library.calls == ["set 0", "reset"]
    l2.forbid_pinning()
    assert library.calls == ["set 0", "reset"], "nothing is left to do"


def test_where_it_cannot_be_given_back_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(FakeDriver(held=1, refuses=215), monkeypatch)
    with pytest.raises(RuntimeError, match="cannot be taken back \\(CUDA error 215\\)"):
        l2.forbid_pinning()


def test_without_a_driver_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l2, "driver", lambda: None)
    l2.forbid_pinning()


def test_nothing_is_set_aside_in_any_timed_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel sets it aside whenever its launch runs on the host, in the gate and while it is captured."""
    fake_cuda.pretend(monkeypatch)
    library = with_driver(FakeDriver(), monkeypatch)
    held: list[int] = []
    replay = fake_cuda.Graph.replay

    def watched(graph: fake_cuda.Graph) -> None:
        held.append(library.held)
        replay(graph)

    monkeypatch.setattr(fake_cuda.Graph, "replay", watched)
    heard = Heard()
    cheat = planted.impl("pinned", planted.pinned(0.75))
    measure(planted.OP, planted.ToyCase(), [planted.HONEST, cheat], fake_cuda.GPU, Settings(cap_s=0.05), heard)
    assert heard.records["pinned"].status == "ok"
    assert len(held) >= 2 * timing.FEWEST_SAMPLES
    assert set(held) == {0}
    assert "window" in library.calls
    assert "set 196608" in library.calls


def test_a_thread_that_sets_it_aside_later_is_undone_before_the_next_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.pretend(monkeypatch)
    library = with_driver(FakeDriver(), monkeypatch)
    inputs = planted.inputs(planted.ToyCase(), "cpu", 0)
    timer = timing.GraphTimer([planted.honest(planted.ToyCase(), inputs, fake_cuda.GPU)])
    library.held = 1 << 20
    timer.sample()
    assert library.held == 0


@pytest.mark.cuda
def test_a_kernel_that_pins_its_copy_is_no_faster_than_an_honest_one() -> None:
    """Each copy is half of the L2, so a window of three quarters could keep a whole one."""
    target = gpu_target()
    case = planted.ToyCase(B=64, K=target.l2_bytes // 2 // 4 // 64)
    heard = Heard()
    cheat = planted.impl("pinned", planted.pinned(0.75))
    measure(planted.OP, case, [planted.HONEST, cheat], target, Settings(cap_s=0.5, memory_bytes=8 << 30), heard)
    honest, pinned = (heard.records[name] for name in ("honest", "pinned"))
    assert honest.status == "ok"
    assert pinned.status != "ok" or statistics.median(pinned.samples_s) > 0.97 * statistics.median(honest.samples_s)
