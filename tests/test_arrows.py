"""The arrows of the house: who may import whom, read from the source; and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

HEAVY = {"torch", "triton"}
LIGHT = (
    "report",
    "judge.claims",
    "predict.roofline",
    "predict.step_model",
    "stats",
    "records",
    "devices",
    "predict.command",
    "cli",
    "measure.runner",
)
"""Modules of `bench` that a machine with neither torch nor triton can use; `runner` leaves both to its worker."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, *, only_at_import: bool = False) -> set[str]:
    """Top-level names of the packages a file imports; with `only_at_import`, not those inside functions."""
    tree = ast.parse(path.read_text())
    found = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if only_at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        todo += ast.iter_child_nodes(node)
    return found


GROUND = ("records", "run", "schema", "files", "ceilings", "stats", "units", "errors", "machine")
"""Files of `bench/` that every room may import."""

ARROWS = {
    "terminal": {"devices"},
    "devices": set(),
    "predict": {"devices"},
    "inspection": {"devices"},
    "measure": {"inspection", "predict", "devices"},
    "judge": {"predict", "devices"},
    "report": {"judge", "predict", "devices"},
    "operate": {"measure", "inspection", "report", "judge", "predict", "devices"},
    "cli": {"terminal", "operate", "measure", "inspection", "report", "judge", "predict", "devices"},
}
"""The rooms of `bench/`, and which other rooms each may import."""


def rooms_imported(path: Path) -> set[str]:
    """Names below `bench` that a file imports, at its top or inside functions."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("bench.")}


@pytest.mark.parametrize("path", modules("bench"), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_arrow_runs_back_up(path: Path) -> None:
    room = path.relative_to(ROOT / "bench").parts[0]
    below = set(GROUND) | {"__version__"}
    if room in ARROWS:
        assert rooms_imported(path) <= below | ARROWS[room] | {room}
    elif path.stem in GROUND:
        assert rooms_imported(path) <= below | {"devices"}


def test_every_room_is_known_and_says_its_question() -> None:
    folders = {p.parent.name: p for p in (ROOT / "bench").glob("*/__init__.py")}
    assert set(folders) == set(ARROWS)
    for name, path in folders.items():
        said = ast.get_docstring(ast.parse(path.read_text()))
        assert said, f"bench/{name}/__init__.py says nothing"
        assert "?" in said, f"bench/{name}/__init__.py asks no question: {said}"


def test_the_ground_is_small() -> None:
    assert len(list((ROOT / "bench").glob("*.py"))) <= 12


@pytest.mark.parametrize("path", modules("bench/inspection/emulator"), ids=lambda p: p.stem)
def test_the_emulator_knows_nothing_of_the_rest_of_bench(path: Path) -> None:
    outside = {name for name in imports(path) if name.startswith("bench.")}
    assert all(name.startswith("bench.inspection.emulator") for name in outside - {"bench.inspection"}), outside


@pytest.mark.parametrize("room", ["judge", "report", "predict"])
def test_judgement_imports_neither_torch_nor_triton(room: str) -> None:
    for path in modules(f"bench/{room}"):
        assert not HEAVY & roots(imports(path)), path


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", modules("kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_never_import_bench(path: Path) -> None:
    assert "bench" not in roots(imports(path))


def test_ops_and_the_contract_need_only_the_standard_library_at_import() -> None:
    files = [
        *(ROOT / "kernels").glob("*/op.py"),
        ROOT / "kernels/op.py",
        *modules("kernels/models"),
        *modules("kernels/model_config"),
    ]
    for path in files:
        outside = roots(imports(path, only_at_import=True)) - set(sys.stdlib_module_names) - {"kernels"}
        assert not outside, f"{path.relative_to(ROOT)} imports {outside}"


@pytest.mark.parametrize("path", modules("bench"), ids=lambda p: str(p.relative_to(ROOT)))
def test_bench_knows_operations_only_through_the_registry(path: Path) -> None:
    """No module of `bench` names an operation's folder; the ceilings' records are read by their op's name."""
    folders = {f"kernels.{p.parent.name}" for p in (ROOT / "kernels").glob("*/op.py")}
    named = {name for name in imports(path) for folder in folders if name == folder or name.startswith(folder + ".")}
    assert not named


def test_report_claims_and_predictions_do_not_load_torch() -> None:
    """In a process where torch and triton can't be imported."""
    names = [f"bench.{name}" for name in LIGHT]
    code = f"""
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {HEAVY!r}:
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Blocker())
for name in {names!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = """
import sys
from bench.cli import main
sys.argv = ['decodebench', '--help']
try:
    main()
except SystemExit as done:
    assert done.code == 0
heavy = {'torch', 'triton', 'pandas', 'numpy', 'matplotlib', 'plotly'} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "decodebench" in done.stdout.lower() or "Usage" in done.stdout


def test_files_fit_in_the_head() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in (*modules("kernels"), *modules("bench"), *modules("tests"))
        if (n := lines(p)) > 400
    }
    assert not long


def lines(path: Path) -> int:
    return path.read_text().count("\n")
