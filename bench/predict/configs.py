"""Many config.json files at once: what each model holds, and how far that is from what its publisher says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadRequest
from bench.predict.model_file import BESIDE, UNSURE, read_config
from bench.predict.step_cache import token_bytes
from bench.predict.weights import PRECISIONS
from bench.units import si, signed
from kernels.models import active_parameters, parameters

CARD = "model card on Hugging Face"
OPENAI = "arXiv 2508.10925, table 1"
FILES = "what Hugging Face lists of the weight files"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publisher says of a model. Active parameters are rounded, and some count the embedding."""

    parameters: float
    active: float | None = None
    files: float | None = None
    """Bytes of the weight files."""
    source: str = CARD


PUBLISHED: Mapping[str, Published] = {
    "qwen3-30b-a3b": Published(parameters=30.5e9, active=3.3e9),
    "qwen3-30b-a3b-fp8": Published(parameters=30.5e9, active=3.3e9, files=31.2e9),
    "qwen3-8b": Published(parameters=8.19e9, source=FILES),
    "qwen2.5-72b-instruct-awq": Published(parameters=72.7e9, files=41.6e9),
    "meta-llama-3.1-8b": Published(parameters=8.03e9, source=FILES),
    "meta-llama-3.1-70b": Published(parameters=70.55e9, source=FILES),
    "llama-3.1-8b-fp8-dynamic": Published(parameters=8.03e9, files=9.08e9, source=FILES),
    "llama-3.1-8b-awq-int4": Published(parameters=8.03e9, files=5.73e9, source=FILES),
    "llama-3.1-8b-bnb-4bit": Published(parameters=8.03e9, files=5.70e9, source=FILES),
    "gemma-3-12b-it": Published(parameters=11.77e9, source=FILES),
    "qwen3-next-80b-a3b-instruct": Published(parameters=80e9, active=3e9),
    "mixtral-8x7b-v0.1": Published(parameters=46.7e9, active=12.9e9, source="mistral.ai/news/mixtral-of-experts"),
    "deepseek-v2-lite": Published(parameters=15.7e9, active=2.4e9),
    "deepseek-v3": Published(parameters=671e9, active=37e9, source="arXiv 2412.19437"),
    "kimi-k2-instruct": Published(parameters=1.026e12, active=32e9, files=1029e9, source=FILES),
    "minimax-m2.5": Published(
        parameters=230e9, active=10e9, files=230e9, source="model card of MiniMax-M2, of the same sizes"
    ),
    "gpt-oss-20b": Published(parameters=20.91e9, active=3.61e9, files=12.8 * 2**30, source=OPENAI),
    "gpt-oss-120b": Published(parameters=116.83e9, active=5.13e9, files=60.8 * 2**30, source=OPENAI),
}
"""By the last part of the repository's name, in small letters."""

HEADERS = (
    *("model", "parameters", "active", "KV B/token", "state", "weights", "weight bytes"),
    *("published", "off by", "remark"),
)
LEAST_IMPORTANT = ("state", "weights", "off by", "active")


def files_of(given: Sequence[Path]) -> list[Path] | None:
    """The files that were asked for; None where they are one model: a file, or a directory with its config.json.

    Of any other directory, all its `*.json` and the `config.json` of each directory in it. Raises `BadRequest` where
    there are none.
    """
    if len(given) == 1 and not (given[0].is_dir() and not (given[0] / "config.json").is_file()):
        return None
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
        elif (path / "config.json").is_file():
            found.append(path / "config.json")
        else:
            inside = [*path.glob("*.json"), *path.glob("*/config.json")]
            found += sorted(each for each in inside if not each.name.endswith(BESIDE))
    if not found:
        raise BadRequest(f"no .json file in {', '.join(map(str, given))}")
    return found


def rows(files: Sequence[Path], *, weights: str | None = None, kv: str | None = None) -> list[dict[str, Any]]:
    """One plain dict for each file, in SI units. `error` says in one line why a file is not read."""
    if kv is not None and (kv not in PRECISIONS or kv == "w8a16"):
        raise BadRequest(f"--kv: one of {', '.join(name for name in PRECISIONS if name != 'w8a16')}, not {kv}")
    return [_row(path, weights, kv) for path in files]


def _row(path: Path, weights: str | None, kv: str | None) -> dict[str, Any]:
    name = path.parent.name if path.name == "config.json" else path.stem
    row: dict[str, Any] = dict.fromkeys(KEYS) | {"file": str(path), "model": name}
    try:
        shape, plan, cache = read_config(path, name, weights)
    except BadRequest as error:
        return row | {"error": " ".join(str(error).removeprefix(f"{path}: ").split())}
    row |= {
        "parameters": parameters(shape),
        "active_parameters": active_parameters(shape),
        "kv": kv or cache,
        "kv_bytes_per_token": token_bytes(shape, PRECISIONS[kv or cache]),
        "state_bytes_per_request": shape.state_bytes_per_request,
        "weights": plan.name,
        "weight_bytes": plan.total_bytes(shape),
        "notes": list(plan.notes),
    }
    if known := PUBLISHED.get(name.rpartition("--")[2].lower()):
        row |= {
            "published_parameters": known.parameters,
            "published_active_parameters": known.active,
            "published_source": known.source,
            "parameters_off_by": row["parameters"] / known.parameters - 1,
        }
        if known.files and weights is None:
            off = row["weight_bytes"] / known.files - 1
            row |= {"published_weight_bytes": known.files, "weight_bytes_off_by": off}
    return row


KEYS = (
    *("file", "model", "parameters", "active_parameters", "kv", "kv_bytes_per_token", "state_bytes_per_request"),
    *("weights", "weight_bytes", "published_parameters", "published_active_parameters", "published_weight_bytes"),
    *("published_source", "parameters_off_by", "weight_bytes_off_by", "notes", "error"),
)
"""The keys of every row; those that do not apply are None."""


def table(found: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headers and cells. A column that is empty in every row is left out.

    A `narrow` table is one for a screen: it has no files that are not read and no remarks. `lines` says these.
    """
    cells = [_cells(row) for row in found if not (narrow and row["error"])]
    if narrow:
        cells = [[*line[:-1], ""] for line in cells]
    kept = [at for at in range(len(HEADERS)) if any(line[at] for line in cells)]
    return [HEADERS[at] for at in kept], [[line[at] for at in kept] for line in cells]


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["error"]:
        return [row["model"], *[""] * (len(HEADERS) - 2), _remark(row)]
    state = si(row["state_bytes_per_request"], "B") if row["state_bytes_per_request"] else ""
    sizes = [billions(row["parameters"]), billions(row["active_parameters"]), f"{row['kv_bytes_per_token']:,.0f}"]
    stored = [row["weights"], si(row["weight_bytes"], "B")]
    return [row["model"], *sizes, state, *stored, "; ".join(_published(row)), "; ".join(_off(row)), _remark(row)]


def billions(count: float) -> str:
    """`30.53 B` for 30,532,122,624 parameters."""
    return f"{count / 1e9:.4g} B"


def _published(row: Mapping[str, Any]) -> Iterator[str]:
    if row["published_parameters"]:
        active = row["published_active_parameters"]
        yield billions(row["published_parameters"]) + (f", {billions(active)} active" if active else "")
    if row["published_weight_bytes"]:
        yield si(row["published_weight_bytes"], "B")


def _off(row: Mapping[str, Any]) -> Iterator[str]:
    for key in ("parameters_off_by", "weight_bytes_off_by"):
        if row[key] is not None:
            yield signed(row[key])


def _remark(row: Mapping[str, Any]) -> str:
    """Why the file is not read, or what it promises and lacks."""
    return row["error"] or next((note for note in row["notes"] if note.startswith(UNSURE)), "")


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each file that is not read or lacks what its name promises, and the tally."""
    read = sum(not row["error"] for row in found)
    tally = f"{read} of {len(found)} files read; active parameters leave out the embedding that is only looked up"
    return [*(f"{row['file']}: {said}" for row in found if (said := _remark(row))), tally]
