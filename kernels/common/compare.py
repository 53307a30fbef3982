"""Error metrics and the correctness gate: one function decides whether an output may be timed.

Against a reference `r` in fp32 or fp64 and an output `o`, both `[..., C]`, with d = o - r:

- `rms_rel` = ||d|| / ||r||: the noise level
- `row_rel` = max over rows (last dimension) of ||d_row|| / ||r_row||: one wrong sequence among many shows here
- `max_rel` = max |d| / (|r| + rms(r_row)): one wrong element shows here
- `slope` = sum(o r) / sum(r^2), the regression of o on r: an error of all elements alike shows here, such as a scale
  that is off by 0.2%, which `rms_rel` can't tell from rounding. Rows count alike: o and r of a row are divided by
  rms(r_row), or a short sequence, whose output is large, would hide the others
- `bias` = mean(d) / rms(r), the mean signed error: an offset of all elements shows here
- `noise` = rms(d) of such rows, divided by what the roundings that the operation allows leave: one rounding too many
  shows here, such as partial sums in bf16
- `differing`, of codes: how many are others. A right kernel has another code only next to a border between two

`slope` and `bias` are judged within their own noise: 4.5 standard errors and what the tolerance allows. The standard
error of the slope comes from the residuals e = d - (slope - 1) r of the output itself, so it holds for rounding
errors of any size. It is sqrt(sum(e^2 r^2)) / sum(r^2) if the errors of all elements are independent, and sqrt(sum
over rows of (sum over the row of e r)^2) / sum(r^2) if the errors of a row go together. The larger counts; the second
needs 8 rows. It is never less than one rounding of o leaves. Few elements do not tell their noise. What counts is the
number of telling elements, sum(r^2)^2 / sum(r^4): elements near zero beside large ones tell nothing of a slope. If it
is below 64, errors are taken to have the `rms_rel` of the tolerance. The same holds for the bias, with 1 in the place
of r.

Where the tolerance asks for it, slope, bias and noise of each sequence are judged too: in a batch of 64, an error of
0.2% in one sequence moves the slope of all by 0.003%. A sequence is judged if it has 16 rows and 128 telling elements,
within 6 standard errors, since there are many sequences. Its bias is that of rows which count alike; all its elements
tell of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.op import Tolerance

if TYPE_CHECKING:
    import torch


UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}

ROUNDING = 0.425
"""Unit roundoffs that one rounding leaves as relative rms. A value m 2^e with 1 <= m < 2 has an error of up to one unit
roundoff x 2^e, with an rms of 1 / sqrt(3) of it; the mean of 1 / m^2 is 0.541 if all log2(m) are equally likely."""

STANDARD_ERRORS = 4.5
"""How far a slope or a bias may be from what it should be, beyond what the tolerance allows, in standard errors."""

SPREAD_ROWS = 8
"""From so many rows on, the errors of one row may go together."""

FEW_ELEMENTS = 64
"""Residuals of fewer telling elements do not tell their noise."""

NOISE_MARGIN = 0.05
"""`noise` may be so much more than 1, and 2.5 / sqrt(telling elements) more, since an rms of few elements varies."""

MANY_ERRORS = 6.0
"""As STANDARD_ERRORS, for one sequence of many."""

SEQUENCE_ROWS = 16
"""A sequence of fewer rows is not judged alone."""

ENOUGH_ELEMENTS = 128
"""The noise of fewer telling elements is not judged: they may share the rounding error of one probability."""

SAME_CODE = 1e-4
"""Codes are the same if what they stand for differs by less: by the rounding of a product with a scale in fp32."""

FEW_CODES = 2
"""So many codes of a few may be those on the other side of a border."""


def rounded(
    dtype: str,
    *,
    terms: str,
    max_units: float,
    rms_units: float,
    why: str,
    slope_units: float = 0.0625,
    bias_units: float | None = None,
    roundings: int | None = None,
    each_sequence: bool = False,
) -> Tolerance:
    """The tolerance of results that are rounded to a 16-bit type: multiples of its unit roundoff, with the reason.

    fp32 results differ only by the order in which `terms` are summed.
    """
    if dtype == "fp32":
        return Tolerance(max_rel=1e-4, rms_rel=1e-5, why=f"fp32 sums of {terms} in another order")
    unit = UNIT_ROUNDOFF[dtype]
    return Tolerance(
        max_rel=max_units * unit,
        rms_rel=rms_units * unit,
        slope=slope_units * unit,
        bias=None if bias_units is None else bias_units * unit,
        roundings=roundings,
        each_sequence=each_sequence,
        why=why,
    )


def rounded_ffn(dtype: str, *, rows: int, hidden_values: int, why: str) -> Tolerance:
    """The tolerance of an FFN with so many rows of y, which rest on so many hidden values in all."""
    return rounded(
        dtype,
        terms="H and F terms",
        max_units=8,
        rms_units=2,
        slope_units=hidden_slope_units(rows, hidden_values),
        bias_units=hidden_bias_units(rows),
        why=why,
    )


def hidden_slope_units(rows: int, hidden_values: int) -> float:
    """`slope_units` of an FFN with so many rows of y, which rest on so many hidden values in all.

    The rounding errors of hidden values act on all elements of a row alike, so residuals do not tell them. Four
    standard deviations of the slope are allowed, which has two parts, in unit roundoffs:

    - 4 / sqrt(hidden values) of ordinary ones. Each has three roundings, an rms of 0.425 sqrt(3) = 0.74. They count by
      the square of the value, and a few large ones decide: 3.1 to 4.5 were seen for 1,024 to 6,144 values
    - 0.06 / sqrt(rows) of the eight marked ones of `outliers.py`, which are 0.24 of the square of a row's norm, however
      wide it is: 0.24 x 0.74 / sqrt(8). Rows differ in them, so their errors are independent
    """
    return 0.0625 + 4 * ((4 / hidden_values**0.5) ** 2 + (0.06 / rows**0.5) ** 2) ** 0.5


def hidden_bias_units(rows: int) -> float:
    """`bias_units` of an FFN with so many rows of y.

    The error of a hidden value moves the elements of a row to both sides, as far as the mean of its column of W_down is
    zero. Codes of int4 are -8 to 7: their mean is -0.5, 0.11 of their rms. Then the errors of 0.74 units of all hidden
    values of a row move its bias by 0.11 x 0.74 = 0.08 units. Four of these are allowed.
    """
    return 0.0625 + 4 * 0.08 / rows**0.5


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Metrics of one comparison (dimensionless) and, if it failed, why. None: not known, as in older records."""

    max_rel: float
    rms_rel: float
    row_rel: float
    bad_elements: int
    elements: int
    reason: str | None = None
    slope: float | None = None
    bias: float | None = None
    noise: float | None = None

    @property
    def passed(self) -> bool:
        return self.reason is None


def compare(output: torch.Tensor, reference: torch.Tensor, tolerance: Tolerance, *, truncated: bool = False) -> Errors:
    """Compare in fp64 where it is cheap, else in fp32. NaN or Inf on one side only never passes.

    `row_rel` may reach `4 x tolerance.rms_rel`, since a row is a small sample of the noise.
    NaN in the reference means "left alone": there the output must be NaN too.
    `truncated`: the output was made by truncation instead of rounding, so it is too small by half a unit on average;
    then slope, bias and noise are not judged.
    """
    import torch

    if tuple(output.shape) != tuple(reference.shape):
        wrong_shape = f"shape {tuple(output.shape)}, expected {tuple(reference.shape)}"
        inf, count = float("inf"), reference.numel()
        return Errors(max_rel=inf, rms_rel=inf, row_rel=inf, bad_elements=count, elements=count, reason=wrong_shape)
    if reference.numel() == 0:
        return Errors(max_rel=0.0, rms_rel=0.0, row_rel=0.0, bad_elements=0, elements=0)
    wide = torch.float64 if reference.numel() <= 1 << 24 else torch.float32
    # on the GPU if either tensor is there: a comparison takes two dozen passes over both
    home = reference.device if reference.is_cuda else output.device
    out = output.detach().to(home).to(wide).reshape(-1, output.shape[-1] if output.ndim else 1)
    ref = reference.detach().to(home).to(wide).reshape_as(out)
    settled = ref.isfinite()
    alike = torch.where(settled, out.isfinite(), (out == ref) | (out.isnan() & ref.isnan()))
    ref = torch.where(settled, ref, 0.0)
    signed = torch.where(settled & alike, out - ref, 0.0)
    difference = signed.abs()
    row_norm = ref.norm(dim=-1)
    floor = row_norm / ref.shape[-1] ** 0.5
    tiny = torch.finfo(torch.float32).tiny
    relative = difference / (ref.abs() + floor[:, None] + tiny)
    row_relative = difference.norm(dim=-1) / (row_norm + tiny)
    max_rel, row_rel = float(relative.max()), float(row_relative.max())
    rms_rel = float(difference.norm() / (ref.norm() + tiny))
    unlike, differing = int((~alike).sum()), int((relative > SAME_CODE).sum())
    bad = int((relative > tolerance.max_rel).sum()) + unlike
    trend = systematic(signed, ref, output.dtype, tolerance)
    alone = of_sequences(signed, ref, output, tolerance) if tolerance.each_sequence else None
    reason: str | None = None
    if unlike:
        reason = f"{unlike} of {out.numel()} elements are NaN or Inf where the reference is not, or the reverse"
    elif not max_rel <= tolerance.max_rel:
        reason = f"max_rel {max_rel:.3g} > {tolerance.max_rel:.3g} in {bad} of {out.numel()} elements"
    elif not row_rel <= 4 * tolerance.rms_rel:
        reason = f"row_rel {row_rel:.3g} > {4 * tolerance.rms_rel:.3g} in one row of {out.shape[0]}"
    elif not rms_rel <= tolerance.rms_rel:
        reason = f"rms_rel {rms_rel:.3g} > {tolerance.rms_rel:.3g}"
    elif tolerance.differing is not None and not differing <= tolerance.differing * out.numel() + FEW_CODES:
        reason = f"{differing} of {out.numel()} codes differ, more than {tolerance.differing:.2g} of them"
    elif not truncated:
        reason = trend.reason or alone
    return Errors(
        max_rel=max_rel,
        rms_rel=rms_rel,
        row_rel=row_rel,
        bad_elements=bad,
        elements=out.numel(),
        reason=reason,
        slope=trend.slope,
        bias=trend.bias,
        noise=trend.noise,
    )


@dataclass(frozen=True, kw_only=True)
class Trend:
    """What the errors of all elements have in common."""

    slope: float
    bias: float
    noise: float | None
    reason: str | None


def systematic(d: torch.Tensor, r: torch.Tensor, dtype: torch.dtype, tolerance: Tolerance) -> Trend:
    """Slope, bias and noise of the errors `d` of an output in `dtype` with the reference `r`, both `[rows, C]`."""
    import torch

    n, tiny = d.numel(), torch.finfo(torch.float32).tiny
    rms = (total(r * r) / n) ** 0.5 + tiny
    weight = row_weights(r, rms)
    last = ((r.to(dtype).to(r.dtype) - r) * weight).square() if tolerance.roundings else None
    offset = total(d) / n
    deviations = d - offset
    d, r = d * weight, r * weight
    size = total(r * r) + tiny
    once = one_rounding(dtype)
    telling = size**2 / (total(r**4) + tiny)
    least = once if telling >= FEW_ELEMENTS else max(once, tolerance.rms_rel)
    excess, bias = total(d * r) / size, offset / rms
    slope_noise = max(spread(d * r - excess * (r * r)), least * total(r**4) ** 0.5) / size
    bias_noise = max(spread(deviations) / (n * rms), least / n**0.5)
    allowed = tolerance.slope
    bias_allowed = allowed if tolerance.bias is None else tolerance.bias
    reason = noise = None
    if allowed is not None and not abs(excess) <= allowed + STANDARD_ERRORS * slope_noise:
        reason = f"slope {1 + excess:.6f}, off by more than {allowed:.2g} and 4.5 standard errors of {slope_noise:.2g}"
    elif bias_allowed is not None and not abs(bias) <= bias_allowed + STANDARD_ERRORS * bias_noise:
        reason = f"bias {bias:.3g}, more than {bias_allowed:.2g} and 4.5 standard errors of {bias_noise:.2g}"
    if tolerance.roundings and last is not None:
        expected = (total(last) + (tolerance.roundings - 1) * once**2 * size) ** 0.5
        noise = total(d * d) ** 0.5 / (expected + tiny)
        most = 1 + NOISE_MARGIN + 2.5 / (telling + tiny) ** 0.5
        if reason is None and telling >= ENOUGH_ELEMENTS and not noise <= most:
            reason = f"noise {noise:.3g} > {most:.3g}: more than {tolerance.roundings} roundings leave"
    return Trend(slope=1 + excess, bias=bias, noise=noise, reason=reason)


def of_sequences(d: torch.Tensor, r: torch.Tensor, output: torch.Tensor, tolerance: Tolerance) -> str | None:
    """What is wrong with the slope, bias or noise of one sequence, an index of the first dimension of the output."""
    import torch

    rows = d.shape[0] // output.shape[0]
    if rows < SEQUENCE_ROWS or tolerance.slope is None:
        return None
    tiny, once = torch.finfo(torch.float32).tiny, one_rounding(output.dtype)
    weight = row_weights(r, 1.0)
    last = ((r.to(output.dtype).to(r.dtype) - r) * weight).square()
    last, d, r = (x.unflatten(0, (-1, rows)) for x in (last, d * weight, r * weight))

    def sums(values: torch.Tensor) -> torch.Tensor:
        return values.sum(dim=(1, 2), dtype=torch.float64)

    def spreads(terms: torch.Tensor) -> torch.Tensor:
        return torch.maximum(sums(terms * terms), terms.sum(dim=-1, dtype=torch.float64).square().sum(dim=-1)).sqrt()

    size, quartic, count = sums(r * r) + tiny, sums(r**4) + tiny, d[0].numel()
    telling = size**2 / quartic
    excess, bias = sums(d * r) / size, sums(d) / count
    slope_error = spreads(d * r - excess[:, None, None] * (r * r)).clamp_min(once * quartic.sqrt()) / size
    bias_error = spreads(d - bias[:, None, None]).clamp_min(once * size.sqrt()) / count
    judged = telling >= ENOUGH_ELEMENTS
    for name, ideal, found, error in (("slope", 1, excess, slope_error), ("bias", 0, bias, bias_error)):
        allowed = tolerance.slope + MANY_ERRORS * error
        if (off := (judged | (found is bias)) & ~(found.abs() <= allowed)).any():
            b = int(off.nonzero()[0])
            return f"{name} {ideal + float(found[b]):.6f} of sequence {b}, off by more than {float(allowed[b]):.2g}"
    if tolerance.roundings:
        noise = (sums(d * d) / (sums(last) + (tolerance.roundings - 1) * once**2 * size + tiny)).sqrt()
        most = 1 + NOISE_MARGIN + 3.0 / telling.sqrt()
        if (off := judged & ~(noise <= most)).any():
            b = int(off.nonzero()[0])
            return f"noise {float(noise[b]):.3g} > {float(most[b]):.3g} of sequence {b}"
    return None


def row_weights(r: torch.Tensor, rms: float) -> torch.Tensor:
    """What makes the rows of r alike in size, with this rms."""
    import torch

    return rms / (r.square().mean(dim=-1, keepdim=True).sqrt() + torch.finfo(torch.float32).tiny * rms)


def one_rounding(dtype: torch.dtype) -> float:
    """The relative rms of one rounding to this type."""
    import torch

    return ROUNDING * torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 0.0


def total(values: torch.Tensor) -> float:
    """The sum in fp64."""
    import torch

    return float(values.sum(dtype=torch.float64))


def spread(terms: torch.Tensor) -> float:
    """Standard deviation of the sum of `terms [rows, C]`: of independent ones, or of independent rows, if more."""
    import torch

    alone = total(terms * terms)
    together = float((terms.sum(dim=-1, dtype=torch.float64) ** 2).sum()) if len(terms) >= SPREAD_ROWS else 0.0
    return max(alone, together) ** 0.5
