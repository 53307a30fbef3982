"""What a reader calls a case: `Llama-3.1-70B gate, batch 1` beside `B1-N28672-K8192-bf16`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from kernels.op import discover

SPELLED = {"deepseek": "DeepSeek", "gpt": "gpt", "oss": "oss", "phi": "Phi"}
"""Words of model names that do not simply begin with a capital letter."""


@cache
def model_name(key: str) -> str:
    """`Llama-3.1-70B` for `llama-3.1-70b`, as its publisher writes it."""

    def spelled(word: str) -> str:
        if re.fullmatch(r"(\d+x)?[\d.]+b", word):
            return word[:-1] + "B"
        return SPELLED.get(word, word.capitalize())

    return "-".join(map(spelled, key.split("-")))


def case_name(op: str, case: Mapping[str, Any]) -> str:
    """The model, the layer or operation, the batch and the context of a recorded case, as far as it has them."""
    known = discover().get(op)
    what = [model_name(case["model"])] if case.get("model") else []
    what.append(str(case.get("layer") or (known.title if known else op)))
    sizes = [f"batch {case['B']:,}"] if isinstance(case.get("B"), int) else []
    if isinstance(case.get("T"), int):
        sizes.append(f"{case['T']:,} tokens")
    return ", ".join([" ".join(what), *sizes])
