"""The tests can be collected with pytest alone, without the packages that make it faster or more thorough."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

ABSENT = ("xdist", "hypothesis", "pytest_timeout")
CODE = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))  # None: an import raises ModuleNotFoundError
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run(*arguments: str) -> str:
    """Run pytest and return what it prints. A setting that needs an absent plugin is an error."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, "-W", "error::pytest.PytestConfigWarning", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_all_tests_are_collected() -> None:
    assert "test_stats.py" in run("--collect-only", "tests")


def test_property_tests_alone_are_skipped() -> None:
    said = run("-rs", "tests/test_stats.py")
    assert "1 skipped" in said
    assert "needs the package hypothesis" in said
    assert "passed" in said


def test_pytest_m_cuda_selects_the_gate_of_every_kernel() -> None:
    said = run("--collect-only", "-m", "cuda", "tests/kernels/test_ops.py")
    for gate in ("ffn_gemv-triton", "attention_decode-triton", "stream-torch"):
        assert f"test_implementations_pass_the_gate[{gate}" in said
