"""The error metrics see what they are made for: noise, one bad element, one bad row, NaN on either side."""

from __future__ import annotations

from dataclasses import replace

import torch

from kernels.common.compare import compare
from kernels.op import Tolerance

TIGHT = Tolerance(max_rel=1e-2, rms_rel=1e-3)


def matrix() -> torch.Tensor:
    return torch.randn(8, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_equal_passes_with_zero_error() -> None:
    errors = compare(matrix(), matrix(), TIGHT)
    assert errors.passed
    assert (errors.max_rel, errors.rms_rel, errors.row_rel) == (0.0, 0.0, 0.0)


def test_noise_is_measured() -> None:
    r = matrix()
    errors = compare(r * (1 + 1e-4), r, TIGHT)
    assert errors.passed
    assert abs(errors.rms_rel - 1e-4) < 1e-7


def test_one_wrong_element() -> None:
    o = matrix()
    o[3, 5] += 0.1
    errors = compare(o, matrix(), TIGHT)
    assert not errors.passed
    assert errors.bad_elements == 1


def test_one_wrong_row_too_small_for_the_element_and_the_whole() -> None:
    loose = Tolerance(max_rel=1.0, rms_rel=5e-3)
    o = matrix()
    o[6] *= 1.03
    assert "row_rel" in (compare(o, matrix(), loose).reason or "")


def test_a_small_row_among_large_ones_is_judged_by_its_own_size() -> None:
    r = matrix()
    r[2] *= 1e-6
    o = r.clone()
    o[2] *= 1.1
    assert not compare(o, r, TIGHT).passed


def test_nan_and_inf_never_pass_on_one_side_only() -> None:
    for value in (float("nan"), float("inf")):
        o = matrix()
        o[0, 0] = value
        assert not compare(o, matrix(), TIGHT).passed
        assert not compare(matrix(), o, TIGHT).passed


def test_what_must_be_left_alone_is_nan_in_both() -> None:
    r = matrix()
    r[0] = float("nan")
    assert compare(r.clone(), r, TIGHT).passed


def test_an_empty_sequence_must_be_exactly_zero() -> None:
    r = matrix()
    r[1] = 0.0
    assert compare(r.clone(), r, TIGHT).passed
    o = r.clone()
    o[1, 7] = 1e-3
    assert not compare(o, r, TIGHT).passed


def test_another_shape_fails() -> None:
    assert "shape" in (compare(matrix()[:4], matrix(), TIGHT).reason or "")


def test_each_sequence_is_judged_by_its_own_slope_bias_and_noise() -> None:
    r = torch.randn(64, 1, 16, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unit = 2.0**-8
    loose = Tolerance(max_rel=8 * unit, rms_rel=unit, slope=0.0625 * unit, roundings=1)
    strict = replace(loose, each_sequence=True)
    steeper, higher, twice = (r.bfloat16() for _ in range(3))
    steeper[17] = (r[17] * 1.002).bfloat16()
    higher[17] = (r[17] + 0.002).bfloat16()
    twice[17] = ((r[17] * 1.3).bfloat16().double() / 1.3).bfloat16()
    assert compare(r.bfloat16(), r, strict).passed
    for wrong, what in ((steeper, "slope"), (higher, "bias"), (twice, "noise")):
        assert compare(wrong, r, loose).passed
        reason = compare(wrong, r, strict).reason or ""
        assert reason.startswith(what)
        assert "of sequence 17" in reason
