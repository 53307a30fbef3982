"""Dependent loads over the link: one thread reads pinned host memory, where each value is the place of the next.

A load asks for one sector of 32 bytes, and no line is met twice, so no cache answers.
"""

from __future__ import annotations

import torch

from kernels.host_link.op import LinkCase, work
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.stream.op import LINE, SECTOR
from kernels.stream.triton_stream import chase_kernel


def build(case: LinkCase, inputs: Inputs, target: Target) -> Built:
    """The driver gives the device an address of pinned memory, which Triton passes on. Memory is pinned only if there
    is a device; else y lies where x does."""
    x = inputs["x"]
    y = torch.empty(1, dtype=torch.int32, device=target.device if x.is_pinned() else x.device)
    only = KernelLaunch(
        kernel=chase_kernel,
        grid=(1,),
        args={"x": x, "y": y, "loads": case.loads},
        constexprs={"LINE": LINE, "CACHE": ".cg"},
        num_warps=1,
        streams=("x",),
        why_narrow="a chain needs one element of a line, the place of the next",
        why_few_in_flight="each load waits for the load before it",
    )
    return Built(launches=(only,), output=y)


def stages(case: LinkCase, target: Target) -> tuple[Stage, ...]:
    """A sector for each load. That each waits for the load before it is what the chase measures."""
    return (Stage(name="chase", work=work(case), link_bytes=SECTOR * case.loads, ctas=1),)


def supports(case: LinkCase, target: Target) -> str | None:
    return None if case.kind == "chase" else "is for dependent loads; copies are those of the copy engines"


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
