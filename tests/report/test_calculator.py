"""`predict --html`: the page computes what `step` computes, and its sliders move what it shows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench.devices import DEVICES
from bench.errors import BadRequest
from bench.predict.command import even_splits, load_model
from bench.predict.step_model import step
from bench.report import calculator
from tests.support.browser import Browser

CHECKED = ("llama-3.1-70b", "gemma-3-27b", "gpt-oss-20b", "deepseek-v3")
"""Heads in groups, windows, experts, and a latent."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("calculator")
    for name in CHECKED:
        calculator.write(folder / f"{name}.html", name)
    return {name: folder / f"{name}.html" for name in CHECKED}


def settings(name: str, count: int = 60) -> list[dict[str, Any]]:
    rng = random.Random(name)
    shape = load_model(name)[0]
    splits = sorted(set(calculator.PARTS) & set(even_splits(shape)))
    parts = [key for key, spec in DEVICES.items() if spec.memory_bandwidth]
    return [
        {
            "model": name,
            "part": rng.choice(parts),
            "weights": rng.choice(calculator.WEIGHTS),
            "kv": rng.choice(calculator.KV),
            "devices": rng.choice(splits),
            "batch": round(2 ** rng.uniform(0, 12)),
            "context": round(2 ** rng.uniform(0, 17)) % shape.max_context + 1,
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", CHECKED)
def test_the_page_computes_what_python_computes(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    asked = settings(name)
    found = browser.run(f"return {json.dumps(asked)}.map(predict)")
    for setting, page in zip(asked, found, strict=True):
        options = {key: setting[key] for key in ("kv", "devices", "batch", "context")}
        shape, plan, _ = load_model(name, None, setting["weights"])
        expected = step(shape, device=DEVICES[setting["part"]], weights=plan, **options)
        assert page["seconds"] == pytest.approx(expected.seconds, rel=1e-6), setting
        assert page["bound"] == expected.bound
        assert page["weight_bytes"] == expected.weight_bytes
        if expected.max_batch is None:
            assert page["most"] is None
        else:
            assert page["most"] == pytest.approx(expected.max_batch, abs=1, rel=1e-6)
    assert browser.errors() == []


def test_the_sliders_move_what_is_shown(browser: Browser, pages: dict[str, Path]) -> None:
    said = "return ['latency', 'rate', 'cost'].map(id => document.getElementById(id).textContent)"
    move = "form.elements.%s.value = '%s'; form.dispatchEvent(new Event('input')); "
    with browser.screen(390, mobile=True):
        browser.open(pages["llama-3.1-70b"])
        browser.run(move % ("devices", 4))
        latency, rate, cost = browser.run(said)
        small = browser.run(move % ("batch", 0) + said)
        assert small[0] != latency
        assert small[1] != rate
        assert small[2] != cost
        dearer = browser.run(move % ("price", 10) + said)
        assert dearer[:2] == small[:2]
        assert float(dearer[2].strip("$").replace(",", "")) == pytest.approx(4 * float(small[2].strip("$")), rel=0.01)
        assert browser.run(move % ("devices", 1) + said)[2] == "does not fit"
        assert browser.run("return document.querySelectorAll('.curves polyline').length") == 4
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        assert browser.errors() == []


def test_an_amount_that_is_no_such_formula_is_refused() -> None:
    fit = calculator.Fit(shape=load_model("llama-3.1-8b")[0])
    with pytest.raises(ValueError, match="no such formula"):
        fit.solve([batch**2 for batch, _ in fit.settings])


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="did you mean"):
        calculator.write(tmp_path / "x.html", "llama-3.1-7b")
