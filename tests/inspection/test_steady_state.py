"""Our compiled kernels in the steady state of their pipelines: loops that run at least twice as often as they have
stages, so that every buffer is filled and read again.

The emulator executes a case of each loop in a random order of warps with random delays of copies and products. The
exhaustive tests add the other cases, two more orders, all threads together with copies and products as late as
possible, and all cases on sm_80.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from triton import JITFunction

from bench.inspection.emulate import program
from bench.inspection.emulator.execute import execute
from kernels.all_reduce.op import ReduceCase
from kernels.all_to_all.op import AllToAllCase
from kernels.attention_decode.op import AttentionCase
from kernels.common.compare import compare
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv.op import GemvCase
from kernels.gemm_peak.op import PeakCase
from kernels.head_gemv.op import HeadCase
from kernels.index_score.op import IndexCase
from kernels.launch import KernelLaunch
from kernels.mla_decode.op import MlaCase
from kernels.moe_ffn.op import MoeCase
from kernels.op import Target
from kernels.router.op import RouterCase
from kernels.sampling.op import SamplingCase
from kernels.state_update.cases import Kind, StateCase
from kernels.stream.op import CHUNK, StreamCase
from kernels.topk.op import TopkCase
from tests.inspection.test_compiled_kernels import OURS, found, gate, launches, part
from tests.kernels.test_ops import in_bf16
from tests.support.uninterpreted import elsewhere


@dataclass(frozen=True)
class Steady:
    """A case whose loop reaches the steady state on a part with a single SM.

    `loop` is the beginning of the opcodes in the loop that counts. `launch` is the launch that has this loop; with
    None all pipelined launches must reach the steady state.
    """

    op: str
    case: Any
    impl: str = "triton"
    loop: str = "cp.async"
    launch: int | None = None


def attention(**fields: Any) -> AttentionCase:
    return AttentionCase(**{"B": 1, "H_q": 4, "H_kv": 1, "D": 64, **fields})


def mla(**fields: Any) -> MlaCase:
    return MlaCase(B=1, H=16, L=64, R=16, **fields)


def states(kind: Kind, **fields: Any) -> StateCase:
    return StateCase(kind=kind, B=9, H=2, G=1, V=16, K=32, **fields)


SIZE = 4 * CHUNK
"""Bytes of a chunk."""

MAIN = {
    "attention": Steady("attention_decode", attention(T=1601)),
    "attention over pages": Steady("attention_decode", attention(T=2590, page=16)),
    "attention, fp8": Steady("attention_decode", attention(T=1217, kv="fp8")),
    "attention over pages, fp8": Steady("attention_decode", attention(T=1985, page=64, kv="fp8")),
    "GEMV by products and sums": Steady("ffn_gemv", GemvCase(B=1, N=120, K=4096)),
    "GEMV by tensor cores": Steady("ffn_gemv", GemvCase(B=17, N=135, K=1024)),
    "GEMV of large batches": Steady("ffn_gemv", GemvCase(B=64, N=135, K=960)),
    "GEMV of int4": Steady("ffn_gemv", GemvCase(B=16, N=100, K=4608, weights="int4")),
    "MLA": Steady("mla_decode", mla(T=300)),
    "MLA over pages": Steady("mla_decode", mla(T=470, page=16)),
    "MLA, fp8": Steady("mla_decode", mla(T=300, kv="fp8")),
    "experts, gate and up": Steady("moe_ffn", MoeCase(B=2, E=1, k=1, H=512, F=128), launch=1),
    "states of drafts": Steady("state_update", states("gated_delta", q_len=4), loop="bar.sync"),
}
"""Executed as compiled for sm_90 and for sm_80. Loops of state updates are not pipelined."""

OTHERS = {
    "attention, nvfp4": Steady("attention_decode", attention(T=1985, kv="nvfp4")),
    "attention, int8": Steady("attention_decode", attention(T=1217, kv="int8")),
    "attention, heads of 96 dims": Steady("attention_decode", attention(D=96, T=860, sink_logits=True)),
    "attention over pages, heads of 512 dims": Steady("attention_decode", attention(D=512, T=370, page=16)),
    "attention, two tiles of rows": Steady("attention_decode", attention(H_q=71, T=601)),
    "attention, window and draft": Steady("attention_decode", attention(T=2590, page=16, q_len=2, window=2500)),
    "cascade": Steady("attention_decode", attention(B=2, T=3840, page=16, prefix=2560), impl="triton-cascade"),
    "MLA over chosen tokens": Steady("mla_decode", mla(T=470, page=1)),
    "MLA over pages, fp8": Steady("mla_decode", mla(T=470, page=64, kv="fp8")),
    "MLA, nvfp4": Steady("mla_decode", MlaCase(B=1, H=16, R=16, T=320, kv="nvfp4")),
    "GEMV of two sequences": Steady("ffn_gemv", GemvCase(B=2, N=24, K=5120)),
    "GEMV of fp8 by fp8": Steady("ffn_gemv", GemvCase(B=4, N=200, K=1024, weights="fp8", activations="fp8")),
    "GEMV of fp8 blocks": Steady("ffn_gemv", GemvCase(B=4, N=200, K=1024, weights="fp8_block", activations="fp8")),
    "GEMV of int8": Steady("ffn_gemv", GemvCase(B=1, N=200, K=1024, weights="int8")),
    "GEMV of fp8 weights": Steady("ffn_gemv", GemvCase(B=16, N=200, K=1024, weights="fp8_block")),
    "GEMV of int4 with zero points": Steady("ffn_gemv", GemvCase(B=1, N=100, K=4608, weights="int4_zp")),
    "GEMV of nvfp4": Steady("ffn_gemv", GemvCase(B=1, N=100, K=4096, weights="nvfp4")),
    "GEMV of mxfp8": Steady("ffn_gemv", GemvCase(B=1, N=200, K=1024, weights="mxfp8")),
    "GEMV of mxfp4": Steady("ffn_gemv", GemvCase(B=1, N=100, K=4096, weights="mxfp4")),
    "products by head": Steady("head_gemv", HeadCase(B=3, H=1, N=70, K=1024)),
    "gate and up": Steady("ffn_block", FfnCase(B=3, hidden=512, ffn=128), launch=0),
    "states replayed from a ring": Steady("state_update", states("mamba2", every=8), loop="bar.sync"),
    "experts, down": Steady("moe_ffn", MoeCase(B=2, E=1, k=1, H=128, F=1024), launch=2),
    "experts of fp8, gate and up": Steady(
        "moe_ffn", MoeCase(B=2, E=1, k=1, H=1024, F=128, weights="fp8_block"), launch=1
    ),
    "experts of fp8, down": Steady("moe_ffn", MoeCase(B=1, E=1, k=1, H=256, F=1536, weights="fp8_block"), launch=2),
    "experts of mxfp4, gate and up": Steady(
        "moe_ffn", MoeCase(B=2, E=1, k=1, H=2048, F=128, weights="mxfp4"), launch=1
    ),
    "experts of int4, gate and up": Steady(
        "moe_ffn", MoeCase(B=2, E=1, k=1, H=2048, F=128, weights="int4_zp"), launch=1
    ),
    "reads by cp.async": Steady("stream", StreamCase(kind="read", size=32 * SIZE), impl="triton-async"),
    "reads by TMA": Steady("stream", StreamCase(kind="read", size=32 * SIZE), impl="triton-tma"),
    "reads of the L2": Steady("stream", StreamCase(kind="l2_read", size=3 * SIZE, passes=5), loop="ld.global"),
    "a chase": Steady("stream", StreamCase(kind="chase", size=2688, chains=3, loads=5), loop="ld.global"),
    "index scores": Steady("index_score", IndexCase(B=1, T=2100, H=16, D=32, page=16)),
    "a choice among thousands": Steady("topk", TopkCase(B=1, N=2000, k=40), loop="bar.sync"),
    "a choice among tens of thousands": Steady("topk", TopkCase(B=1, N=17000, k=300, dtype="bf16"), loop="bar.sync"),
    "a nucleus": Steady("sampling", SamplingCase(B=1, V=9000, k=50, p=0.9), loop="bar.sync", launch=1),
    "a choice of experts": Steady("router", RouterCase(B=1, E=64, k=6, groups=4, top_groups=2), loop="shfl"),
    "a sum of two ranks": Steady(
        "all_reduce", ReduceCase(ranks=2, B=4, hidden=3200), impl="triton-one-shot", loop="ld.global"
    ),
    "rows that two ranks exchange": Steady(
        "all_to_all", AllToAllCase(direction="combine", ranks=2, B=4, E=4, k=2, hidden=3200), loop="ld.global"
    ),
    "chains of FMAs": Steady("gemm_peak", PeakCase(kind="fma", M=1061, K=2064, dtype="fp32"), loop="fma"),
}
"""Executed as compiled for sm_90; the exhaustive tests execute them for sm_80 too."""

ALL = {**MAIN, **OTHERS}
ON_80 = {
    name: s for name, s in ALL.items() if not s.impl.endswith("tma") and getattr(s.case, "activations", "") != "fp8"
}
"""sm_80 has neither TMA nor products in fp8."""


def one_sm(sm: int) -> Target:
    return replace(part(sm), sm_count=1)


def counts(s: Steady, index: int, kernel: KernelLaunch) -> bool:
    """Is this a launch whose loop must reach the steady state?"""
    return index == s.launch or (s.launch is None and (is_pipelined(kernel) or s.loop != "cp.async"))


def is_pipelined(kernel: KernelLaunch) -> bool:
    """Is it written to be pipelined?"""
    return "STAGES" in kernel.constexprs or kernel.wants_mma


def steady(s: Steady, sm: int, seeds: Sequence[int | None], more_left: int = 0) -> dict[str, Any]:
    """What the gate says for each seed; and for each launch that counts, the turns of its loop and twice its stages.

    The other launches are executed in lockstep. With `more_left`, each wait that leaves a product in flight leaves
    so many more.
    """
    op, impl = found(s.op, s.impl)
    inputs = op.inputs(s.case, "cpu", 0)
    assert impl.supports(s.case, one_sm(sm)) is None
    assert impl.build is not None
    built = impl.build(s.case, inputs, one_sm(sm))
    programs = [program(kernel, sm) for kernel in built.launches]
    for made in programs if more_left else ():
        made.listing.code = [
            replace(ins, operands=(1 + more_left,)) if ins.text.startswith("wgmma.wait_group.sync.aligned 1") else ins
            for ins in made.listing.code
        ]
    reasons, turns = {}, {}
    for seed in seeds:
        op.poison(s.case, inputs, built.output)
        for i, (kernel, made) in enumerate(zip(built.launches, programs, strict=True)):
            here = counts(s, i, kernel)
            made_turns = execute(made, seed=seed if here else None).turns
            if here:
                most = max((n for opcode, n in made_turns.items() if opcode.startswith(s.loop)), default=0)
                turns[f"{i} {kernel.kernel.fn.__name__}"] = (most, 2 * kernel.num_stages)
        found_here = op.decoded(s.case, built.output)
        errors = compare(found_here, op.reference(s.case, inputs), op.tolerance(s.case))
        reasons[str(seed)] = errors.reason or ""
    return {"reasons": reasons, "turns": turns}


EACH = [(90, name) for name in ALL] + [(80, name) for name in MAIN]

SAME_LOOP = {
    90: {
        "attention over pages": "attention, window and draft",
        "attention, int8": "attention, fp8",
        "MLA over pages": "MLA over pages, fp8",
        "MLA, fp8": "MLA over pages, fp8",
        "GEMV of int8": "GEMV of fp8 blocks",
        "GEMV of fp8 weights": "GEMV of fp8 blocks",
        "GEMV of int4 with zero points": "GEMV of int4",
        "experts of fp8, down": "experts, down",
        "experts of int4, gate and up": "experts of mxfp4, gate and up",
    },
    80: {
        "attention": "attention over pages, fp8",
        "attention over pages": "attention over pages, fp8",
        "attention, fp8": "attention over pages, fp8",
        "GEMV of large batches": "GEMV by tensor cores",
        "MLA": "MLA over pages",
    },
}
"""Cases whose copies are pipelined as those of another case. Only the exhaustive tests execute them."""


def check_steady(sm: int, name: str, seeds: Sequence[int | None]) -> None:
    said = elsewhere("tests.inspection.test_steady_state", f"t.steady(t.ALL[{name!r}], {sm}, {seeds})")
    assert not any(said["reasons"].values()), said
    assert said["turns"]
    for kernel, (turns, least) in said["turns"].items():
        assert turns >= least, f"the loop of {kernel} makes {turns} turns; twice its stages are {least}"


@pytest.mark.slow
@pytest.mark.parametrize(("sm", "name"), [each for each in EACH if each[1] not in SAME_LOOP[each[0]]])
def test_kernels_are_right_in_the_steady_state(sm: int, name: str) -> None:
    check_steady(sm, name, (1,))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("sm", "name"), [*EACH, *((80, name) for name in ON_80 if name not in MAIN)])
def test_they_are_right_in_lockstep_and_in_other_orders(sm: int, name: str) -> None:
    check_steady(sm, name, (None, 1, 2, 3))


@cache
def has_loop(kernel: Any) -> bool:
    """Does it, or a function that it calls, hold a loop that is not unrolled?"""
    nodes = list(ast.walk(ast.parse(kernel.src)))
    if any(
        isinstance(n, ast.While) or (isinstance(n, ast.For) and "static_range" not in ast.unparse(n.iter))
        for n in nodes
    ):
        return True
    called = [kernel.fn.__globals__.get(n.id) for n in nodes if isinstance(n, ast.Name)]
    return any(has_loop(other) for other in called if isinstance(other, JITFunction) and other is not kernel)


def jit(kernel: Any) -> Any:
    """The function of Triton in what is launched, which may be wrapped."""
    return kernel if isinstance(kernel, JITFunction) else jit(kernel.fn)


WAITS = {"fused_kernel"}
"""Its only loop waits for the other ranks."""
BETWEEN = {"choose_kernel"}
"""Of `decode_step`, whose other launches are kernels of other operations."""


def names(op_name: str, impl_name: str, case: Any, where: Target) -> set[str]:
    """Names of the kernels with a loop that a case launches, or none if it is refused."""
    op, impl = found(op_name, impl_name)
    if impl.supports(case, where):
        return set()
    made = launches(impl, case, op.inputs(case, "meta", 0), where)
    found_here = {k.kernel.fn.__name__ for k in made if is_pipelined(k) or has_loop(jit(k.kernel))}
    return found_here - WAITS - BETWEEN


def kernels() -> list[list[str]]:
    """Names of our kernels with loops in all small cases, and of those executed here; for sm_90, then sm_80."""
    lists = []
    for sm, cases in ((90, ALL), (80, ON_80)):
        small = [(op, impl, in_bf16(case)) for op, impl in OURS for case in found(op, impl)[0].cases("test")]
        here = [(s.op, s.impl, s.case) for name, s in cases.items() if name not in SAME_LOOP[sm]]
        lists += [sorted(set().union(*(names(*each, one_sm(sm)) for each in group))) for group in (small, here)]
    return lists


@pytest.mark.slow
def test_every_kernel_with_a_loop_has_a_case() -> None:
    of_sm_90, here_on_90, of_sm_80, here_on_80 = elsewhere("tests.inspection.test_steady_state", "t.kernels()")
    assert here_on_90 == of_sm_90
    assert here_on_80 == of_sm_80


# ---- a planted fault, and one that was the emulator's own


@pytest.mark.slow
def test_a_buffer_that_is_filled_while_products_read_it_shows_by_random_delays() -> None:
    """With one more product in flight, a copy fills the buffer that this product reads. In lockstep both are late."""
    code = "t.steady(t.ALL['GEMV by tensor cores'], 90, (None, 1, 2), more_left=1)"
    reasons = elsewhere("tests.inspection.test_steady_state", code)["reasons"]
    assert reasons.pop("None") == ""
    assert all(reasons.values()), reasons


DESCRIPTORS = GemvCase(B=17, N=135, K=896)
"""Its loop waits for all products but one, and computes the next descriptors before. When they were read as late as
the product, the gate found errors of 2.7 (`max_rel`)."""


def descriptors(seed: int | None) -> str:
    return gate(*found("ffn_gemv", "triton"), DESCRIPTORS, 90, seed).reason or ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_descriptors_of_products_are_read_when_they_are_issued(seed: int | None) -> None:
    assert elsewhere("tests.inspection.test_steady_state", f"t.descriptors({seed})") == ""
