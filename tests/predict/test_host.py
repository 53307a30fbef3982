"""`predict --part cpu`: which run stands for this machine, and what does not fit into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.predict import host, sweep
from bench.records import Record
from bench.run import load_run
from tests.support.synthetic_run import ceiling_records, record, write_run

CPU = {"kind": "cpu", "name": "Some CPU", "sm_count": 2}


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_model", lambda: "Some CPU")
    monkeypatch.setattr(host, "usable_cores", lambda: 2)


def write(root: Path, directory: str, started: str, records: list[Record] | None = None, **target: Any) -> Path:
    return write_run(
        root / "some-device" / directory,
        ceiling_records() if records is None else records,
        started=started,
        target=CPU | target,
        device={"key": None, "name": "Some CPU"},
        environment={"memory_bytes": 16 * 10**9},
    )


def test_the_newest_run_of_this_processor_with_a_roof_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "z-older", "2026-01-01T00:00:00Z")
    newest = write(tmp_path, "newest", "2026-02-01T00:00:00Z")
    write(tmp_path, "other", "2026-03-01T00:00:00Z", name="Another CPU")
    write(tmp_path, "more-cores", "2026-03-01T00:00:00Z", sm_count=64)
    write(tmp_path, "gpu", "2026-03-01T00:00:00Z", kind="cuda")
    write(tmp_path, "no-roof", "2026-03-01T00:00:00Z", [record("kv_append", "torch", "x", read=1, seconds=1e-3)])
    for name, text in (("damaged", '{"kind": "run", "tar'), ("empty", ""), ("a-list", "[1]")):
        (tmp_path / "some-device" / name).mkdir()
        (tmp_path / "some-device" / name / "records.jsonl").write_text(text)
    assert host.newest_run(tmp_path) == newest


def test_without_a_run_it_says_how_to_make_one(tmp_path: Path) -> None:
    write(tmp_path, "other", "2026-03-01T00:00:00Z", name="Another CPU")
    with pytest.raises(BadRequest, match=r"Some CPU, 2 cores.*decodebench run --device cpu --suite smoke"):
        host.newest_run(tmp_path)


def test_the_hosts_memory_says_what_fits(tmp_path: Path) -> None:
    run = load_run(write(tmp_path, "run", "2026-01-01T00:00:00Z"))
    asked: dict[str, Any] = {"config": None, "parts": [], "batches": [1], "contexts": [4096], "run": run}
    small, large = (sweep.sweep(model="llama-3.1-8b", weights=[weights], **asked)[0] for weights in ("int4", "bf16"))
    assert (small["fits"], small["capacity_bytes"]) == (True, 16 * 10**9)
    assert small["tokens_per_second"] == pytest.approx(1 / small["seconds"])
    assert (large["fits"], large["smallest_devices"]) == (False, None), "no table knows this processor"
    headers, (line,) = sweep.table([large])
    assert line[headers.index("fits")] == "NO"
