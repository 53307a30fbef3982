"""Our compiled kernels, executed without a GPU: they pass the gate in bf16, in any order of warps, and ask for the
bytes that are predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from bench.inspection.emulate import program
from bench.inspection.emulator.execute import execute
from bench.inspection.emulator.memory import Fault
from bench.inspection.targets import compile_targets
from bench.measure.gate import Contents, check_prepared, volatile_part
from kernels.attention_decode.op import AttentionCase
from kernels.common.compare import Errors
from kernels.decode_step.op import StepCase
from kernels.decode_step.toys import TOYS
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.ffn_gemv.op import GemvCase
from kernels.launch import KernelLaunch
from kernels.mla_decode.op import MlaCase
from kernels.op import Impl, Inputs, Op, Target, discover, implementations, total
from tests.kernels.test_ops import in_bf16
from tests.support.uninterpreted import elsewhere

HOST = Target(kind="cpu", name="host", sm_count=2, l2_bytes=1 << 20)
HERE = "tests.inspection.test_compiled_kernels"
SMS = 4
"""So few SMs that even tiny shapes are split among them."""
EXHAUSTIVE = [pytest.mark.exhaustive]
OURS = [(op.name, impl.name) for op in discover().values() for impl in implementations(op.name)[0] if impl.build]


def part(sm: int) -> Target:
    return replace(compile_targets()[sm], sm_count=SMS, l2_bytes=1 << 20)


def found(op: str, impl: str) -> tuple[Op, Impl]:
    return discover()[op], next(i for i in implementations(op)[0] if i.name == impl)


def launches(impl: Impl, case: Any, inputs: Inputs, where: Target | None = None) -> tuple[KernelLaunch, ...]:
    """What an implementation launches, on the small part of sm_90 unless another is given."""
    assert impl.build is not None
    return impl.build(case, inputs, where or part(90)).launches


def gate(op: Op, impl: Impl, case: Any, sm: int, seed: int | None, without: str = "nothing") -> Errors:
    """The gate of a measured run on the emulator, which skips the instructions whose opcode begins with `without`.

    Before each run the gate asks where the output is, in order to poison it. Then nothing is executed.
    """
    fresh = volatile_part(op, op.inputs(case, "cpu", 1))
    inputs = op.inputs(case, "cpu", 0)
    assert impl.build is not None
    built = impl.build(case, inputs, part(sm))
    programs = [program(kernel, sm) for kernel in built.launches]
    for made in programs:
        made.listing.code = [
            replace(ins, opcode="fence", operands=(), guard=None) if ins.opcode.startswith(without) else ins
            for ins in made.listing.code
        ]
    calls = count()

    def launch() -> Any:
        for made in programs if next(calls) % 2 else ():
            execute(made, seed=seed)
        return built.output

    errors = check_prepared(Contents(op, case, inputs, fresh), launch, HOST)
    assert not errors.passed or next(calls) == 4, "two runs, and before each a question"
    return errors


def small_cases(name: str, impl_name: str, sm: int) -> list[Any]:
    """What the implementation takes of the small cases, with bf16 for fp16."""
    op, impl = found(name, impl_name)
    return [c for c in dict.fromkeys(map(in_bf16, op.cases("test"))) if impl.supports(c, part(sm)) is None]


def options(name: str, impl_name: str, case: Any, sm: int) -> set[tuple[Any, ...]]:
    """What a case asks its kernels to compile: types, and constants. Of integers: whether they are 0, 1 or more."""
    op, impl = found(name, impl_name)
    asked: set[tuple[Any, ...]] = set()
    for launch in launches(impl, case, op.inputs(case, "meta", 0), part(sm)):
        kernel = launch.kernel.fn.__name__
        asked |= {(kernel, n, str(getattr(v, "dtype", type(v)))) for n, v in launch.args.items()}
        asked |= {(kernel, n, min(v, 2) if type(v) is int else str(v)) for n, v in launch.constexprs.items()}
    return asked


def covering(name: str, impl_name: str, sm: int) -> list[Any]:
    """A few small cases that together ask for every option that one of them asks for: of equals, those of most bytes.

    Compiling a case takes a second.
    """
    asked = {case: options(name, impl_name, case, sm) for case in small_cases(name, impl_name, sm)}
    left, chosen = set().union(*asked.values()), []
    size = found(name, impl_name)[0].work
    while left:
        chosen.append(max(asked, key=lambda case: (len(asked[case] & left), size(case).bytes)))
        left -= asked[chosen[-1]]
    return chosen


def gated(name: str, impl_name: str, sm: int, seed: int | None, cases: list[Any]) -> dict[str, str]:
    """What the gate says about the cases; "" for a pass."""
    return {case.id: gate(*found(name, impl_name), case, sm, seed).reason or "" for case in cases}


@pytest.mark.slow
@pytest.mark.parametrize("cases", ["covering", pytest.param("small_cases", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(("op", "impl"), OURS)
def test_compiled_kernels_pass_the_gate(op: str, impl: str, cases: str) -> None:
    said = elsewhere(HERE, f"t.gated({op!r}, {impl!r}, 90, None, t.{cases}({op!r}, {impl!r}, 90))")
    assert said
    assert not any(said.values()), said


FIRST_FAMILIES = ("toy-gpt-oss", "toy-deepseek-v3", "toy-qwen3-next", "toy-mamba")
"""Steps of these consist of all operations that steps consist of, but post-norms."""


def step_case(model: str) -> StepCase:
    """One layer in bf16, or as many as there are up to the first with experts, or with attention behind states. Where a
    layer is one block, all that differ."""
    states, blocks = wiring_of(model).states, wiring_of(model).blocks
    layers = 1 + (states.index(False) if False in states else 0 if states else shape_of(model).dense_layers)
    layers = 1 + max(map(blocks.index, blocks)) if blocks else layers
    return StepCase(model=model, layers=layers, B=2, T=9, page=4, lengths="ragged")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [name if name in FIRST_FAMILIES else pytest.param(name, marks=pytest.mark.exhaustive) for name in TOYS]
)
def test_a_layer_of_each_family_passes_as_a_compiled_step(model: str) -> None:
    said = elsewhere(HERE, f"t.gated('decode_step', 'triton', 90, None, [t.step_case({model!r})])")
    assert not any(said.values()), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "impl"),
    [
        pytest.param(op, impl, marks=[] if op in ("attention_decode", "ffn_gemv", "mla_decode") else EXHAUSTIVE)
        for op, impl in OURS
        if not impl.endswith("tma")
    ],
)
def test_kernels_compiled_for_the_generation_before_pass_too(op: str, impl: str) -> None:
    said = elsewhere(HERE, f"t.gated({op!r}, {impl!r}, 80, None, t.covering({op!r}, {impl!r}, 80)[:3])")
    assert not any(said.values()), said


@pytest.mark.slow
@pytest.mark.parametrize(("op", "impl"), OURS)
def test_they_pass_in_whatever_order_warps_go(op: str, impl: str) -> None:
    said = elsewhere(HERE, f"t.gated({op!r}, {impl!r}, 90, 1, t.covering({op!r}, {impl!r}, 90)[:2])")
    assert not any(said.values()), said


# ---- code that is wrong on a GPU fails in the emulator


def without(opcode: str, seed: int | None, case: Any, op: str) -> str:
    """What the gate says about a kernel for sm_90 without the instructions whose opcode begins with `opcode`."""
    try:
        return gate(*found(op, "triton"), case, 90, seed, opcode).reason or ""
    except Fault as fault:
        return str(fault)


GEMV = GemvCase(B=16, N=128, K=512, dtype="bf16")
SPLIT = AttentionCase(B=1, H_q=16, H_kv=2, D=64, T=300, page=64, dtype="bf16")


def sabotage() -> dict[str, str]:
    """What is said about kernels that lack an instruction which orders their steps."""
    return {
        "whole": without("nothing", 1, GEMV, "ffn_gemv") + without("nothing", 1, SPLIT, "attention_decode"),
        "copies are not waited for": without("cp.async.wait_group", None, GEMV, "ffn_gemv"),
        "products are not waited for": without("wgmma.wait_group", None, GEMV, "ffn_gemv"),
        "nobody waits for the other warps": without("bar.sync", 1, SPLIT, "attention_decode"),
        "a sum over lanes is left out": without("shfl.sync", None, SPLIT, "attention_decode"),
    }


@pytest.mark.slow
def test_kernels_without_what_orders_their_steps_fail() -> None:
    said = elsewhere(HERE, "t.sabotage()")
    assert said.pop("whole") == ""
    assert all(said.values()), said


def fault(change: Callable[[dict[str, Any]], None]) -> str:
    """What is raised after `change` was made to the inputs of a paged attention."""
    op, impl = found("attention_decode", "triton")
    inputs = op.inputs(SPLIT, "cpu", 0)
    change(inputs)
    try:
        for kernel in launches(impl, SPLIT, inputs):
            execute(program(kernel, 90))
    except Fault as raised:
        return str(raised)
    return ""


@pytest.mark.slow
def test_a_page_that_does_not_exist_is_a_fault() -> None:
    code = "t.fault(lambda inputs: inputs['block_table'].fill_(1 << 20))"
    assert "outside of every tensor" in elsewhere(HERE, code)
    assert elsewhere(HERE, "t.fault(lambda inputs: None)") == ""


# ---- the compiled code asks for the bytes that are predicted

STREAMED: dict[str, Any] = {
    "gemv by products and sums": ("ffn_gemv", GemvCase(N=1024, K=1024, B=1)),
    "gemv by tensor cores": ("ffn_gemv", GemvCase(N=1024, K=1024, B=16)),
    "gemv of large batches": ("ffn_gemv", GemvCase(N=1024, K=1024, B=64)),
    "gemv of packed weights": ("ffn_gemv", GemvCase(N=1024, K=1024, B=16, weights="mxfp4")),
    "attention": ("attention_decode", AttentionCase(B=2, H_q=32, H_kv=8, D=128, T=512)),
    "attention over pages": ("attention_decode", AttentionCase(B=2, H_q=32, H_kv=8, D=128, T=512, page=16)),
    "heads of 96 dims": ("attention_decode", AttentionCase(B=2, H_q=32, H_kv=8, D=96, T=512, page=16)),
    "latent attention": ("mla_decode", MlaCase(B=2, H=16, T=512)),
    "two tiles of rows": ("mla_decode", MlaCase(B=1, H=128, T=1024, page=64)),
}


def traffic() -> dict[str, dict[str, float]]:
    """Bytes: touched at least once, asked for, compulsory, predicted, and served again by the L2."""
    said: dict[str, dict[str, float]] = {}
    for name, (op_name, case) in STREAMED.items():
        op, impl = found(op_name, "triton")
        counts = [execute(program(kernel, 90)) for kernel in launches(impl, case, op.inputs(case, "cpu", 0))]
        stages = impl.stages(case, part(90))
        said[name] = {
            "touched": sum(sum(c.touched.values()) for c in counts),
            "asked": 32 * sum(c.memory["load sectors"] + c.memory["store sectors"] for c in counts),
            "compulsory": op.work(case).bytes,
            "predicted": total(stages).bytes,
            "l2": sum(stage.l2_bytes for stage in stages),
        }
    return said


@pytest.mark.slow
def test_compiled_code_asks_for_the_bytes_that_are_predicted() -> None:
    """DRAM delivers at least what was touched and at most what was asked for; the L2 makes the difference."""
    for name, said in elsewhere(HERE, "t.traffic()").items():
        assert said["compulsory"] <= said["touched"] <= 1.01 * said["predicted"] + said["l2"], (name, said)
        assert 0.999 <= said["asked"] / (said["predicted"] + said["l2"]) <= 1.05, (name, said)


@pytest.mark.slow
def test_survey_names_each_launch_and_what_it_asked_for() -> None:
    code = "t.table(t.survey(['stream'], ['triton'], 'smoke', 'copy', 90, 4))[1]"
    (row,) = elsewhere("bench.inspection.emulate", code)
    assert row[:6] == ["stream", "triton", "copy-8MiB", "copy_kernel", "4 of 512", "0.131"]
    assert (row[6], row[9], row[11]) == ("1.00", "0.00", "")


def left_on_the_way(buffers: int) -> float:
    """Bytes that are under way while blocks of 64 tokens are multiplied."""
    op, impl = found("mla_decode", "triton")
    case = MlaCase(B=1, H=16, L=64, R=16, T=2048)
    where = replace(part(90), config=(("block_t", 64), ("buffers", buffers)))
    main, _ = launches(impl, case, op.inputs(case, "cpu", 0), where)
    return execute(program(main, 90)).under_way


@pytest.mark.slow
def test_two_buffers_leave_nothing_under_way_during_products() -> None:
    """Triton starts a copy after the products of a block, so with two buffers DRAM waits for the products."""
    assert elsewhere(HERE, "[t.left_on_the_way(n) for n in (2, 3)]") == [0, 10240]
