"""ffn_block: the fused and the library implementation against the reference, and the declared bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.devices import DEVICES
from bench.measure.gate import check
from kernels.common.compare import compare
from kernels.ffn_block import triton_ffn
from kernels.ffn_block.op import OP, FfnCase
from kernels.ffn_block.peers import IMPLS as PEERS
from kernels.ffn_gemv import triton_gemv
from kernels.op import SUITES, Target, total
from tests.support.properties import given, settings, st

TRITON = triton_ffn.IMPLS[0]
CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()


def passes(case: FfnCase, target: Target, sm_count: int) -> None:
    """The plan is for so few SMs that CTAs share tiles even of small shapes."""
    errors = check(OP, TRITON, case, replace(target, sm_count=sm_count))
    assert errors.passed, f"{case.id}: {errors.reason}"


@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_triton_agrees_with_reference(case: FfnCase, target: Target) -> None:
    passes(case, target, 3)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(B=st.integers(1, 20), hidden=st.integers(1, 150), ffn=st.integers(1, 150), sm_count=st.integers(1, 7))
def test_triton_agrees_at_any_shape(target: Target, B: int, hidden: int, ffn: int, sm_count: int) -> None:
    passes(FfnCase(B=B, hidden=hidden, ffn=ffn, dtype="fp16"), target, sm_count)


@pytest.mark.parametrize("case", [*OP.cases("test"), FfnCase(B=2, hidden=64, ffn=96)], ids=lambda case: case.id)
def test_torch_agrees_with_reference(case: FfnCase) -> None:
    errors = check(OP, PEERS[0], case, CPU)
    assert errors.passed, errors.reason


FORMULAS: dict[str, Callable[[float, float], float]] = {
    "swiglu": lambda g, u: g / (1 + math.exp(-g)) * u,
    "geglu": lambda g, u: 0.5 * g * (1 + math.tanh((2 / math.pi) ** 0.5 * (g + 0.044715 * g**3))) * u,
    "swiglu_clamped": lambda g, u: min(g, 7) / (1 + math.exp(-1.702 * min(g, 7))) * (min(max(u, -7), 7) + 1),
    "glu": lambda g, u: u / (1 + math.exp(-g)),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_reference_is_the_formula(activation: str) -> None:
    """Element by element, on a small block."""
    case = FfnCase(B=1, hidden=2, ffn=3, dtype="fp32", activation=activation)
    i = {name: tensor.double() for name, tensor in OP.inputs(case, "cpu", 0).items()}
    want = torch.zeros(1, 2, dtype=torch.float64)
    for f in range(3):
        gate, up = (float(sum(i["x"][0, k] * i[w][f, k] for k in range(2))) for w in ("w_gate", "w_up"))
        for n in range(2):
            want[0, n] += FORMULAS[activation](gate, up) * i["w_down"][n, f]
    assert torch.allclose(OP.reference(case, OP.inputs(case, "cpu", 0)).double(), want, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"alpha": 1.0}, {"gate_limit": math.inf}, {"up_limit": math.inf}, {"one": 0.0}])
def test_a_clamped_activation_that_lacks_a_part_fails_the_gate(wrong: dict[str, float]) -> None:
    """In each row a gate is beyond the limit, and ups to both sides."""
    case = FfnCase(B=4, hidden=256, ffn=512, dtype="fp32", activation="swiglu_clamped")
    inputs = OP.inputs(case, "cpu", 0)
    gate, up = (inputs["x"] @ inputs[name].T for name in ("w_gate", "w_up"))
    assert bool(((gate > 7).any(1) & (up > 7).any(1) & (up < -7).any(1)).all())

    def y(alpha: float = 1.702, gate_limit: float = 7.0, up_limit: float = 7.0, one: float = 1.0) -> torch.Tensor:
        g = gate.clamp(max=gate_limit)
        return (g * torch.sigmoid(alpha * g) * (up.clamp(-up_limit, up_limit) + one)) @ inputs["w_down"].T

    expected, tolerance = OP.reference(case, inputs), OP.tolerance(replace(case, dtype="bf16"))
    assert compare(y(), expected, tolerance).passed
    assert not compare(y(**wrong), expected, tolerance).passed


def test_padded_rows_are_not_read(target: Target) -> None:
    """Rows may be padded; NaN in the padding must not reach y."""
    case = FfnCase(B=3, hidden=66, ffn=70, dtype="fp16")
    tight = OP.inputs(case, target.device, 0)
    padded = {}
    for name, tensor in tight.items():
        wide = tensor.new_full((tensor.shape[0], tensor.shape[1] + 10), float("nan"))
        padded[name] = wide[:, : tensor.shape[1]]
        padded[name].copy_(tensor)
    errors = compare(TRITON.prepare(case, padded, target)(), OP.reference(case, tight), OP.tolerance(case))
    assert errors.passed, errors.reason


def test_columns_must_be_contiguous() -> None:
    case = FfnCase(B=2, hidden=32, ffn=64)
    inputs = OP.inputs(case, "meta", 0)
    inputs["w_up"] = torch.empty(32, 64, dtype=torch.bfloat16, device="meta").T
    with pytest.raises(ValueError, match="w_up must be contiguous along K"):
        TRITON.prepare(case, inputs, H100)


def test_shared_tiles_repeat_bit_for_bit(target: Target) -> None:
    """The last CTA of a tile resets the counter, so the next launch finds zeros."""
    case, target = FfnCase(B=3, hidden=320, ffn=70, dtype="fp16"), replace(target, sm_count=5)
    assert triton_ffn.plan(case, target).partials > 0
    built = triton_ffn.build(case, OP.inputs(case, target.device, 3), target)
    first = built().clone()
    built.output.fill_(float("nan"))
    assert torch.equal(built(), first)
    for launch in built.launches:
        assert not launch.args["arrived"].any()


@pytest.mark.parametrize("suite", [*SUITES, "test"])
def test_bytes_are_those_of_the_tensors_and_each_weight_is_multiplied_by_each_row(suite: str) -> None:
    for case in OP.cases(suite):
        inputs, work = OP.inputs(case, "meta", 0), OP.work(case)
        assert work.bytes_read == sum(t.nbytes for t in inputs.values())
        assert work.bytes_written == inputs["x"].nbytes
        pipe = "fma_fp32" if inputs["x"].dtype == torch.float32 else "mma_bf16"
        weights = sum(tensor.numel() for name, tensor in inputs.items() if name.startswith("w_"))
        assert work.flops == {pipe: 2 * case.B * weights}
        h = case.B * case.ffn * inputs["x"].element_size()
        plans = (triton_ffn.plan(case, H100), triton_gemv.plan(triton_ffn.down_case(case), H100))
        # shares of tiles, and the hidden values: what of them is written to DRAM, and read from there again
        passed = [h, *(p.share_bytes for p in plans)]
        written, read = (sum(n for n in passed if n > H100.l2_bytes // part) for part in (32, 2))
        for impl, more in ((TRITON, (read, written)), *((peer, (0, 0)) for peer in PEERS)):
            moved = total(impl.stages(case, H100))
            assert (moved.bytes_read, moved.bytes_written) == (work.bytes_read + more[0], work.bytes_written + more[1])
            assert moved.total_flops >= work.total_flops
        built = triton_ffn.build(case, inputs, H100)
        for launch, stage in zip(built.launches, TRITON.stages(case, H100), strict=True):
            assert launch.grid[0] * launch.grid[1] == stage.ctas
            assert launch.kernel.fn.__name__ == stage.name or stage.name == "down"


@pytest.mark.parametrize("suite", ["quick", "full"])
def test_plan_keeps_enough_bytes_in_flight(suite: str) -> None:
    """Little's law asks for at least 32 KB per SM of an H100; its shared memory must hold them."""
    for case in OP.cases(suite):
        p = triton_ffn.plan(case, H100)
        assert 32 << 10 <= p.bytes_in_flight <= 128 << 10, case.id
        assert p.ctas_per_sm * (p.num_stages * p.unit_smem + 1024) <= 228 << 10, case.id


def test_interpreted_bf16_dots_are_refused() -> None:
    interpreter = Target(kind="interpreter", name="interpreter")
    assert "bf16" in (TRITON.supports(FfnCase(B=1, hidden=64, ffn=64), interpreter) or "")
    assert TRITON.supports(FfnCase(B=1, hidden=64, ffn=64, dtype="fp16"), interpreter) is None
    assert TRITON.supports(FfnCase(B=1, hidden=64, ffn=64), H100) is None
