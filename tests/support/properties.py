"""hypothesis, or stand-ins that skip the property tests alone where it is not installed."""

from __future__ import annotations

from typing import Any

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError:

    class Strategy:
        """Whatever a strategy is made by, it is this one."""

        def __call__(self, *_: Any, **__: Any) -> Strategy:
            return self

        def __getattr__(self, name: str) -> Strategy:
            if name.startswith("_"):  # pytest looks for marks of its own on every object of a module
                raise AttributeError(name)
            return self

    def given(*_: Any, **__: Any) -> Any:
        return pytest.mark.skip(reason="needs the package hypothesis, which is not installed")

    def settings(*_: Any, **__: Any) -> Any:
        return lambda test: test

    st: Any = Strategy()

__all__ = ["given", "settings", "st"]
