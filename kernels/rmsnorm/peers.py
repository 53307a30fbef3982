"""The same by torch, operator by operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common.random_inputs import BYTES, LARGEST
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.rmsnorm.op import LEAST, NormCase, output, work

if TYPE_CHECKING:
    import torch


def stages(case: NormCase, target: Target) -> tuple[Stage, ...]:
    """An addition, a norm and the kernels of a quantization; what passes between them stays in the L2."""
    array, least = case.rows * case.D * BYTES[case.dtype], work(case)
    sums = ["add", *(["add addend"] if case.addend else [])] if case.residual else []
    sums += ["sigmoid", "gate"] if case.gate else []
    found = [Stage(name=name, work=Work(), l2_bytes=2 * array) for name in sums]
    found.append(Stage(name="norm", work=least, l2_bytes=array))
    if case.quantized:
        found += [Stage(name=name, work=Work(), l2_bytes=2 * array) for name in ("abs", "amax", "divide", "round")]
    return tuple(found)


def codes(y: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes as fp32, and their scales `[B]`."""
    y = y.float()
    scale = (y.abs().amax(-1) / LARGEST[kind]).clamp(min=LEAST)
    values = y / scale[:, None]
    return (values.round() if kind == "int8" else values), scale


def grouped(case: NormCase, x: torch.Tensor, w: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
    """y in fp32, with its gate, group by group."""
    from torch.nn.functional import rms_norm, silu

    x = x.view(case.B, case.groups, case.D).float()
    opened = None
    if z is not None:
        z = z.reshape(x.shape).float()
        opened = z.sigmoid() if case.gate == "sigmoid" else silu(z)
    if opened is not None and case.gate == "silu_first":
        x, opened = x * opened, None
    y = rms_norm(x, (case.D,), None, case.epsilon) * w.float().view(-1, case.D)
    return (y if opened is None else y * opened).flatten(0, 1)


def prepare(case: NormCase, inputs: Inputs, target: Target) -> Launch:
    import torch
    from torch.nn.functional import rms_norm

    x, w, out = inputs["x"], inputs["w"], output(case, inputs["x"].device)

    def launch() -> torch.Tensor:
        h = torch.add(x, inputs["residual"], out=out.h) if case.residual else x
        if case.addend == "shares":
            h.addcmul_(inputs["addend"], inputs["share"].sigmoid()[:, None])
        elif case.addend:
            h += inputs["addend"]
        if case.gate or case.groups > 1 or case.wide:
            y = grouped(case, h, w, inputs.get("z"))
        else:
            y = rms_norm(h, (case.D,), w, case.epsilon)
        if case.quantized:
            y, scale = codes(y, case.activations)
            out.scale.copy_(scale)
        out.y.copy_(y)
        return out.whole

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
