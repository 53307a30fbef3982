"""README.md, CONTRIBUTING.md and the help name what there is: commands, options, files."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from bench import __version__
from bench.cli import app
from tests.support import ROOT

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
LEAVES: dict[str, Any] = {
    " ".join([name, *more]): found
    for name, command in COMMANDS.items()
    for more, found in ([([sub], each) for sub, each in getattr(command, "commands", {}).items()] or [([], command)])
}
"""Every command that does something: those of a group by both words."""
PAGES = [
    ROOT / "README.md",
    *(ROOT / ".github").rglob("*.md"),
    *(page for part in ("bench", "kernels", "tests", "reports") for page in (ROOT / part).rglob("README.md")),
]
README = (ROOT / "README.md").read_text()
FORMS = [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".pre-commit-config.yaml"]
ROWS = dict(re.findall(r"^\| `decodebench (\w+)(.*)$", README, re.MULTILINE))
"""The README's table of commands: the rest of the line by the command's name."""


def test_the_readme_lists_every_command_and_no_other() -> None:
    assert sorted(ROWS) == sorted(COMMANDS)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_name_files_that_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = {path.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    named = {ROOT / name for name in re.findall(r"\b(?:bench|kernels|tests)/[\w./]+\w", text)}
    assert not [str(file) for file in links | named if not file.exists()]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_in_pages_compiles(path: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL):
        compile(code, str(path), "exec")


def test_the_frame_of_the_readme_is_that_of_a_committed_run() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (committed,) = ROOT.glob("reports/cpu-intel-xeon-processor/*-b07ce18")
    names: dict[str, Any] = {}
    exec(code.replace("reports/<device>/<run>", str(committed)), names)
    assert len(names["frame"]) > 10


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_forms_can_be_read(path: Path) -> None:
    """By a YAML reader if there is one, else by eye: no tab, and spaces in pairs."""
    text = path.read_text()
    assert not [line for line in text.splitlines() if "\t" in line or len(line) - len(line.lstrip()) & 1]
    if importlib.util.find_spec("yaml"):
        import yaml

        content = yaml.safe_load(text)
        ids = [field["id"] for field in content.get("body", []) if field["type"] != "markdown"]
        assert len(set(ids)) == len(ids)
        assert all(field["attributes"]["label"] for field in content.get("body", []))


def test_the_whole_check_goes_through_the_commands_of_the_readme() -> None:
    """They install uv as a machine permits whose system refuses packages (Debian 12, Ubuntu 24.04: PEP 668)."""
    (block,) = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    run, prove = [line.split("#")[0].strip() for line in block.splitlines()]
    install, measure = run.split(" && ")
    check = (ROOT / ".ci/run").read_text().splitlines()
    assert install == "python3 -m pip install -q --target .uv uv"
    assert install in check
    assert any(line.startswith(measure.replace("uv run", "uv run -q")) for line in check)
    assert check[-1] == prove, "its closing line is the last line of the check"
    assert ".uv/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_workflow_is_the_whole_check() -> None:
    assert "run: bash .ci/run\n" in (ROOT / ".github/workflows/check.yml").read_text()
    assert (ROOT / ".ci/run").is_file()


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_has_a_sentence(name: str) -> None:
    command = LEAVES[name]
    assert command.help
    assert not [p.name for p in command.params if len(p.help or "") < 10], "parameters without a sentence"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_names_options_that_exist(name: str) -> None:
    params = [p for leaf, command in LEAVES.items() if leaf.split()[0] == name for p in command.params]
    known = {flag for p in params for flag in (*p.opts, *p.secondary_opts)}
    assert set(re.findall(r"--[\w-]+", ROWS[name])) <= known, "options that the command does not have"


@pytest.mark.parametrize("name", LEAVES)
def test_examples_in_the_help_are_understood(name: str) -> None:
    examples = re.findall(r"^decodebench (.+)$", LEAVES[name].epilog or "", re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        arguments = shlex.split(example.partition(" > ")[0])
        words = len(name.split())
        assert " ".join(arguments[:words]) == name
        LEAVES[name].make_context(name, arguments[words:])  # raises for an option or a value that is unknown


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bench.__version__"}
    command = [sys.executable, "-m", "bench", "--version"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == f"decodebench {__version__}\n"


@pytest.mark.parametrize("package", ["bench", "kernels"])
def test_a_wheel_takes_along_whatever_is_not_python(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"][package]
    packed = {path for pattern in globs for path in (ROOT / package).glob(pattern)}
    files = {p for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".md")}
    assert ROOT / package / "py.typed" in files
    assert files <= packed


def test_hooks_before_a_commit_are_the_style_steps_of_the_whole_check() -> None:
    hooks = re.findall(r"^ +entry: uv run -q (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    steps = re.findall(r"^\.uv/bin/uv run -q ((?:ruff|mypy).*)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert hooks == steps == ["ruff check", "ruff format --check", "mypy"]
