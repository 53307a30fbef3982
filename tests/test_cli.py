"""The command line as a user sees it. An error that the user can mend is one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from bench.cli import main
from bench.errors import BadRequest
from bench.judge.claims import CLAIMS
from bench.machine import usable_cores
from bench.measure import runner
from bench.terminal import screen
from bench.terminal.arguments import duration, whole_numbers
from bench.terminal.progress import Live
from tests.support import ROOT
from tests.support.synthetic_run import ceiling_records, record, write_run


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def decodebench(*arguments: str) -> Done:
    """Run the command line in this process. A new process would import everything again."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(ROOT)
        patch.setattr("sys.argv", ["decodebench", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
    return Done(int(done.value.code or 0), out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "smok"], "unknown suite 'smok'; did you mean smoke?"),
        (["run", "--op", "ffn_gem"], "unknown op 'ffn_gem'; did you mean ffn_gemv"),
        (["run", "--device", "tpu"], "tpu"),
        (["run", "--budget", "soon"], "'soon' is no duration"),
        (["claims", "--explain", "I4", "--csv"], "which is no table"),
        (["predict", "--model", "llama-2-7b", "--tpot", "50"], "no short duration with its unit; write 50ms"),
        (["run", "--budget", "0"], "--budget: wants more than 0 seconds, not 0"),
        (["campaign", "--out", "/nowhere", "--budget", "0s"], "--budget: wants more than 0 seconds, not 0"),
        (["run", "--op", " , "], "--op is empty"),
        (["run", "--op", "stream,ffn_gem"], "unknown op 'ffn_gem'; did you mean ffn_gemv"),
        (["predict", "--model", "llama-2-7b", "--device", ","], "--device is empty"),
        (["predict", "--model", "llama-2-7b", "--batch", "1,1.5"], "--batch wants whole numbers, not '1.5'"),
        (["predict", "--model", "llama-2-7b", "--devices", "3"], "3 devices cannot share them evenly; try 1, 2, 4"),
        (["predict", "--model", "llama-2-7b", "--config", "/nowhere.json"], "not both"),
        (["predict", "--model", "llama-2-7b", "--from", "/nowhere"], "no such run: /nowhere"),
        (["predict", "--model", "llama-2-7b", "--from", "/nowhere", "--device", "b200"], "leave out --device"),
        (["run", "--cap", "nan"], "--cap: wants more than 0 seconds"),
        (["run", "--hang", "0"], "--hang: wants more than 0 seconds"),
        (["run", "--suite", "smoke", "--case", "B9999"], "no case has 'B9999' in its id"),
        (["counters", "--case", "B9999"], "no case has 'B9999' in its id"),
        (["campaign", "--out", "/nowhere", "--case", "B9999"], "no case has 'B9999' in its id"),
        (["run", "--resume", "/nowhere"], "no such run: /nowhere"),
        (["report", "/nowhere"], "no such run: /nowhere"),
        (["list", "cass"], "did you mean cases?"),
        (["list", "cases", "--op", "atention_decode"], "did you mean attention_decode"),
        (["list", "impls", "--op", "atention_decode"], "did you mean attention_decode"),
        (["list", "impls", "--suite", "smoke"], "--suite chooses among cases"),
        (["list", "devices", "--op", "stream"], "--op says nothing about devices"),
        (["codegen", "--op", "nothing-like-it"], "known: "),
        (["codegen", "--sm", "70"], "70"),
        (["predict", "--model", "lama-3.1-70b"], "did you mean llama-3.1-70b"),
        (["predict", "--model", "llama-3.1-70b", "--device", "h100"], "did you mean h100-sxm, h100-pcie, h100-nvl?"),
        (["predict", "--model", "llama-2-7b", "--plot", "/nowhere/p.png"], "cannot write /nowhere/p.png: No such file"),
        (["predict", "--model", "llama-2-7b", "--context", "999999"], "context"),
        (["predict", "--config", "/nowhere.json"], "cannot read"),
        (["claims", "--explain", "Z9"], "unknown claim 'Z9'"),
        (["compare", "/nowhere", "/nowhere"], "no such run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = decodebench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("decodebench: ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_an_option_that_does_not_exist() -> None:
    done = decodebench("run", "--siute", "smoke")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_says_what_is_done_by_default() -> None:
    assert "default: quick on a GPU" in " ".join(decodebench("run", "--help").stdout.replace("│", " ").split())


def test_lists_are_of_the_operation_that_is_asked_for() -> None:
    for what in ("ops", "impls"):
        rows = json.loads(decodebench("list", what, "--op", "kv_append", "--json").stdout)
        assert {row["op"] for row in rows} == {"kv_append"}


def test_operations_may_be_given_again_or_with_commas() -> None:
    rows = json.loads(decodebench("list", "ops", "--op", "kv_append, stream", "--op", "ffn_gemv", "--json").stdout)
    assert sorted(row["op"] for row in rows) == ["ffn_gemv", "kv_append", "stream"]


@pytest.mark.parametrize(("module", "arguments"), [("typer", []), ("rich", ["list", "models"])])
def test_a_package_that_is_not_there_is_one_line_and_exit_code_2(module: str, arguments: list[str]) -> None:
    done = without(module, *arguments)
    assert done.returncode == 2
    assert done.stderr == (
        f"decodebench: the package '{module}' is not installed; from the repository's root: pip install -e .\n"
    )


def test_another_package_of_the_name_kernels_is_one_line_and_exit_code_2() -> None:
    done = without("kernels.op", "list", "ops")
    assert done.returncode == 2
    assert done.stderr.startswith("decodebench: the package `kernels` that Python finds is another one")
    assert done.stderr.count("\n") == 1


def test_a_module_of_our_own_that_is_not_there_keeps_its_traceback() -> None:
    done = without("bench.errors")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench` in a process that cannot import this module."""
    code = f"import runpy, sys; sys.modules[{module!r}] = None; runpy.run_module('bench', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_devices_are_listed_for_people_and_with_every_number_and_source_for_machines() -> None:
    lines = {line.split()[0]: line for line in decodebench("list", "devices").stdout.splitlines()}
    assert " 21,000" in lines["wse-3"], "no number has an exponent"
    assert " 3.35 " in lines["h100-sxm"]
    rows = {row["key"]: row for row in json.loads(decodebench("list", "devices", "--json").stdout)}
    assert rows["h100-sxm"]["memory_bandwidth"]["value"] == 3.35e12
    assert "H100" in rows["h100-sxm"]["memory_bandwidth"]["source"]
    assert rows["rubin-cpx"]["memory_bandwidth"] is None
    assert "two cards" in rows["h100-nvl"]["note"]


def test_predict_for_machines() -> None:
    rows = json.loads(decodebench("predict", "--model", "llama-3.1-70b", "--batch", "1", "--json").stdout)
    assert rows[0]["device"] == "h100-sxm"
    # 139 GB of weights over 3.35 TB/s
    assert rows[0]["weight_seconds"] == pytest.approx(41.5e-3, rel=0.01)


def test_claims_for_machines() -> None:
    verdicts = json.loads(decodebench("claims", "--json").stdout)
    assert [verdict["id"] for verdict in verdicts] == list(CLAIMS)


def test_what_cannot_be_written_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    write_run(tmp_path, [record("kv_append", "torch", "x", read=1 << 20, seconds=1e-3)])
    (tmp_path / "report.md").mkdir()
    done = decodebench("report", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"decodebench: {tmp_path / 'report.md'}: Is a directory\n"


def test_a_run_ends_with_its_answer_and_one_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring is pretended: the run lies there already."""
    path = write_run(tmp_path, [record("kv_append", "torch", "x", read=1 << 20, seconds=1e-3)])
    monkeypatch.setattr("bench.measure.runner.run", lambda *_: runner.Outcome(directory=path))
    lines = [line for line in decodebench("run", "--suite", "smoke").stdout.splitlines() if line]
    assert [line.split()[0] for line in lines] == ["Memory-bound?", "How", "Trust", "report:"]
    assert lines[-1] == f"report: {path / 'report.html'}"
    found = json.loads(decodebench("run", "--suite", "smoke", "--json").stdout)
    assert found["answer"]["Memory-bound?"] == lines[0].removeprefix("Memory-bound? ")
    assert (
        decodebench("run", "--suite", "smoke", "--no-html").stdout.splitlines()[-1] == f"report: {path / 'report.md'}"
    )


def test_several_runs_are_reported_side_by_side_and_a_slower_one_fails(tmp_path: Path) -> None:
    runs = []
    for day, seconds in enumerate((1e-3, 2e-3), start=1):
        records = [record("kv_append", "torch", "x", read=1 << 20, seconds=seconds)]
        runs.append(str(write_run(tmp_path / str(day), records, started=f"2026-01-0{day}T00:00:00Z")))
    done = decodebench("report", *runs, "--out", str(tmp_path))
    assert done.returncode == 1
    assert "slower: kv_append x torch 2.000x" in done.stdout
    assert decodebench("report", *runs, "--out", str(tmp_path), "--threshold", "1.5").returncode == 0


def test_the_page_with_sliders_begins_where_it_is_asked_to(tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    done = decodebench("predict", "--html", str(page), "--model", "llama-2-7b", "--part", "h200", "--price", "3.5")
    assert (done.returncode, done.stdout.strip()) == (0, str(page))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    chosen = json.loads(data)["chosen"]
    assert (chosen["part"], chosen["price"], chosen["context"]) == ("h200", 3.5, 4096)


def test_a_damaged_and_partial_run_is_said_where_it_is_judged(tmp_path: Path) -> None:
    write_run(tmp_path, [record("kv_append", "torch", "x", read=1 << 20, seconds=1e-3)], end=False)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"kind": "rec')
    for arguments in (["claims"], ["predict", "--model", "llama-2-7b", "--from"]):
        done = decodebench(*arguments, str(tmp_path), "--json")
        assert "not JSON" in done.stderr
        assert "the run is partial" in done.stderr


def test_predict_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its newest run, whose directory is named on stderr."""
    target = {"kind": "cpu", "name": "Some CPU", "sm_count": usable_cores()}
    write_run(tmp_path / "reports/cpu/run", ceiling_records(), target=target)
    monkeypatch.setattr("bench.predict.host.cpu_model", lambda: "Some CPU")
    monkeypatch.setattr("tests.test_cli.ROOT", tmp_path)
    asked = ("predict", "--model", "llama-3.1-8b", "--part", "cpu", "--batch", "1", "--json")
    done = decodebench(*asked)
    assert "reports/cpu/run" in done.stderr
    (row,) = json.loads(done.stdout)
    assert row["tokens_per_second"] == pytest.approx(1 / row["seconds"])
    monkeypatch.setattr("bench.predict.host.cpu_model", lambda: "Another CPU")
    done = decodebench(*asked)
    assert (done.returncode, "decodebench run --device cpu" in done.stderr) == (2, True)


def test_a_narrow_terminal_cuts_no_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    headers, rows = ["case", "ms/token", "verdict"], [["B8-Hq32-Hkv8-D128-T4096", "1,342", "not slower"]]
    for columns in (60, 40, 20):
        monkeypatch.setenv("COLUMNS", str(columns))
        screen.show(headers, rows)
        said = capsys.readouterr().out
        assert "1,342" in said
        assert "…" not in said
        assert said.count("ms/token") == said.count("verdict") == 1, "the header is said once"
        assert (len(said.splitlines()) == 2) is (columns == 60), "a row has a second line where one is too short"
        assert "".join(said.split()).count("B8-Hq32-Hkv8-D128-T4096") == 1


def test_durations() -> None:
    assert [duration("--budget", text) for text in ("90", "90s", "8m", "1.5h")] == [90, 90, 480, 5400]
    with pytest.raises(BadRequest, match="--budget: '8 parsecs' is no duration"):
        duration("--budget", "8 parsecs")


def test_lists_of_whole_numbers() -> None:
    assert whole_numbers(" 1,8, 64,", "batch") == [1, 8, 64]


def test_a_result_on_the_screen_keeps_its_digits_and_names_its_prediction() -> None:
    """262 kB in 12.4 ms, predicted 224 us. The line shows neither 0.0 GB/s nor 0.00 TFLOP/s, and the error as such."""
    screen = Console(file=StringIO(), width=200)
    prediction = {"measured": {"seconds": 224e-6, "terms": {}, "bound": "launch"}}
    Live(screen).record(
        record("kv_append", "torch", "x", read=262_400, seconds=12.4e-3, prediction=prediction, flags=["noisy"])
    )
    line = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "21.2 MB/s" in line
    assert "FLOP/s" not in line
    assert re.search(r"predicted +224 µs +\(\+5,4\d\d%\)  noisy", line)


def test_tables_come_as_csv_and_markdown_too() -> None:
    rows = decodebench("list", "devices", "--csv").stdout.splitlines()
    assert rows[0].startswith("key,part,year,GB,TB/s")
    assert any(row.startswith("h200,NVIDIA H200") for row in rows)
    lines = decodebench("claims", "--md").stdout.splitlines()
    assert lines[1].startswith("| --- |")
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    refused = decodebench("list", "ops", "--csv", "--md")
    assert (refused.returncode, refused.stderr) == (2, "decodebench: choose one of --csv and --md\n")


def test_a_shell_completes_commands() -> None:
    environ = {"_DECODEBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "decodebench sel", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['decodebench']; from bench.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environ}, cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout.decode().split()) == (0, ["selfcheck"])
