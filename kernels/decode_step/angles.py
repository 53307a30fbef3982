"""The frequencies of rotary positions, as families change them for long contexts. Standard library only.

Formulas: YaRN is arXiv 2309.00071, `llama3` is the scaling of Llama 3.1's reference code. Both as the function of that
name in `modeling_rope_utils.py` of transformers takes them from a config.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kernels.rope_append.op import frequencies as plain_frequencies


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Pair i of R/2 turns by position x f_i, with f_i = theta^(-2i/R) changed as `kind` says.

    - `none`: 0, so that nothing turns
    - `linear`: f / `factor`
    - `yarn`: f where a pair turns `fast` times or more within `original` tokens, f / `factor` where it turns `slow`
      times or less, and a mean of both in between. With `truncate` the borders are whole pairs
    - `llama3`: likewise with a border at each end, where the weights of the mean are linear in the number of turns

    `magnitude` multiplies cosines and sines.
    """

    theta: float = 10000.0
    kind: Literal["default", "none", "linear", "yarn", "llama3"] = "default"
    factor: float = 1.0
    original: int = 0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    magnitude: float = 1.0

    def frequencies(self, R: int) -> list[float]:
        plain = plain_frequencies(R, self.theta)
        if self.kind in ("default", "none"):
            return plain if self.kind == "default" else [0.0] * len(plain)
        kept = self._kept(R, plain)
        return [f * share + f / self.factor * (1 - share) for f, share in zip(plain, kept, strict=True)]

    def _kept(self, R: int, plain: list[float]) -> list[float]:
        """How much of its own frequency each pair keeps, 0 to 1."""
        if self.kind == "linear":
            return [0.0] * len(plain)
        if self.kind == "llama3":
            turns = [self.original * f / (2 * math.pi) for f in plain]
            return [min(1.0, max(0.0, (n - self.slow) / (self.fast - self.slow))) for n in turns]
        low, high = (self._pair(R, turns) for turns in (self.fast, self.slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, R - 1)
        width = high - low or 0.001
        return [1.0 - min(1.0, max(0.0, (i - low) / width)) for i in range(len(plain))]

    def _pair(self, R: int, turns: float) -> float:
        """The pair that turns so many times within `original` tokens."""
        return R * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """How much longer queries and keys become: 0.1 `mscale` ln(factor) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0
