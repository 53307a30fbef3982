"""A catalogue with an honest implementation, and with every way of cheating or failing that must be caught.

It takes the place of `kernels.op` in a run: y[b] = sum over k of x[b, k] * w[k]. As there, only a worker loads torch.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bench.measure.case
from bench.measure import l2
from kernels.common.random_inputs import RandomInputs
from kernels.op import Case, Impl, Inputs, Launch, Missing, Op, Stage, Target, Tolerance, Work

if TYPE_CHECKING:
    import torch

# toys need no cold cache; sweeping a large cache would take most of the time
bench.measure.case.host_flush = lambda size: lambda: None


@dataclass(frozen=True, kw_only=True)
class ToyCase(Case):
    B: int = 8
    K: int = 4096

    @property
    def id(self) -> str:
        return f"B{self.B}-K{self.K}"


def inputs(case: ToyCase, device: str, seed: int) -> Inputs:
    draw = RandomInputs(device, seed)
    return {"x": draw.normal((case.B, case.K), "fp32"), "w": draw.normal((case.K,), "fp32")}


def reference(case: ToyCase, inputs: Inputs) -> Any:
    return inputs["x"].double() @ inputs["w"].double()[:, None]


def work(case: ToyCase) -> Work:
    return Work(flops={"fma_fp32": 2 * case.B * case.K}, bytes_read=4 * case.K * (case.B + 1), bytes_written=4 * case.B)


OP = Op(
    name="toy",
    title="toy",
    role="decode",
    about="planted",
    formula="y = x w",
    case_type=ToyCase,
    cases=lambda suite: [ToyCase(K=4096), ToyCase(K=8192), ToyCase(K=16384)],
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=lambda case: Tolerance(max_rel=1e-2, rms_rel=1e-3),
    volatile=("x",),
)


def write(inputs: Inputs, y: torch.Tensor) -> torch.Tensor:
    return y.addmm_(inputs["x"], inputs["w"][:, None], beta=0)


def output(case: ToyCase, inputs: Inputs) -> torch.Tensor:
    return inputs["x"].new_zeros(case.B, 1)


def honest(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    y = output(case, inputs)
    return lambda: write(inputs, y)


def spoiled(spoil: Callable[[torch.Tensor], Any]) -> Callable[[ToyCase, Inputs, Target], Launch]:
    """Computes rightly, then does something to the output."""

    def prepare(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
        y = output(case, inputs)

        def launch() -> torch.Tensor:
            write(inputs, y)
            spoil(y)
            return y

        return launch

    return prepare


def half_written(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    y = output(case, inputs)
    write(inputs, y)
    half = case.B // 2

    def launch() -> torch.Tensor:
        y[:half] = inputs["x"][:half] @ inputs["w"][:, None]
        return y

    return launch


def computed_in_prepare(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    y = output(case, inputs)
    result = inputs["x"] @ inputs["w"][:, None]
    return lambda: y.copy_(result)


def destroying(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    """Makes its inputs zero, and then does what is right for them."""
    y = output(case, inputs)

    def launch() -> torch.Tensor:
        inputs["x"].zero_()
        inputs["w"].zero_()
        return write(inputs, y)

    return launch


def last_calls_result(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    """Keeps the first result. That is right as long as the inputs do not change."""
    y, kept = output(case, inputs), []

    def launch() -> torch.Tensor:
        if not kept:
            kept.append(inputs["x"] @ inputs["w"][:, None])
        return y.copy_(kept[0])

    return launch


SHARED: dict[tuple[int, int], Inputs] = {}


def warm_copy(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    """Reads the first copy of the inputs for every launch, so that it stays in the cache."""
    first = SHARED.setdefault((case.B, case.K), inputs)
    y = output(case, inputs)
    return lambda: write(first, y)


def idle_when_timed(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    """Computes in the launches of the gate, and does nothing afterwards."""
    y, calls = output(case, inputs), []

    def launch() -> torch.Tensor:
        calls.append(1)
        return write(inputs, y) if len(calls) <= 5 else y

    return launch


def late_writer(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    """Returns before its work on another stream is done."""
    import torch

    y, side = output(case, inputs), torch.cuda.Stream()

    def launch() -> torch.Tensor:
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            write(inputs, y)
        return y

    return launch


class Window(ctypes.Structure):
    """`CUaccessPolicyWindow` of cuda.h. Property 2 is persisting, 1 streaming."""

    _fields_ = (
        ("base_ptr", ctypes.c_void_p),
        ("num_bytes", ctypes.c_size_t),
        ("hitRatio", ctypes.c_float),
        ("hitProp", ctypes.c_int),
        ("missProp", ctypes.c_int),
        ("rest", ctypes.c_char * 64),  # the union `CUlaunchAttributeValue` is 64 bytes long
    )


ACCESS_POLICY_WINDOW = 1
"""`CU_STREAM_ATTRIBUTE_ACCESS_POLICY_WINDOW`."""


def pinned(share: float) -> Callable[[ToyCase, Inputs, Target], Launch]:
    """Sets `share` of the L2 aside, and asks the stream to keep there what it reads of x."""

    def prepare(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
        import torch

        x, y = inputs["x"], output(case, inputs)
        size = int(share * target.l2_bytes)
        window = Window(x.data_ptr(), min(size, x.numel() * x.element_size()), 1.0, 2, 1)

        def launch() -> torch.Tensor:
            library = l2.driver()
            library.cuCtxSetLimit(l2.PERSISTING_L2_CACHE_SIZE, ctypes.c_size_t(size))
            stream = getattr(torch.cuda.current_stream(), "cuda_stream", 0)
            library.cuStreamSetAttribute(ctypes.c_void_p(stream), ACCESS_POLICY_WINDOW, ctypes.byref(window))
            return write(inputs, y)

        return launch

    return prepare


def allocating(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    return lambda: inputs["x"] @ inputs["w"][:, None]


def sleeping(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    y = output(case, inputs)

    def launch() -> torch.Tensor:
        time.sleep(0.02)
        return write(inputs, y)

    return launch


def raising(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    raise RuntimeError("planted: cannot be prepared")


def hanging(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    threading.Event().wait()
    raise AssertionError("unreachable")


def killed(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    if case.K == 8192:
        os.kill(os.getpid(), 9)
    return honest(case, inputs, target)


def out_of_memory(case: ToyCase, inputs: Inputs, target: Target) -> Launch:
    inputs["x"].new_empty(1 << 60)
    raise AssertionError("unreachable")


def one_pass(case: ToyCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="toy", work=work(case)),)


def impl(name: str, prepare: Callable[..., Launch], supports: Any = None) -> Impl:
    return Impl(name=name, stages=one_pass, prepare=prepare, **({"supports": supports} if supports else {}))


HONEST = impl("honest", honest)
CHEATS = {
    "nan": spoiled(lambda y: y[3].fill_(float("nan"))),
    "half": half_written,
    "one sequence": spoiled(lambda y: y[5].mul_(1.02)),
    "in prepare": computed_in_prepare,
    "last call": last_calls_result,
    "warm copy": warm_copy,
    "lazy when timed": idle_when_timed,
}
"""Wrong results of every kind: none may get a time."""

IMPLS = (
    HONEST,
    impl("raises", raising),
    impl("killed", killed),
    impl("hangs", hanging, lambda case, target: None if case.K == 16384 else "hangs only for K = 16384"),
    impl("steady", honest),
)


def discover() -> dict[str, Op]:
    return {"toy": OP}


def implementations(name: str) -> tuple[tuple[Impl, ...], tuple[Missing, ...]]:
    return IMPLS, (Missing(module="absent", reason="No module named 'absent'"),)
