"""Error metrics and the correctness gate: one function decides whether an output may be timed.

Against a reference `r` in fp32 or fp64 and an output `o`, both `[..., C]`:

- `rms_rel` = ||o - r|| / ||r||: the noise level
- `row_rel` = max over rows (last dimension) of ||o_row - r_row|| / ||r_row||: one wrong sequence among many shows here
- `max_rel` = max |o - r| / (|r| + rms(r_row)): one wrong element shows here
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.op import Tolerance

if TYPE_CHECKING:
    import torch


UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}


def rounded(dtype: str, *, terms: str, max_units: float, rms_units: float, why: str) -> Tolerance:
    """The tolerance of results that are rounded to a 16-bit type: multiples of its unit roundoff, with the reason.

    fp32 results differ only by the order in which `terms` are summed.
    """
    if dtype == "fp32":
        return Tolerance(max_rel=1e-4, rms_rel=1e-5, why=f"fp32 sums of {terms} in another order")
    unit = UNIT_ROUNDOFF[dtype]
    return Tolerance(max_rel=max_units * unit, rms_rel=rms_units * unit, why=why)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Metrics of one comparison (dimensionless) and, if it failed, why."""

    max_rel: float
    rms_rel: float
    row_rel: float
    bad_elements: int
    elements: int
    reason: str | None = None

    @property
    def passed(self) -> bool:
        return self.reason is None


def compare(output: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance) -> Errors:
    """Compare in fp64 where it is cheap, else in fp32. NaN or Inf on one side only never passes.

    `row_rel` may reach `4 x tolerance.rms_rel`, since a row is a small sample of the noise.
    NaN in the reference means "left alone": there the output must be NaN too.
    """
    import torch

    if tuple(output.shape) != tuple(reference.shape):
        wrong_shape = f"shape {tuple(output.shape)}, expected {tuple(reference.shape)}"
        inf, count = float("inf"), reference.numel()
        return Errors(max_rel=inf, rms_rel=inf, row_rel=inf, bad_elements=count, elements=count, reason=wrong_shape)
    if reference.numel() == 0:
        return Errors(max_rel=0.0, rms_rel=0.0, row_rel=0.0, bad_elements=0, elements=0)
    wide = torch.float64 if reference.numel() <= 1 << 24 else torch.float32
    # on the GPU if either tensor is there: a comparison takes a dozen passes over both
    home = reference.device if reference.is_cuda else output.device
    out = output.detach().to(home).to(wide).reshape(-1, output.shape[-1] if output.ndim else 1)
    ref = reference.detach().to(home).to(wide).reshape_as(out)
    settled = ref.isfinite()
    alike = torch.where(settled, out.isfinite(), (out == ref) | (out.isnan() & ref.isnan()))
    ref = torch.where(settled, ref, 0.0)
    difference = torch.where(settled & alike, out - ref, 0.0).abs()
    row_norm = ref.norm(dim=-1)
    floor = row_norm / ref.shape[-1] ** 0.5
    tiny = torch.finfo(torch.float32).tiny
    relative = difference / (ref.abs() + floor[:, None] + tiny)
    row_relative = difference.norm(dim=-1) / (row_norm + tiny)
    max_rel, row_rel = float(relative.max()), float(row_relative.max())
    rms_rel = float(difference.norm() / (ref.norm() + tiny))
    unlike = int((~alike).sum())
    bad = int((relative > tolerance.max_rel).sum()) + unlike
    reason: str | None = None
    if unlike:
        reason = f"{unlike} of {out.numel()} elements are NaN or Inf where the reference is not, or the reverse"
    elif not max_rel <= tolerance.max_rel:
        reason = f"max_rel {max_rel:.3g} > {tolerance.max_rel:.3g} in {bad} of {out.numel()} elements"
    elif not row_rel <= 4 * tolerance.rms_rel:
        reason = f"row_rel {row_rel:.3g} > {4 * tolerance.rms_rel:.3g} in one row of {out.shape[0]}"
    elif not rms_rel <= tolerance.rms_rel:
        reason = f"rms_rel {rms_rel:.3g} > {tolerance.rms_rel:.3g}"
    return Errors(
        max_rel=max_rel,
        rms_rel=rms_rel,
        row_rel=row_rel,
        bad_elements=bad,
        elements=out.numel(),
        reason=reason,
    )
