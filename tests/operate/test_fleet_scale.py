"""One head with the shares of 10,000 GPUs: its time, and its memory as samples grow."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.operate.fleet import engines, head
from bench.operate.fleet.node import Event, Task
from bench.records import FILE
from tests.support import ROOT
from tests.support.fleets import REQUEST, Heard

CASES = {f"kind{k}": {f"case{c}": [1.0, 1.0, 1.0] for c in range(25)} for k in range(10)}
"""About as many as the full suite has."""
SUMMARY = {"part": "P", "on_gpu": True, "complete": True, "times": CASES}


class Synthetic(engines.Local):
    """Nodes of eight shares, which send `size` bytes of records each."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.count, self.size = count, size

    def nodes(self) -> list[str]:
        return [f"n{i}" for i in range(self.count)]

    def run(self, name: str, task: Task) -> Iterator[Event]:
        shares = [{"name": f"gpu{g}", "slot": f"0000:0{g}:00.0", "serial": f"{name}{g}"} for g in range(8)]
        yield {"kind": "node", "host": name, "shares": shares}
        for each in shares:
            yield {"kind": "records", "share": each["name"], "text": "x" * self.size + "\n"}
            yield {"kind": "end", "share": each["name"], "code": 0, "said": "", "summary": SUMMARY}


def collect(count: int, size: int, out: Path) -> None:
    """Print how many megabytes the head had at most."""
    assert head.measure(out, REQUEST, "ray", Synthetic(count, size), Heard())
    print(megabytes())


def judge(out: Path) -> None:
    verdict = head.verdict(out)
    assert not verdict.outliers
    assert len(verdict.table().rows) == 100
    print(len(verdict.members), len(verdict.lines()), megabytes())


def megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def said(code: str, *arguments: str) -> list[int]:
    """What a process of its own prints."""
    command = [sys.executable, "-c", f"import sys; from {__name__} import *; {code}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_ten_thousand_shares_are_merged_and_judged_within_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    """Seconds of the cores, since other tests run beside this one."""
    began = children_s()
    (merging,) = said("collect(1250, 2000, Path(sys.argv[1]))", str(tmp_path))
    count, _, judging = said("judge(Path(sys.argv[1]))", str(tmp_path))
    assert children_s() - began < 60
    assert (count, len([*tmp_path.glob(f"*/*/{FILE}")])) == (10_000, 10_000)
    assert max(merging, judging) < 2000


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_the_memory_of_the_head_does_not_grow_with_samples(tmp_path: Path) -> None:
    """Of 128 shares, 1 MB or 100 MB of records."""
    few, many = (
        said(f"collect(16, {size}, Path(sys.argv[1]))", str(tmp_path / str(size)))[0] for size in (8_000, 800_000)
    )
    assert sum(path.stat().st_size for path in tmp_path.glob(f"800000/*/*/{FILE}")) > 100e6
    assert many - few < 50
