"""Tables and results on terminals of 80 to 200 columns: nothing is cut that a reader needs whole."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.records import FILE
from bench.run import load_run
from bench.terminal import tables
from bench.terminal.progress import Live, fitting
from kernels.op import Target, discover
from tests.support import ROOT
from tests.support.synthetic_run import record
from tests.support.terminal import on_a_terminal

RUN = next((ROOT / "reports").glob(f"cpu-intel-*/*/{FILE}")).parent
IDS = [(op.name, case.id) for op in discover().values() for case in op.cases("full")]
HEADERS = ["op", "case", "implementation", "a", "b", "b / a", "verdict", "flags"]
ROWS = [
    [op, case, "triton-cascade", "1.06 ms ±10.6%", f"{n}.3 µs", f"1.000 [0.852, {n}.157]", "slower" * (n % 2), "noisy"]
    for n, (op, case) in enumerate(IDS)
]


@pytest.mark.parametrize("width", [*range(80, 201, 20)])
def test_ids_and_numbers_stay_whole_and_the_header_is_said_once(width: int) -> None:
    found = tables.fit(HEADERS, ROWS, width, ())
    header, lines = tables.lines(found, width)
    assert max(map(len, [*header, *lines])) <= width
    assert "\n".join(header).split() == [word for name in found.headers for word in name.split()]
    text = [*"\n".join(lines).split("\n")]
    for cells, said in zip(found.rows, zip(*[iter(text)] * len(found.parts()), strict=True), strict=True):
        assert all(cell in "\n".join(said) for cell in cells)
    shown = {*found.headers, *found.gone, *(name for name, _ in found.everywhere)}
    assert shown == set(HEADERS)
    assert {"op", "case", "b / a", "verdict"} <= set(found.headers)


@pytest.mark.parametrize("width", [60, 80])
def test_texts_wrap_between_words_and_numbers_keep_their_units(width: int) -> None:
    text = "a text of some length with 141 GB in it, which wraps where it must and never between 3.35 TB/s and its unit"
    found = tables.fit(["key", "about", "GB"], [["h200", text, "141"]] * 2, width, ())
    _, lines = tables.lines(found, width)
    assert found.headers == ["key", "about", "GB"]
    assert len(lines) > 2
    assert all(not re.search(r"(^| )(141|3\.35)$", line[:-6].rstrip()) for line in lines)
    assert " ".join(" ".join(line.split()) for line in lines).count("141 GB") == 2


def test_columns_go_by_importance_and_are_named() -> None:
    headers = ["part", "batch", "ms/token", "out:in", "fits"]
    rows = [["4 x h200", str(batch), "12.31", "44.1", "yes"] for batch in (1, 8)]
    found = tables.fit(headers, rows, 32, ["out:in", "batch"])
    assert (found.headers, found.gone) == (["part", "batch", "ms/token", "fits"], ("out:in",))
    found = tables.fit(headers, rows, 30, ["out:in"])
    assert found.everywhere == (("fits", "yes"),)
    assert tables.fit([], [], 80, ()).headers == []


@pytest.mark.parametrize("columns", [80, 120])
def test_compare_on_a_terminal(columns: int) -> None:
    said = on_a_terminal(columns, "compare", str(RUN), str(RUN)).splitlines()
    start = next(number for number, line in enumerate(said) if line.startswith("op "))
    table = said[start:]
    assert max(map(len, table)) <= columns
    assert sum(line.startswith("op ") for line in said) == 1
    assert "…" not in "\n".join(table)
    ids = {line.split()[1] for line in table[:-1] if line[:1].isalpha()} - {"case"}
    assert len(ids) >= 20
    assert ids == {record.case_id for record in load_run(RUN).timed}
    assert table[-1] == "of 39 times: 39 undecided", "the tally comes last"


LONG = "B8-Hq32-Hkv8-D128-T1024-ragged-page16-bf16"


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("flags", [[], ["noisy", "disturbed"]])
def test_a_result_of_a_run_fits_its_terminal(width: int, flags: list[str]) -> None:
    screen = Console(file=StringIO(), width=width, force_terminal=True, no_color=True)
    prediction = {"measured": {"seconds": 224e-6, "terms": {}, "bound": "launch"}}
    fields = {"read": 262_400, "flops": {"mma_bf16": 10**9}, "seconds": 12.4e-3, "prediction": prediction}
    Live(screen).record(record("attention_decode", "triton-cascade", LONG, flags=flags, **fields))  # type: ignore[arg-type]
    said = re.sub(r"\x1b\[[\d;?]*\w", "", screen.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert max(map(len, said)) <= width
    assert said[0].split()[:3] == ["attention_decode", LONG, "triton-cascade"]
    assert any("12.4 ms" in line and "predicted" in line for line in said)
    assert all(any(flag in line for line in said) for flag in flags)
    assert len(said) == (1 if width == 200 else 2)


def test_a_line_keeps_the_time_longest() -> None:
    first, second = fitting(
        ["op", "case", "impl"], ["1.0 ms", "2 GB/s", "3 GFLOP/s", "  predicted 1 ms (+0%)"], "noisy", 30
    )
    assert first == "op case impl"
    assert second.startswith("  1.0 ms")
    assert len(second) <= 30


def test_the_bar_ends_at_all(tmp_path: Path) -> None:
    screen = Console(file=StringIO(), width=100, force_terminal=True)
    target = Target(kind="cpu", name="Some CPU")
    with Live(screen) as live:
        live.begin(target, tmp_path, 3, 1)
        for case in ("a", "b"):
            live.working("stream", case)
    assert screen.file.getvalue().rsplit("/3", 1)[0].endswith("3")  # type: ignore[attr-defined]


SCRIPT = """
from pathlib import Path
from bench.records import Record
from bench.terminal.progress import Live
from kernels.op import Target
work = {"flops": {"mma_bf16": 10**9}, "bytes_read": 1 << 20, "bytes_written": 0}
ids = ["B8-Hq32-Hkv8-D128-T1024-ragged-page16-bf16", "B8-Hq32-Hkv8-D128-T1024-ragged-page32-bf16"]
with Live.on(stderr=False) as live:
    live.begin(Target(kind="cpu", name="Some CPU"), Path("reports/x"), 2, 0)
    for id in ids:
        live.working("attention_decode", id)
        live.record(Record(op="attention_decode", impl="triton-cascade", ours=True, case_id=id, case={}, status="ok",
            work=work, samples_s=[1.234e-3, 1.235e-3], flags=["noisy"],
            prediction={"measured": {"seconds": 1e-3, "terms": {}, "bound": "memory"}}))
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_results_on_a_terminal_beside_the_bar(columns: int) -> None:
    said = on_a_terminal(columns, program=["-c", SCRIPT])
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;?]*\w|\r", "\n", said).splitlines()]
    for page in ("page16", "page32"):
        name = f"attention_decode B8-Hq32-Hkv8-D128-T1024-ragged-{page}-bf16 triton-cascade"
        assert any(line.startswith(name) for line in lines)
    assert all(len(line) <= columns for line in lines)
    assert sum("1.23 ms" in line and "predicted" in line for line in lines) == 2
    assert re.findall(r"(\d+)/(\d+)", said)[-1] == ("2", "2")
