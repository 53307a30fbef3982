"""Fixtures of fleets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.operate.fleet import node
from tests.support import ROOT


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shares are measured by `tests.support.fake_share`; the folder that controls it."""
    control = tmp_path / "control"
    control.mkdir()
    monkeypatch.setenv("FAKE_SHARE", str(control))
    monkeypatch.setattr(node, "SHARE_PROCESS", "tests.support.fake_share")
    monkeypatch.setattr(node, "POLL_S", 0.05)
    return control
