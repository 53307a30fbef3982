"""Output of ncu that was cut or damaged: what is whole is used, the rest is said, and nothing is misread."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from bench.inspection import ncu
from tests.support import ROOT

DATA = ROOT / "tests/data"
RAW = (DATA / "ncu_raw_by_hand.csv").read_text()
FILES = sorted(DATA.glob("ncu_*.csv"))
WHOLE = {row.index: row for row in ncu.parse(RAW)}


def launches(text: str) -> dict[int, list[ncu.Row]]:
    found: dict[int, list[ncu.Row]] = {}
    for row in ncu.parse(text, []):
        found.setdefault(row.index, []).append(row)
    return found


def test_a_file_cut_anywhere_gives_whole_launches_only() -> None:
    """Each launch that is given has the numbers of the whole file, but that its last kernels may be missing."""
    whole = launches(RAW)
    for end in range(len(RAW)):
        for index, rows in launches(RAW[:end]).items():
            assert rows == whole[index][: len(rows)], end


def test_a_cut_row_takes_its_launch_with_it_and_is_said() -> None:
    lines = RAW.splitlines()
    damaged: list[str] = []
    rows = ncu.parse("\n".join([*lines[:-1], lines[-1][: len(lines[-1]) // 2]]), damaged)
    last = list(WHOLE)[-1]
    assert last not in {row.index for row in rows}
    assert rows
    assert damaged == [f"line {len(lines)} of ncu's output: the row is not whole; the launch is left out"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234.5", 1234.5), ("1234.5", 1234.5), ("12,345", 12345.0), ("1e3", 1000.0), ("n/a", None), ("", None)],
)
def test_numbers_as_ncu_writes_them(text: str, value: float | None) -> None:
    assert ncu.number("m", "byte", text) == value


@pytest.mark.parametrize("text", ["12,5", "1.234,5", "1,23,456", "0x12", "-3", "1e99", "1 234", "12,"])
def test_a_number_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="m is"):
        ncu.number("m", "byte", text)


def mutated(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(text))
    number = rng.randrange(len(lines))
    ways: list[Callable[[], str]] = [
        lambda: text[:at],
        lambda: text[:at] + rng.choice('",\n\r\x00;%:') + text[at + 1 :],
        lambda: "".join(lines[:number] + lines[number + 1 :]),
        lambda: "".join([*lines[:number], lines[number].replace(",", ";"), *lines[number + 1 :]]),
        lambda: "".join([*lines[:number], lines[number].replace(".", ","), *lines[number + 1 :]]),
        lambda: text.replace(rng.choice(["byte", "inst", "ns", "decodebench-", '"ID"', "Kernel Name"]), "x"),
    ]
    return rng.choice(ways)()


def check(count: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        text = mutated(rng.choice(FILES).read_text(), rng)
        damaged: list[str] = []
        for row in ncu.parse(text, damaged):
            assert all(value >= 0 for value in row.metrics.values())
        assert all("\n" not in sentence for sentence in damaged)


def test_mutated_output_is_read() -> None:
    check(300, seed=1)


@pytest.mark.exhaustive
def test_ten_thousand_mutations_of_an_output() -> None:
    check(10_000, seed=2)
