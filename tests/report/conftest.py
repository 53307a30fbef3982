"""The run that most tests of the report look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import report
from tests.support.browser import Browser, chromium
from tests.support.synthetic_run import ceiling_records, decode_records, extras, write_run


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic run of every kind of record, with its report."""
    run = write_run(tmp_path_factory.mktemp("synthetic"), [*ceiling_records(), *decode_records(), *extras()])
    report.write(run)
    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found
