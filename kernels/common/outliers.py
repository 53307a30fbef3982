"""Outliers in activations and weights, which make the loss of a column, a row, a group or a scale show.

A few columns of x hold `size` sqrt(K) instead of N(0, 1), with size = 1/4: like the outlier channels of real
activations. With W of order K^-1/2 each adds 1/16 to a variance of y that is 1 without them and 2 with all 16. If one
such column is left out, y is wrong by 0.25 / sqrt(2) = 0.18 of its rms. Ten tolerances of a GEMV in bf16 are an
`rms_rel` of 10 x 1.5 x 2^-8 = 0.059. The first and the last column are always among them, the edges of groups of
columns are preferred, and the others are drawn.

The first and the last row of W are zero but for these columns. There their weights are positive in every second group
of columns and negative in the others (all positive, if a row is one group). So y is not near zero, and a wrong scale of
the row changes it by 0.4 of itself or more, against ten tolerances of `max_rel` = 10 x 4 x 2^-8 = 0.16. If the row
takes the scales of its neighbour, whose groups are small where its own are large, y even changes its sign.

An FFN has such rows in gate and up, at `hidden_rows`. Their hidden values are large, so that the loss of their columns
of the down projection shows too; see `mark_hidden`. Where all rows of x have the same outliers, these hidden values are
alike, and so are their rounding errors, which then move y of all rows to one side. So the outliers of a row of x, and
the weights of a row, are 1 to `SPREAD` times as large: a range of a dozen steps of bf16 or more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernels.common.quantization import FORMATS, RMS_CODES, group_scales, write_codes
from kernels.common.random_inputs import RandomInputs, encoded, writable

if TYPE_CHECKING:
    import torch

COUNT = 16
"""Outlier columns, if K has four times as many."""

SHOWN = 8
"""Each of fewer columns shows without a mark. If all had one, the rows of x would be alike, and so would the rounding
errors of y, which then do not tell their noise."""

SPREAD = 1.1
"""By how much marks of several rows differ, where they must not round alike."""

HIDDEN = 8
"""Large hidden values, if there are eight times as many in all."""

CLAMPED = (0.5, 0.58)
"""With a clamped activation: the size of outliers, twice the usual one, so that sums of codes can reach the limits, and
the factor of gates and ups of large hidden values, whose outliers are larger too: they are 1.16 times as large."""

OUTPUT_LEVEL = 1.5
"""Weights of `mark_outputs`, in units of F^-1/2: as far as codes of int4 reach. If half of the large hidden values, of
sqrt(F) / 4 each, meet them, an expert's share of y is 1.5 times their scale there, and its rms is 1.45 elsewhere."""

GROUPS = (32, 128)
"""Columns of a group that shares a scale; their edges are preferred."""


def outliers(draw: RandomInputs, K: int) -> list[int]:
    """Columns that hold outliers, ascending: the first, the last, edges of groups, and drawn ones."""
    found = {0, K - 1}
    count = max(1, min(COUNT, K // 4))
    while len(found) < count:
        column = draw.python.randrange(K)
        if draw.python.random() < 0.5:
            group = draw.python.choice(GROUPS)
            column = min(K - 1, column // group * group + draw.python.choice((0, group - 1)))
        found.add(column)
    return sorted(found)


def near_one(draw: RandomInputs, rows: int, columns: int = 1) -> torch.Tensor:
    """Factors `[rows, columns]` from 1 to `SPREAD`."""
    return 1.0 + (SPREAD - 1.0) / 1024 * draw.integers(0, 1024, (rows, columns))


def mark_columns(x: torch.Tensor, columns: list[int], size: float = 0.25, draw: RandomInputs | None = None) -> None:
    """Set these columns of x `[B, K]` to `size` sqrt(K), if there are `SHOWN` columns. With `draw`, rows differ by up
    to `SPREAD`."""
    import torch

    if x.device.type != "meta" and x.shape[1] >= SHOWN:
        value = torch.tensor(size * x.shape[1] ** 0.5, device=x.device)
        writable(x)[:, columns] = encoded(value * near_one(draw, len(x)) if draw else value, x.dtype)


def mark_rows(
    w: torch.Tensor, rows: list[int], columns: list[int], level: float | torch.Tensor, format: str = "", **packed: Any
) -> None:
    """Set W to `level` K^-1/2 where rows and columns meet; `level` may be `[rows, columns]`, or one for each row.

    w is `[N, K]` of a 16- or 32-bit type, or codes of a `format` of `quantization.py`, whose other tensors `packed`
    holds.
    """
    import torch

    if w.device.type == "meta":
        return
    at = torch.tensor(rows, device=w.device), torch.tensor(columns, device=w.device)
    if format:
        write_codes(format, {"w": w, **packed}, *at, level)
    else:
        w[at[0][:, None], at[1]] = (torch.as_tensor(level) * w.shape[1] ** -0.5).to(w)


def signed_groups(columns: list[int], group_k: int) -> dict[float, list[int]]:
    """Columns of even groups, at 1.0, and of odd groups, at -1.0; all at 1.0 if `group_k` is 0: a row is one group."""
    odd = [bool(group_k) and column // group_k % 2 == 1 for column in columns]
    sides = {side: [c for c, at in zip(columns, odd, strict=True) if at == (side < 0)] for side in (1.0, -1.0)}
    return {side: found for side, found in sides.items() if found}


def hidden_rows(draw: RandomInputs, F: int) -> list[int]:
    """Hidden dims that are large: the first, the last, and drawn ones, `HIDDEN` of them or fewer."""
    others = (HIDDEN if F >= 8 * HIDDEN else HIDDEN // 2) - 2
    return sorted({0, F - 1, *(draw.python.randrange(F) for _ in range(others))})


def beyond_limits(draw: RandomInputs, activation: str, F: int, large: list[int]) -> list[tuple[int, int, float]]:
    """What takes the sums of a clamped FFN beyond its limits: the matrix, W_gate (0) or W_up (1), the hidden dim, and
    the `share` of `mark_beyond`. Nothing for another activation, or if there are few hidden dims.

    Two dims beside the large ones are drawn: in the first, the gate is beyond its limit and up is below its lower one;
    in the second, up is above, and the gate is large, but within. If a limit is left out, a hidden value of 30 to 40
    becomes much larger, among ordinary ones with an rms of 3. The large gates and ups, and nearly all others, are
    within the limits, so their columns and scales show as they do without a clamp.
    """
    if activation != "swiglu_clamped" or F < 2 * HIDDEN:
        return []
    one, two = draw.python.sample([f for f in range(F) if f not in large], 2)
    return [(0, one, 1.0), (1, one, -1.0), (1, two, 1.0), (0, two, 0.15)]


def clear(w: torch.Tensor, rows: list[int], K: int, **packed: Any) -> None:
    """These rows become zero. Their zero points, if any, are in the middle, so that codes reach as far to either
    side."""
    if "w_zero" in packed:
        packed["w_zero"][rows] = 8
    mark_rows(w, rows, list(range(K)), 0.0, **packed)


def larger_side(w: torch.Tensor, rows: list[int], columns: list[int], height: int, **packed: Any) -> torch.Tensor:
    """The scales `[rows, columns]` of these columns, divided by their rms; zero in every second group of columns: for
    each row, in the groups with the smaller scales in all. Of neighbouring rows either is larger in the same groups, so
    if a row takes the scales of its neighbour, all that it holds becomes half or twice as large, or more."""
    import torch

    kind = FORMATS[packed["format"]]
    groups = torch.tensor(columns, device=w.device) // (kind.group_k or 1 << 30)
    weights = {"w": w, **{name: tensor for name, tensor in packed.items() if name != "format"}}
    scale = group_scales(packed["format"], weights, torch.tensor(rows, device=w.device), height)[:, groups]
    scale = scale / scale.square().mean().sqrt()
    odd = groups % 2 == 1
    larger = torch.where(odd, 0, scale).sum(1) < torch.where(odd, scale, 0).sum(1)
    return torch.where(odd == larger[:, None], scale, 0.0)


def mark_hidden(
    draw: RandomInputs,
    w: torch.Tensor,
    rows: list[int],
    columns: list[int],
    *,
    H: int,
    F: int,
    size: float = 1.0,
    **packed: Any,
) -> None:
    """Rows of W_gate and W_up `[N, H]`, matrices of F rows each, become zero, but for the `columns` with outliers of x.
    `packed`: see `mark_rows`.

    There gate and up are g = (sqrt(F) / 4)^1/2, times `size` and factors of `near_one`, and the hidden value silu(g) g
    is nearly g^2. Ordinary hidden values have an rms of 1.26, all of them together 1.26 sqrt(F), and with the eight
    marked ones 1.45 sqrt(F). So each of these is a sixth of the norm of all: without its column of W_down, y is wrong
    by 0.17 of its rms. Ten tolerances of an FFN in bf16 are an `rms_rel` of 10 x 2 x 2^-8 = 0.078.

    If W is larger than H^-1/2 all this is larger too. If scales are for groups of columns, a row holds the
    `larger_side`. If it takes the scales of its neighbour, g is about half of what it was.
    """
    if w.device.type == "meta":
        return
    clear(w, rows, H, **packed)
    # all columns of a row alike would make few sums, whose roundings may all go to one side
    level = size * (F**0.5 / 4) ** 0.5 * 4 * near_one(draw, len(rows)) * near_one(draw, len(rows), len(columns))
    if not packed.get("format"):
        return mark_rows(w, rows, columns, level / len(columns))
    scale = larger_side(w, rows, columns, F, **packed)
    mark_rows(w, rows, columns, (scale > 0) * level / scale.sum(1, keepdim=True), **packed)


def mark_beyond(w: torch.Tensor, rows: list[int], columns: list[int], share: float, *, H: int, **packed: Any) -> None:
    """Rows of W_gate or W_up `[N, H]` become zero, but for the `columns` with outliers of x. There they are a `share`
    of what makes sums of 32, or as large as codes reach. See `beyond_limits`."""
    if w.device.type != "meta":
        clear(w, rows, H, **packed)
        mark_rows(w, rows, columns, 4.0 * share, **packed)


def size_of(w: torch.Tensor, rows: list[int], *, H: int, F: int, **packed: Any) -> torch.Tensor | float:
    """The rms of packed W in units of H^-1/2, as the scales of these rows tell it: 0.8 to 2.8, as the format goes.

    With x so much smaller, a clamped FFN has the same sums for all formats. Else most of them would be beyond the
    limits, and a row's scale would not show.
    """
    import torch

    if w.device.type == "meta":
        return 1.0
    weights = {"w": w, **{name: tensor for name, tensor in packed.items() if name != "format"}}
    scale = group_scales(packed["format"], weights, torch.tensor(rows, device=w.device), F)
    return scale.square().mean().sqrt() * RMS_CODES[packed["format"]] * H**0.5


def mark_outputs(w: torch.Tensor, rows: list[int], columns: list[int], *, H: int, F: int, **packed: Any) -> None:
    """Rows of W_down `[N, F]`, matrices of H rows each, become zero, but for the `columns` of large hidden values: on
    the `larger_side`, and with another sign in every second matrix.

    So the share of an expert in these elements of y is never near zero, and its scales of these rows show there.
    """
    import torch

    if w.device.type == "meta":
        return
    clear(w, rows, F, **packed)
    sign = 1.0 - 2.0 * (torch.tensor(rows, device=w.device) // H % 2)[:, None]
    used = larger_side(w, rows, columns, H, **packed) > 0 if packed.get("format") else 1.0
    mark_rows(w, rows, columns, OUTPUT_LEVEL * sign * used, **packed)
