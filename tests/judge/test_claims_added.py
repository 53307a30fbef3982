"""A claim is added by one block in a theme's file, or in a new file, and by no other edit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

IN_A_NEW_THEME = '''"""Claims Z: what drafts save."""

from bench.judge.claims.base import Claim, number
from bench.judge.claims.common import predicted

Z1_SPEEDUP = number("speed-up by drafts", 2, "x")

Z1 = Claim(
    id="Z1",
    text="drafts make decoding 2 times faster",
    plain="Guessing ahead makes writing 2 times faster",
    source="D",
    how="P",
    published=(Z1_SPEEDUP,),
    setting="four guessed tokens",
    predict=lambda: [predicted(Z1_SPEEDUP, 2.9, "tokens a step", tokens=4)],
)
'''

IN_A_THEME = """

H{number}_SIZE = number("memory of the H100", 80e9, "B")


def measure_h{number}(run: MeasuredPart) -> list[Comparison]:
    return require_some([], "size of the memory")


H{number} = Claim(
    id="H{number}",
    text="an H100 has 80 GB",
    plain="An H100 holds 80 GB",
    source="A",
    how="P M",
    published=(H{number}_SIZE,),
    setting="by its datasheet",
    predict=lambda: [predicted(H{number}_SIZE, capacity(find(H100)), "by its datasheet")],
    measure=measure_h{number},
)
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the repository with a claim in a new theme and one more in an old theme; the id of the latter."""
    copy = tmp_path_factory.mktemp("enlarged")
    for name in ("bench", "kernels", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    themes = copy / "bench/judge/claims"
    (themes / "speculation.py").write_text(IN_A_NEW_THEME)
    source = (themes / "hardware.py").read_text()
    number = sum(path.read_text().count('    id="H') for path in themes.glob("*.py")) + 1
    (themes / "hardware.py").write_text(source + IN_A_THEME.format(number=number))
    return copy, f"H{number}"


def test_an_added_claim_is_judged_explained_and_tabled(enlarged: tuple[Path, str]) -> None:
    copy, in_a_theme = enlarged
    verdicts = {v["id"]: v for v in json.loads(run("bench", "claims", "--json", cwd=copy).stdout)}
    order = list(verdicts)
    assert order[-1] == "Z1", "a new letter comes after the old ones"
    before = f"H{int(in_a_theme[1:]) - 1}"
    assert order[order.index(in_a_theme) - 1] == before, "by number in its letter"
    assert (verdicts["Z1"]["status"], verdicts["Z1"]["predicted"][0]["value"]) == ("FAILS", 2.9)
    assert (verdicts[in_a_theme]["status"], verdicts[in_a_theme]["predicted_status"]) == ("NOT MEASURED", "HOLDS")
    assert "drafts make decoding 2 times faster" in run("bench", "claims", "--explain", "z1", cwd=copy).stdout
    rows = run("bench", "claims", cwd=copy).stdout.splitlines()
    assert {row.split()[0] for row in rows if "2.9x" in row or "80 GB" in row} >= {in_a_theme, "Z1"}


def test_the_tests_of_all_claims_hold_for_an_added_one(enlarged: tuple[Path, str]) -> None:
    copy, _ = enlarged
    tests = [f"tests/judge/test_claims{name}.py" for name in ("", "_by_hand", "_words")]
    options = ["-o", "addopts=", "--import-mode=importlib", "--noconftest", "-q", "-k", "not torch"]
    done = run("pytest", *options, *tests, cwd=copy)
    assert done.returncode == 0, done.stdout


def test_two_claims_cannot_have_one_id(enlarged: tuple[Path, str]) -> None:
    copy, _ = enlarged
    twice = copy / "bench/judge/claims/twice.py"
    twice.write_text(IN_A_NEW_THEME)
    done = run("bench", "claims", cwd=copy)
    twice.unlink()
    assert done.returncode != 0
    assert "two claims have the id Z1" in done.stderr
