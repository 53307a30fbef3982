"""`decodebench published`: what is committed, where it comes from, and how it is made again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bench.files import replacing
from bench.judge.published import wheel
from bench.judge.published.table import FILE, Table, read
from bench.predict import expected
from kernels.models import MODELS

DOWNLOADS = Path("published")
"""Where `fetch` puts the wheel, unless told otherwise."""


def committed() -> dict[str, Any]:
    """What the committed table holds, by operation, and what was left out; and whose shapes are not all kept, since
    these models came later than the table."""
    tables = read(FILE)
    later = [name for name in MODELS if name not in tables["kernels"].sources["models"]]
    return _said(FILE, tables) | {"models_since": ", ".join(later) or "none"}


def fetch(into: Path | None) -> dict[str, Any]:
    """The installed package, or the wheel in `into`, downloaded if need be: version and hashes. Raises `BadRequest`."""
    if into is None and wheel.is_installed():
        return _package(wheel.find())
    return _package(wheel.fetch(into or DOWNLOADS))


def distill(path: Path | None, out: Path | None) -> dict[str, Any]:
    """Make the table again, and the constants that are fitted on it. Raises `BadRequest`."""
    from bench.judge.published import distill as distillery

    package = wheel.find(path)
    target = out or FILE
    tables, constants = distillery.distill(package, target)
    beside = target.with_suffix(".json") if out else expected.FILE
    with replacing(beside) as fresh:
        fresh.write_text(json.dumps(constants, indent=1) + "\n", encoding="utf-8")
    return _package(package) | _said(target, tables) | {"constants": str(beside)}


def _package(found: wheel.Package) -> dict[str, Any]:
    return {
        "package": f"{wheel.PACKAGE} {found.version}",
        "from": found.where,
        "wheel_sha256": found.wheel_sha256 or "not known: the package is installed",
        "files_sha256": found.files_sha256,
    }


def _said(path: Path, tables: dict[str, Table]) -> dict[str, Any]:
    kernels, servers = tables["kernels"], tables["servers"]
    counts = {op: len(kernels.where(op=op)) for op in kernels.present("op")}
    left_out = dict(kernels.left_out)
    for reason, count in servers.left_out.items():
        left_out[f"whole servers: {reason}"] = count
    return {
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "source": ", ".join(f"{name} {value}" for name, value in kernels.sources.items() if name != "models"),
        "rows": counts | {"whole servers": len(servers)},
        "left_out": dict(sorted(left_out.items(), key=lambda item: -item[1])),
    }
