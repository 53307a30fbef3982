"""The files for a rented box can be read, and give what the README's commands give."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest

from tests.support import ROOT

BOX = ROOT / "bench" / "operate" / "box"
README = (ROOT / "README.md").read_text()
INSTALL = "python3 -m pip install -q --target .uv uv"


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def faults(text: str) -> list[str]:
    """What hadolint would say, as far as it matters here."""
    found = []
    given = instructions(text)
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ARG", "ENTRYPOINT", "CMD", "LABEL"}
    found += [f"unknown instruction {name}" for name, _ in given if name not in known]
    if not given or given[0][0] != "FROM":
        found.append("begins without FROM")
    for name, rest in given:
        if name == "FROM" and not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", rest):
            found.append(f"base without a version: {rest}")
        if name == "WORKDIR" and not rest.startswith("/"):
            found.append("WORKDIR is relative")
        if name in ("CMD", "ENTRYPOINT") and not re.fullmatch(r'\[\s*"[^"]+"(\s*,\s*"[^"]+")*\s*\]', rest):
            found.append(f"{name} is no list of words")
        if name == "RUN" and "apt-get install" in rest:
            for needed in ("apt-get update", " -y ", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*"):
                if needed not in rest:
                    found.append(f"apt-get install without {needed.strip()}")
        if name == "RUN" and re.search(r"\bsudo\b|curl[^|]*\|", rest):
            found.append("sudo or a piped download")
    if [name for name, _ in given].count("CMD") != 1:
        found.append("needs one CMD")
    return found


DOCKERFILE = (BOX / "Dockerfile").read_text()


def test_the_dockerfile_has_no_fault() -> None:
    assert faults(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("devel-ubuntu24.04", "latest", "base without a version"),
        ("nvidia/cuda:13.0.1-devel-ubuntu24.04", "nvidia/cuda", "base without a version"),
        ("COPY . .", "ADD https://example.com/x.tar.gz .", "unknown instruction ADD"),
        ("apt-get update \\\n && ", "", "without apt-get update"),
        (" && rm -rf /var/lib/apt/lists/*", "", "without rm -rf"),
        ('["decodebench", "doctor", "--fix-hints"]', "[]", "CMD is no list of words"),
        ("WORKDIR /decodebench", "WORKDIR decodebench", "WORKDIR is relative"),
    ],
)
def test_faults_are_found(old: str, new: str, said: str) -> None:
    assert old in DOCKERFILE
    changed = DOCKERFILE.replace("13.0.1-" + old, new) if new == "latest" else DOCKERFILE.replace(old, new)
    assert any(said in fault for fault in faults(changed))


def test_the_image_has_what_kernels_and_counters_need_and_the_readmes_environment() -> None:
    text = " ".join(rest for _, rest in instructions(DOCKERFILE))
    assert {"gcc", "libc6-dev", "python3-dev", "python3-pip", "git"} <= set(text.split())
    assert "cuda-nsight-compute" in text
    assert "devel" in dict(instructions(DOCKERFILE))["FROM"], "peers compile with nvcc"
    assert re.search(r"pip install -q --no-cache-dir --target \.uv uv && \.uv/bin/uv sync", text)
    assert INSTALL in README
    ignored = (BOX / "Dockerfile.dockerignore").read_text().split()
    assert {".uv", ".venv"} <= set(ignored), "the host's environment is not the image's"


def test_cloud_init_has_what_it_needs() -> None:
    text = (BOX / "cloud-init.yaml").read_text()
    assert text.startswith("#cloud-config\n")
    assert not [line for line in text.splitlines() if "\t" in line or len(line) - len(line.lstrip()) & 1]
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert keys == ["package_update", "packages", "write_files", "runcmd"]
    packages = re.findall(r"^  - ([\w.-]+)$", text, re.MULTILINE)
    assert {"gcc", "git", "libc6-dev", "python3-dev", "python3-pip"} <= set(packages)
    assert f"{INSTALL} && .uv/bin/uv sync" in text
    assert "decodebench doctor --fix-hints" in text
    assert "NVreg_RestrictProfilingToAdminUsers=0" in text
    if importlib.util.find_spec("yaml"):
        import yaml

        content: dict[str, Any] = yaml.safe_load(text)
        assert content["package_update"] is True
        assert all(isinstance(command, str) for command in content["runcmd"])
        assert all({"path", "content"} <= set(file) for file in content["write_files"])


def test_the_checklist_keeps_the_order_of_a_first_lease() -> None:
    text = (BOX / "README.md").read_text()
    steps = [
        "doctor --fix-hints",
        "pytest -m cuda",
        "--skip tune --suite quick",
        "report first",
        "tune --op",
        "--suite full",
    ]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert len(text.splitlines()) <= 50, "one page"
