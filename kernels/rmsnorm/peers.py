"""The same by torch, operator by operator, and compiled to one kernel by torch.compile."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from kernels.common.random_inputs import BYTES, LARGEST
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.rmsnorm.op import EPSILON, LEAST, NormCase, Output, output, work

if TYPE_CHECKING:
    import torch


def one_pass(case: NormCase, target: Target) -> tuple[Stage, ...]:
    """One kernel, taken to move the compulsory bytes."""
    return (Stage(name="norm", work=work(case)),)


def stages(case: NormCase, target: Target) -> tuple[Stage, ...]:
    """An addition, a norm and the kernels of a quantization; what passes between them stays in the L2."""
    array, least = case.B * case.D * BYTES[case.dtype], work(case)
    found = [Stage(name="add", work=Work(), l2_bytes=2 * array)] if case.residual else []
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


def prepare(case: NormCase, inputs: Inputs, target: Target) -> Launch:
    import torch
    from torch.nn.functional import rms_norm

    x, w, out = inputs["x"], inputs["w"], output(case, inputs["x"].device)

    def launch() -> torch.Tensor:
        h = torch.add(x, inputs["residual"], out=out.h) if case.residual else x
        y = rms_norm(h, (case.D,), w, EPSILON)
        if case.quantized:
            y, scale = codes(y, case.activations)
            out.scale.copy_(scale)
        out.y.copy_(y)
        return out.whole

    return launch


def whole_norm(x: Any, residual: Any, w: Any, kind: str) -> Any:
    """h, y and the scales of its codes, as torch.compile is given them."""
    h = x if residual is None else x + residual
    wide = h.float()
    y = wide * (wide.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * w.float()
    if not kind:
        return h, y.to(x.dtype), None
    y, scale = codes(y, kind)
    return h, y, scale


@cache
def compiled_norm() -> Any:
    import torch

    return torch.compile(whole_norm, dynamic=False, fullgraph=True)


def prepare_compiled(case: NormCase, inputs: Inputs, target: Target) -> Launch:
    """Its results are copied into one tensor, which a user need not do."""
    import torch

    x, w, norm = inputs["x"], inputs["w"], compiled_norm()
    residual, kind = inputs.get("residual"), case.activations if case.quantized else ""
    out = output(case, x.device)

    def launch() -> torch.Tensor:
        h, y, scale = norm(x, residual, w, kind)
        return keep(out, h, y, scale, residual is not None)

    with torch._dynamo.config.patch(recompile_limit=1 << 10):
        launch()
    return launch


def keep(out: Output, h: Any, y: Any, scale: Any, with_h: bool) -> torch.Tensor:
    out.y.copy_(y)
    if scale is not None:
        out.scale.copy_(scale)
    if with_h:
        out.h.copy_(h)
    return out.whole


def supports_compiled(case: NormCase, target: Target) -> str | None:
    if target.kind != "cuda" or target.sm < 80:
        return "is compiled for NVIDIA GPUs of sm_80 or later"
    if case.activations == "fp8" and target.sm < 89:
        return "Triton converts to fp8 on sm_89 or later"
    return None


IMPLS = (
    Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),
    Impl(
        name="torch-compiled",
        stages=one_pass,
        prepare=prepare_compiled,
        supports=supports_compiled,
        by_torch_compile=True,
        version=torch_version,
    ),
)
