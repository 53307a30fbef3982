"""Copies of inputs as far as memory goes: a case that fills it is still checked, and what does not fit is left out."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.measure import gate
from bench.measure.case import Settings, measure
from bench.measure.copies import DRAWING_SHARE, DoesNotFit, draw_copies, room_for, tensor_bytes
from kernels.attention_decode.op import OP as ATTENTION
from kernels.attention_decode.op import AttentionCase
from kernels.common import random_inputs
from kernels.op import Impl, Inputs, Target
from tests.support import planted
from tests.support.heard import Heard

CPU = Target(kind="cpu", name="cpu", sm_count=2, l2_bytes=1 << 16)
CASE = planted.ToyCase()
H100_BYTES, H200_BYTES = 81559 << 20, 143771 << 20
"""What nvidia-smi says of their memory (H100 SXM and H200)."""
COPY = planted.OP.work(CASE).bytes_read


def measured(memory_bytes: int, *impls: Impl, timed: bool = True) -> Heard:
    heard = Heard()
    measure(planted.OP, CASE, impls, CPU, Settings(cap_s=0.02, memory_bytes=memory_bytes, timed=timed), heard)
    return heard


def test_what_does_not_fit_twice_is_refused_with_what_it_needs() -> None:
    record = measured(2 * COPY, planted.HONEST).records["honest"]
    assert record.status == "refused"
    assert record.reason == "needs 0.0 GB of memory for two copies of its inputs, 0.0 GB are free"
    with pytest.raises(DoesNotFit, match=r"needs 143.2 GB of memory .*, 84.0 GB are free"):
        room_for(1 << 36, 84 * 10**9)


@pytest.mark.parametrize("timed", [True, False])
def test_with_room_for_two_copies_the_gate_exchanges_their_values(timed: bool) -> None:
    cheats = [planted.impl(name, planted.CHEATS[name]) for name in ("in prepare", "last call")]
    records = measured(5 * COPY // 2, planted.HONEST, *cheats, timed=timed).records
    assert [records[name].status for name in ("honest", "in prepare", "last call")] == ["ok", "wrong", "wrong"]


def test_with_room_for_two_copies_no_third_is_drawn() -> None:
    drawn: list[int] = []

    def counted(case: Any, device: str, seed: int) -> Inputs:
        drawn.append(seed)
        return planted.inputs(case, device, seed)

    op = replace(planted.OP, inputs=counted)
    copies = draw_copies(op, CASE, CPU, seed=7, repeat=0, memory_bytes=5 * COPY // 2)
    assert drawn == [7, 8]
    assert copies.fresh["x"] is copies.copies[-1]["x"]


@pytest.mark.parametrize("shape", [(5, 3), (4096,), (), (0,), (2, 0)])
def test_pieces_are_the_whole_tensor(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PIECE_BYTES", 24)
    mine, its = {"x": torch.randn(shape)}, {"x": torch.randn(shape)}
    before = mine["x"].clone(), its["x"].clone()
    gate.exchange(mine, its)
    assert torch.equal(mine["x"], before[1])
    assert torch.equal(its["x"], before[0])
    assert all(piece.nbytes <= 24 for piece in gate.pieces(mine["x"]))


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_values_that_are_drawn_in_parts_are_normal(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_inputs, "DRAWN_AT_ONCE", 1000)
    values = random_inputs.RandomInputs("cpu", 1).normal((9, 1111), dtype, scale=20.0).float().flatten()
    for part in values.split(1000):
        assert part.mean().abs() < 3
        assert 18 < part.std() < 22
    assert not torch.equal(values[:1000], values[1000:2000])


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                self.known[key] = tensor.untyped_storage().nbytes()
                self.now += self.known[key]
                self.most = max(self.most, self.now)
                weakref.finalize(tensor.untyped_storage(), self.free, key)
        return made

    def free(self, key: int) -> None:
        self.now -= self.known.pop(key)


@pytest.mark.parametrize("kv", ["", "fp8"])
def test_drawing_a_cache_takes_little_memory_beside_it(kv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_inputs, "DRAWN_AT_ONCE", 1 << 15)
    case = AttentionCase(B=16, H_q=32, H_kv=8, D=128, T=256, kv=kv)
    with LiveBytes() as live:
        size = tensor_bytes(ATTENTION.inputs(case, "cpu", 0))
    assert size < live.most < (1 + DRAWING_SHARE) * size


def test_an_h200_holds_every_case_of_attention_and_an_h100_not_the_largest() -> None:
    sizes = [ATTENTION.work(case).bytes_read for case in ATTENTION.cases("full")]
    assert max(sizes) > 64 << 30
    with pytest.raises(DoesNotFit):
        room_for(max(sizes), H100_BYTES)
    for size in sizes:
        assert room_for(size, H200_BYTES - (1 << 30)) >= 2
