"""`share`: a run as one file that names neither its machine nor its owner, for a site or for other people.

A list names the fields of the header that are kept, so an unknown field never gets out. Texts go through
`bench.report.anonymous`. The same run gives the same file, byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.devices import DEVICES
from bench.devices.driver import FACTS
from bench.errors import BadRequest
from bench.files import write_text
from bench.machine import RECORDED
from bench.records import FILE, SHARED, Record, as_line
from bench.report.anonymous import hider, names, without_names
from bench.run import Run, load_run
from kernels.op import discover

SCHEMA = 1
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{7}(-\d+)?|run-[0-9a-f]{12}")
VERSION = re.compile(r"\d+(\.\w+)*([+-][\w.]+)?")
ENVIRONMENT = (
    *("time", "os", "cpu", "cores", "memory_bytes", "last_level_cache_bytes", "python", "cuda", "torch_threads"),
    *("precision", "source_digest"),
)
GPU = sorted({*FACTS} - {"board"})
TARGET = ("kind", "name", "sm", "sm_count", "l2_bytes", "smem_per_sm")
ASKED = {"suite": "--suite", "ops": "--op", "impls": "--impl", "case": "--case", "repeat": "--repeat"}
"""Fields of a request that say what was measured, and their options. Directories and limits are not among them."""

Hide = Callable[[str], str]


def public(run: Run) -> Run:
    """The run without what names its machine or its owner."""
    hide = hider(names([run.headers, run.notes, *texts(run)], words()))
    headers = [public_header(header, hide) for header in run.headers]
    return dataclasses.replace(
        run,
        headers=headers,
        header=headers[0] if headers else {},
        records=[public_record(record, hide) for record in run.records],
        repeats=[public_record(record, hide) for record in run.repeats],
        notes=[without_names(note, hide) for note in run.notes],
        warnings=[hide(warning) for warning in run.warnings],
    )


def words() -> set[str]:
    """Names of operations, implementations and packages, which a user may have as well."""
    parts = [re.findall(r"[A-Za-z]+", name) for name in discover()]
    return {each for part in parts for each in part} | {"torch", "triton", "numba", "numpy", "cuda", "cpu", "gpu"}


def texts(run: Run) -> Iterator[Any]:
    for record in (*run.records, *run.repeats):
        yield {"reason": record.reason, "version": record.version, "telemetry": record.telemetry}


def public_record(record: Record, hide: Hide) -> Record:
    """The record as it is, but with its free texts hidden as needed; counters stand in the notes."""
    return dataclasses.replace(
        record,
        reason=record.reason and hide(record.reason),
        version=hide(record.version),
        stop=hide(record.stop),
        flags=[hide(flag) for flag in record.flags],
        error=record.error and without_names(record.error, hide),
        rotation=without_names(record.rotation, hide),
        parts=[{**part, "name": hide(part["name"])} for part in record.parts],
        telemetry=without_names(record.telemetry, hide),
        counters=without_names(record.counters, hide),
        config=without_names(record.config, hide, drops=False),
        run_id=public_id(record.run_id),
    )


def public_id(run_id: str) -> str:
    """The id that `run` gives, which is a time and a version of the code. Any other text becomes a digest."""
    return run_id if RUN_ID.fullmatch(run_id) else f"run-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"


def public_header(header: Mapping[str, Any], hide: Hide) -> dict[str, Any]:
    environment, request = header.get("environment") or {}, header.get("request") or {}
    target, kept = header.get("target") or {}, picked(environment, ENVIRONMENT)
    kernel = re.match(r"\d+(\.\d+)*", str(environment.get("kernel", "")))
    variables = {
        name: "(a path)" if isinstance(value, str) and ("/" in value or "\\" in value) else value
        for name, value in (environment.get("variables") or {}).items()
        if RECORDED.fullmatch(name)
    }
    asked = {name: value for name in ASKED if (value := request.get(name)) not in (None, [], "", 1)}
    argv = ["run"]
    for name, value in asked.items():
        argv += [ASKED[name], ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    found = {
        "run_id": public_id(str(header.get("run_id", ""))),
        **picked(header, ("started", "suite", "decodebench", "code_digest")),
        "argv": argv,
        "request": asked,
        "target": picked(target, TARGET),
        "environment": {
            **kept,
            **({"kernel": kernel[0]} if kernel else {}),
            "git": picked(environment.get("git") or {}, ("sha", "dirty")),
            "gpu": picked(environment["gpu"], GPU) if environment.get("gpu") else None,
            "variables": variables,
        },
    }
    clean = without_names(found, hide)
    versions = picked(environment, ("packages",)).get("packages") or {}
    clean["environment"]["packages"] = {
        hide(name): version if VERSION.fullmatch(str(version)) else None for name, version in versions.items()
    }
    return {**clean, "device": public_device(header.get("device") or {}, hide)}


def picked(values: Mapping[str, Any], fields: Any) -> dict[str, Any]:
    return {name: values[name] for name in fields if name in values}


def public_device(device: Mapping[str, Any], hide: Hide) -> dict[str, Any]:
    """The part's name and published numbers. The sources of our own table are kept as they are: they name web pages."""
    ours = {each.source for spec in DEVICES.values() for each in (spec.memory_bandwidth, *spec.peaks.values()) if each}

    def quantity(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if found is None:
            return None
        kept = picked(found, ("value", "unit", "kind", "source"))
        return {
            name: each if each in ours or not isinstance(each, str) or name == "unit" else hide(each)
            for name, each in kept.items()
        }

    peaks = {pipe: quantity(peak) for pipe, peak in (device.get("peaks") or {}).items()}
    found: dict[str, Any] = {
        name: value and hide(str(value)) for name, value in picked(device, ("key", "name")).items()
    }
    if "memory_bandwidth" in device:
        found["memory_bandwidth"] = quantity(device["memory_bandwidth"])
    return found | ({"peaks": peaks} if "peaks" in device else {})


def lines(run: Run) -> Iterator[str]:
    """The lines of the file. `run` is one that `public` gave."""

    def line(kind: str, content: Mapping[str, Any]) -> str:
        return json.dumps({"kind": kind, **content}, separators=(",", ":"), allow_nan=False)

    headers = run.headers or [{}]
    yield line("run", {SHARED: SCHEMA, **headers[0]})
    yield from (line("run", header) for header in headers[1:])
    for record in (*run.records, *run.repeats):
        yield line("record", {**as_line(record), "counters": {}})
    yield from (line("note", note) for note in run.notes)
    if run.complete:
        yield line("end", {})


def write(path: Path, out: Path | None = None) -> Path:
    """Write the run as a file, by default `<part>-<digest>.jsonl` here. Returns the file's path.

    Raises `BadRequest` where there is no run, or where `out` is the run's own file or has no ending `.jsonl`.
    """
    run = public(load_run(path))
    text = "\n".join(lines(run)) + "\n"
    slug = "-".join(re.findall(r"[a-z0-9]+", run.device_name.lower())) or "run"
    file = out or Path(f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl")
    if file.suffix != ".jsonl" or file.name == FILE:
        raise BadRequest(f"--out: name a new file that ends in .jsonl, not {file.name}")
    if file.exists() and path.exists() and file.samefile(path):
        raise BadRequest(f"--out: {file} is the run itself")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise BadRequest(f"cannot write to {file}: {error.strerror or error}") from None
    return file


def shared_files(source: Path) -> list[Path]:
    """The files below a directory that `write` made."""
    return [path for path in sorted(source.rglob("*.jsonl")) if path.name != FILE and is_shared(path)]


def is_shared(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as handle:
        try:
            header = json.loads(handle.readline())
        except ValueError:
            return False
    return isinstance(header, dict) and header.get("kind") == "run" and SHARED in header
