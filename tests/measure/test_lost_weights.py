"""A lost column, group or scale and an error of all outputs fail the gate at every K and batch of the suites.

W has 1,024 rows, so that two cores can compute it; K and the batches are those of the suites. `pytest -m exhaustive`
tries 100 seeds of every layer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kernels.common.compare import compare
from kernels.ffn_gemv.op import OP, GemvCase
from tests.measure.test_systematic_errors import gemv_faults
from tests.support.planted_products import gemv
from tests.support.quick_draws import quick_draws

ROWS = 1024


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_draws():
        yield


def layers() -> dict[GemvCase, set[int]]:
    """The batches of each kind of layer that the suites have in bf16 and fp16."""
    found: dict[GemvCase, set[int]] = defaultdict(set)
    for case in (case for suite in ("smoke", "quick", "full") for case in OP.cases(suite) if case.dtype != "fp32"):
        found[replace(case, B=1, N=ROWS, model="", layer="")].add(case.B)
    return dict(found)


LAYERS = layers()


def missed(layer: GemvCase, batches: set[int], seed: int) -> list[str]:
    """What the gate gets wrong; smaller batches are the first rows of the largest."""
    case = replace(layer, B=max(batches))
    inputs = OP.inputs(case, "cpu", seed)
    expected, wrong = OP.reference(case, inputs), gemv_faults(case)
    outputs = {"right": gemv(case, inputs)} | {name: kernel(case, inputs) for name, kernel in wrong.items()}
    return [
        f"{name} at batch {B}"
        for B in batches
        for name, y in outputs.items()
        if compare(y[:B], expected[:B], OP.tolerance(case)).passed != (name == "right")
    ]


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda case: case.id)
def test_in_every_layer_of_the_suites(layer: GemvCase) -> None:
    assert Counter(what for seed in range(100) for what in missed(layer, LAYERS[layer], seed)) == {}
