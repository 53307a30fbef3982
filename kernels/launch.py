"""A Triton kernel with everything that is needed to run it here, or to compile it for a part that is not here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kernels.op import CaseT, Impl, Inputs, Launch, Stage, Target, Tuning, anywhere, needs_triton_target

REGISTERS = 65536
"""Registers of an SM, sm_80 to sm_100 (CUDA programming guide, technical specifications per compute capability)."""


SMEM_RESERVED = 1 << 10
"""Shared memory that the system takes of every CTA (CUDA programming guide, compute capability 8.0 and later)."""

CTA_SMEM = 227 << 10
"""The most shared memory that a CTA may have on sm_90 (CUDA programming guide, technical specifications)."""


def registers(warps_per_sm: int) -> int:
    """Registers that each thread may have: a multiple of 8, and at most the 255 that an instruction can name."""
    return min(255, REGISTERS // (32 * warps_per_sm) // 8 * 8)


def cta_smem(target: Target, ctas_per_sm: int) -> int:
    """Bytes of shared memory that each of `ctas_per_sm` resident CTAs may use. A host gets an H100's."""
    return min(CTA_SMEM, (target.smem_per_sm or 228 << 10) // ctas_per_sm - SMEM_RESERVED)


@dataclass(frozen=True, kw_only=True)
class KernelLaunch:
    """`kernel[grid](**args, **constexprs)`.

    `args` are run-time arguments in the order of the kernel's signature: tensors, host-side TensorDescriptors and
    plain numbers. `streams` names the pointer arguments that carry the main traffic. Code generation checks that they
    are read in 16 bytes a thread or by TMA. `why_narrow` gives the reason where narrower reads are right.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None
    """Limit for each thread. It is set where the compiler would otherwise spill, to make room for more CTAs than the
    plan wants."""
    streams: tuple[str, ...] = ()
    why_narrow: str = ""
    wants_mma: bool = False
    """True where tensor cores matter: code generation then insists on wgmma (sm_90), tcgen05 or mma."""
    why_few_in_flight: str = ""
    """The reason why fewer bytes in flight than Little's law asks for are right (a tiny merge, say)."""
    slots_per_byte: float = 0.0
    """Instructions of a thread that the main loop issues for each byte of `streams`, compiled for sm_90; 0 where this
    is not declared. Predictions are made from it, and code generation counts whether it is true."""

    @property
    def options(self) -> dict[str, int]:
        """What Triton is told beside the arguments. Fusion of products and sums is among them, since Triton 3.10 will
        not do it unasked."""
        registers = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True, **registers}

    @property
    def config(self) -> dict[str, Any]:
        """How the kernel is launched, in plain values."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.constexprs.items()}
        return {
            "kernel": self.kernel.fn.__name__,
            "grid": list(self.grid),
            **plain,
            **self.options,
        }

    def __call__(self) -> None:
        self.kernel[self.grid](**self.args, **self.constexprs, **self.options)


@dataclass(frozen=True, kw_only=True)
class Built:
    """Kernels that run in this order, and the tensor that then holds the result."""

    launches: tuple[KernelLaunch, ...]
    output: Any

    def __call__(self) -> Any:
        for launch in self.launches:
            launch()
        return self.output


@dataclass(frozen=True, kw_only=True)
class PartedLaunch:
    """Calls that run in this order, each with the name of what it does, and the tensor that then holds the result.

    A name may come again, as in each layer of a model. Each call can also be timed alone.
    """

    parts: tuple[tuple[str, Callable[[], Any]], ...]
    output: Any

    def __call__(self) -> Any:
        for _, call in self.parts:
            call()
        return self.output


def triton_impl(
    *,
    name: str,
    build: Callable[[CaseT, Inputs, Target], Built],
    stages: Callable[[CaseT, Target], Sequence[Stage]],
    supports: Callable[[CaseT, Target], str | None] = anywhere,
    tuning: Tuning[CaseT] | None = None,
    ours: bool = True,
) -> Impl[CaseT]:
    """An `Impl` whose kernels can be inspected. `supports` adds its refusals to those of every Triton kernel."""

    def prepare(case: CaseT, inputs: Inputs, target: Target) -> Launch:
        return build(case, inputs, target)

    def all_supports(case: CaseT, target: Target) -> str | None:
        return needs_triton_target(case, target) or supports(case, target)

    def version() -> str:
        import triton

        return f"triton {triton.__version__}"

    return Impl(
        name=name,
        stages=stages,
        prepare=prepare,
        supports=all_supports,
        build=build,
        version=version,
        tuning=tuning,
        ours=ours,
    )
