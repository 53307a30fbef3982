"""The files of `fleet render`, held against the schemas of the engines that read them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.operate.fleet import rendering
from kernels.op import SUITES

ASKED: dict[str, Any] = {"nodes": 4, "gpus": 8, "part": "H200", "image": "decodebench:1", "suite": "quick"}

VARIANTS = [
    {**ASKED, "nodes": nodes, "gpus": gpus, "image": image, "suite": suite}
    for nodes, gpus, image, suite in product(
        (1, 4, 128), (0, 1, 8), ("decodebench:latest", "registry.io:5000/a/b@sha256:0f", "1e5"), SUITES
    )
]
"""All suites and numbers, and images whose names YAML reads as something else without quotation marks."""

PARTS = ("H100", "A100-80GB", "RTX6000-Ada", "4090")


def loaded(form: str, **asked: Any) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(rendering.render(form, **{**ASKED, **asked}))


def test_a_task_says_what_was_asked_for() -> None:
    found = loaded("sky")
    assert found["num_nodes"] == 4
    assert found["resources"] == {"accelerators": "H200:8"}
    assert found["run"].split() == ["python3", "-m", "bench", "fleet", "node", "--suite", "quick"]


def test_a_job_says_what_was_asked_for() -> None:
    found = loaded("kubernetes")
    assert found["spec"]["completions"] == 4
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert container["command"] == ["python3", "-m", "bench", "fleet", "node", "--suite", "quick"]


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_jobs_are_what_kubernetes_takes(version: str) -> None:
    """By its OpenAPI schema, in which a field that it does not know is an error."""
    schemas = pytest.importorskip("kubernetes_validate")
    jobs = [loaded("kubernetes", **asked) for asked in VARIANTS]
    for job in jobs:
        assert schemas.validate(job, version, strict=True) == version
    jobs[0]["spec"]["backofLimit"] = 1
    with pytest.raises(schemas.ValidationError, match="backofLimit"):
        schemas.validate(jobs[0], version, strict=True)


def test_an_indexed_job_has_what_its_fields_need() -> None:
    """Rules of the API server that no schema holds: a backoff of each index needs indices and pods that end."""
    for asked in VARIANTS:
        spec = loaded("kubernetes", **asked)["spec"]
        assert spec["completionMode"] == "Indexed"
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert 0 <= spec["maxFailedIndexes"] <= spec["completions"]
        labels = spec["template"]["metadata"]["labels"]
        (apart,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"].popitem()[1]
        assert apart["labelSelector"]["matchLabels"].items() <= labels.items()


def test_tasks_are_what_skypilot_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """By its own reader. SkyPilot is no requirement of the tests: it brings 60 packages. This ran with 0.14.1."""
    sky = pytest.importorskip("sky")
    monkeypatch.chdir(tmp_path)
    for part, asked in product(PARTS, [each for each in VARIANTS if each["gpus"]]):
        task = sky.Task.from_yaml_config(loaded("sky", **{**asked, "part": part}))
        assert task.num_nodes == asked["nodes"]
        (resources,) = task.resources
        assert resources.accelerators == {part: asked["gpus"]}
    with pytest.raises(Exception, match="num_node"):
        sky.Task.from_yaml_config({**loaded("sky"), "num_node": 4})


@pytest.mark.parametrize(
    "changed",
    [
        {"part": "H100: 8"},
        {"part": "H100:8"},
        {"part": ""},
        {"image": 'x: "y"'},
        {"image": "a\nb"},
        {"suite": "fast"},
        {"gpus": 0},
    ],
)
def test_what_would_be_no_file_is_refused(changed: dict[str, Any]) -> None:
    asked = {**ASKED, "image": "registry.io:5000/a/b@sha256:0"}
    assert rendering.render("sky", **asked)
    with pytest.raises(BadRequest):
        rendering.render("sky", **{**asked, **changed})
