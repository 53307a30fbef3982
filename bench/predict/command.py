"""`decodebench predict`: a model on one or more parts -> rows for JSON, a table for the screen, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.devices import find
from bench.errors import BadRequest, unknown
from bench.files import replacing
from bench.predict import expected_rows
from bench.predict.calibration import Machine, Reached
from bench.predict.model_file import known_precision, read_config
from bench.predict.step_model import MOST, NotPublished, StepPrediction, step
from bench.predict.step_work import shares_evenly
from bench.predict.weights import WeightPlan, recipe
from bench.run import Run
from bench.units import percent, tick
from kernels.models import MODELS, ModelShape
from kernels.op import precision

DEAREST = 1_000_000
"""Dollars per hour of one part."""
MOST_DEVICES = 4096
"""More devices are neither split nor proposed."""

COPIED = (
    "model",
    "device",
    "devices",
    "weights",
    "kv",
    "batch",
    "context",
    "basis",
    "seconds",
    "weight_seconds",
    "kv_seconds",
    "tokens_per_second_per_user",
    "tokens_per_second",
    "fits",
    "max_batch",
    "weight_bytes",
    "kv_bytes_per_token",
    "kv_bytes_per_request",
    "state_bytes_per_request",
    "kv_copies",
    "capacity_bytes",
    "reserve_bytes",
    "bound",
    "mbu",
    "mfu",
)
"""The keys of a row whose values come from `StepPrediction` as they are, in SI units."""

ROW = (
    *COPIED,
    "drafts",
    "notes",
    "missing",
    "prefill_seconds",
    "output_to_input_ratio",
    "joules_per_token_at_rated_power",
    "dollars_per_million_tokens",
    "dollars_per_million_input_tokens",
    "ops",
    "measured",
    "smallest_devices",
)
"""All keys of a row. `measured` is None for a prediction without a run; `smallest_devices` is set where a setting
of a sweep does not fit."""


def load_shape(model: str | None = None, config: str | Path | None = None) -> ModelShape:
    """A known model by its name, or the shape in a Hugging Face config.json, named `model`. Raises `BadRequest`."""
    return load_model(model, config)[0]


def load_model(
    model: str | None = None, config: str | Path | None = None, weights: str | None = None
) -> tuple[ModelShape, WeightPlan, str]:
    """The shape, how its weights are stored, and the precision of its KV cache. Raises `BadRequest`.

    `weights`, a name of `PRECISIONS`, overrides what a config.json says, and the plan's notes say so.
    """
    if config is not None and model is not None and model.lower() in MODELS:
        raise BadRequest(f"{model} is a known model and {config} describes one: give --model or --config, not both")
    if config is None:
        if model is None:
            raise BadRequest("name a model or a config.json")
        if model.lower() not in MODELS:
            raise unknown("model", model, MODELS)
        shape = MODELS[model.lower()]
        return shape, recipe(shape, known_precision(weights or "bf16")), "bf16"
    return read_config(Path(config), model or "", weights)


def rows(
    *,
    model: str | None = None,
    config: str | Path | None = None,
    parts: Sequence[str],
    batches: Sequence[int],
    context: int,
    weights: str | None = None,
    kv: str | None = None,
    devices: int = 1,
    drafts: int = 0,
    dollars_per_hour: float | None = None,
    run: Run | None = None,
    beyond: bool = False,
    expect: bool = False,
) -> list[dict[str, Any]]:
    """One plain dict per part and batch, in SI units, ready for JSON. Raises `BadRequest`.

    With a `run`, its machine replaces `parts`, and the prediction uses what the run measured. Without `weights` or `kv`
    a config.json says how both are stored, and a known model has 16 bits. Each step verifies `drafts` tokens of each
    request beside the one that it would have made; rates count one token all the same. With `expect`, rows hold what
    servers take too (`expected_rows.KEYS`).
    """
    if dollars_per_hour is not None and not 0 < dollars_per_hour <= DEAREST:
        raise BadRequest(f"--price must be above 0 and at most {DEAREST:,}, not {dollars_per_hour:g}")
    shape, plan, cache = load_model(model, config, weights)
    kv = kv or cache
    if shape.max_context < context <= MOST and not beyond:
        longest = f"context {context} is beyond {shape.name}'s longest, {shape.max_context}"
        raise BadRequest(f"{longest}; --beyond predicts it all the same")
    check_split(shape, devices)
    machine = Machine.of(run) if run else None
    specs = [machine.spec] if machine else [find(part) for part in dict.fromkeys(parts)]
    common: dict[str, Any] = {"weights": plan, "kv": kv, "context": context, "devices": devices}
    more: dict[str, Any] = {"beyond": beyond, "q_len": 1 + drafts}
    found = []
    for spec in map(expected_rows.as_reported, specs) if expect else specs:
        for batch in batches:
            asked = common | {"batch": batch}
            try:
                predicted = step(shape, device=spec, **more, **asked)
            except NotPublished as error:
                blank = dict.fromkeys(ROW) | {"notes": [str(error)], "missing": list(spec.missing), "ops": []}
                blank |= {"model": shape.name, "device": spec.key, "drafts": drafts} | asked | {"weights": plan.name}
                found.append(blank | (dict.fromkeys(expected_rows.KEYS) if expect else {}))
            else:
                reached = None
                if machine:
                    reached = machine.reached(predicted.ops, kv=kv)
                    shares = {r.name: r.share for r in reached}
                    predicted = step(shape, device=spec, efficiency=shares, **more, **asked)
                row = as_row(predicted, dollars_per_hour, reached) | {"drafts": drafts}
                found.append(row | (expected_rows.values(predicted, shape, spec, machine is None) if expect else {}))
    return found


def check_split(shape: ModelShape, devices: int) -> None:
    """Raises `BadRequest` if tensor parallelism cannot give every device the same number of whole heads."""
    if devices < 1:
        raise BadRequest(f"devices must be at least 1, not {devices}")
    if devices > MOST_DEVICES:
        raise BadRequest(f"devices must be at most {MOST_DEVICES:,}")
    if shares_evenly(shape, devices):
        return
    has = f"{shape.heads} query heads" + ("" if shape.is_mla else f" and {shape.kv_heads} KV heads")
    fitting = ", ".join(str(n) for n in even_splits(shape))
    raise BadRequest(f"{shape.name} has {has}: {devices} devices cannot share them evenly; try {fitting}")


def even_splits(shape: ModelShape) -> list[int]:
    """The numbers of devices that can share the heads evenly: divisors of the query heads."""
    most = min(shape.heads, MOST_DEVICES)
    return [n for n in range(1, most + 1) if shape.heads % n == 0 and shares_evenly(shape, n)]


def as_row(
    predicted: StepPrediction, dollars_per_hour: float | None = None, reached: Sequence[Reached] | None = None
) -> dict[str, Any]:
    """The prediction as plain values under the keys of `ROW`; None for what is unknown or has no price.

    A row with measured shares leaves prefill out, because prefill is always predicted at the roofs.
    """
    prefill_known = reached is None and not any(op.missing for op in predicted.prefill_ops)
    row = dict.fromkeys(ROW) | {key: getattr(predicted, key) for key in COPIED}
    if prefill_known:
        row["prefill_seconds"] = predicted.prefill_seconds
        row["output_to_input_ratio"] = predicted.output_to_input_ratio
    if dollars_per_hour is not None:
        row["dollars_per_million_tokens"] = predicted.dollars_per_million_tokens(dollars_per_hour)
        if prefill_known:
            row["dollars_per_million_input_tokens"] = predicted.dollars_per_million_input_tokens(dollars_per_hour)
    return row | {
        "notes": list(predicted.notes),
        "missing": list(predicted.missing),
        "joules_per_token_at_rated_power": predicted.joules_per_token_at_rated_power,
        "measured": None
        if reached is None
        else [
            {
                "name": r.name,
                "efficiency": r.share,
                "op": r.record.op,
                "impl": r.record.impl,
                "case_id": r.record.case_id,
                "precision": precision(r.record.case),
                "bytes_over_those_predicted": r.size,
                "flags": r.record.flags,
            }
            for r in reached
        ],
        "ops": [
            {
                "name": op.name,
                "seconds": op.seconds,
                "bound": op.bound,
                "intensity_flop_per_byte": op.intensity,
                "crossing_batch": op.crossing_batch,
                "flops": dict(op.work.flops),
                "bytes": op.work.bytes,
                "link_bytes": op.link_bytes,
                "efficiency": op.efficiency,
                "missing": list(op.missing),
            }
            for op in predicted.ops
        ],
    }


def table(predictions: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells for the screen. A column that is empty in every row, such as a price, is left out."""
    cells = [_cells(row) for row in predictions]
    kept = [header for header in cells[0] if any(line[header] for line in cells)]
    return kept, [[line[header] for header in kept] for line in cells]


def measured_table(predictions: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: the share of its roof that each operation is taken to reach, and the record that says so."""
    headers = ["batch", "operation", "of its roof", "as measured in"]
    headers += ["precision", "implementation", "bytes of it", "flags"]
    lines = []
    for row in predictions:
        known = {each["name"]: each for each in row["measured"]}
        for name in (op["name"] for op in row["ops"]):
            if found := known.get(name):
                size = f"{_number(found['bytes_over_those_predicted'])}x"
                case = f"{found['op']} {found['case_id']}"
                how = [found["precision"], found["impl"], size, ", ".join(found["flags"])]
                said = [percent(found["efficiency"]), case, *how]
            else:
                said = ["100%", "not measured", "", "", "", ""]
            lines.append([f"{row['batch']:,}", name, *said])
    return headers, lines


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a row by their headers."""
    return {
        "part": _part(row),
        "batch": f"{row['batch']:,}",
        **(expected_rows.cells(row, _number) or {"ms/token": _number(row["seconds"], 1e3)}),
        "weights ms": _number(row["weight_seconds"], 1e3),
        "KV ms": _number(row["kv_seconds"], 1e3),
        "token/s/user": _number(row["tokens_per_second_per_user"]),
        "token/s": _number(row["tokens_per_second"]),
        "fits": {True: "yes", False: "no", None: "?"}[row["fits"]],
        "max batch": "?" if row["max_batch"] is None else f"{row['max_batch']:,}",
        "MBU": _share(row, "mbu"),
        "MFU": _share(row, "mfu"),
        "J/token at rated power": _number(row["joules_per_token_at_rated_power"]),
        "$/M out": _number(row["dollars_per_million_tokens"]),
        "$/M in": _number(row["dollars_per_million_input_tokens"]),
        "out:in": _number(row["output_to_input_ratio"]),
        "bound": row["bound"] or "",
        "FFN compute-bound from": ffn_crossing(row),
    }


def _number(value: float | None, scale: float = 1.0) -> str:
    """The number with three digits; empty for None."""
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def _share(row: Mapping[str, Any], name: str) -> str:
    """A share for the screen: of the expected step where there is one, else of the floor."""
    value, expected = row[name], row.get("expected_seconds")
    return "" if value is None else percent(value * row["seconds"] / expected if expected else value)


def ffn_crossing(row: Mapping[str, Any]) -> str:
    """The batch from which arithmetic bounds gate and up (in a MoE, those of the experts)."""
    ops = {op["name"]: op for op in row["ops"]}
    gate_up = ops.get("experts_gate_up", ops.get("gate_up"))
    return "" if gate_up is None else _crossing(gate_up)


def _crossing(op: Mapping[str, Any]) -> str:
    """The batch from which arithmetic bounds an operation; `?` where a roof is not published."""
    if op["missing"]:
        return "?"
    return "never" if op["crossing_batch"] is None else f"batch {op['crossing_batch']:,}"


def remarks(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """First what is predicted and the notes that all parts share.

    Then for each part: the size and time of weights and KV cache, whether they fit, its own notes, and the numbers that
    its vendor does not publish.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for row in predictions:
        first.setdefault(row["device"], row)
    of_all = [row["notes"] for row in first.values() if row["ops"]]
    shared = [note for note in (of_all[0] if of_all else []) if all(note in notes for notes in of_all)]
    asked = predictions[0]
    what = f"{asked['model']}, weights {asked['weights']}, KV cache {asked['kv']}, {asked['context']:,} tokens"
    lines = ["; ".join([what, *shared])]
    for row in first.values():
        said = [_memory_remark(row)] if row["ops"] else []
        said += [note for note in row["notes"] if note not in shared]
        if row["missing"]:
            bounds = "; times are lower bounds" if any(op["missing"] for op in row["ops"]) else ""
            said.append(f"not published: {', '.join(row['missing'])}{bounds}")
        lines += [f"{row['device']}: {sentence}" for sentence in said]
    return lines


def _memory_remark(row: Mapping[str, Any]) -> str:
    text = (
        f"weights take {tick(row['weight_bytes'], 'B')}; reading those that a step of batch {row['batch']:,} needs "
        f"takes {_number(row['weight_seconds'], 1e3)} ms; each request's KV cache "
        f"({tick(row['kv_bytes_per_request'], 'B')} at "
        f"{row['context']:,} tokens{_copies(row)}) adds {_number(row['kv_seconds'] / row['batch'], 1e3)} ms; "
    )
    if row["capacity_bytes"] is None:
        return text + "its memory is not published"
    held = f"{tick(row['capacity_bytes'], 'B')} less {tick(row['reserve_bytes'], 'B')} of reserve"
    room = f"a batch of up to {row['max_batch']:,} fits" if row["max_batch"] else "no request fits"
    return f"{text}{room} in {held}"


def _copies(row: Mapping[str, Any]) -> str:
    return f", held {row['kv_copies']:g} times over" if row["kv_copies"] > 1 else ""


def _part(row: Mapping[str, Any]) -> str:
    return row["device"] if row["devices"] == 1 else f"{row['devices']} x {row['device']}"


def plot(path: str | Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Left: throughput over latency, one line per part, hollow where the batch does not fit. Right: ridge crossings.

    The suffix gives the format (png, svg, pdf). Raises `BadRequest` for a format that matplotlib does not write, and
    where the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not Path(path).suffix:
        raise BadRequest(f"cannot write {path}: end the name in .png, .svg or .pdf")
    figure = Figure(figsize=(12, 5), layout="constrained")
    trade, ridge = figure.subplots(1, 2)
    predictions = [row for row in predictions if row["ops"]]
    if not predictions:
        raise BadRequest("nothing to plot: no part has a published memory bandwidth")
    parts = list(dict.fromkeys(map(_part, predictions)))
    for number, part in enumerate(parts):
        mine = sorted((row for row in predictions if _part(row) == part), key=lambda row: row["batch"])
        color = f"C{number}"
        x = [row["seconds"] * 1e3 for row in mine]
        y = [row["tokens_per_second"] for row in mine]
        faces = [color if row["fits"] is not False else "none" for row in mine]
        trade.plot(x, y, color=color, label=part)
        trade.scatter(x, y, facecolors=faces, edgecolors=color, zorder=3)
        for row, left, up in zip(mine, x, y, strict=True):
            trade.annotate(str(row["batch"]), (left, up), textcoords="offset points", xytext=(5, -9), fontsize=8)
        crossings = {op["name"]: op["crossing_batch"] for op in mine[0]["ops"]}
        reached = {name: batch for name, batch in crossings.items() if batch is not None}
        ridge.scatter(list(reached.values()), list(reached), color=color, label=part)
    first = predictions[0]
    trade.set(xscale="log", yscale="log", xlabel="time per token, ms", ylabel="token/s, all requests")
    trade.set_title(f"{first['model']}, {first['context']:,} tokens, weights {first['weights']}, KV {first['kv']}")
    trade.legend(title="hollow: does not fit")
    ridge.set(xscale="log", xlabel="batch from which it is compute-bound (absent: never, or not known)")
    ridge.set_title("Where each operation crosses the ridge")
    ridge.grid(axis="x", alpha=0.3)
    ridge.invert_yaxis()
    for axis in (trade.xaxis, trade.yaxis, ridge.xaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    try:
        with replacing(Path(path)) as fresh:
            figure.savefig(fresh)
    except OSError as error:
        raise BadRequest(f"cannot write {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadRequest(f"cannot write {path}: {error}") from None
