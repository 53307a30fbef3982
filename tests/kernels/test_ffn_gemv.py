"""ffn_gemv: every implementation against the reference, the promises of the plan, and the declared bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.devices import DEVICES
from bench.measure.gate import check
from kernels.common.compare import compare
from kernels.common.quantization import FORMATS
from kernels.common.random_inputs import BYTES
from kernels.ffn_gemv import op, triton_gemv
from kernels.ffn_gemv.op import OP, GemvCase
from kernels.ffn_gemv.peers import IMPLS as PEERS
from kernels.op import SUITES, Target, total
from tests.support.properties import given, settings, st

TRITON = triton_gemv.IMPLS[0]
CPU = Target(kind="cpu", name="cpu")
H100 = DEVICES["h100-sxm"].target()


def passes(case: GemvCase, target: Target, sm_count: int) -> None:
    """The plan is for so few SMs that CTAs share tiles even of small shapes."""
    errors = check(OP, TRITON, case, replace(target, sm_count=sm_count))
    assert errors.passed, f"{case.id}: {errors.reason}"


@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_triton_agrees_with_reference(case: GemvCase, target: Target) -> None:
    passes(case, target, 3)


@pytest.mark.parametrize("case", OP.cases("test")[:4], ids=lambda case: case.id)
def test_torch_agrees_with_reference(case: GemvCase) -> None:
    errors = check(OP, PEERS[0], case, CPU)
    assert errors.passed, errors.reason


@settings(max_examples=8, deadline=None, derandomize=True)
@given(B=st.integers(1, 20), N=st.integers(1, 150), K=st.integers(1, 300), sm_count=st.integers(1, 7))
def test_triton_agrees_at_any_shape(target: Target, B: int, N: int, K: int, sm_count: int) -> None:
    passes(GemvCase(B=B, N=N, K=K, dtype="fp16"), target, sm_count)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    weights=st.sampled_from([*FORMATS, "fp8 fp8", "fp8_block fp8"]),
    B=st.integers(1, 20),
    N=st.integers(1, 260),
    K=st.integers(1, 300).map(lambda k: 2 * k),
    sm_count=st.integers(1, 7),
)
def test_quantized_agrees_at_any_shape(target: Target, weights: str, B: int, N: int, K: int, sm_count: int) -> None:
    weights, *activations = weights.split()
    passes(GemvCase(B=B, N=N, K=K, dtype="fp16", weights=weights, activations="".join(activations)), target, sm_count)


def test_padded_rows_are_not_read(target: Target) -> None:
    """Rows of x and W may be padded; NaN in the padding must not reach y."""
    case = GemvCase(B=3, N=66, K=96, dtype="fp16")
    tight = OP.inputs(case, target.device, 0)
    padded = dict(tight)
    for name in ("x", "w"):
        wide = tight[name].new_full((tight[name].shape[0], case.K + 24), float("nan"))
        padded[name] = wide[:, : case.K]
        padded[name].copy_(tight[name])
    errors = compare(TRITON.prepare(case, padded, target)(), OP.reference(case, tight), OP.tolerance(case))
    assert errors.passed, errors.reason


def test_columns_must_be_contiguous() -> None:
    case = GemvCase(B=2, N=32, K=64, dtype="fp16")
    inputs = OP.inputs(case, "meta", 0)
    inputs["w"] = torch.empty(64, 32, dtype=torch.float16, device="meta").T
    with pytest.raises(ValueError, match="contiguous along K"):
        TRITON.prepare(case, inputs, H100)


@pytest.mark.parametrize(
    "case",
    [
        GemvCase(B=1, N=70, K=640, dtype="fp16"),
        GemvCase(B=9, N=70, K=640, dtype="fp16"),
        GemvCase(B=2, N=300, K=768, dtype="fp16", weights="int4_zp"),
        GemvCase(B=2, N=300, K=640, dtype="fp16", weights="fp8_block", activations="fp8"),
    ],
    ids=lambda case: case.id,
)
def test_shared_tiles_repeat_bit_for_bit(case: GemvCase, target: Target) -> None:
    """The last CTA of a tile resets the counter, so the next launch finds zeros."""
    target = replace(target, sm_count=5)
    assert triton_gemv.plan(case, target).partials > 0
    inputs = OP.inputs(case, target.device, 3)
    built = triton_gemv.build(case, inputs, target)
    first = built().clone()
    counters = built.launches[0].args["arrived"]
    assert counters.numel()
    assert not counters.any()
    for _ in range(2):
        built.output.fill_(float("nan"))
        assert torch.equal(built(), first)
        assert not counters.any()


def test_interpreted_bf16_dots_are_refused() -> None:
    target = Target(kind="interpreter", name="interpreter")
    assert "bf16" in (TRITON.supports(GemvCase(B=16, N=64, K=64), target) or "")
    assert TRITON.supports(GemvCase(B=16, N=64, K=64), H100) is None
    assert TRITON.supports(GemvCase(B=1, N=64, K=64), CPU)


@pytest.mark.parametrize("suite", ["quick", "full", "test"])
def test_every_case_runs_on_an_h100(suite: str) -> None:
    a100 = Target(kind="cuda", name="A100", sm=80, sm_count=108, smem_per_sm=164 << 10)
    for case in OP.cases(suite):
        assert TRITON.supports(case, H100) is None
        assert (TRITON.supports(case, a100) is None) == (case.activations != "fp8")


@pytest.mark.parametrize(
    ("case", "target", "reason"),
    [
        (GemvCase(B=1, N=64, K=256, weights="mxfp4"), H100, "no kernel that multiplies mxfp4"),
        (GemvCase(B=1, N=64, K=256, weights="int4"), CPU, "need an NVIDIA GPU"),
        (GemvCase(B=1, N=64, K=192, weights="int4"), H100, "K = n 128"),
        (GemvCase(B=1, N=64, K=256, dtype="fp16", weights="int4"), H100, "give bf16"),
        (GemvCase(B=1, N=64, K=256, weights="fp8_block", activations="fp8"), H100, "blocks of W"),
        (GemvCase(B=1, N=65, K=256, weights="fp8", activations="fp8"), H100, "N = n 16"),
        (GemvCase(B=1, N=64, K=256, weights="int4"), H100, None),
        (GemvCase(B=1, N=64, K=256, weights="fp8", activations="fp8"), H100, None),
    ],
    ids=lambda value: getattr(value, "id", None),
)
def test_torch_says_what_it_cannot_multiply(case: GemvCase, target: Target, reason: str | None) -> None:
    answer = PEERS[0].supports(case, target)
    assert answer is None if reason is None else reason in (answer or "")


def test_mixed_types_are_refused() -> None:
    with pytest.raises(ValueError, match="weights is 'int3': expected one of"):
        GemvCase(B=1, N=8, K=8, weights="int3")
    with pytest.raises(ValueError, match="fp8 with fp8 weights"):
        GemvCase(B=1, N=8, K=8, weights="int4", activations="fp8")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(B=st.integers(1, 1024), N=st.integers(1, 5000), K=st.integers(1, 5000), sm_count=st.integers(1, 200))
def test_plan_covers_everything_once(B: int, N: int, K: int, sm_count: int) -> None:
    case = GemvCase(B=B, N=N, K=K)
    p = triton_gemv.plan(case, Target(kind="cuda", name="any", sm=90, sm_count=sm_count, smem_per_sm=228 << 10))
    assert p.tiles_n * p.BLOCK_N >= N > (p.tiles_n - 1) * p.BLOCK_N
    assert p.iters * p.BLOCK_K >= K > (p.iters - 1) * p.BLOCK_K
    assert p.tiles_b * p.BLOCK_B >= B > (p.tiles_b - 1) * p.BLOCK_B
    assert p.even_k == (K % p.BLOCK_K == 0)
    ranges = [p.units_of(cta) for cta in range(p.ctas)]
    assert [unit for units in ranges for unit in units] == list(range(p.units))
    sizes = {len(units) for units in ranges}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("suite", ["quick", "full"])
def test_plan_keeps_enough_bytes_in_flight(suite: str) -> None:
    """Little's law asks for at least 32 KB per SM of an H100. Shared memory must hold them, and no wave may lose its
    tail."""
    for case in OP.cases(suite):
        p = triton_gemv.plan(case, H100)
        assert 32 << 10 <= p.bytes_in_flight <= 112 << 10, case.id
        assert p.ctas_per_sm * (p.num_stages * p.unit_smem + 1024) <= 228 << 10, case.id
        slots = H100.sm_count * p.ctas_per_sm
        ctas = p.ctas * p.tiles_b
        busy = p.units * p.tiles_b / (-(-ctas // slots) * -(-p.units // p.ctas) * slots)
        assert busy > 0.85 or p.units < 8 * slots, (case.id, busy)


@pytest.mark.parametrize("case", OP.cases("test"), ids=lambda case: case.id)
def test_work_is_the_bytes_of_the_tensors(case: GemvCase) -> None:
    inputs = OP.inputs(case, "meta", 0)
    work = OP.work(case)
    assert work.bytes_read == sum(t.nbytes for t in inputs.values())
    assert work.bytes_written == case.B * case.N * BYTES[case.dtype]
    assert work.total_flops == 2 * case.B * case.N * case.K
    moved, args = total(TRITON.stages(case, H100)), triton_gemv.build(case, inputs, H100).launches[0].args
    read = {t for t in args.values() if isinstance(t, torch.Tensor)} - {args["y"], args["partial"], args["arrived"]}
    assert moved.bytes_read == sum(t.nbytes for t in read)
    assert moved.bytes_written == args["y"].nbytes == work.bytes_written
    assert moved.total_flops >= work.total_flops


def test_stages_name_the_pipe_and_count_what_the_l2_serves() -> None:
    one = TRITON.stages(GemvCase(B=1, N=28672, K=8192), H100)[0]
    assert list(one.work.flops) == ["fma_fp32"]
    many = TRITON.stages(GemvCase(B=512, N=28672, K=8192), H100)[0]
    assert list(many.work.flops) == ["mma_bf16"]
    assert many.l2_bytes > 2 * 28672 * 8192
    built = triton_gemv.build(
        GemvCase(B=512, N=28672, K=8192), OP.inputs(GemvCase(B=512, N=28672, K=8192), "meta", 0), H100
    )
    assert built.launches[0].grid[0] * built.launches[0].grid[1] == many.ctas


@pytest.mark.parametrize("suite", [*SUITES, "test"])
def test_cases_of_models_have_the_models_shapes(suite: str) -> None:
    for case in OP.cases(suite):
        if case.model:
            assert op.projections(op.MODELS[case.model])[case.layer] == (case.N, case.K)


@pytest.mark.parametrize("K", [1, 2, 3, 6])
@pytest.mark.parametrize("weights", ["", "int8", "int4"])
def test_a_rounded_reference_passes_the_gate_with_very_few_columns(K: int, weights: str) -> None:
    if K % 2 and weights == "int4":
        return
    for seed, (B, N) in enumerate(((48, 65), (17, 12), (48, 65))):
        case = GemvCase(B=B, N=N, K=K, weights=weights)
        y = OP.reference(case, OP.inputs(case, "cpu", seed))
        assert compare(y.bfloat16(), y, OP.tolerance(case)).passed
