"""Whole steps that others published: which figures map, and each time by hand."""

from __future__ import annotations

import pytest

from bench.judge.published import steps


def test_programs_of_the_field_stand_beside_floor_and_expected_time() -> None:
    found = {row["id"]: row for row in steps.rows()}
    assert {"calm", "gpt-fast", "yalm", "MPK megakernel", "HazyResearch megakernel"} <= {
        row["software"] for row in found.values()
    }
    assert all(0 < row["floor"] <= row["expected"] for row in found.values())
    mega, mpk, fast = found["t322"], found["t330"], found["t039"]
    assert mega["seconds"] == pytest.approx(mega["floor"] / 0.78)
    assert mpk["seconds"] == 9.83e-3
    assert (mpk["model"], mpk["part"]) == ("qwen3-8b", "a100-80")
    assert fast["seconds"] == pytest.approx(1 / 168.84)
    assert fast["devices"] == 2
    headers, lines = steps.table([mpk])
    assert lines[0][headers.index("theirs over floor")] == f"{9.83e-3 / mpk['floor']:.2f}"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Llama2 7B", "llama-2-7b"),
        ("Llama-2-70B", "llama-2-70b"),
        ("Mistral-7B-Instruct-v0.2", "mistral-7b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("Llama2 13B", None),
    ],
)
def test_models_by_the_names_of_figures(name: str, key: str | None) -> None:
    assert steps.model_of(name) == key
