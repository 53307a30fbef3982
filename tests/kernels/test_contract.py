"""The contract of `kernels/op.py`: who gets a tuned configuration, and what a peer is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import kernels
from kernels import op as contract
from kernels.common import tuned
from kernels.launch import Built, triton_impl
from kernels.op import Config, Impl, Inputs, Launch, Stage, Target, Tuning, Work, discover, implementations
from tests.support import ROOT

H100 = Target(kind="cuda", name="NVIDIA H100 80GB HBM3", sm=90, sm_count=132)
KEY = (H100.name, "first", "all")
"""The key of the only tuned entry, which is for `first`."""


def plan(target: Target) -> int:
    """The number of warps: 4, unless the target asks for another."""
    return ({"num_warps": 4} | target.overrides)["num_warps"]


def stages(case: str, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="one", work=Work(), ctas=plan(target)),)


def build(case: str, inputs: Inputs, target: Target) -> Built:
    return Built(launches=(), output=plan(target))


def prepare(case: str, inputs: Inputs, target: Target) -> Launch:
    return lambda: plan(target)


def supports(case: str, target: Target) -> str | None:
    return f"{plan(target)} warps"


TUNING = Tuning(op="toy", shape_class=lambda case: "all", candidates=lambda case, target: ())


def with_triton(name: str) -> Impl:
    return triton_impl(name=name, build=build, stages=stages, supports=supports, tuning=TUNING)


def without_triton(name: str) -> Impl:
    return Impl(name=name, stages=stages, prepare=prepare, supports=supports, tuning=TUNING)


def seen(impl: Impl, target: Target = H100) -> list[int]:
    """The numbers of warps that the functions of an implementation plan with."""
    warps = [impl.stages("case", target)[0].ctas, impl.prepare("case", {}, target)()]
    warps.append(int((impl.supports("case", target) or "").split()[0]))
    return warps + ([impl.build("case", {}, target).output] if impl.build else [])


@pytest.mark.parametrize("make", [with_triton, without_triton])
def test_what_was_tuned_for_one_implementation_leaves_another_with_the_same_plan_alone(
    make: Callable[..., Impl], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"toy": {KEY: {"config": {"num_warps": 8}}}}
    monkeypatch.setattr(tuned, "entries", lambda op: entries.get(op, {}))
    first, second = make(name="first"), make(name="second")
    assert set(seen(first)) == {8}
    assert set(seen(second)) == {4}
    assert set(seen(first, replace(H100, name="NVIDIA H200"))) == {4}


@pytest.mark.parametrize("make", [with_triton, without_triton])
def test_what_is_asked_for_goes_before_what_was_tuned(
    make: Callable[..., Impl], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "entries", lambda op: {KEY: {"config": {"num_warps": 8}}})
    first, asked = make(name="first"), (("num_warps", 16),)
    assert set(seen(first, replace(H100, config=asked))) == {16}
    assert set(seen(first, replace(H100, config=()))) == {4}
    configured = first.configured(asked)
    assert configured.name == "first num_warps=16"
    assert set(seen(configured)) == {16}
    assert set(seen(first.configured(Config()))) == {4}


def test_every_tuning_names_its_operation_and_no_plan_looks_up_what_was_tuned() -> None:
    for op in discover().values():
        assert {impl.tuning.op for impl in implementations(op.name)[0] if impl.tuning} <= {op.name}
    files = [*(ROOT / "kernels").rglob("*.py")]
    assert [p.name for p in files if re.search(r"import .*\btuned\b", p.read_text())] == ["op.py"]


PEER = """
from kernels.launch import triton_impl

def unused(*args): ...

IMPLS = (triton_impl(name="{name}", build=unused, stages=unused, ours={ours}),)
"""


def test_a_triton_peer_can_be_inspected_and_stands_behind_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "planted_op"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "a_peer.py").write_text(PEER.format(name="theirs", ours=False))
    (folder / "triton_own.py").write_text(PEER.format(name="own", ours=True))
    monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(tmp_path)])
    monkeypatch.setattr(contract, "__file__", str(tmp_path / "op.py"))
    found, missing = implementations.__wrapped__("planted_op")
    assert not missing
    assert [(impl.name, impl.ours) for impl in found] == [("own", True), ("theirs", False)]
    assert all(impl.build for impl in found)
