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

BLOCK = re.compile(r"^```python\n# (\S+?)(?:, (in|above) (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A file's path, perhaps the table or function that the code goes into or above, and the code."""


def insert(text: str, where: str, name: str, code: str) -> str:
    """Put code above a function, or as a row at the top of a table: a tuple, a dict or a comprehension over a tuple."""
    table = rf"^{name}\b.*[({{]\n(?:.*\n    for .* in \(\n)?"
    found = re.search(table if where == "in" else rf"^(?=def {name}\b)", text, re.MULTILINE)
    assert found, f"there is no {name}"
    row = code.strip().removeprefix("{").removesuffix("}")
    return text[: found.end()] + (f"{row},\n" if where == "in" else f"{code}\n\n") + text[found.end() :]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    for part in ("bench", "kernels", "tests"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for path, where, name, code in BLOCK.findall((ROOT / ".github/CONTRIBUTING.md").read_text()):
        file = root / path
        assert file.exists() is bool(where), f"{path}: a table needs its file, and a whole file must be new"
        file.parent.mkdir(exist_ok=True)
        file.write_text(insert(file.read_text(), where, name, code) if where else code)
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
    assert re.search(r"\b([6-9]|[1-9]\d+) passed", said)
    rows = decodebench(copy, "list", "impls", "--op", "rms_norm")
    assert [(row["impl"], row["kind"]) for row in rows] == [("triton", "ours"), ("torch", "peer"), ("quack", "peer")]


@pytest.mark.slow
def test_the_operation_is_measured_and_reported(copy: Path) -> None:
    asked = ["--op", "rms_norm", "--impl", "torch,quack", "--device", "cpu", "--suite", "smoke", "--cap", "0.1"]
    said = decodebench(copy, "run", *asked)  # without our CPU kernels, which take seconds to compile
    assert said["records"].keys() == {"ok", "refused"}
    assert "RMSNorm" in (copy / said["directory"] / "report.md").read_text()
    lines = [json.loads(line) for line in (copy / said["directory"] / "records.jsonl").read_text().splitlines()]
    (*_, predicted) = [line for line in lines if line["kind"] == "prediction" and line["op"] == "rms_norm"]
    assert predicted["measured"]["seconds"] > 0
    reasons = {line["impl"]: line["reason"] for line in lines if line["kind"] == "record" and line["op"] == "rms_norm"}
    assert reasons["torch"] is None
    assert reasons["quack"] == "needs an NVIDIA GPU of sm_90 or later"


@pytest.mark.slow
def test_the_kernel_compiles_well(copy: Path) -> None:
    pytest.importorskip("triton")
    reports = decodebench(copy, "codegen", "--op", "rms_norm", "--sm", "90", "--suite", "quick")
    assert {report["kernel"] for report in reports} == {"norm_kernel"}


def test_the_gpu_and_the_model_are_predicted(copy: Path) -> None:
    """The shared memory of the GPU is that of its compute capability."""
    (part,) = [row for row in decodebench(copy, "list", "devices") if row["key"] == "example-gpu"]
    assert part["smem_per_sm"] == 256 << 10
    arguments = ["--model", "example-1b", "--device", "example-gpu", "--batch", "1"]
    row = decodebench(copy, "predict", *arguments)[0]
    # 1.24e9 weights of 2 B and 4096 tokens of 32 KiB at 10 TB/s
    assert row["seconds"] == pytest.approx((2 * 1.24e9 + 4096 * 32768) / 10e12, rel=0.02)


def test_the_model_family_is_read(copy: Path, tmp_path: Path) -> None:
    config = {"model_type": "example", "depth": 4, "hidden_size": 256, "num_attention_heads": 4}
    config |= {"intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 4096, "sliding_window": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    row = decodebench(copy, "predict", "--config", str(tmp_path / "config.json"), "--batch", "1")[0]
    # two layers keep 4096 tokens and two keep 64, each of K and V with 4 heads of 64 elements of 2 B
    assert row["kv_bytes_per_request"] == 2 * (4096 + 64) * 2 * 4 * 64 * 2
    assert "example" in " ".join(python(copy, "-m", "bench", "predict", "--help").split())


def test_the_claim_is_judged(copy: Path) -> None:
    verdict = decodebench(copy, "claims", "--explain", "Y1")
    assert verdict["status"] == "HOLDS"
