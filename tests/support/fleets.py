"""A fleet measured by the engine of a test, and what it left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.judge.fleet.verdict import Verdict
from bench.measure.schedule import Request
from bench.operate.fleet import engines, head
from bench.records import FILE
from tests.support import fake_share
from tests.support.patience import patience
from tests.support.synthetic_run import gate

REQUEST = Request(device="cpu", suite="smoke")
KEYS = sorted(gate(share, B=1 << n).key for n, share in enumerate(fake_share.SHARES))

PLANTED = Request(
    device="cpu", suite="smoke", impls=("honest",), catalogue="tests.support.planted", cap_s=0.01, hang_s=20.0
)
PLANTED_KEYS = [("toy", "honest", f"B8-K{k}") for k in (16384, 4096, 8192)]


class Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def at(self, name: str, done: int, total: int, what: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def measured(out: Path, engine: engines.Engine | None = None, **options: Any) -> tuple[Verdict, list[str]]:
    heard = Heard()
    engine = engine or engines.Local()
    request = options.pop("request", REQUEST)
    assert head.measure(out, request, "local", engine, heard, **{"cpu_shares": 2, **options})
    return head.verdict(out), heard.notes


def keys(out: Path) -> list[list[tuple[str, str, str]]]:
    """For each share, what its file holds a record of, in alphabetical order; what was disturbed may be there twice."""
    found = []
    for path in sorted(out.glob(f"*/*/{FILE}")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        records = [line for line in lines if line["kind"] == "record"]
        calm = [(line["op"], line["impl"], line["case_id"]) for line in records if "disturbed" not in line["flags"]]
        again = {(line["op"], line["impl"], line["case_id"]) for line in records if "disturbed" in line["flags"]}
        found.append(sorted([*calm, *(again - set(calm))]))
    return found


def wait_for(what: Callable[[], bool], quiet_s: float = 30.0) -> None:
    """Wait until it is so. It takes `quiet_s` at most on a quiet machine."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < patience(quiet_s)
        time.sleep(0.05)
