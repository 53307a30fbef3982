"""The constants of whole servers, fitted on published runs; the errors with one engine left out at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.judge.published.search import simplex
from bench.judge.published.table import Array, Table
from bench.predict.step_expected import server_seconds

START = {"kernels": 1.1, "layer": 20e-6, "reduce": 10e-6, "step": 1e-3, "prefill": 1.5}
"""Where the search starts."""


def _predicted(constants: dict[str, float], runs: Table) -> Array:
    found: Array = server_seconds(constants, runs["kernels"], runs["layers"], runs["reduces"], runs["prefill"])
    return np.maximum(found, runs["floor"])


def _fit(runs: Table) -> dict[str, float]:
    def error(logs: Array) -> float:
        values = dict(zip(START, np.exp(logs), strict=True))
        return float(np.mean(np.abs(np.log(runs["seconds"] / _predicted(values, runs)))))

    logs = simplex(error, np.log(list(START.values())))
    return {name: float(f"{value:.3g}") for name, value in zip(START, np.exp(logs), strict=True)}


def fit(runs: Table) -> dict[str, Any]:
    """Constants from all runs; errors of each engine by the constants of the others. Factors are exp |log ratio|."""
    engines = runs.present("software")
    left_out, ratios = {}, []
    for engine in engines:
        mine = runs["software"] == runs.code("software", engine)
        if mine.all():
            continue
        ratio = runs["seconds"][mine] / _predicted(_fit(runs.take(~mine)), runs.take(mine))
        left_out[engine] = _factors(ratio)
        ratios.append(ratio)
    constants = _fit(runs)
    inside = runs["seconds"] / _predicted(constants, runs)
    outside = np.concatenate(ratios) if ratios else inside
    return {
        "constants": constants,
        "rests_on": f"{len(runs)} published runs of whole servers ({', '.join(engines)}; InferenceX's public data)",
        "in_sample": _factors(inside),
        "one_engine_left_out": left_out,
        "out_of_sample": _factors(outside),
        "over_floor": _factors(runs["seconds"] / runs["floor"]),
        "spread": [round(float(v), 3) for v in np.percentile(outside, (10, 50, 90))],
        "target": 1.25,
    }


def below_floor(runs: Table) -> list[dict[str, Any]]:
    """Runs that are faster than their floor, by name. Nothing here explains them. Probably fewer requests were in
    flight than the run says."""
    index = np.flatnonzero(runs["seconds"] < runs["floor"])
    ratio = runs["seconds"] / runs["floor"]
    texts = {name: runs.text(name) for name in ("model", "part", "software", "version", "stored")}
    return [
        {name: values[idx] for name, values in texts.items()}
        | {name: int(runs[name][idx]) for name in ("B", "prompt", "output", "tp", "ep")}
        | {"over_floor": round(float(ratio[idx]), 3)}
        for idx in index[np.argsort(ratio[index])].tolist()
    ]


def _factors(ratio: Array) -> dict[str, Any]:
    factor = np.exp(np.abs(np.log(ratio)))
    median, ninetieth = np.percentile(factor, (50, 90))
    return {"typical": round(float(median), 3), "p90": round(float(ninetieth), 3), "count": len(ratio)}
