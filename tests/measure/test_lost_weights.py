"""A lost column, group or scale and an error of all outputs fail the gate at every K and batch of the suites.

Each element of y is the product of a row of x and a row of W, so W needs no more rows than what judges many elements:
1,024, or 4,096 / B for a batch of B, but not below 256. Fewer elements hide more, so a fault that shows among these
shows among all. K is that of the suites, and smaller batches are the first rows of the largest. The reference is the
fp32 sum that a right kernel rounds: another order of its terms changes it by 1e-6.

`pytest -m exhaustive` tries 100 seeds of every layer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kernels.common.compare import compare
from kernels.ffn_gemv.op import OP, GemvCase
from tests.measure.test_systematic_errors import GEMVS, gemv_faults
from tests.support.derived_faults import gemv_outputs, stored
from tests.support.quick_draws import quick_draws

ROWS, FEWEST = 1024, 256


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_draws():
        yield


def layers() -> dict[GemvCase, list[int]]:
    """The batches of each kind of layer that the suites have."""
    found: dict[GemvCase, set[int]] = defaultdict(set)
    for case in (case for suite in ("smoke", "quick", "full") for case in OP.cases(suite)):
        found[replace(case, B=1, N=min(case.N, ROWS), model="", layer="")].add(case.B)
    return {layer: sorted(batches) for layer, batches in found.items()}


LAYERS = layers()


def missed(layer: GemvCase, batches: list[int], seed: int) -> list[str]:
    """What the gate gets wrong."""
    case = replace(layer, B=max(batches))
    y, wrong = gemv_outputs(case, OP.inputs(case, "cpu", seed))
    said = []
    for B in batches:
        first = case.N - min(case.N, max(FEWEST, 4 * ROWS // B))
        for name, output in {"right": y, **wrong}.items():
            errors = compare(stored(case, output[:B, first:]), y[:B, first:], OP.tolerance(case))
            if errors.passed != (name == "right"):
                said.append(f"{name} at batch {B}")
    return said


SOME = [layer for layer in LAYERS if layer.K == 8192 and layer.weights in ("bf16", "int4")]


@pytest.mark.parametrize("layer", SOME, ids=lambda case: case.id)
def test_in_some_layers(layer: GemvCase) -> None:
    batches = [B for B in LAYERS[layer] if B <= 64]
    assert Counter(what for seed in range(2) for what in missed(layer, batches, seed)) == {}


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda case: case.id)
def test_in_every_layer_of_the_suites(layer: GemvCase) -> None:
    assert Counter(what for seed in range(100) for what in missed(layer, LAYERS[layer], seed)) == {}


@pytest.mark.parametrize("case", GEMVS, ids=lambda case: case.id)
def test_derived_faults_are_those_of_kernels_that_have_them(case: GemvCase) -> None:
    """Up to single roundings, where sums in another order lie beside a half of a unit in the last place. The planted
    gain acts on a result that was rounded before."""
    inputs = OP.inputs(case, "cpu", 0)
    _, derived = gemv_outputs(case, inputs)
    for name, kernel in gemv_faults(case).items():
        if name == "gain":
            continue
        y = kernel(case, inputs).float()
        assert float((stored(case, derived[name]) - y).norm() / y.norm()) < 2.0**-10, name
