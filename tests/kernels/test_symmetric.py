"""torch's symmetric memory as a peer of all-reduce. No test here has two GPUs: refusals, calls and order are held."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from bench.devices import find
from kernels.all_reduce.op import OP, ReduceCase
from kernels.common.ranks import symmetric
from kernels.op import implementations

CASE = ReduceCase(B=2, hidden=8, ranks=2, dtype="fp32")
IMPLS = {impl.name: impl for impl in implementations("all_reduce")[0] if impl.name.startswith("symmetric")}
H200 = find("h200").target()


def test_all_three_are_peers() -> None:
    assert set(IMPLS) == {f"symmetric-{way}" for way in symmetric.REDUCES}
    assert not any(impl.ours for impl in IMPLS.values())


@pytest.mark.parametrize("name", sorted(IMPLS))
def test_what_cannot_run_is_refused_with_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = IMPLS[name].supports
    assert "needs NVIDIA GPUs" in (refusal(CASE, replace(H200, kind="cpu", sm_count=4)) or "")
    assert "the residual and the norm" in (refusal(replace(CASE, fused=True), H200) or "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert refusal(CASE, H200) == "needs a GPU for each of 2 ranks, 1 are here"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: False)
    assert refusal(CASE, H200) == "needs GPUs that reach each other's memory"


def test_a_switch_that_does_not_add_up_refuses_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import _symmetric_memory

    class NoSwitch:
        @staticmethod
        def has_multicast_support(device: object, index: int) -> bool:
            return False

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: True)
    monkeypatch.setattr(_symmetric_memory, "_SymmetricMemory", NoSwitch)
    refusals = {name: impl.supports(CASE, H200) for name, impl in IMPLS.items()}
    assert "NVLink SHARP" in (refusals.pop("symmetric-multimem") or "")
    assert set(refusals.values()) == {None}


@pytest.mark.parametrize("way", sorted(symmetric.REDUCES))
def test_the_installed_torch_takes_these_calls(way: str) -> None:
    """Its schema is checked before a kernel is looked for, and there is none for tensors without data."""
    x, y = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    with suppress(NotImplementedError):
        symmetric.REDUCES[way](x, "group", y)
    with pytest.raises(RuntimeError, match="argument"):
        torch.ops.symm_mem.one_shot_all_reduce_out(x, "sum", y)


def test_the_installed_torch_shares_memory_by_these_names() -> None:
    from torch.distributed import HashStore, _symmetric_memory

    shared = _symmetric_memory._SymmetricMemory
    assert "rendezvous(tensor: torch.Tensor, group_name: str" in (shared.rendezvous.__doc__ or "")
    assert {"size", "dtype", "device"} <= inspect.signature(_symmetric_memory.empty).parameters.keys()
    shared.set_group_info("decodebench-test", 0, 1, HashStore())
    assert "barrier(self: " in (shared.barrier.__doc__ or "")


def test_ranks_meet_before_they_copy_what_they_have(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Rank 0's x may change between two launches, and the other ranks are ahead: they must not copy too early."""
    from torch.distributed import _symmetric_memory

    done: list[str] = []
    x = torch.ones(3)

    class Handle:
        def barrier(self) -> None:
            done.append("meet")
            x.fill_(2.0)  # what the host wrote before rank 0 launched

    class Shared:
        @staticmethod
        def set_group_info(group: str, rank: int, ranks: int, store: object) -> None: ...

        @staticmethod
        def rendezvous(buffer: torch.Tensor, group: str) -> Handle:
            return Handle()

    def reduce(buffer: torch.Tensor, group: str, y: torch.Tensor) -> torch.Tensor:
        done.append("reduce")
        return y.copy_(2 * buffer)

    monkeypatch.setattr(_symmetric_memory, "empty", lambda shape, **like: torch.empty(shape))
    monkeypatch.setattr(_symmetric_memory, "_SymmetricMemory", Shared)
    monkeypatch.setitem(symmetric.REDUCES, "one-shot", reduce)
    launch = symmetric.SymmetricRank("one-shot", x, 0, 1, "decodebench-order", str(tmp_path))
    assert launch().tolist() == [4.0, 4.0, 4.0]
    assert done == ["meet", "reduce"]


@pytest.mark.parametrize(("name", "sent"), [("one-shot", 7), ("two-shot", 7 / 4), ("multimem", 1)])
def test_bytes_over_the_links_by_hand(name: str, sent: float) -> None:
    case = ReduceCase(B=1, hidden=8192, ranks=8)
    copy, reduce = IMPLS[f"symmetric-{name}"].stages(case, H200)
    assert reduce.peer_bytes == sent * case.size
    assert copy.work.bytes_read + reduce.work.bytes_read == OP.work(case).bytes_read
    assert reduce.work.bytes_written == OP.work(case).bytes_written
