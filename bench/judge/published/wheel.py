"""Where NVIDIA's tables come from: the package `aiconfigurator-core`, installed, or its wheel, not installed."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BadRequest

PACKAGE = "aiconfigurator-core"
INSIDE = "aiconfigurator_core/systems/"
PINNED = "0.12.0"
"""The version that the committed table was made from."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """Files below `aiconfigurator_core/systems/`, by their names there."""

    where: str
    version: str
    wheel_sha256: str
    """Of the wheel's file; empty for an installed package."""
    names: tuple[str, ...]
    read: Callable[[str], bytes]
    files_sha256: str
    """Over the files' names and their hashes in RECORD: the same for a wheel and for what was installed from it."""


def find(path: Path | None = None) -> Package:
    """The wheel at `path`, or in that directory; without a path the installed package. Raises `BadRequest`."""
    if path is None:
        return _installed()
    if path.is_dir():
        wheels = sorted(path.glob("aiconfigurator_core-*.whl"))
        if not wheels:
            raise BadRequest(f"{path} holds no wheel of {PACKAGE}")
        path = wheels[-1]
    try:
        archive = zipfile.ZipFile(path)
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        listed = archive.read(record).decode()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise BadRequest(f"{path} is no wheel: {error or 'it has no RECORD'}") from None
    version = record.split("-")[1].removesuffix(".dist")
    return _package(str(path), version, digest, listed, lambda name: archive.read(INSIDE + name))


def is_installed() -> bool:
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _installed() -> Package:
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BadRequest(
            f"{PACKAGE} is not installed: `pip install decodebench[published]`, or `decodebench published fetch`"
        ) from None
    listed = found.read_text("RECORD") or ""
    root = Path(str(found.locate_file(INSIDE)))
    return _package(str(root), found.version, "", listed, lambda name: (root / name).read_bytes())


def _package(where: str, version: str, digest: str, record: str, read: Callable[[str], bytes]) -> Package:
    listed = (row for row in csv.reader(io.StringIO(record)) if row and row[0].startswith(INSIDE))
    hashes = {row[0].removeprefix(INSIDE): row[1] for row in listed}
    if not hashes:
        raise BadRequest(f"{where} holds no tables")
    whole = hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()
    names = tuple(sorted(hashes))
    return Package(where=where, version=version, wheel_sha256=digest, names=names, read=read, files_sha256=whole)


def fetch(into: Path, version: str = PINNED) -> Package:
    """The wheel of this version in `into`, downloaded by pip if it is not there yet. Raises `BadRequest`."""
    if not list(into.glob(f"aiconfigurator_core-{version}-*.whl")):
        into.mkdir(parents=True, exist_ok=True)
        asked = [f"{PACKAGE}=={version}", "--no-deps", "--only-binary", ":all:", "--python-version", "3.12"]
        command = [*_pip(), "download", "-q", "--dest", str(into), *asked]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise BadRequest(f"{PACKAGE} {version} could not be downloaded: {last}")
    return find(into)


def _pip() -> list[str]:
    """The pip of this Python, or the one on the PATH: environments that uv makes have none."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise BadRequest(
        "there is no pip to download with: install the extra `published` instead (`uv sync --extra published`)"
    )
