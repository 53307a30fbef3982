"""The worked examples of CONTRIBUTING.md work in a copy of the tree in which nothing else changes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

BLOCK = re.compile(r"^```python\n# (\S+?)(?:, in (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A file's path, perhaps the name of a table in it, and the code that is the file or goes into the table."""


def insert(text: str, table: str, row: str) -> str:
    """Put a row at the top of a table: a tuple, a dict or a comprehension over a tuple."""
    start = re.search(rf"^{table}\b.*[({{]\n(?:.*\n    for .* in \(\n)?", text, re.MULTILINE)
    assert start, f"there is no table {table}"
    row = row.strip().removeprefix("{").removesuffix("}")
    return f"{text[: start.end()]}{row.rstrip()},\n{text[start.end() :]}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    for part in ("bench", "kernels", "tests"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for path, table, code in BLOCK.findall((ROOT / ".github/CONTRIBUTING.md").read_text()):
        file = root / path
        assert file.exists() is bool(table), f"{path}: a table needs its file, and a whole file must be new"
        file.parent.mkdir(exist_ok=True)
        file.write_text(insert(file.read_text(), table, code) if table else code)
    return root


def python(copy: Path, *arguments: str) -> str:
    """What Python prints in the copy, where Triton kernels are compiled unless pytest has them interpreted."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def decodebench(copy: Path, *arguments: str) -> Any:
    return json.loads(python(copy, "-m", "bench", *arguments, "--json"))


@pytest.mark.slow
def test_the_operation_its_kernel_and_its_peers_pass_the_gate(copy: Path) -> None:
    said = python(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernels/test_ops.py", "-k", "rms_norm")
    assert re.search(r"[6-9] passed", said)
    rows = decodebench(copy, "list", "impls", "--op", "rms_norm")
    assert [(row["impl"], row["kind"]) for row in rows] == [("triton", "ours"), ("torch", "peer"), ("quack", "peer")]


@pytest.mark.slow
def test_the_operation_is_measured_and_reported(copy: Path) -> None:
    options = ["--op", "stream,rms_norm", "--device", "cpu", "--suite", "smoke", "--cap", "0.1", "--no-html"]
    said = decodebench(copy, "run", *options)
    assert said["records"].keys() == {"ok", "refused"}
    assert "RMSNorm" in (copy / said["directory"] / "report.md").read_text()
    assert "needs an NVIDIA GPU of sm_90 or later" in (copy / said["directory"] / "records.jsonl").read_text()


@pytest.mark.slow
def test_the_kernel_compiles_well(copy: Path) -> None:
    pytest.importorskip("triton")
    reports = decodebench(copy, "codegen", "--op", "rms_norm", "--sm", "90", "--suite", "quick")
    assert {report["kernel"] for report in reports} == {"norm_kernel"}


def test_the_gpu_and_the_model_are_predicted(copy: Path) -> None:
    arguments = ["--model", "example-1b", "--device", "example-gpu", "--batch", "1"]
    row = decodebench(copy, "predict", *arguments)[0]
    # 1.24e9 weights of 2 B and 4096 tokens of 32 KiB at 10 TB/s
    assert row["seconds"] == pytest.approx((2 * 1.24e9 + 4096 * 32768) / 10e12, rel=0.02)


def test_the_claim_is_judged(copy: Path) -> None:
    verdict = decodebench(copy, "claims", "--explain", "X1")
    assert verdict["status"] == "HOLDS"
