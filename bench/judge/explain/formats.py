"""Result files of serving benchmarks -> time per output token, batch and context. One reader for each format.

| format | known by | written by |
|---|---|---|
| vllm bench latency | `avg_latency`, `latencies` | `--output-json`; whole requests in s, no batch, no lengths |
| vllm bench serve | `mean_tpot_ms` or `median_itl_ms`, `total_input_tokens` | `--save-result`, `--append-result` |
| sglang bench_serving | the same, `total_output_tokens_retokenized` | `--output-file`, a line for each run |
| sglang bench_one_batch | `median_decode_latency` or `prefill_latency` | `--result-filename`, a line for each batch |
| llama-bench | `avg_ts`, `n_gen` | `-o json`, `-o jsonl` |
| trtllm-bench | `world_info`, `performance` | `--report_json` |
| aiperf | `inter_token_latency` with a unit | `profile_export_aiperf.json`, and GenAI-Perf's |

Field names are those of the programs' own sources (November 2026: vllm/benchmarks/{latency,serve}.py, sglang's
bench_serving.py and bench_one_batch.py, llama.cpp's tools/llama-bench, tensorrt_llm/bench/dataclasses/reporting.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadRequest

Fields = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of a benchmark. Seconds; a `tpot_s` of 0 stands for one that follows from `request_s` and the prefill."""

    format: str
    tpot_s: float
    batch: float
    """Sequences that decode together, on average."""
    input_tokens: float
    output_tokens: float
    request_s: float = 0.0
    """A whole request, prefill included; 0 where it is not needed."""
    ttft_s: float | None = None
    tpot_p99_s: float | None = None
    requests_per_s: float | None = None
    model: str = ""
    gpu: str = ""
    devices: int = 1
    weights: str = ""
    kv: str = ""
    weight_bytes: float | None = None
    """Size of the weights' file."""
    tokens_per_step: float = 1.0
    """More than 1 with speculative decoding."""
    notes: tuple[str, ...] = ()

    @property
    def context(self) -> int:
        """Tokens that a sequence attends to in the middle of its output."""
        return max(1, round(self.input_tokens + self.output_tokens / 2))


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line says of a run whose file does not."""

    batch: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


def read(path: Path, given: Given) -> list[Result]:
    """Every decode run in a file. Raises `BadRequest` for a file that is unreadable, damaged or of no known format."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadRequest(f"{path} is no text: {known()}") from None
    if not text:
        raise BadRequest(f"{path} is empty")
    found, kinds = [], set()
    for fields in objects(path, text):
        kind = recognised(fields)
        if kind is None:
            raise BadRequest(f"{path} is of no known format: {known()}")
        kinds.add(kind)
        try:
            result = READERS[kind][1](fields, given)
        except KeyError as error:
            raise BadRequest(f"{path} looks like a result of {kind}, but lacks {error}") from None
        except (TypeError, AttributeError) as error:
            raise BadRequest(f"{path} looks like a result of {kind}, but is built differently: {error}") from None
        except BadValue as error:
            raise BadRequest(f"{path} ({kind}): {error}") from None
        found += [result] if result else []
    if not found:
        raise BadRequest(f"{path} holds no decode run, only prefill ({', '.join(sorted(kinds))})")
    return found


def objects(path: Path, text: str) -> Iterator[Fields]:
    """The JSON object of a file, those of its list, or those of its lines."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise BadRequest(f"{path} is nested too deeply") from None
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            content = [json.loads(line) for line in lines] if len(lines) > 1 else None
        except (ValueError, RecursionError):
            content = None
        if content is None:
            raise BadRequest(f"{path} is no JSON ({error}): {known()}") from None
    listed = content if isinstance(content, list) else [content]
    if not listed:
        raise BadRequest(f"{path} holds no results")
    for each in listed:
        yield each if isinstance(each, dict) else {}


LARGEST = 1e18
"""No count, time or size of a benchmark is larger, or smaller than its reciprocal."""


class BadValue(ValueError):
    """A number of a result that cannot be: negative, NaN, text."""


def positive(fields: Fields, *names: str) -> float:
    """The first of these fields that is there; it must be a number above 0. Raises `BadValue`, or `KeyError`."""
    for name in names:
        if fields.get(name) is None:
            continue
        value = fields[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 / LARGEST <= value <= LARGEST:
            raise BadValue(f"{name} is {repr(value)[:40]}: expected a number above 0, from 1e-18 to 1e18")
        return float(value)
    raise KeyError(names[0])


def counted(fields: Fields, name: str) -> int:
    """How many devices a field says, 1 where it is absent. Raises `BadValue`."""
    value = 1.0 if fields.get(name) is None else positive(fields, name)
    if value % 1:
        raise BadValue(f"{name} is {value:g}: expected a whole number")
    return int(value)


def optional(fields: Fields, *names: str, scale: float = 1.0) -> float | None:
    """The same, or None where the field is absent or no positive number."""
    try:
        return positive(fields, *names) * scale
    except (KeyError, BadValue):
        return None


def vllm_latency(fields: Fields, given: Given) -> Result:
    """A whole batch from prompt to last token. The file has no batch and lengths: vLLM's defaults stand in."""
    defaults = {"batch": 8, "input_tokens": 32, "output_tokens": 128}
    used = {name: getattr(given, name) or value for name, value in defaults.items()}
    taken = [f"{name.replace('_', ' ')} {used[name]}" for name in defaults if not getattr(given, name)]
    note = f"the file does not say it: {', '.join(taken)} as vLLM's default" if taken else ""
    if used["output_tokens"] < 2:
        raise BadValue("one output token has no time per output token")
    return Result(
        format="vllm bench latency",
        tpot_s=0.0,
        request_s=positive(fields["percentiles"], "50") if "percentiles" in fields else positive(fields, "avg_latency"),
        notes=(note,) if note else (),
        batch=used["batch"],
        input_tokens=used["input_tokens"],
        output_tokens=used["output_tokens"],
    )


def served(fields: Fields, given: Given, format: str) -> Result:
    """What vLLM's and SGLang's serving benchmarks share. Tokens per second times TPOT are the sequences in a batch."""
    completed = positive(fields, "completed")
    inputs = given.input_tokens or positive(fields, "total_input_tokens") / completed
    outputs = given.output_tokens or positive(fields, "total_output_tokens") / completed
    tpot, notes = time_per_token(fields, outputs)
    ceiling = optional(fields, "max_concurrency")
    batch = optional(fields, "output_throughput")
    batch = batch * tpot if batch else ceiling
    if batch and ceiling:
        batch = min(batch, ceiling)
    name = str(fields.get("model_id") or fields.get("model") or server(fields, "model_path") or "")
    return Result(
        format=format,
        tpot_s=tpot,
        batch=given.batch or batch or 1.0,
        input_tokens=inputs,
        output_tokens=outputs,
        ttft_s=optional(fields, "median_ttft_ms", "mean_ttft_ms", scale=1e-3),
        tpot_p99_s=optional(fields, "p99_tpot_ms", "p99_itl_ms", scale=1e-3),
        requests_per_s=optional(fields, "request_throughput") or completed / positive(fields, "duration"),
        model=name,
        devices=counted({"tp_size": server(fields, "tp_size")}, "tp_size"),
        weights=weights_in(name),
        tokens_per_step=optional(fields, "accept_length", "spec_decode_acceptance_length") or 1.0,
        notes=(*notes, *(() if given.batch or batch else ("the batch is not known: 1 is taken",))),
    )


def server(fields: Fields, name: str) -> Any:
    """A field of SGLang's `server_info`."""
    info = fields.get("server_info")
    return info.get(name) if isinstance(info, dict) else None


def time_per_token(fields: Fields, outputs: float) -> tuple[float, tuple[str, ...]]:
    """Seconds per output token after the first: as stated, or from whole requests, or between tokens."""
    if any(fields.get(name) is not None for name in ("median_tpot_ms", "mean_tpot_ms")):
        # SGLang prints a median of 0 where more than half of the requests end after one chunk
        names = ("median_tpot_ms", "mean_tpot_ms") if optional(fields, "median_tpot_ms") else ("mean_tpot_ms",)
        return positive(fields, *names) / 1e3, ()
    whole, first = (optional(fields, name, scale=1e-3) for name in ("mean_e2e_latency_ms", "median_ttft_ms"))
    if whole and first and outputs > 1:
        return (whole - first) / (outputs - 1), ("the file has no TPOT: it is (whole request - first token) / tokens",)
    return positive(fields, "median_itl_ms", "mean_itl_ms") / 1e3, ("the file has no TPOT: the time between tokens",)


def one_batch(fields: Fields, given: Given) -> Result | None:
    """Without a decode latency the run was prefill alone."""
    if fields.get("median_decode_latency") is None:
        return None
    return Result(
        format="sglang bench_one_batch",
        tpot_s=positive(fields, "median_decode_latency"),
        batch=positive(fields, "batch_size"),
        input_tokens=positive(fields, "input_len"),
        output_tokens=positive(fields, "output_len"),
        ttft_s=optional(fields, "prefill_latency"),
    )


def llama_bench(fields: Fields, given: Given) -> Result | None:
    """One sequence. Tests with a prompt are prefill, or prefill and decode together."""
    if not fields["n_gen"] or fields.get("n_prompt"):
        return None
    kind = str(fields.get("model_type", ""))
    return Result(
        format="llama-bench",
        tpot_s=1 / positive(fields, "avg_ts"),
        batch=1,
        input_tokens=optional(fields, "n_depth") or 0.0,
        output_tokens=positive(fields, "n_gen"),
        model=str(fields.get("model_filename", "")).rsplit("/", 1)[-1],
        gpu=str(fields.get("gpu_info", "")),
        weights=llama_type(kind),
        kv={"f16": "fp16", "bf16": "bf16", "q8_0": "int8", "q4_0": "int4"}.get(str(fields.get("type_k")), ""),
        weight_bytes=optional(fields, "model_size"),
    )


def llama_type(text: str) -> str:
    """The nearest precision to a llama.cpp type; the floor is scaled to the file's size."""
    found = re.search(r"\b(BF16|F16|F32|I?Q(\d)|MXFP4)", text)
    if not found:
        return ""
    plain = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "MXFP4": "fp4"}
    return plain.get(found[1]) or ("int4" if int(found[2]) <= 5 else "w8a16")


def trtllm(fields: Fields, given: Given) -> Result:
    """Without streaming there is no TPOT: it is what a request takes after its prefill."""
    world, asked, engine = fields["world_info"], fields["request_info"], fields.get("engine") or {}
    streaming, performance = fields.get("streaming_metrics"), fields["performance"]
    outputs = positive(asked, "avg_output_length")
    tpot = positive(streaming.get("tpot_percentiles") or {}, "p50") / 1e3 if streaming else 0.0
    decoding = (fields.get("decoding_stats") or {}).get("acceptance_length_percentiles") or {}
    quantized, cache = str(engine.get("quantization") or ""), str(engine.get("kv_cache_dtype") or "")
    return Result(
        format="trtllm-bench",
        tpot_s=tpot,
        request_s=0.0 if streaming else positive(performance, "avg_request_latency_ms") / 1e3,
        batch=given.batch or positive(asked, "avg_num_concurrent_requests"),
        input_tokens=positive(asked, "avg_input_length"),
        output_tokens=outputs,
        ttft_s=optional(streaming or {}, "avg_ttft_ms", scale=1e-3),
        tpot_p99_s=optional((streaming or {}).get("tpot_percentiles") or {}, "p99", scale=1e-3),
        requests_per_s=optional(performance, "request_throughput_req_s"),
        model=str(engine.get("model", "")),
        gpu=str((fields.get("machine") or {}).get("name", "")),
        devices=counted(world, "tp_size"),
        weights=weights_in(quantized) or weights_in(str(engine.get("model", ""))),
        kv="fp8" if "FP8" in cache.upper() else "",
        tokens_per_step=optional(decoding, "average") or 1.0,
        notes=() if streaming else ("without --streaming the file has no TPOT",),
    )


def aiperf(fields: Fields, given: Given) -> Result:
    """Each metric has its own unit. Tokens per second times the time between tokens are the sequences in a batch."""

    def seconds(name: str, *statistics: str) -> float:
        metric = fields[name]
        unit = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9}.get(str(metric.get("unit", "ms")))
        if unit is None:
            raise BadValue(f"{name} has the unit {metric['unit']!r}: expected ms, s, us or ns")
        return positive(metric, *statistics) * unit

    tpot = seconds("inter_token_latency", "p50", "avg")
    rate = positive(fields["output_token_throughput"], "avg")
    return Result(
        format="aiperf",
        tpot_s=tpot,
        batch=given.batch or max(1.0, rate * tpot),
        input_tokens=given.input_tokens or positive(fields["input_sequence_length"], "avg"),
        output_tokens=given.output_tokens or positive(fields["output_sequence_length"], "avg"),
        ttft_s=seconds("time_to_first_token", "p50", "avg") if "time_to_first_token" in fields else None,
        tpot_p99_s=seconds("inter_token_latency", "p99", "p50"),
        requests_per_s=optional(fields.get("request_throughput") or {}, "avg"),
        model=model_in(fields.get("input_config")),
        weights=weights_in(model_in(fields.get("input_config"))),
    )


def model_in(config: Any) -> str:
    """The first model's name in AIPerf's `input_config`, whose form differs between versions."""
    if isinstance(config, dict):
        names = config.get("model_names") or config.get("model_name")
        if names:
            return str(names[0] if isinstance(names, list) else names)
        items = (config.get("models") or {}).get("items") if isinstance(config.get("models"), dict) else None
        if items and isinstance(items[0], dict):
            return str(items[0].get("name", ""))
        return next((name for each in config.values() if (name := model_in(each))), "")
    return ""


def weights_in(name: str) -> str:
    """The precision that a model's or a format's name says: `FP8`, `NVFP4`, `W4A16_AWQ`, `-GPTQ-Int4`."""
    patterns = (
        (r"nvfp4|mxfp4|fp4", "fp4"),
        (r"w4a16|awq|gptq|int4|w4a8", "int4"),
        (r"fp8", "fp8"),
        (r"w8a8|int8", "int8"),
    )
    return next((kind for pattern, kind in patterns if re.search(pattern, name, re.IGNORECASE)), "")


READERS: dict[str, tuple[Callable[[Fields], bool], Callable[[Fields, Given], Result | None]]] = {
    "vllm bench latency": (lambda f: "avg_latency" in f and "latencies" in f, vllm_latency),
    "sglang bench_one_batch": (lambda f: {"batch_size", "input_len", "prefill_latency"} <= f.keys(), one_batch),
    "llama-bench": (lambda f: {"avg_ts", "n_gen"} <= f.keys(), llama_bench),
    "trtllm-bench": (lambda f: {"world_info", "performance"} <= f.keys(), trtllm),
    "aiperf": (lambda f: isinstance(f.get("inter_token_latency"), dict), aiperf),
    "sglang bench_serving": (
        lambda f: "total_output_tokens_retokenized" in f,
        lambda f, given: served(f, given, "sglang bench_serving"),
    ),
    "vllm bench serve": (
        lambda f: "total_input_tokens" in f and bool(f.keys() & {"mean_tpot_ms", "median_tpot_ms", "median_itl_ms"}),
        lambda f, given: served(f, given, "vllm bench serve"),
    ),
}
"""How a format is recognised, and who reads it."""


def recognised(fields: Fields) -> str | None:
    return next((kind for kind, (fits, _) in READERS.items() if fits(fields)), None)


def known() -> str:
    return "known are the JSON files of " + ", ".join(READERS)
