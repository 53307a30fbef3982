"""Whole commands on terminals of 80 and 120 columns: a run from its first line to its answer, and what judges it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.judge.claims import CLAIMS
from bench.records import FILE
from bench.run import load_run
from bench.terminal import tables
from tests.support import ROOT
from tests.support.terminal import on_a_terminal

RUN = next((ROOT / "reports").glob(f"cpu-intel-*/*/{FILE}")).parent

PLANTED = """
import dataclasses, os, sys
os.environ |= {"PYTHONPATH": %r, "OMP_NUM_THREADS": "1"}
from bench.cli import main
from bench.measure import runner
measured = runner.run
planted = {"catalogue": "tests.support.planted", "impls": ("honest", ), "case": "B8-K4096", "cap_s": 0.01}
runner.run = lambda request, *others: measured(dataclasses.replace(request, **planted), *others)
sys.argv = ["decodebench", "run", "--device", "cpu", "--suite", "smoke", "--no-html", "--out", sys.argv[1]]
main()
"""
"""The command `run` on a catalogue of a few small products."""


def lines_of(said: str) -> list[str]:
    """What stands on the screen, each state of the bar as a line of its own."""
    whole = re.sub(r"\x1b\[[\d;]*m", "", said)  # colours of the bar stand within lines
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "\n", whole).splitlines() if line.strip()]


@pytest.mark.slow
def test_a_run_from_its_first_line_to_its_answer(tmp_path: Path) -> None:
    columns = 80
    said = on_a_terminal(columns, str(tmp_path), program=["-c", PLANTED % str(ROOT)])
    lines = lines_of(said)
    paths = [line for line in lines if str(tmp_path) in line]
    assert max(len(line) for line in lines if line not in paths) <= columns
    assert [line.split(" /")[0] for line in paths] == ["writing to", "report:"]
    run = load_run(Path(paths[0].removeprefix("writing to ")))
    for record in run.timed:
        shown = [at for at, line in enumerate(lines) if line.split()[:3] == [record.op, record.case_id, record.impl]]
        assert shown, record.key
        said_of_it = [" ".join(lines[at : at + 3]) for at in shown]
        assert any(re.search(r"\d [mµn]?s\b", each) for each in said_of_it), said_of_it
    done = [(int(at), int(of)) for at, of in re.findall(r"(\d+)/(\d+)", " ".join(lines)) if of != "0"]
    assert done[-1][0] == done[-1][1] >= 2
    assert all(at <= of for at, of in done)
    answer = " ".join(lines[next(at for at, line in enumerate(lines) if line.startswith("Memory-bound?")) :])
    assert re.search(r"Memory-bound\? .* How much\? .* Trust .* report: ", answer)


def test_a_case_that_is_measured_again_is_one_more() -> None:
    from io import StringIO

    from rich.console import Console

    from bench.terminal.progress import Live
    from kernels.op import Target

    screen = Console(file=StringIO(), width=100, force_terminal=True)
    with Live(screen) as live:
        live.begin(Target(kind="cpu", name="Some CPU"), Path("x"), 2, 0)
        for case in ("a", "b", "a"):
            live.working("stream", case)
    told = re.findall(r"(\d+)/(\d+)", screen.file.getvalue())  # type: ignore[attr-defined]
    assert told[-1] == ("3", "3")
    assert all(int(done) <= int(total) for done, total in told)


def commands() -> Iterator[list[str]]:
    run = str(RUN)
    yield ["claims", run]
    yield ["claims", "--explain", "K4"]
    yield ["claims", run, "--explain", "T1"]
    yield ["compare", run, run]
    yield ["predict", "--model", "llama-3.1-70b", "--batch", "1,64", "--part", "h100-sxm,h200", "--tp", "1,2"]
    yield ["predict", "--model", "llama-3.1-8b", "--from", run, "--tpot", "50ms"]
    yield ["predict", "--config", str(ROOT / "tests/data/configs")]
    yield ["step", "--model", "llama-3.1-8b", "--batch", "1", "--context", "4096", "--part", "h200"]


COMMANDS = [*commands()]


@pytest.mark.parametrize(("columns", "command"), [*((80, each) for each in COMMANDS), (120, COMMANDS[4])])
def test_no_line_is_longer_than_the_terminal(columns: int, command: list[str]) -> None:
    lines = lines_of(on_a_terminal(columns, *command))
    assert [line for line in lines if len(line) > columns] == []
    if command[0] == "predict":
        assert sum(line.split()[:1] in (["part"], ["model"]) for line in lines) == 1, "the header is said once"
    if command[0] == "claims" and "--explain" not in command:
        ids = [line.split()[0] for line in lines if line[:1].isalpha()][: len(CLAIMS)]
        assert ids == list(CLAIMS)


def test_long_tables_end_with_a_tally() -> None:
    from bench.cli.inspecting import tally

    assert tally("kernels", 520, 0, "have a problem", []) == "of 520 kernels: all ok"
    names = [*"aabcdefg"]
    assert tally("kernels", 520, 8, "have a problem", names).endswith("512 ok, 8 have a problem (a, b, c, d, ...)")
    assert tally("launches", 3, 1, "were not executed", ["B1"]) == "of 3 launches: 2 ok, 1 were not executed (B1)"


def test_lines_with_a_command_to_copy_stay_whole_and_names_are_never_cut() -> None:
    from bench.terminal.screen import COMMAND

    assert COMMAND.search("interrupted; go on with: decodebench run --resume reports/x")
    assert COMMAND.search("          $ apt-get install -y gcc")
    assert not COMMAND.search("rates, J and $ are those of the floor")
    assert not COMMAND.search("It rests on `decodebench validate`, which says more")
    name, text = "a/" * 40, "  beside 141 GB of memory there is more to say than 3.35 TB/s of it"
    assert tables.paragraph(f"at {name} x", 20) == ["at", f"  {name}", "  x"]
    for width in range(24, 60):
        first, *others = tables.paragraph(text, width)
        assert max(map(len, [first, *others])) <= width
        assert first.startswith("  b")
        assert all(line.startswith("    ") for line in others)
        assert not any(re.search(r"(141|3\.35)$", line) for line in (first, *others))
        assert " ".join(" ".join((first, *others)).split()) == text.strip()
