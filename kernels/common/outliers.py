"""Outliers in activations and weights, which make the loss of a column, a row, a group or a scale show.

A few columns of x hold `size` sqrt(K) instead of N(0, 1), with size = 1/4: like the outlier channels of real
activations. With W of order K^-1/2 each adds 1/16 to a variance of y that is 1 without them and 2 with all 16. If one
such column is left out, y is wrong by 0.25 / sqrt(2) = 0.18 of its rms. Ten tolerances of a GEMV in bf16 are an
`rms_rel` of 10 x 1.5 x 2^-8 = 0.059. The first and the last column are always among them, the edges of groups of
columns are preferred, and the others are drawn.

In the first and the last row of W, the weights of these columns are positive in every second group of columns and
negative in the others (all positive, if a row is one group). So y is not near zero there, and a wrong scale of the row
changes it by 0.4 of itself or more, against ten tolerances of `max_rel` = 10 x 4 x 2^-8 = 0.16. If the row takes the
scales of its neighbour, whose groups are small where its own are large, y even changes its sign.

An FFN has such rows in gate and up, at `hidden_rows`. Their hidden values are large, so that the loss of their columns
of the down projection shows too; see `hidden_level`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernels.common.quantization import write_codes
from kernels.common.random_inputs import RandomInputs, encoded, writable

if TYPE_CHECKING:
    import torch

COUNT = 16
"""Outlier columns, if K has four times as many."""

SHOWN = 8
"""Each of fewer columns shows without a mark. If all had one, the rows of x would be alike, and so would the rounding
errors of y, which then do not tell their noise."""

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


def mark_columns(x: torch.Tensor, columns: list[int], size: float = 0.25) -> None:
    """Set these columns of x `[B, K]` to `size` sqrt(K), if there are `SHOWN` columns."""
    import torch

    if x.device.type != "meta" and x.shape[1] >= SHOWN:
        value = torch.tensor(size * x.shape[1] ** 0.5, device=x.device)
        writable(x)[:, columns] = encoded(value, x.dtype)


def mark_rows(
    w: torch.Tensor, rows: list[int], columns: list[int], level: float, format: str = "", **packed: Any
) -> None:
    """Set W to `level` K^-1/2 where rows and columns meet.

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
        w[at[0][:, None], at[1]] = level * w.shape[1] ** -0.5


def signed_groups(columns: list[int], group_k: int) -> dict[float, list[int]]:
    """Columns of even groups, at 1.0, and of odd groups, at -1.0; all at 1.0 if `group_k` is 0: a row is one group."""
    odd = [bool(group_k) and column // group_k % 2 == 1 for column in columns]
    sides = {side: [c for c, at in zip(columns, odd, strict=True) if at == (side < 0)] for side in (1.0, -1.0)}
    return {side: found for side, found in sides.items() if found}


def hidden_rows(draw: RandomInputs, F: int) -> list[int]:
    """Hidden dims that are large: the first, the last, and two drawn ones."""
    return sorted({0, F - 1, draw.python.randrange(F), draw.python.randrange(F)})


def hidden_level(H: int, F: int) -> float:
    """What W_gate and W_up hold in marked rows and columns, in units of H^-1/2; elsewhere these rows are zero.

    With `count` outliers of x, gate and up are both g = count / 4 x level, and the hidden value silu(g) g is nearly
    g^2 = sqrt(F) / 4. Ordinary hidden values have an rms of 1.26, all of them together 1.26 sqrt(F). So each of the
    four marked ones is a sixth of the norm of all: without its column of W_down, y is wrong by 0.18 of its rms. Ten
    tolerances of an FFN in bf16 are an `rms_rel` of 10 x 2 x 2^-8 = 0.078.
    """
    count = max(1, min(COUNT, H // 4))
    return (F**0.5 / 4) ** 0.5 * 4 / count
