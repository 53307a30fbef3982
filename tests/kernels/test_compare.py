"""The error metrics see what they are made for: noise, one bad element, one bad row, NaN on either side."""

from __future__ import annotations

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
