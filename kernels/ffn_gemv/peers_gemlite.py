"""gemlite's Triton kernels for 16-bit activations and 4- or 8-bit weights. It tunes itself at its first launch."""

from __future__ import annotations

from importlib import metadata

from kernels.common.quantization import FORMATS, unpack_nibbles
from kernels.common.random_inputs import torch_dtype
from kernels.ffn_gemv.op import GemvCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, needs

ZERO = 8.0
"""The code that stands for 0 in int4."""


def stages(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    """A library call, assumed to move only the compulsory bytes."""
    return (Stage(name="gemm", work=work(case)),)


def supports(case: GemvCase, target: Target) -> str | None:
    if target.kind != "cuda" or target.sm < 80:
        return "needs an NVIDIA GPU of sm_80 or later"
    if missing := needs("gemlite"):
        return missing
    if case.weights not in ("int8", "fp8", "int4", "int4_zp") or case.activations != case.dtype:
        return "is measured with int8, fp8 and int4 weights and 16-bit activations"
    if case.weights == "fp8" and target.sm < 89:
        return "Triton converts fp8 on sm_89 or later"
    step = FORMATS[case.weights].group_k or 32
    return f"needs K = n {step}" if case.K % step else None


def prepare(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """int8, fp8: `A16W8` with a scale for each row of W. int4: `A16Wn`, W = (code - zero) * scale by groups.

    It takes unpacked codes, packs them itself, and allocates y. Splits of K are added up in fp32, and a further kernel
    converts the sum; gemlite offers this for accuracy. Its default on sm_90, an atomic addition in bf16 for each of 64
    to 900 splits, loses more than the one rounding of y that the tolerance allows.
    """
    import torch
    from gemlite import helper, set_native_atomic_bfp16

    set_native_atomic_bfp16(False)

    x, codes, scale = inputs["x"], inputs["w"], inputs["w_scale"]
    dtype = torch_dtype(case.dtype)
    if FORMATS[case.weights].bits == 8:
        layer = helper.A16W8(device=x.device, dtype=dtype).from_weights(codes, scales=scale[:, None])
    else:
        zero = inputs["w_zero"].to(dtype) if case.weights == "int4_zp" else torch.full_like(scale, ZERO)
        group = FORMATS[case.weights].group_k
        maker = helper.A16Wn(device=x.device, dtype=dtype)
        layer = maker.from_weights(unpack_nibbles(codes), scale, zero, W_nbits=4, group_size=group)
    return lambda: layer(x)


def version() -> str:
    """The installed version. Nothing is imported, so a record of a failed import has it too."""
    return f"gemlite {metadata.version('gemlite')}"


IMPLS = (Impl(name="gemlite", stages=stages, prepare=prepare, supports=supports, version=version),)
